"""# lte_basis_change
The first step from one semantic basis to another: fits a new basis on the items known before logical date D, beside the
one in force, makes and publishes its LTEs of D, and measures how far the two say the same.

**Before:** `basis.basis_id` in the settings names the basis in force; with a second one registered, nothing would run
without. `lte_daily` of D has run.

**To run:** trigger it with a logical date; `dimensions` and `text_template` where the new basis differs in them from
the settings. Nothing that is live changes, and no model reads the new basis yet. The map's loss is in MLflow, run
`basis map …`; what it means is in lte_model/README.md.

**What comes next** the last task says, as `python -m lte_model.registry.basis_change status` does at any time:

1. Put the new basis into `basis.beside`: from then on `lte_daily` makes and publishes both.
2. After some days turn the two round: models are trained in the new one. `lte_backfill` makes its past dates at once;
   with the autoencoder it refuses those before the new basis' first encoder, and names the commands that fit one.
3. `lte_training` registers a challenger of the new basis, and `lte_promotion` compares it with the champion on the same
   test users, each with the LTEs of its own basis. It asks that both bases are in force, and that whoever has a live
   LTE in the one has it in the other.
4. The old basis stays in `basis.beside` as long as `previous` reads it: `lte_rollback` goes back to it.
5. Then take it out, and run `lte_basis_retirement`.

**When it fails** what was live still is. The log of the task says what is missing; clear it. The same items and make
give the same basis again, so that a second run writes nothing twice. A new basis that turns out badly is retired too.
"""

from airflow.sdk import DAG, Param

from commands import DATE, OWNER, gate, job, listing

BASIS = "{{ ti.xcom_pull(task_ids='new_basis')[0]['BASIS'] }}"
MAKE = (
    f"--date {DATE}{{% if params.dimensions %}} --dimensions {{{{ params.dimensions }}}}{{% endif %}} "
    "--text-template '{{ params.text_template or \"\" }}'"
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
