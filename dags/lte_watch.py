"""# lte_watch
Looks, at noon UTC of every day, whether the long-term embeddings of that day are live, and whether a day was missed.

Every other task tells of itself when it fails. A day on which `lte_daily` did not run at all, because somebody paused
it or the scheduler was down over midnight, or on which it waits or hangs, has no failed task: this one fails then. How
old what is live may be, and how many days back are looked at: `[freshness]` of the settings.

**When it fails** its log names the representation and the days. Backfill those days of `lte_daily`; look there for a
run that still waits. Then clear the task. The shop has no feed on some days? Then `max_age_days` is the longest such
time.

It can't tell of a scheduler that is down: watch Airflow's `/api/v2/monitor/health` from elsewhere, or let another clock
run the same command.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, gate

with DAG(
    "lte_watch",
    description="Whether what is live is of today, and whether a day was missed",
    schedule="0 12 * * *",
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
