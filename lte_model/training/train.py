"""Trains one side of a training date: `python -m lte_model.training.train --date D --integration prefix|none|…`.

1. The loss is the cross entropy of every target in the anchors' sequences. It is exact, over all items that somebody
   has chosen by then; if those are more than `training.exact_items`, it is against a sample of them.
2. After each epoch the model is measured on the validation cut, by NDCG at the largest cutoff. A checkpoint (model,
   optimizer, best weights so far, curve) atomically replaces the last one. The weights that are measured and kept are a
   moving average (`training.averaging`), which varies less.
3. Training stops when `patience` epochs brought no improvement, and the best weights become the model directory. With
   `training.refit`, a new model is trained instead, for as many epochs and on the validation days too.

`<checkpoints>/<D>/<side>/` gets `checkpoint.pt`, then `model/`, and last `training.json`, which marks it as done.
A killed training resumes from its checkpoint and ends in the same weights, bit for bit: each epoch draws its order and
its dropout from the seed and its own number. Checkpoint and result belong to a fingerprint of the data and the
settings; with another fingerprint training starts anew, and says so.

Under torchrun several processes share each batch (distributed.py); the gradient is the mean over all its targets.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
from pathlib import Path

import mlflow
import torch

from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.ranker.cases import Cases
from lte_model.ranker.integrations import INTEGRATIONS
from lte_model.ranker.model import Ranker, RankerConfig
from lte_model.ranker.saved import EARLIER_DEFAULTS, save_ranker
from lte_model.settings import Settings
from lte_model.tracking import runs
from lte_model.training.checkpoints import (
    CHECKPOINT_FILE,
    MODEL_DIRECTORY,
    RESULT_FILE,
    is_done,
    read_checkpoint,
    side_directory,
)
from lte_model.training.device import choose_device
from lte_model.training.distributed import Group, training_group
from lte_model.training.fit import Fit, say
from lte_model.training.training_set import TrainingSet, open_training_set
from lte_model.warehouse.popularity import POPULARITY_COUNTS

NOT_IN_THE_WEIGHTS = ("device", "threads", "compile")
"""Training settings that say where it runs, and don't affect the weights."""


def train(
    settings: Settings,
    training_date: datetime.date,
    integration: str,
    side: str = "",
    group: Group | None = None,
    training_set: TrainingSet | None = None,
) -> Path:
    """Trains or resumes one side, or finds it done; returns the model's directory.

    `side` names the directory and the MLflow run; by default it is `integration`. `training_set` may replace that of
    the date, for LTEs that were made in another way. Raises `LTEError` for a training set that can't be used, and for a
    loss that is not finite.
    """
    group, side = group or Group(), side or integration
    device = choose_device(settings.training.device)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    directory = side_directory(settings, training_date, side)
    directory.mkdir(parents=True, exist_ok=True)

    training_set = training_set or open_to_train(settings, training_date)
    config = ranker_config(settings, training_set, integration)
    last_only = settings.training.loss_positions == "last"
    cases = training_set.cases("train").windows(config.max_events, last_only)
    validation = training_set.cases("validation")
    all_cases = cases
    if settings.training.refit:
        all_cases = training_set.cases("train", "refit").windows(config.max_events, last_only)
    fingerprint = _fingerprint(settings, config, training_set, all_cases, validation, group)
    if is_done(directory, fingerprint):
        say(group, f"the training of {training_date}, side {side}, is done already: {directory / MODEL_DIRECTORY}")
        return directory / MODEL_DIRECTORY

    checkpoint, reason = read_checkpoint(directory / CHECKPOINT_FILE, fingerprint)
    if reason:
        say(group, f"starting anew: {reason}")
    say(
        group,
        f"{side}: {len(cases):,} sequences with {cases.target_counts.sum():,} targets, {len(validation):,} users "
        f"validate, {len(training_set.catalogue):,} items; {device}, {group.size} x {torch.get_num_threads()} threads",
    )
    recorded = runs.training_run(settings, training_date, side, anew=bool(reason))
    with recorded if group.is_first else contextlib.nullcontext():
        if group.is_first:
            _log_inputs(settings, training_set, config, device)
        ranker = new_ranker(config, training_set, settings.training.seed).to(device)
        fit = Fit(settings, ranker, cases, validation, device, group)
        progress = fit.run(directory / CHECKPOINT_FILE, fingerprint, checkpoint)
        ranker.load_state_dict(progress.best_weights)
        if settings.training.refit:
            say(group, f"once more for {progress.best_epoch} epochs, up to the test cut")
            ranker = new_ranker(config, training_set, settings.training.seed).to(device)
            again = Fit(settings, ranker, all_cases, validation, device, group)
            again.refit(progress.best_epoch)
            ranker.load_state_dict(again.averaged.state_dict())
        if group.is_first:
            save_ranker(ranker, directory / MODEL_DIRECTORY)
            seconds = sum(epoch["seconds"] for epoch in progress.curve)
            result = {
                "fingerprint": fingerprint,
                "training_date": str(training_date),
                "best_epoch": progress.best_epoch,
                "seconds": seconds,
                "curve": progress.curve,
                "versions": training_set.tables.versions,
            }
            write_atomically(directory / RESULT_FILE, json.dumps(result, indent=1).encode())
            mlflow.log_metrics({"best_epoch": progress.best_epoch, "training_seconds": seconds})
    say(group, f"best epoch {progress.best_epoch}: {directory / MODEL_DIRECTORY}")
    return directory / MODEL_DIRECTORY


