"""# lte_backfill
Makes the snapshots of a range of past dates in one job: what a new training, a study or a changed lag needs.

**To run:** trigger it with the first date, the day after the last, and the days from one date to the next: 1 for every
date, 7 for a date a week. One pass over the events serves them all, so that a long range costs little more than a
short one. The basis must be registered and the days of the feed ingested, by `lte_bootstrap` or `lte_daily`.

**What it leaves alone:** `lte_live`, and the snapshots of all other dates. A snapshot made here is the one that
`lte_daily` makes of the date, bit for bit; so it may run beside it, and again, over the same dates or others.

**To make up for days that were not ingested** backfill `lte_daily` instead: it ingests before it averages.

**When it fails:** the log of the task names the parameter, the day that is missing or the date that broke a rule.
Nothing is live from here, so there is nothing to take back: correct the cause and clear the task.
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
