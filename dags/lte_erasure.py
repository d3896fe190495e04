"""# lte_erasure
Erases users from every table and from the files that people read. Afterwards no file of the warehouse holds their ids.

**Before:** take the users out of the shop's feed, or the next ingest of their days brings them back. Let a running
`lte_training` end: it read the users already, and may write them into its report after this run has passed there.

**To run:** put the ids into a text file, one a line, where the workers can read it, and trigger this with its path.
The list itself is yours to delete; no log and no note here repeats an id.

| task | erases from |
|---|---|
| erase_… | a table, in the order of the pipeline: what is gone can't be made again from a table that comes later |
| erase_reports | evaluations and reports, and their copies in MLflow |
| erase_data_docs | results of gates that name their rows, and the pages of these |
| erase_online_store | the rows that services read, if the settings name a store |
| list_models | nothing: lists the models that were trained on erased users, and table versions that can't be read now |

**It beats the protection of versions:** old files that name a user go, also where a registered model names their
version. The model's tags in MLflow say so. Train anew, and promote that.

**Not reached from here:** Airflow's own logs, where a gate that failed names the rows that broke its rule, and
backups or object versions of your stores, and the files in which a Redis keeps its past. Their own retention must
end them.

**When it fails:** clear the failed task: it goes on where it stopped, and the accounts of rows add up in the end. A
job that was reading an old version of a table finds its files gone, and is tried again by itself.
"""

from airflow.sdk import DAG, Param, chain

from commands import OWNER, job, pool_of

TABLES = ("events", "quarantine", "lte_snapshots", "lte_live", "training_set", "recommendations")
LIST = "--users '{{ params.users }}'"

with DAG(
    "lte_erasure",
    description="Users out of every table and file, and the models trained on them",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "users": Param(
            type="string",
            pattern="^[^']+$",
            title="List of users",
            description="Path of a text file on the workers, a user id per line",
        )
    },
    default_args=OWNER,
    tags=["lte", "erasure"],
    doc_md=__doc__,
):
    from_tables = [
        job(
            f"erase_{table}",
            f"jobs.erase_users {LIST} --table {table}",
            writes=pool_of(table),
            on_failure="The log names the file or the days. Days whose account is wrong: run their `lte_daily` first.",
        )
        for table in TABLES
    ]
    from_files = [
        job(
            f"erase_{files}",
            f"jobs.erase_users {LIST} --files {files}",
            writes=files,
            on_failure="Are MLflow and the online store up, and may the worker write there? Clear the task.",
        )
        for files in ("reports", "data_docs", "online_store")
    ]
    list_models = job(
        "list_models",
        "jobs.erase_users --models",
        writes="model_registry",
        on_failure="Is MLflow up? Clear the task: the tags that it lists are there.",
    )

    chain(*from_tables, from_files, list_models)
