"""# lte_basis_change

The first step of a change of semantic basis. It fits a new basis on the items known before logical date D, beside the
basis in force, makes and publishes its LTEs of D, and measures how well the LTEs of the two bases agree.

**Before:** set `basis.basis_id` in the settings to the basis in force: once a second basis is registered, nothing runs
without it. `lte_daily` of D must have run.

**To run:** trigger it with a logical date. Give `dimensions` and `text_template` if the new basis differs in them from
the settings. The live LTEs don't change, and no model reads the new basis yet. MLflow has the map's loss in run
`basis map …`; lte_model/registry/BASIS_CHANGE.md explains it.

**What comes next:** the last task prints the next step, as does `python -m lte_model.registry.basis_change status`:

1. Add the new basis to `basis.beside`: from then on `lte_daily` makes and publishes both.
2. After some days swap the two, so that models are trained in the new basis. `lte_backfill` makes its past dates at
   once. With the autoencoder it refuses dates before the new basis' first encoder, and names the commands that fit one.
3. `lte_training` registers a challenger of the new basis, and `lte_promotion` compares it with the champion on the same
   test users, each with the LTEs of its own basis. Both bases must be in force, and have live LTEs for the same users.
4. Keep the old basis in `basis.beside` as long as `previous` reads it, so that `lte_rollback` can go back to it.
5. Then remove it from the settings, and run `lte_basis_retirement`.

**When it fails:** the live LTEs have not changed. The task's log says what is missing; correct it and clear the task.
The same items and options give the same basis, so that a second run writes nothing twice. Retire a new basis that turns
out badly with `lte_basis_retirement`.
"""

from airflow.sdk import DAG, Param

from commands import DATE, OWNER, gate, job, listing

BASIS = "{{ ti.xcom_pull(task_ids='new_basis')[0]['BASIS'] }}"
MAKE = (
    f"--date {DATE}{{% if params.dimensions %}} --dimensions {{{{ params.dimensions }}}}{{% endif %}} "
    "--text-template='{{ params.text_template or \"\" }}'"
)
OF_BASIS = f"--date {DATE} --basis {BASIS}"

with DAG(
    "lte_basis_change",
    description="A new semantic basis beside the one in force, its LTEs, and the map between the two",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "dimensions": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            title="Dimensions",
            description="Of the new basis; those of the settings if empty",
        ),
        "text_template": Param(
            None,
            type=["null", "string"],
            pattern="^[^']*$",
            title="Text template",
            description="Of the new basis, such as {title} {brand}; that of the settings if empty",
        ),
    },
    default_args=OWNER,
    tags=["lte", "basis"],
    doc_md=__doc__,
):
    fit_basis = job(
        "fit_basis",
        f"jobs.fit_basis {MAKE} --refit",
        writes="semantic_bases",
        on_failure="Set `basis.basis_id` first? The same basis again? The log says so. Nothing was registered.",
    )
    new_basis = listing(
        "new_basis",
        f"lte_model.registry.basis_change fitted {MAKE}",
        on_failure="The log says which basis it looked for. Clear `fit_basis`.",
        pool="model_registry",
    )
    embed_items = job(
        "embed_items",
        f"jobs.embed_items {OF_BASIS}",
        writes="item_embeddings",
        on_failure="The log names the basis. Clear the task: vectors that are there stay.",
    )
    check_item_embeddings = gate(
        "check_item_embeddings",
        f"jobs.quality.check item_embeddings {OF_BASIS}",
        on_failure="Items of whose words the new basis knows none: give it a template with more text, and run this "
        "again.",
    )
    fit_encoder = job(
        "fit_encoder",
        f"lte_model.training.autoencoder {OF_BASIS} --if-read",
        writes="checkpoints",
        on_failure="The log names what it lacks. Clear the task: an encoder that is there stays.",
    )
    encode_items = job(
        "encode_items",
        f"jobs.encode_items {OF_BASIS} --if-read",
        writes="item_encodings",
        on_failure="Another encoder of the same date is in the table? It stays: snapshots were made with it.",
    )
    check_item_encodings = gate(
        "check_item_encodings",
        f"jobs.quality.check item_encodings {OF_BASIS}",
        on_failure="A vector off the grid, or of an item without content. The log names the items.",
    )
    snapshot_lte = job(
        "snapshot_lte",
        f"jobs.snapshot_lte {OF_BASIS}",
        writes="lte_snapshots",
        on_failure="A day is missing? The log names it and the command that ingests it. Then clear the task.",
    )
    check_lte_snapshots = gate(
        "check_lte_snapshots",
        f"jobs.quality.check lte_snapshots {OF_BASIS}",
        on_failure="The log names the rule and the rows. Clear `snapshot_lte`.",
    )
    monitor_lte = gate(
        "monitor_lte",
        f"jobs.monitor_lte {OF_BASIS}",
        on_failure="The log names each measure beyond its bound; see the notes of `lte_daily`.",
        pool="lte_monitoring",
    )
    publish_lte = job(
        "publish_lte",
        f"jobs.publish_lte {OF_BASIS}",
        writes="lte_live",
        on_failure="What was live still is. Clear the task.",
    )
    push_lte = job(
        "push_lte",
        f"jobs.push_lte {OF_BASIS}",
        writes="online_store",
        on_failure="Readers find the rows that the store had. Is it up? Clear the task: it goes on.",
    )
    map_bases = job(
        "map_bases",
        f"lte_model.registry.basis_map --to {BASIS} --date {DATE}",
        writes="checkpoints",
        on_failure="No LTE of the date in the basis in force? Run `lte_daily` for it, then clear the task.",
    )
    status = gate(
        "status",
        "lte_model.registry.basis_change status",
        on_failure="An alias reads a basis that isn't in force: the log names both, and what to do.",
        pool="model_registry",
    )

    (
        fit_basis
        >> new_basis
        >> embed_items
        >> check_item_embeddings
        >> fit_encoder
        >> encode_items
        >> check_item_encodings
    )
    check_item_encodings >> snapshot_lte >> check_lte_snapshots >> monitor_lte >> publish_lte >> push_lte >> status
    check_lte_snapshots >> map_bases >> status
