"""# lte_maintenance

Keeps the tables small and fast to read, with one task per table. Each task waits for the jobs that write its table.

1. **Thins `lte_snapshots`:** keeps every date in the month before logical date D, and of earlier dates those that a
   training reads. Keeps one month of `recommendations`.
2. **Compacts:** rewrites partitions with many small files into fewer files.
3. **Vacuums:** deletes files that no version of the table has needed for a month. A version that a registered model
   names stays readable as long as the model is registered; each task's log lists these versions.

The periods and sizes are in `[maintenance]` of the settings.

**Schedule:** Saturdays, 06:00 UTC. It must run at least every 30 days, or Delta's own clean-up may delete the log of a
version that a model names.

**When it fails:** no rows have changed, and readers still find them. If MLflow doesn't answer, nothing is deleted,
because the protected versions aren't known. Clear the task; work that is done isn't repeated.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, in_utc, job, pool_of

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
    schedule=in_utc("0 6 * * SAT"),
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
