"""Each production test reports what it broke, how often, and what was lost; `make test-production` prints a table.

def test_a_killed_driver_loses_nothing(outcome):
    …
    outcome("Spark driver killed", times=3, lost=0, of="tables that differ")
"""

from collections.abc import Callable

import pytest

from tests.production.outcomes import Outcome


@pytest.fixture
def outcome(record_property) -> Callable[..., None]:
    """A function that records one row of the table: what was broken, how often, and how many `of` were lost."""

    def note(broken: str, *, times: int, lost: int, of: str) -> None:
        record_property(Outcome.PROPERTY, Outcome(broken, times, lost, of).as_property())

    return note
