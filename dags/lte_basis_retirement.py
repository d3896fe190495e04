"""# lte_basis_retirement

The last step of a change of semantic basis: removes the LTEs and vectors of a basis that nothing reads any more.
Trigger it with the id of the basis.

**Refused** while an alias of the registry (champion, previous, challenger) has a version that reads the basis, or while
`[basis]` of the settings names it. `check_released` says which, and what to do; each later task checks again.

| task | removes |
|---|---|
| retire_lte_live | the live LTEs, and their publications |
| retire_online_store | the rows and views that services read, if the settings name a store |
| retire_lte_snapshots | the snapshots and their accounts |
| retire_item_encodings, retire_item_embeddings | the items' vectors |

The basis itself stays registered: if the settings name it again, the same vectors are made again, and `lte_backfill`
makes the same snapshots. `lte_maintenance` frees the disk space, except for versions that a registered model names.

**When it fails:** clear the failed task: it resumes where it stopped.
"""

from airflow.sdk import DAG, Param, chain

from commands import OWNER, gate, job, pool_of

BASIS = "--basis {{ params.basis }}"
TABLES = ("lte_snapshots", "item_encodings", "item_embeddings")

with DAG(
    "lte_basis_retirement",
    description="Removes the LTEs and item vectors of a basis that no model in use reads",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "basis": Param(
            type="string",
            pattern="^[0-9a-f]{16}$",
            title="Basis",
            description="The id of the basis to retire, 16 hexadecimal digits",
        )
    },
    default_args=OWNER,
    tags=["lte", "basis"],
    doc_md=__doc__,
):
    check_released = gate(
        "check_released",
        f"lte_model.registry.basis_change release {BASIS}",
        on_failure="The log says who still reads the basis, and how that ends. Nothing was removed.",
        pool="model_registry",
    )
    live, *rest = (
        job(
            f"retire_{table}",
            f"jobs.retire_basis {BASIS} --table {table}",
            writes=pool_of(table),
            on_failure="Somebody took the basis back meanwhile? The log says so. Else clear the task.",
        )
        for table in ("lte_live", *TABLES)
    )
    online_store = job(
        "retire_online_store",
        f"jobs.retire_basis {BASIS} --files online_store",
        writes="online_store",
        on_failure="Is the store up? Clear the task.",
    )

    chain(check_released, live, online_store, *rest)
