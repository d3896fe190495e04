"""Trains, ranks and times RecTools' SASRec like our own models. Runs only in RecTools' environment.

    sasrec.py fit-and-rank FOLDER --session-max-len 50 --epochs 20     FOLDER/ranks.parquet, FOLDER/result.json
    sasrec.py search FOLDER --lengths 50,100,200 --seeds 0,1,2         FOLDER/ranks_<seed>.parquet, FOLDER/search.json
    sasrec.py speed FOLDER --seconds 20                                one line of JSON

A folder holds `train.parquet` (user_id, item_id, event_ts, order), `targets.parquet` (user_id, target_item_id) and
`items.parquet` (item_id), the catalogue, which contains the items of all events and targets. `order` breaks ties
between a user's events with the same time. `search` reads two such folders, FOLDER/validation and FOLDER/test.

A rank is 1 + the number of items with a higher score + half of the other items with the same score, from the model's
logits after the user's newest `session_max_len` events. Seen items are kept or dropped (they score lower than all
others); RecTools leaves that choice to its user, and `search` to the validation. Items unknown to the model score lower
than all known ones. Users without an event known to the model get items ranked by popularity: the number of events in
`train.parquet`.

RecTools trains on a user's last `session_max_len` + 1 events, and skips users with a single event.

Longer than 350 lines, because it runs in an environment where no other file of this repository can be imported.
"""

import argparse
import hashlib
import json
import logging
import resource
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet

CUTOFF = 500
SEEN = ("kept", "dropped")
"""The options for items that the user has seen."""
WARM_BATCHES = 3
"""Warm-up batches of `speed`, which are not timed."""


@dataclass(frozen=True)
class Options:
    """The options of model and training, except session length and epochs."""

    factors: int = 64
    blocks: int = 2
    heads: int = 2
    batch_size: int = 128
    learning_rate: float = 1e-3
    dropout: float = 0.2
    loss: str = "softmax"


@dataclass(frozen=True)
class Data:
    """One folder's data, with item ids as rows of the catalogue and user ids as rows of `user_ids`.

    `events` has RecTools' columns, each user's rows in order. `targets[i]` is the target of user `users[i]`.
    """

    user_ids: np.ndarray
    items: int
    events: pd.DataFrame
    users: np.ndarray
    targets: np.ndarray
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "Data":
        digest = hashlib.sha256()
        tables = {}
        for name in ("train", "targets", "items"):
            digest.update((folder / f"{name}.parquet").read_bytes())
            tables[name] = pq.read_table(folder / f"{name}.parquet").to_pandas()
        catalogue = pd.Index(tables["items"]["item_id"])
        train = tables["train"].sort_values(["user_id", "order"])
        user_ids = pd.Index(pd.concat([train["user_id"], tables["targets"]["user_id"]]).unique())
        events = pd.DataFrame(
            {
                Columns.User: user_ids.get_indexer(train["user_id"]),
                Columns.Item: catalogue.get_indexer(train["item_id"]),
                Columns.Weight: 1.0,
                Columns.Datetime: train["event_ts"].dt.tz_localize(None).to_numpy(),
            }
        )
        targets = catalogue.get_indexer(tables["targets"]["target_item_id"])
        if events[Columns.Item].lt(0).any() or (targets < 0).any():
            raise SystemExit(f"{folder} has an event or a target of an item that is not in its items.parquet")
        return cls(
            user_ids=user_ids.to_numpy(),
            items=len(catalogue),
            events=events,
            users=user_ids.get_indexer(tables["targets"]["user_id"]),
            targets=targets,
            digest=digest.hexdigest(),
        )

    @property
    def dataset(self) -> Dataset:
        return Dataset.construct(self.events)

    def training_targets(self, session_max_len: int) -> int:
        """The number of targets in an epoch, without padding and the first event of each session."""
        lengths = self.events[Columns.User].value_counts().clip(upper=session_max_len + 1)
        return int((lengths - 1).sum())


# Ranks.


def ndcg(ranks: np.ndarray) -> float:
    """Mean of 1 / log2(1 + rank) up to the cutoff, else 0."""
    return float(np.where(ranks <= CUTOFF, 1 / np.log2(1 + ranks), 0.0).mean())


