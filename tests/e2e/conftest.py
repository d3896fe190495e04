"""One stack on a tiny shop for all tests of a file: it starts once, and each test sees what earlier tests made."""

import datetime
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.local.stack import LocalStack
from infra.runs.airflow_runs import FollowedRuns
from infra.runs.installation import demo_training, make_shop, read_feed, settings_text
from lte_model.domain.windows import ONE_DAY
from lte_model.settings import load_settings
from tests.jobs.conftest import INTERPRETED
from tests.mailbox import Mailbox, mailbox
from tests.repository import REPOSITORY

USERS, ITEMS = 150, 80
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", REPOSITORY / ".lte" / "screenshots"))


@dataclass(frozen=True)
class Installation:
    stack: LocalStack
    progress: FollowedRuns
    mailbox: Mailbox
    first_event: datetime.date
    training_date: datetime.date

    @property
    def settings(self):
        return self.stack.settings


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of an installation for the shop, with its feed and settings."""
    home = tmp_path_factory.mktemp("shop")
    make_shop(home / "source", USERS, ITEMS)
    text = settings_text(
        home / "source", lag_days=30, window_days=365, test_days=30, anchors=2, model=demo_training(epochs=2)
    )
    text += INTERPRETED  # its last table is [spark.conf]
    # A model just large enough to run every step; its metrics mean nothing.
    text += "\n[model]\nwidth = 16\nblocks = 1\n\n[basis]\ndimensions = 16\n"
    (home / "settings.toml").write_text(text, encoding="utf-8")
    load_settings(home / "settings.toml")
    return home


@pytest.fixture(scope="module")
def installation(home: Path) -> Iterator[Installation]:
    feed = read_feed(home / "source" / "events.parquet")
    training_date = feed.last + ONE_DAY
    # A test run that gets SIGTERM must stop its stack.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with mailbox() as box, pytest.MonkeyPatch.context() as environment:
        for name, value in box.environment.items():
            environment.setenv(name, value)
        with LocalStack(home / "settings.toml", feed_end=training_date) as stack:
            yield Installation(stack, FollowedRuns(stack), box, feed.first, training_date)


@pytest.fixture(scope="module")
def screenshots() -> Path:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
