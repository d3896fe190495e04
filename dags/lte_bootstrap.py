"""# lte_bootstrap

Loads the history, fits the semantic basis and embeds the catalogue. Run it once, on a new warehouse.

**To run:** trigger it with the logical date from which `lte_daily` takes over, and with `since`: the first day of the
feed. It reads the events that became known in [since, logical date).

**If it is run again** it writes the same rows. A basis with the same specification is registered once; a new
specification gets a new `basis_id` beside the old one.

**When a gate fails:** open its log, or the Data Docs; both name the rule and the rows. Correct the feed, or the
share of bad rows that the settings allow (`[gates]`), then clear the ingest.
"""

from airflow.sdk import DAG, Param

from commands import DATE, OWNER, gate, job

with DAG(
    "lte_bootstrap",
    description="History, semantic basis and catalogue of a new warehouse",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "since": Param(
            type="string",
            format="date",
            title="Since",
            description="The first day of the feed, YYYY-MM-DD",
        )
    },
    default_args=OWNER,
    tags=["lte", "setup"],
    doc_md=__doc__,
):
    ingest_items = job(
        "ingest_items",
        f"jobs.ingest_items --date {DATE}",
        writes="quarantine",
        on_failure="The log names the file, and the column or value that doesn't fit. Is `sources.items` right?",
    )
    check_items = gate(
        "check_items",
        f"jobs.quality.check items --date {DATE}",
        on_failure="Correct the items that it lists, then clear `ingest_items`.",
    )
    ingest_events = job(
        "ingest_events",
        f"jobs.ingest_events --date {DATE} --since {{{{ params.since }}}}",
        writes="quarantine",
        on_failure="The log names the file, and the column or value that doesn't fit. Is `sources.events` right?",
    )
    check_events = gate(
        "check_events",
        f"jobs.quality.check events --date {DATE} --since {{{{ params.since }}}}",
        on_failure="Table `quarantine` holds each refused row and its reason. Correct the feed, clear `ingest_events`.",
    )
    fit_basis = job(
        "fit_basis",
        f"jobs.fit_basis --date {DATE}",
        writes="semantic_bases",
        on_failure="Nothing is registered unless all of it is. Too few items for `basis.dimensions`? Lower it.",
    )
    embed_items = job(
        "embed_items",
        f"jobs.embed_items --date {DATE}",
        writes="item_embeddings",
        on_failure="Several bases registered? Set `basis.basis_id` to the one to use.",
    )
    check_item_embeddings = gate(
        "check_item_embeddings",
        f"jobs.quality.check item_embeddings --date {DATE}",
        on_failure="An item without text, or a vector off the grid. The log lists the items.",
    )

    ingest_items >> check_items >> fit_basis
    ingest_events >> check_events
    [fit_basis, check_events] >> embed_items >> check_item_embeddings