def ranks_by_counts(counts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The ranks of `targets` if every user's scores are `counts` (items,)."""
    ascending, of_target = np.sort(counts), counts[targets]
    not_greater = np.searchsorted(ascending, of_target, side="right")
    less = np.searchsorted(ascending, of_target, side="left")
    return 1 + (len(counts) - not_greater) + (not_greater - less - 1) / 2


class Ranking:
    """Ranks the targets of `data` by `model` at any time of its training; the sessions are made once."""

    def __init__(self, model: SASRecModel, data: Data):
        self.model = model
        preparator = model.data_preparator
        known = preparator.get_known_item_ids().astype(np.int64)
        column = np.full(data.items, -1)
        column[known] = np.arange(len(known))
        sessions = preparator.transform_dataset_u2i(data.dataset, data.users)
        self.batches = list(preparator.get_dataloader_recommend(sessions, batch_size=256))
        place = pd.Series(np.arange(len(data.users)), index=data.users)
        self.places = place[sessions.user_id_map.external_ids.astype(np.int64)].to_numpy()
        self.columns = torch.from_numpy(column[data.targets[self.places]])
        of_unknown = len(known) + 1 + (data.items - len(known) - 1) / 2
        counts = np.bincount(data.events[Columns.Item], minlength=data.items)
        # The model doesn't rank users without a session, or unknown items: these get ranks by popularity.
        self.ranks = ranks_by_counts(counts, data.targets)
        self.ranks[self.places] = of_unknown
        place_of_user = pd.Series(np.arange(len(self.places)), index=data.users[self.places])
        seen = data.events[data.events[Columns.User].isin(place_of_user.index)]
        rows = place_of_user[seen[Columns.User]].to_numpy()
        order = np.argsort(rows, kind="stable")
        self.seen = torch.from_numpy(np.stack((rows, column[seen[Columns.Item]]))[:, order])  # (2, events), by row
        self.users_by_popularity = len(data.users) - len(self.places)
        self.unknown_targets = int((self.columns < 0).sum())

    def now(self, *asked: str) -> dict[str, np.ndarray]:
        """{option for seen items: rank of each target, in the data's order}, for both options or those in `asked`."""
        network, extra = self.model.torch_model, self.model.data_preparator.n_item_extra_tokens
        device = network.item_model.device
        was_training = network.training
        network.eval()
        ranks = {seen: self.ranks.copy() for seen in asked or SEEN}
        first = 0
        with torch.no_grad():
            table = network.item_model.get_all_embeddings()
            for batch in self.batches:
                sessions = network.encode_sessions({"x": batch["x"].to(device)}, table)[:, -1]
                logits = sessions @ table[extra:].T
                columns = self.columns[first : first + len(logits)].to(device)
                places = self.places[first : first + len(logits)]
                begin, end = np.searchsorted(self.seen[0], (first, first + len(logits)))
                for seen, found in ranks.items():
                    if seen == "dropped":
                        logits[self.seen[0, begin:end] - first, self.seen[1, begin:end]] = -torch.inf
                    of_target = logits.gather(1, columns.clamp(min=0)[:, None])
                    greater = (logits > of_target).sum(dim=1)
                    others_alike = (logits == of_target).sum(dim=1) - 1
                    of_batch = (1 + greater + others_alike.double() / 2).cpu().numpy()
                    found[places] = np.where(columns.cpu().numpy() >= 0, of_batch, found[places])
                first += len(logits)
        network.train(was_training)
        return ranks


# Fitting.


class Clock(Callback):
    """Counts targets and their seconds after some warm-up batches; stops the training after `seconds`."""

    def __init__(self, seconds: float | None = None):
        self.limit = seconds
        self.batches, self.targets, self.seconds = 0, 0, 0.0

    def __deepcopy__(self, memo: dict) -> "Clock":
        return self  # RecTools copies its trainer, but the copy's counts must be readable here

    def on_train_epoch_start(self, trainer: Trainer, module) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module, outputs, batch, batch_idx) -> None:
        now = time.perf_counter()
        self.batches += 1
        if self.limit is None or self.batches > WARM_BATCHES:
            self.targets += int((batch["y"] != 0).sum())
            self.seconds += now - self.started
        if self.limit is not None and self.seconds >= self.limit:
            trainer.should_stop = True
        self.started = time.perf_counter()


class EarlyStop(Callback):
    """Evaluates each epoch on the targets; stops after `patience` epochs without improvement."""

    def __init__(self, model: SASRecModel, data: Data, patience: int):
        self.model, self.data, self.patience = model, data, patience
        self.ranking: Ranking | None = None
        self.curve: list[float] = []
        self.seen_items: list[str] = []
        self.best_weights: dict[str, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict) -> "EarlyStop":
        return self

    @property
    def best_epoch(self) -> int:
        return int(np.argmax(self.curve)) + 1

    def on_train_epoch_end(self, trainer: Trainer, module) -> None:
        with torch.random.fork_rng():  # a loader draws a seed; evaluation must not change the training
            self.ranking = self.ranking or Ranking(self.model, self.data)
        quality = {seen: ndcg(ranks) for seen, ranks in self.ranking.now().items()}
        self.seen_items.append(max(quality, key=quality.__getitem__))
        self.curve.append(max(quality.values()))
        if self.best_epoch == len(self.curve):
            self.best_weights = {name: weight.clone() for name, weight in module.state_dict().items()}
        print(
            f"epoch {len(self.curve)}: NDCG@{CUTOFF} "
            f"{', '.join(f'{value:.4f} with seen items {seen}' for seen, value in quality.items())} "
            f"(best {max(self.curve):.4f} in epoch {self.best_epoch})",
            flush=True,
        )
        if len(self.curve) - self.best_epoch >= self.patience:
            trainer.should_stop = True


