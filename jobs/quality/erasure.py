"""Erases users from the gates' files: results that name rows which broke a rule, and the pages of these results.

A result that names a user is deleted whole, with its page, because its counts include the user's rows. The next run of
the gate checks the rows that are left in the table.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from jobs.quality.pages import PAGE, write_gates_page
from lte_model.files import UNFINISHED
from lte_model.settings import Settings

RESULTS, PAGES, PAGES_OF_RESULTS = "results", "site", "site/validations"
"""The folders in `data_docs` of the results, of all pages, and of the pages of single results."""


def erase_from_gates(settings: Settings, user_ids: frozenset[str]) -> list[str]:
    """Deletes the results that name one of the users; returns the deleted files."""
    results, site = Path(settings.data_docs, RESULTS), Path(settings.data_docs, PAGES)
    gone = []
    for file in sorted(results.rglob("*.json")):
        if _result_names(file, user_ids):
            page = Path(settings.data_docs, PAGES_OF_RESULTS, file.relative_to(results)).with_suffix(".html")
            # The page goes first: after a kill, no page is left without its result.
            gone += [str(path) for path in (page, file) if path.exists()]
            page.unlink(missing_ok=True)
            file.unlink()
    if site.is_dir():
        Path(site, f"{PAGE}{UNFINISHED}").unlink(missing_ok=True)
        write_gates_page(results, site)
    if gone:
        _write_index(settings)
    return gone


def _result_names(file: Path, user_ids: frozenset[str]) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return _names(json.loads(text), user_ids)
    except ValueError:  # cut off by a kill
        return any(json.dumps(user_id)[:-1] in text for user_id in user_ids)


def _names(value: object, user_ids: frozenset[str]) -> bool:
    """Whether any text in a result equals an id, or an exception's text contains one."""
    if isinstance(value, dict):
        said = list(_texts(value.get("exception_info")))
        return any(user_id in text for text in said for user_id in user_ids) or any(
            _names(inner, user_ids) for inner in value.values()
        )
    if isinstance(value, list):
        return any(_names(inner, user_ids) for inner in value)
    return isinstance(value, str) and value in user_ids


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _write_index(settings: Settings) -> None:
    """Writes Great Expectations' index anew, without links to deleted pages."""
    from jobs.quality.check import SITE, context_of  # its imports take seconds, and few erasures need them

    context_of(settings).build_data_docs(site_names=[SITE], resource_identifiers=[])
