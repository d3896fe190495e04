"""The quality gate of one table and date: exits with 2 if a rule is broken, and names the rule and the rows.

    python -m jobs.quality.check lte_snapshots --date 2024-12-30
    python -m jobs.quality.check lte_snapshots --from 2024-01-01 --to 2025-01-01 --every 7

A range runs one gate per date, oldest first, and stops at the first broken one; memory holds one date at a time.
Every run's results are kept as JSON and as a page of the Data Docs. The gate needs no JVM.
"""

import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

import great_expectations as gx
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.core import ExpectationSuiteValidationResult
from great_expectations.data_context import AbstractDataContext
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
)

from jobs.quality.data_docs import VIEW
from jobs.quality.pages import write_gates_page
from jobs.quality.suites.by_table import SUITES
from jobs.quality.suites.rules import CheckedRows
from lte_model.command_line import CommandParser, run
from lte_model.domain.windows import parse_date
from lte_model.errors import LTEError
from lte_model.settings import Settings

SITE = "data_docs"
RESULTS, PAGES = "results", "site"
"""The folders of the JSON results and of the pages, in `data_docs`."""

ROWS_SHOWN = 5

WITH_ANCHORS = ("item_encodings", "lte_snapshots", "item_popularity")
"""The tables in which a training reads several dates."""

WITH_BASES = ("item_embeddings", "item_encodings", "lte_snapshots")
"""The tables in which `--basis` can check a basis that isn't in force yet."""


def context_of(settings: Settings) -> AbstractDataContext:
    """A context with suites in memory, because the code defines them, and with results and pages on disk."""

    def folder(name: str) -> dict[str, str]:
        return {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(Path(settings.data_docs, name)),
        }

    defaults = InMemoryStoreBackendDefaults()
    defaults.stores[defaults.validation_results_store_name]["store_backend"] = folder(RESULTS)
    config = DataContextConfig(store_backend_defaults=defaults, analytics_enabled=False)
    # GX reads a dictionary here, although it declares another type.
    config.progress_bars = {"globally": False}  # type: ignore[assignment]
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.add_data_docs_site(
        SITE,
        {
            "class_name": "SiteBuilder",
            "store_backend": folder(PAGES),
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            # GX reads this key, although its type of a site's configuration doesn't list it.
            "site_section_builders": {"validations": {"view": VIEW}},  # type: ignore[typeddict-unknown-key]
        },
    )
    return context


def validate(context: AbstractDataContext, batch: CheckedRows, date: datetime.date) -> ExpectationSuiteValidationResult:
    """Checks the batch's rules, and writes the result to disk and the Data Docs. A broken rule names its rows."""
    rows = batch.rows.collect(engine="streaming").to_pandas()
    definition = (
        context.data_sources.add_pandas(batch.name)
        .add_dataframe_asset(batch.name)
        .add_batch_definition_whole_dataframe(batch.name)
    )
    suite = context.suites.add(gx.ExpectationSuite(name=batch.name, expectations=list(batch.rules)))
    validation = context.validation_definitions.add(
        gx.ValidationDefinition(name=batch.name, data=definition, suite=suite)
    )

    def checkpoint(result_format: dict[str, object]) -> ExpectationSuiteValidationResult:
        pages = UpdateDataDocsAction(name="pages", site_names=[SITE])
        definition = gx.Checkpoint(
            name=batch.name, validation_definitions=[validation], actions=[pages], result_format=result_format
        )
        outcome = context.checkpoints.add_or_update(definition).run(
            batch_parameters={"dataframe": rows}, run_id=gx.RunIdentifier(run_name=f"{batch.name} {date}")
        )
        return next(iter(outcome.run_results.values()))

    result = checkpoint({"result_format": "BOOLEAN_ONLY"})
    if result.success:
        return result
    return checkpoint(
        {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": list(batch.keys),
            "partial_unexpected_count": ROWS_SHOWN,
        }
    )


