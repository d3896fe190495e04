"""# lte_maintenance
Keeps the tables small and fast to read, one task a table; each waits for the jobs that write its table.

1. **Thins `lte_snapshots`:** daily for a month before logical date D, before that the dates that a training reads;
   and `recommendations`, of which a month stays.
2. **Compacts:** partitions with many small files are written anew, in fewer.
3. **Vacuums:** deletes files that no version of the table has needed for a month. A version that a registered model
   names can be read as long as the model is registered; the log of each task lists them.

The periods and sizes are in `[maintenance]` of the settings. **Schedule:** Saturdays, 06:00 UTC; at least every 30
days, or Delta's own cleaning may take the log of a version that a model names.

**When it fails:** rows are as they were, and readers find them. MLflow must answer, or nothing is deleted: what it
names isn't known then. Clear the task; what was done already isn't done again.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, job, pool_of

TABLES = (
    "events",
    "items",
    "quarantine",
    "ingested_days",
    "semantic_bases",
    "item_embeddings",
    "item_encodings",
    "lte_snapshots",
    "snapshot_accounts",
    "lte_live",
    "publications",
    "lte_audits",
    "lte_monitoring",
    "item_popularity",
    "training_set",
    "recommendations",
    "test_measurements",
    "test_accounts",
)

with DAG(
    "lte_maintenance",
    description="Thin, compact and vacuum the tables",
    schedule="0 6 * * SAT",
    end_date=feed_end(),
    catchup=False,
    max_active_runs=1,
    default_args=OWNER,
    tags=["lte", "maintenance"],
    doc_md=__doc__,
):
    for table in TABLES:
        job(
            f"maintain_{table}",
            f"jobs.maintain_tables --date {DATE} --table {table}",
            writes=pool_of(table),
            on_failure="The rows are as they were. Is MLflow up? Clear the task.",
        )