@dataclass(frozen=True)
class Fit:
    """A fitted model, the epochs of its weights, its option for seen items, and the cost of the fit."""

    model: SASRecModel
    epochs: int
    seen_items: str
    seconds: float
    targets_per_second: float
    curve: list[float]

    @classmethod
    def of(
        cls,
        data: Data,
        options: Options,
        session_max_len: int,
        seed: int,
        epochs: int,
        patience: int | None = None,
        seconds: float | None = None,
    ) -> "Fit":
        """Trains for `epochs`, or until `seconds` are over.

        With `patience`, `epochs` is the maximum, and the weights are those of the best epoch on the targets of `data`,
        with seen items kept or dropped.
        """
        seed_everything(seed, workers=True, verbose=False)
        clock = Clock(seconds)
        callbacks: list[Callback] = [clock]
        model = SASRecModel(
            n_factors=options.factors,
            n_blocks=options.blocks,
            n_heads=options.heads,
            dropout_rate=options.dropout,
            session_max_len=session_max_len,
            loss=options.loss,
            lr=options.learning_rate,
            batch_size=options.batch_size,
            item_net_block_types=(IdEmbeddingsItemNet,),
            get_trainer_func=lambda: Trainer(
                max_epochs=epochs,
                min_epochs=0,  # so that `seconds` may end it within the first
                deterministic=True,
                accelerator="auto",
                devices=1,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
                logger=False,
                callbacks=callbacks,
            ),
        )
        stop = EarlyStop(model, data, patience) if patience else None
        if stop:
            model._trainer.callbacks.append(stop)
        started = time.perf_counter()
        model.fit(data.dataset)
        taken = time.perf_counter() - started
        if stop:
            model.lightning_model.load_state_dict(stop.best_weights)
        return cls(
            model=model,
            epochs=stop.best_epoch if stop else epochs,
            seen_items=stop.seen_items[stop.best_epoch - 1] if stop else "",
            seconds=taken,
            targets_per_second=clock.targets / clock.seconds,
            curve=stop.curve if stop else [],
        )


def fit_and_rank(
    folder: Path,
    options: Options,
    session_max_len: int,
    seed: int,
    epochs: int,
    patience: int | None,
    seen_items: str,
    ranks_file: Path,
) -> dict[str, object]:
    """Fits on the folder, writes its targets' ranks, and returns the record of the fit.

    With `patience`, the folder's targets also choose the option for seen items. An existing result with the same rows
    and options is kept.
    """
    data = Data.read(folder)
    asked = {
        "rows": data.digest,
        "options": asdict(options),
        "session_max_len": session_max_len,
        "seed": seed,
        "most_epochs": epochs,
        "patience": patience,
        "seen_items": seen_items,
    }
    result_file = ranks_file.with_suffix(".json")
    if result_file.is_file() and ranks_file.is_file():
        found = json.loads(result_file.read_text())
        if found["asked"] == asked:
            print(f"{ranks_file} is there already", flush=True)
            return found
    fit = Fit.of(data, options, session_max_len, seed, epochs, patience)
    ranking = Ranking(fit.model, data)
    by_seen = ranking.now()
    seen_items = fit.seen_items or seen_items
    ranks = by_seen[seen_items]
    pd.DataFrame({"user_id": data.user_ids[data.users], "rank": ranks}).to_parquet(ranks_file, index=False)
    result = {
        "asked": asked,
        "epochs": fit.epochs,
        "seconds": round(fit.seconds, 1),
        "targets": data.training_targets(session_max_len),
        "targets_per_second": round(fit.targets_per_second, 1),
        "peak_memory_mb": peak_memory_mb(),
        "seen_items": seen_items,
        f"ndcg@{CUTOFF}": ndcg(ranks),
        **{f"ndcg@{CUTOFF}_seen_{seen}": ndcg(of_seen) for seen, of_seen in by_seen.items()},
        "curve": fit.curve,
        "users": len(data.users),
        "users_by_popularity": ranking.users_by_popularity,
        "unknown_targets": ranking.unknown_targets,
    }
    result_file.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"length {session_max_len}, seed {seed}: {fit.epochs} epochs, {fit.seconds:.0f} s, seen items {seen_items}, "
        f"NDCG@{CUTOFF} {result[f'ndcg@{CUTOFF}']:.4f}",
        flush=True,
    )
    return result


