"""# lte_watch

Checks every day at noon UTC whether that day's long-term embeddings are live, and whether a day was missed.

Every other task reports its own failure. But if `lte_daily` didn't run at all (paused, or the scheduler was down at
midnight), or waits or hangs, no task fails: this one does then. `[freshness]` of the settings says how old the live
LTEs may be, and how many days back it looks.

**When it fails** its log names the representation and the days. Look in `lte_daily` for a run that still waits, and
backfill those days. Then clear the task. If the shop has no feed on some days, set `max_age_days` to the longest such
gap.

It can't report a scheduler that is down: watch Airflow's `/api/v2/monitor/health` from elsewhere, or let another
scheduler run the same command.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, gate, in_utc

with DAG(
    "lte_watch",
    description="Whether what is live is of today, and whether a day was missed",
    schedule=in_utc("0 12 * * *"),
    end_date=feed_end(),
    catchup=False,
    max_active_runs=1,
    default_args=OWNER,
    tags=["lte", "watch"],
    doc_md=__doc__,
):
    gate(
        "check_freshness",
        f"jobs.check_freshness --date {DATE}",
        on_failure="The log names the days that are missing. Backfill `lte_daily` over them, then clear this task.",
        pool="freshness",
    )