def broken_rules(batch: CheckedRows, result: ExpectationSuiteValidationResult) -> list[str]:
    """A line for each rule that doesn't hold: the rule, how many rows break it, and the first of them."""
    lines = []
    for rule in result.results:
        if rule.success:
            continue
        config = rule.expectation_config
        arguments = {
            key: value
            for key, value in (config.kwargs if config else {}).items()
            if key not in ("batch_id", "result_format") and value is not None
        }
        found = rule.result
        if "unexpected_count" in found:
            rows = (found.get("unexpected_index_list") or found.get("partial_unexpected_list") or [])[:ROWS_SHOWN]
            first = "; ".join(_written(row) for row in rows)
            detail = f"{found['unexpected_count']:,} of {found['element_count']:,} rows, first: {first}"
        elif "observed_value" in found:
            detail = f"observed {found['observed_value']}"
        else:
            detail = f"could not be checked: {rule.exception_info}"
        lines.append(f"{batch.name}: {config.type if config else ''} {json.dumps(arguments, default=str)}: {detail}")
    return lines


def _written(row: object) -> str:
    """A row of a result, or a single value, as text for the log."""
    if not isinstance(row, dict):
        return str(row)
    return ", ".join(f"{column}={str(value).removesuffix(' 00:00:00')}" for column, value in row.items())


def check(settings: Settings, table: str, batches: Sequence[CheckedRows], date: datetime.date) -> None:
    """Runs the gate. Raises `LTEError` if a rule is broken."""
    if not batches:
        print(f"gate {table} of {date}: nothing to check: the settings, or the registered models, have no need of it")
        return
    context = context_of(settings)
    broken: list[str] = []
    rules = 0
    for batch in batches:
        broken += broken_rules(batch, validate(context, batch, date))
        rules += len(batch.rules)
    page = write_gates_page(Path(settings.data_docs, RESULTS), Path(settings.data_docs, PAGES))
    for line in broken:
        print(f"BROKEN {line}")
    if broken:
        raise LTEError(
            f"gate {table} of {date}: {len(broken)} of {rules} rules are broken, the first: {broken[0][:300]}; "
            f"nothing after this table was written. See {page}, mend the source and run the day again"
        )
    print(f"gate {table} of {date}: {rules} rules hold in {len(batches)} batches; {page}")


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser(__doc__, "the date of the run whose rows are checked", ranges=True)
    parser.add_argument("table", choices=sorted(SUITES))
    parser.add_argument("--since", help="events: check every day from this one up to --date")
    parser.add_argument(
        "--anchors", action="store_true", help=f"{', '.join(WITH_ANCHORS)}: check what the training of --date reads"
    )
    parser.add_bases(f"{', '.join(WITH_BASES)}: check this basis")
    parser.add_argument("--test", help="test_measurements: the name of the test")
    arguments, settings, dates = parser.read_dates()
    if arguments.start and arguments.table != "lte_snapshots":
        raise LTEError(f"a range is for the gate of lte_snapshots; give --date to check {arguments.table}")
    if arguments.start and arguments.anchors:
        raise LTEError("--anchors are those of one training; give --date, not a range")
    if bool(arguments.test) != (arguments.table == "test_measurements"):
        raise LTEError("--test names an online test: give it for test_measurements, and for no other table")
    if arguments.bases and arguments.table not in WITH_BASES:
        raise LTEError(f"--basis is for {', '.join(WITH_BASES)}; the gate of {arguments.table} has no basis to choose")
    options: dict[str, object] = {}
    if arguments.table == "events":
        options["since"] = parse_date(arguments.since) if arguments.since else None
    if arguments.table in WITH_ANCHORS:
        options["anchors"] = arguments.anchors
    if arguments.table in WITH_BASES:
        options["asked"] = arguments.bases or ()
    if arguments.table == "test_measurements":
        options["test"] = arguments.test
    for date in dates:
        check(settings, arguments.table, SUITES[arguments.table](settings, date, **options), date)


if __name__ == "__main__":
    run(main)
