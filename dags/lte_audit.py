"""# lte_audit

Recomputes the long-term embeddings of one user in a hundred from the raw tables, and compares them, number by number,
with the snapshot of logical date D and with the live LTEs. The audit passes only with 0 mismatched, 0 missing and 0
extra. It covers the exact representations, `uniform` and `autoencoder`; the log names the weighted ones that it skips.

**Schedule:** Mondays, 06:00 UTC, when `lte_daily` has published that day's LTEs; or trigger it with a logical date for
which `lte_daily` has run. Each date samples different users. Table `lte_audits` keeps the counts.

**When it fails** with differences, the log names the first users and what differs. Either rows were changed by hand, or
events, items or vectors were changed after the snapshot was made. If only `lte_snapshots` is wrong, look at the
snapshot's job; if only `lte_live` is wrong, look at publishing. Find the cause before you rerun anything: a new
snapshot hides it. Then clear `snapshot_lte` in the run of `lte_daily` of D, and this task.

**When it fails** because there is no LTE of D, `lte_daily` has not run: see its notes.
"""

from airflow.sdk import DAG

from commands import DATE, OWNER, feed_end, gate, in_utc

with DAG(
    "lte_audit",
    description="A sample of the snapshot and of what is live, recomputed from the raw tables",
    schedule=in_utc("0 6 * * MON"),
    end_date=feed_end(),
    catchup=False,
    max_active_runs=1,
    default_args=OWNER,
    tags=["lte", "audit"],
    doc_md=__doc__,
):
    gate(
        "audit_snapshot",
        f"jobs.audit_lte --date {DATE}",
        on_failure="The log names the first users. See the notes of this DAG before anything is made again.",
        pool="lte_audits",
    )
    gate(
        "audit_live",
        f"jobs.audit_lte --date {DATE} --live",
        on_failure="A later date is live? Audit that one. Else the log names the first users: see the notes of the "
        "DAG.",
        pool="lte_audits",
    )