def search(
    folder: Path, options: Options, lengths: Sequence[int], seeds: Sequence[int], most_epochs: int, patience: int
) -> dict[str, object]:
    """Chooses length, epochs and the option for seen items on FOLDER/validation, then fits FOLDER/test.

    The search uses the first seed, the test every seed.
    """
    started = time.perf_counter()
    tried = {
        length: fit_and_rank(
            folder / "validation",
            options,
            length,
            seeds[0],
            most_epochs,
            patience,
            "",
            folder / "validation" / f"ranks_{length}.parquet",
        )
        for length in lengths
    }
    length = max(tried, key=lambda length: tried[length][f"ndcg@{CUTOFF}"])
    epochs, seen_items = tried[length]["epochs"], tried[length]["seen_items"]
    print(f"validation chose length {length}, {epochs} epochs, seen items {seen_items}", flush=True)
    final = {
        seed: fit_and_rank(
            folder / "test", options, length, seed, epochs, None, seen_items, folder / f"ranks_{seed}.parquet"
        )
        for seed in seeds
    }
    result = {
        "session_max_len": length,
        "epochs": epochs,
        "seen_items": seen_items,
        "validation": tried,
        "test": final,
        "fit_seconds": sum(fit["seconds"] for fit in (*tried.values(), *final.values())),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (folder / "search.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


# Speed.


def speed(folder: Path, options: Options, session_max_len: int, seconds: float) -> dict[str, float]:
    """The speed of training for `seconds`, and of evaluating the targets' users by `recommend` and RecTools' NDCG.

    `exact_users_per_second` is for information: it ranks from the logits, which RecTools doesn't offer its users.
    """
    before = peak_memory_mb()
    data = Data.read(folder)
    fit = Fit.of(data, options, session_max_len, seed=0, epochs=1000, seconds=seconds)
    peak = peak_memory_mb()
    dataset = data.dataset
    wanted = pd.DataFrame({Columns.User: data.users, Columns.Item: data.targets})
    metric = NDCG(k=CUTOFF, divide_by_achievable=True)
    for _ in range(2):  # once to warm up
        started = time.perf_counter()
        recommended = fit.model.recommend(users=data.users, dataset=dataset, k=CUTOFF, filter_viewed=False)
        quality = metric.calc(recommended, wanted)
        evaluated = time.perf_counter() - started
    started = time.perf_counter()
    exact = ndcg(Ranking(fit.model, data).now("kept")["kept"])
    ranked = time.perf_counter() - started
    if abs(exact - quality) > 1e-3:
        raise SystemExit(f"RecTools' NDCG is {quality}, ours {exact}: one of the two doesn't see what the other does")
    return {
        "targets": data.training_targets(session_max_len),
        "training_targets_per_second": fit.targets_per_second,
        "evaluation_users_per_second": len(data.users) / evaluated,
        "exact_users_per_second": len(data.users) / ranked,
        "peak_memory": peak,
        "memory_before": before,
    }


def peak_memory_mb() -> float:
    """The peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Fits, ranks and times SASRec of RecTools.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fit-and-rank", "search", "speed"):
        command = commands.add_parser(name)
        command.add_argument("folder", type=Path)
        command.add_argument("--threads", type=int, default=2)
        for option, default in asdict(Options()).items():
            command.add_argument(f"--{option.replace('_', '-')}", type=type(default), default=default)
        if name != "search":
            command.add_argument("--session-max-len", type=int, default=50)
        if name == "speed":
            command.add_argument("--seconds", type=float, default=20)
        else:
            command.add_argument("--epochs", type=int, default=100, help="with --patience: the most")
        if name == "fit-and-rank":
            command.add_argument("--patience", type=int, help="stop early by the folder's own targets")
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--seen-items", choices=SEEN, default="kept", help="without --patience")
        if name == "search":
            command.add_argument("--patience", type=int, default=8)
            command.add_argument("--lengths", default="50,100,200")
            command.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # Silence logs about devices, and deprecation warnings of pandas and pydantic.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    options = Options(**{option: getattr(arguments, option) for option in asdict(Options())})
    folder = arguments.folder
    if arguments.command == "fit-and-rank":
        fit_and_rank(
            folder,
            options,
            arguments.session_max_len,
            arguments.seed,
            arguments.epochs,
            arguments.patience,
            arguments.seen_items,
            folder / "ranks.parquet",
        )
    elif arguments.command == "search":
        lengths, seeds = ([int(number) for number in text.split(",")] for text in (arguments.lengths, arguments.seeds))
        search(folder, options, lengths, seeds, arguments.epochs, arguments.patience)
    else:
        print(json.dumps(speed(folder, options, arguments.session_max_len, arguments.seconds)))


if __name__ == "__main__":
    main()
