"""# lte_training

The run of logical date D trains two rankers on what was known before D: one with the LTE as its prefix token, and the
same ranker without it. It evaluates both, writes the report, and registers the one with LTE as `challenger`.

**Schedule:** Mondays, 03:00 UTC; or trigger it with a logical date. It reads `events` and `item_embeddings`, so first
run `lte_bootstrap`, or `lte_daily` for as many days as the windows need.

**Encoders** are fitted if `model.representations` in the settings contains `autoencoder`; otherwise their tasks say so
and end.

**A training that was killed** resumes from its last checkpoint when the task runs again.

**When it fails:** each task's own notes say what to look at. This DAG never changes the champion.
"""

from airflow.sdk import DAG

from commands import CHALLENGER, DATE, OWNER, feed_end, gate, in_utc, job

with DAG(
    "lte_training",
    description="Encoders, anchors, popularity, training set, two trainings, evaluation, report, challenger",
    schedule=in_utc("0 3 * * MON"),
    end_date=feed_end(),
    catchup=False,
    max_active_runs=1,
    default_args=OWNER,
    tags=["lte", "training"],
    doc_md=__doc__,
):
    fit_encoders = job(
        "fit_encoders",
        f"lte_model.training.autoencoder --date {DATE} --anchors --if-read",
        writes="checkpoints",
        on_failure="The log names the date, and what it lacks. Clear the task: encoders that are there stay.",
    )
    encode_items = job(
        "encode_items",
        f"jobs.encode_items --date {DATE} --anchors --if-read",
        writes="item_encodings",
        on_failure="Another encoder of the same date is in the table? It stays: snapshots were made with it.",
    )
    check_item_encodings = gate(
        "check_item_encodings",
        f"jobs.quality.check item_encodings --date {DATE} --anchors",
        on_failure="A date without an encoder, or a vector off the grid. The log names the date and the items.",
    )
    snapshot_anchors = job(
        "snapshot_anchors",
        f"jobs.snapshot_lte --date {DATE} --anchors",
        writes="lte_snapshots",
        on_failure="The log names the anchor. Snapshots that are there already are not written again.",
    )
    check_lte_snapshots = gate(
        "check_lte_snapshots",
        f"jobs.quality.check lte_snapshots --date {DATE} --anchors",
        on_failure="An anchor without rows has no event old enough: use fewer anchors (`training_set.anchors`).",
    )
    count_popularity = job(
        "count_popularity",
        f"jobs.count_popularity --date {DATE} --anchors",
        writes="item_popularity",
        on_failure="The log names the dates before which nothing sold: use fewer anchors (`training_set.anchors`).",
    )
    check_item_popularity = gate(
        "check_item_popularity",
        f"jobs.quality.check item_popularity --date {DATE} --anchors",
        on_failure="A date without counts, or an item counted twice. Clear `count_popularity`.",
    )
    build_training_set = job(
        "build_training_set",
        f"jobs.build_training_set --date {DATE}",
        writes="training_set",
        on_failure="The log names the split that is empty. Are `test_days` and `anchors` within the feed?",
    )
    check_training_set = gate(
        "check_training_set",
        f"jobs.quality.check training_set --date {DATE}",
        on_failure="The rule on leaks failed? Don't train. Clear `build_training_set`.",
    )
    train_prefix = job(
        "train_prefix",
        f"lte_model.training.train --date {DATE} --integration prefix",
        writes="checkpoints",
        on_failure="Clear the task: it goes on from its last checkpoint. Out of memory: lower `training.batch_size`.",
    )
    train_none = job(
        "train_none",
        f"lte_model.training.train --date {DATE} --integration none",
        writes="checkpoints",
        on_failure="Clear the task: it goes on from its last checkpoint. Out of memory: lower `training.batch_size`.",
    )
    evaluate = job(
        "evaluate",
        f"lte_model.evaluation.evaluate --date {DATE}",
        writes="reports",
        on_failure="Both models must be of the basis in the training set; the log names the one that isn't.",
    )
    report = job(
        "report",
        f"lte_model.evaluation.report --date {DATE}",
        writes="reports",
        on_failure="It reads evaluation.json of this date; clear `evaluate` if that is missing.",
    )
    register = job(
        "register",
        f"lte_model.registry.versions register --date {DATE}",
        writes="model_registry",
        outlets=(CHALLENGER,),
        on_failure="Is MLflow up? A second run finds the version that the first registered.",
    )

    fit_encoders >> encode_items >> check_item_encodings >> snapshot_anchors
    snapshot_anchors >> check_lte_snapshots >> count_popularity >> check_item_popularity
    check_item_popularity >> build_training_set >> check_training_set
    check_training_set >> [train_prefix, train_none] >> evaluate >> report >> register
