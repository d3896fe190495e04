"""# lte_ablation

Measures which parts of the model improve it. The run of logical date D trains variants of the model (representations,
integrations, sequence policies, lengths), each with several seeds, on the training set of D. It compares them on the
same test users and writes a report with the paper's table beside ours.

**Before:** run `lte_training` for the same logical date. It makes the training set and counts popularity.

**To run:** trigger it with that logical date. `variants` are names from `lte_model/studies/variants.py`, separated by
commas; empty means all. Each variant is trained with the seeds 0, 1, … The pool `gpu` lets one training run at a time.

**A training that was killed** resumes from its last checkpoint, and a finished one isn't repeated: a second run with
more variants or seeds trains only the new ones.

**When it fails:** the task's log names the variant and what it lacks. Clear the failed tasks; the report runs when all
trainings have succeeded. This DAG changes neither the champion, nor the challenger, nor the live LTEs.
"""

from airflow.sdk import DAG, Param, chain

from commands import DATE, OWNER, gate, job, job_for_each, listing, pool_of

REPRESENTATIONS = " ".join(
    f"--representation {name}" for name in ("uniform", "recency", "inverse_popularity", "autoencoder", "leaking")
)
CHOSEN = "--variants='{{ params.variants }}' --seeds {{ params.seeds }}"

with DAG(
    "lte_ablation",
    description="Every variant of the model with several seeds, compared on the same users",
    schedule=None,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params={
        "variants": Param(
            "",
            type="string",
            pattern="^[a-z0-9_@,]*$",
            title="Variants",
            description="Their names, with commas; empty for all",
        ),
        "seeds": Param(
            3,
            type="integer",
            minimum=1,
            maximum=20,
            title="Seeds",
            description="How often each variant is trained",
        ),
    },
    default_args=OWNER,
    tags=["lte", "ablation", "training"],
    doc_md=__doc__,
):
    fit_encoders = job(
        "fit_encoders",
        f"lte_model.training.autoencoder --date {DATE} --anchors",
        writes="checkpoints",
        on_failure="The log names the date, and what it lacks. Clear the task: encoders that are there stay.",
    )
    encode_items = job(
        "encode_items",
        f"jobs.encode_items --date {DATE} --anchors",
        writes="item_encodings",
        on_failure="It reads the encoders of `fit_encoders`; clear that if one is missing.",
    )
    check_item_encodings = gate(
        "check_item_encodings",
        f"jobs.quality.check item_encodings --date {DATE} --anchors",
        on_failure="A date without an encoder, or a vector off the grid. The log names the date and the items.",
    )
    snapshot_anchors = job(
        "snapshot_anchors",
        f"jobs.snapshot_lte --date {DATE} --anchors {REPRESENTATIONS}",
        writes="lte_snapshots",
        on_failure="The log names the anchor. No encoder? Clear `fit_encoders`, or run for a basis beside what the "
        "log says.",
    )
    check_lte_snapshots = gate(
        "check_lte_snapshots",
        f"jobs.quality.check lte_snapshots --date {DATE} --anchors",
        on_failure="An anchor without rows has no event old enough: use fewer anchors (`training_set.anchors`).",
    )
    list_trainings = listing(
        "list_trainings",
        f"lte_model.studies.ablation list --date {DATE} {CHOSEN}",
        pool=pool_of("checkpoints"),
        on_failure="The log names the variant that there isn't, or the table that lacks what it reads.",
    )
    train = job_for_each(
        list_trainings.output,
        "train",
        f'lte_model.studies.ablation train --date {DATE} --variant="$VARIANT" --seed="$SEED"',
        writes="checkpoints",
        on_failure="Clear the task: it goes on from its last checkpoint. Out of memory: lower `training.batch_size`.",
    )
    report = job(
        "report",
        f"lte_model.studies.ablation report --date {DATE} {CHOSEN}",
        writes="reports",
        on_failure="The log names the variant whose training isn't finished, or is of other settings: clear it.",
    )

    chain(fit_encoders, encode_items, check_item_encodings, snapshot_anchors, check_lte_snapshots, list_trainings)
    train >> report  # mapping makes `train` wait for `list_trainings`