def open_to_train(settings: Settings, training_date: datetime.date) -> TrainingSet:
    """The training set of a date. Raises `LTEError` if its basis isn't `basis.basis_id` of the settings."""
    training_set = open_training_set(settings, training_date)
    wanted, found = settings.basis.basis_id, training_set.kind.basis_id
    if wanted and wanted != found:
        raise LTEError(
            f"the training_set of {training_date} is of basis {found}, and basis.basis_id is {wanted}; run "
            f"python -m jobs.build_training_set --date {training_date}, or set basis.basis_id to {found}"
        )
    return training_set


def ranker_config(settings: Settings, training_set: TrainingSet, integration: str) -> RankerConfig:
    """The configuration of a ranker for that training set, with that integration."""
    items, dimensions = training_set.catalogue.vectors.shape
    # Keep the default when the bias is off, so that a new count doesn't retrain models that ignore it.
    counts = len(POPULARITY_COUNTS) if settings.model.popularity_bias else EARLIER_DEFAULTS["popularity_counts"]
    return RankerConfig(
        items=items,
        dimensions=dimensions,
        representations=len(settings.model.representations),
        integration=integration,
        popularity_counts=counts,
        **settings.model.model_dump(exclude={"representations", "integration"}),
    )


def new_ranker(config: RankerConfig, training_set: TrainingSet, seed: int) -> Ranker:
    """An untrained ranker, initialised from `seed`. Its stored item popularity is that of the test cut."""
    torch.manual_seed(seed)
    catalogue = training_set.catalogue
    ranker = Ranker(config, training_set.kind, catalogue.item_ids.to_list(), torch.from_numpy(catalogue.vectors))
    if config.popularity_bias:
        ranker.popularity.copy_(torch.from_numpy(training_set.popularity([training_set.dates.test.start])))
    return ranker


def _fingerprint(
    settings: Settings,
    config: RankerConfig,
    training_set: TrainingSet,
    cases: Cases,
    validation: Cases,
    group: Group,
) -> str:
    """A hash of everything that decides the weights.

    It covers rows and settings, not the table version, which also counts commits of other dates.
    """
    content = hashlib.sha256()
    described = {
        "config": dataclasses.asdict(config),
        "kind": dataclasses.asdict(training_set.kind),
        "training": settings.training.model_dump(exclude=set(NOT_IN_THE_WEIGHTS)),
        "processes": group.size,
        "cutoff": max(settings.evaluation.cutoffs),
        "item_ids": training_set.catalogue.item_ids.to_list(),
    }
    content.update(json.dumps(described, sort_keys=True).encode())
    content.update(training_set.catalogue.vectors.data)
    content.update(cases.digest())
    content.update(validation.digest())
    return content.hexdigest()


def _log_inputs(settings: Settings, training_set: TrainingSet, config: RankerConfig, device: torch.device) -> None:
    mlflow.set_tags(
        {
            **dataclasses.asdict(training_set.kind),
            "integration": config.integration,
            "device": str(device),
        }
    )
    mlflow.log_params(
        {
            **dataclasses.asdict(config),
            **settings.training.model_dump(exclude=set(NOT_IN_THE_WEIGHTS)),
            "training_date": training_set.training_date,
            "anchors": len(training_set.dates.anchors),
            "validation": training_set.dates.validation,
            "test": training_set.dates.test,
        }
    )
    for table, version in training_set.tables.versions.items():
        runs.log_dataset(settings, table, version, "training")


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Trains the ranker of a date, with the LTE or without it.", "the day the training runs on")
    parser.add_argument("--integration", choices=INTEGRATIONS, help="how the LTE enters (default: model.integration)")
    parser.add_argument("--side", default="", help="a name for this training (default: the integration)")
    arguments, settings, date = parser.read()
    with training_group(settings.training.device) as group:
        train(settings, date, arguments.integration or settings.model.integration, arguments.side, group)


if __name__ == "__main__":
    run(main)
