"""# lte_backfill

Makes the snapshots of a range of past dates in one job. Use it before a new training or a study, or after the lag has
changed.

**To run:** trigger it with the first date, the day after the last, and the step in days: 1 for every date, 7 for one
date a week. One pass over the events serves all dates, so that a long range costs little more than a short one. The
basis must be registered and the feed's days ingested, by `lte_bootstrap` or `lte_daily`.

**What it leaves alone:** `lte_live`, and the snapshots of all other dates. A snapshot made here equals the one that
`lte_daily` makes for the date, bit for bit. It is therefore safe to run beside `lte_daily`, and to run again.

**To make up for days that were not ingested** backfill `lte_daily` instead: it ingests before it averages.

**When it fails:** the task's log names the parameter, the missing day, or the date that broke a rule. This DAG
publishes nothing, so there is nothing to revert: correct the cause and clear the task.
"""

from airflow.sdk import DAG, Param

from commands import OWNER, gate, job

RANGE = "--from {{ params.from }} --to {{ params.to }} --every {{ params.step }}"

with DAG(
    "lte_backfill",
    description="The snapshots of a range of past dates, in one pass over the events",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "from": Param(
            type="string",
            format="date",
            title="From",
            description="The first snapshot date, YYYY-MM-DD",
        ),
        "to": Param(
            type="string",
            format="date",
            title="To",
            description="The day after the last snapshot date, YYYY-MM-DD; today at most",
        ),
        "step": Param(
            1,
            type="integer",
            minimum=1,
            title="Step",
            description="Days from one snapshot date to the next",
        ),
    },
    default_args=OWNER,
    tags=["lte", "backfill"],
    doc_md=__doc__,
):
    snapshot_range = job(
        "snapshot_range",
        f"jobs.snapshot_lte {RANGE}",
        writes="lte_snapshots",
        on_failure="No date in the range? `From` lies before `To`. A day is missing? Backfill `lte_daily` over it. No "
        "encoder "
        "of a date? Begin the range later, or run the commands that the log names.",
    )
    check_lte_snapshots = gate(
        "check_lte_snapshots",
        f"jobs.quality.check lte_snapshots {RANGE}",
        on_failure="The log names the date. A date without rows has no event old enough: begin the range later.",
    )

    snapshot_range >> check_lte_snapshots
