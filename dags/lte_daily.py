"""# lte_daily

The run of logical date D makes the LTEs that may be used on D, and publishes them.

| task | reads | writes |
|---|---|---|
| ingest | the feed: rows that became known on D−1, or on days without a run | `events`, `items`, `quarantine` |
| embed_items | items new to the basis | `item_embeddings` |
| snapshot_lte | the nearest snapshot, and the events between the two dates | `lte_snapshots`, partition D |
| monitor_lte | that snapshot, the one before, the one of the model's training | `lte_monitoring`, `monitoring.html` |
| publish_lte | the rows of users whose LTE may have changed | `lte_live`, `publications` |
| push_lte | the rows of `lte_live` that changed | the online store, if the settings name one |
| check_champion | the champion; one that was promoted by hand must pass the gate | tags of the version |
| score_users | the champion, the LTEs and the newest events of every user | `recommendations`, if there is a champion |

**First** run `lte_bootstrap`, once.

**Backfill** any range of dates, in any order: each run writes the rows of its own date only, and the same rows each
time. An older date never replaces a newer one in `lte_live` or in the online store. To put an older date into the
store, use `python -m jobs.push_lte --date D --allow-older`; the next run of this DAG replaces it. The current champion
scores the dates of a backfill too, with what was known on each date; each row names the model version.

**During a change of basis** (`lte_basis_change`) every task works for each basis in force: `basis.basis_id` and
`basis.beside`. The champion scores with the LTEs of its own basis.

**When a gate fails** later tables are not written, and yesterday's vectors stay live. Its log, and the Data Docs, name
the rule and the rows. Correct the cause, then clear the failed run from the ingest on.

**When `monitor_lte` stops** its log names every measure beyond its bound, and what to do. The page, and the run
`monitoring` in MLflow, show the measure beside earlier dates. If the snapshot is correct all the same, move the bound
in `[monitoring]` of the settings and clear the task. If the measure is of a basis in `basis.beside`, remove that basis
from there. A warning stops nothing: it is in the log and on the page.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, gate, in_utc, job

with DAG(
    "lte_daily",
    description="Ingest a day, embed new items, snapshot and publish the long-term embeddings",
    schedule=in_utc("0 0 * * *"),
    end_date=feed_end(),
    catchup=False,
    max_active_runs=4,
    default_args=OWNER,
    tags=["lte", "daily"],
    doc_md=__doc__,
):
    ingest_items = job(
        "ingest_items",
        f"jobs.ingest_items --date {DATE}",
        writes="quarantine",
        on_failure="The log names the file, and the column or value that doesn't fit. Is today's delivery complete?",
    )
    ingest_events = job(
        "ingest_events",
        f"jobs.ingest_events --date {DATE}",
        writes="quarantine",
        on_failure="The log names the file, and the column or value that doesn't fit. Is today's delivery complete?",
    )
    check_items = gate(
        "check_items",
        f"jobs.quality.check items --date {DATE}",
        on_failure="Correct the items that it lists, then clear `ingest_items`.",
    )
    check_events = gate(
        "check_events",
        f"jobs.quality.check events --date {DATE}",
        on_failure="Table `quarantine` holds each refused row and its reason. Correct the feed, clear `ingest_events`.",
    )
    embed_items = job(
        "embed_items",
        f"jobs.embed_items --date {DATE}",
        writes="item_embeddings",
        on_failure="No basis registered? Run `lte_bootstrap`. Several? Set `basis.basis_id` to the one to use.",
    )
    check_item_embeddings = gate(
        "check_item_embeddings",
        f"jobs.quality.check item_embeddings --date {DATE}",
        on_failure="An item without text, or a vector off the grid. The log lists the items.",
    )
    snapshot_lte = job(
        "snapshot_lte",
        f"jobs.snapshot_lte --date {DATE}",
        writes="lte_snapshots",
        on_failure="A day, or the encoder, is missing? The log names it and the command that makes it. Then clear the "
        "task.",
    )
    check_lte_snapshots = gate(
        "check_lte_snapshots",
        f"jobs.quality.check lte_snapshots --date {DATE}",
        on_failure="The rule on leaks failed? The lag in the settings isn't that of the rows: clear `snapshot_lte`.",
    )
    monitor_lte = gate(
        "monitor_lte",
        f"jobs.monitor_lte --date {DATE}",
        on_failure="The log names each measure beyond its bound. Is MLflow down? See the notes of this DAG.",
        pool="lte_monitoring",
    )
    publish_lte = job(
        "publish_lte",
        f"jobs.publish_lte --date {DATE}",
        writes="lte_live",
        on_failure="The vectors that were live still are. A representation is refused? Its name is in the log. Clear "
        "the task.",
    )
    push_lte = job(
        "push_lte",
        f"jobs.push_lte --date {DATE}",
        writes="online_store",
        on_failure="Readers find the rows that the store had, or some of them new. Is it up? Clear the task: it goes "
        "on.",
    )
    check_champion = gate(
        "check_champion",
        "lte_model.registry.promotion watch",
        on_failure="Somebody made a version champion that does not pass the gate? Run `lte_rollback`, or ask who it "
        "was. Its "
        "basis isn't in force? The log says what to do.",
        pool="model_registry",
    )

    score_users = job(
        "score_users",
        f"jobs.score_users --date {DATE} --if-champion",
        writes="recommendations",
        on_failure="The champion reads other LTEs than these? The log names both: promote a model of these. Clear the "
        "task.",
    )
    check_recommendations = gate(
        "check_recommendations",
        f"jobs.quality.check recommendations --date {DATE}",
        on_failure="Don't send what it lists. Clear `score_users`; if it fails again, roll the champion back.",
    )

    ingest_items >> check_items
    ingest_events >> check_events
    [check_items, check_events] >> embed_items >> check_item_embeddings
    check_item_embeddings >> snapshot_lte >> check_lte_snapshots >> monitor_lte >> publish_lte
    publish_lte >> [push_lte, check_champion]
    check_champion >> score_users >> check_recommendations
