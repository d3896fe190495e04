"""# lte_erasure

Erases users from every table and from the files that people read. Afterwards no file of the warehouse holds their ids.

**Before:** remove the users from the shop's feed, or the next ingest of their days brings them back. Wait until a
running `lte_training` has ended: it has read the users already, and may still write them into its report.

**To run:** put the ids into a text file, one a line, where the workers can read it, and trigger this with its path.
Delete that file yourself afterwards; no log and no note here repeats an id.

| task | erases from |
|---|---|
| erase_… | a table, in the order of the pipeline, so that no job rebuilds erased rows from an earlier table |
| erase_reports | evaluations and reports, and their copies in MLflow |
| erase_data_docs | results of gates that name the users' rows, and the pages of those results |
| erase_online_store | the rows that services read, if the settings name a store |
| list_models | nothing: lists the models that were trained on erased users, and table versions that can't be read now |

**It overrides the protection of versions:** old files that name a user are deleted even if a registered model names
their version. The model's tags in MLflow say so. Train a new model, and promote that.

**Not reached from here:** Airflow's own logs, in which a failed gate names the rows that broke its rule; backups and
object versions of your stores; the persistence files of a Redis. Their own retention must remove them.

**When it fails:** clear the failed task: it resumes where it stopped, and the row counts agree in the end. A job that
was reading an old version of a table finds its files gone; Airflow retries it.
"""

from airflow.sdk import DAG, Param, chain

from commands import OWNER, job, pool_of

TABLES = ("events", "quarantine", "lte_snapshots", "lte_live", "training_set", "recommendations")
LIST = "--users='{{ params.users }}'"

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
