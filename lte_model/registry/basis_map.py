"""The map from one basis to another, fitted by orthogonal Procrustes on their shared items, and its loss.

    python -m lte_model.registry.basis_map [--from A] --to B [--date D] [--version V --training-date T]

1. One in `HELD_OUT` of the items with a vector in both bases is held out, by a hash of its id. On the others, with
   vectors X in A and Y in B, the orthogonal matrix R minimises ‖X R − Y‖ (Schönemann 1966). If the bases differ in
   dimensions, the narrower one is padded with zeros.
2. The loss is measured on the held-out items: the cosine of x R and y, ‖X R − Y‖/‖Y‖, and how many of the ten items of
   B nearest to x R are among the ten nearest to y. `--date` adds the cosine of the users' LTEs of that day, mapped from
   A and of B: an LTE is a mean of item vectors, and the map is linear.
3. With `--version`, the registered model V of basis B ranks the test users of training T three times: with its own
   LTEs, with LTEs of A mapped to B, and with none. The difference, with its interval, is the cost of the map.

The map shows before a change how well two bases agree. It also allows comparing models where only LTEs of the other
basis exist, as in the first weeks of a new basis or after an old one was retired. No mapped LTE is ever served. Its
basis id is the name of its map, `A->B`, on which no model was trained, so that every reader refuses it; and its vector
is off the grid, so that no table accepts it as a row.

The map is written to `<checkpoints>/basis_maps/<A>-<B>/`: `map.safetensors` first, `map.json` last. Both files, and the
measures as metrics, are logged to MLflow's run `basis map A->B`.
"""

import dataclasses
import datetime
import json
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import scipy.linalg
from safetensors.numpy import save as save_tensors

from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import to_vector
from lte_model.domain.windows import parse_run_date
from lte_model.errors import LTEError
from lte_model.evaluation.comparison import Comparison
from lte_model.evaluation.ranked import ranks_of_cases, read_by
from lte_model.files import write_atomically
from lte_model.metrics import mean_cosine
from lte_model.ranker.cases import Cases
from lte_model.ranker.model import Ranker
from lte_model.ranker.saved import load_ranker
from lte_model.registry import versions
from lte_model.settings import Settings
from lte_model.tracking import runs
from lte_model.training.training_set import TrainingSet
from lte_model.warehouse.catalogue import basis_in_force
from lte_model.warehouse.reading import Tables

HELD_OUT = 5
"""One item in so many is held out."""

FEWEST_ITEMS = 10
NEIGHBOURS = 10

MAP_FILE, DESCRIPTION_FILE = "map.safetensors", "map.json"

OWN, MAPPED, NONE = "own", "mapped", "none"
"""The sides of a ranker's comparison: its own LTEs, LTEs of the other basis mapped to its own, and no LTE."""


@dataclass(frozen=True)
class BasisMap:
    """A linear map; `rotation` (source dimensions, target dimensions) float64 has orthonormal rows or columns."""

    source: str
    target: str
    rotation: np.ndarray

    @property
    def name(self) -> str:
        """The basis_id of a mapped LTE."""
        return f"{self.source}->{self.target}"

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Maps vectors (…, source dimensions) to the coordinates of the target, float32.

        Raises `LTEError` for vectors of other dimensions.
        """
        if vectors.shape[-1] != len(self.rotation):
            raise LTEError(
                f"the map {self.name} takes vectors of {len(self.rotation)} dimensions, and these have "
                f"{vectors.shape[-1]}; give it vectors of basis {self.source}"
            )
        return (vectors.astype(np.float64) @ self.rotation).astype(np.float32)


def fit_map(source: str, target: str, ours: np.ndarray, theirs: np.ndarray) -> BasisMap:
    """The map that brings `ours` (items, source dimensions) nearest to `theirs` (items, target dimensions).

    Row i of both is the same item. Raises `LTEError` for fewer than `FEWEST_ITEMS`, and for vectors of NaN or zeros.
    """
    for basis_id, vectors in ((source, ours), (target, theirs)):
        _require_vectors(basis_id, vectors)
    if len(ours) < FEWEST_ITEMS:
        raise LTEError(
            f"bases {source} and {target} share {len(ours)} items to fit a map on, at least {FEWEST_ITEMS} are needed; "
            "run jobs.embed_items for both"
        )
    width = max(ours.shape[1], theirs.shape[1])
    padded = (np.pad(vectors.astype(np.float64), ((0, 0), (0, width - vectors.shape[1]))) for vectors in (ours, theirs))
    rotation, _ = scipy.linalg.orthogonal_procrustes(*padded)
    return BasisMap(source, target, rotation[: ours.shape[1], : theirs.shape[1]])


def _require_vectors(basis_id: str, vectors: np.ndarray) -> None:
    """Raises `LTEError` for vectors (items, dimensions) of a basis that have no direction to map."""
    broken = ~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    if broken.any():
        raise LTEError(
            f"{broken.sum()} of {len(vectors)} items have a vector of zeros, or of numbers that are none (NaN), in "
            f"basis {basis_id}, and such a basis has no map; look at item_embeddings, or fit another basis"
        )


def loss_of(basis_map: BasisMap, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The loss of the map on some items, as in step 2 above."""
    mapped = basis_map.apply(ours)
    near, found = (_nearest(vectors, theirs) for vectors in (theirs, mapped))
    kept = [len({*one} & {*other}) / len(one) for one, other in zip(near, found, strict=True)]
    return {
        "cosine": mean_cosine(mapped, theirs),
        "relative_residual": float(np.linalg.norm(mapped - theirs) / np.linalg.norm(theirs)),
        "neighbours_kept": float(np.mean(kept)),
    }


def _nearest(vectors: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The rows of the nearest items (vectors, NEIGHBOURS) by cosine, without the item of the same row."""
    lengths = np.maximum(np.linalg.norm(items, axis=1), 1e-12)
    cosines = vectors @ (items / lengths[:, None]).T
    np.fill_diagonal(cosines, -np.inf)
    count = min(NEIGHBOURS, len(items) - 1)
    return np.argpartition(-cosines, count - 1, axis=1)[:, :count]


@dataclass(frozen=True)
class MeasuredMap:
    """A map, its measures, and the numbers of items it was fitted on and of items held out."""

    basis_map: BasisMap
    fitted_items: int
    held_out_items: int
    loss: Mapping[str, float]


def make_map(settings: Settings, source: str, target: str, date: datetime.date | None = None) -> MeasuredMap:
    """Fits the map on the newest item vectors and measures it; a `date` adds the loss on the users' LTEs of that day.

    Raises `LTEError` for bases that aren't registered, are the same, or share too few items.
    """
    if source == target:
        raise LTEError(f"basis {source} needs no map to itself; give two bases")
    tables = Tables(settings)
    for basis_id in (source, target):
        basis_in_force(tables, basis_id)  # raises for one that isn't registered
    item_ids, ours, theirs = shared_items(tables, source, target)
    held_out = held_out_items(item_ids)
    if min(held_out.sum(), (~held_out).sum()) < FEWEST_ITEMS:
        raise LTEError(
            f"bases {source} and {target} share {len(item_ids)} items: too few to fit a map and to measure it; run "
            "jobs.embed_items for both"
        )
    for basis_id, vectors in ((source, ours), (target, theirs)):
        _require_vectors(basis_id, vectors)
    basis_map = fit_map(source, target, ours[~held_out], theirs[~held_out])
    loss = {f"items/{name}": value for name, value in loss_of(basis_map, ours[held_out], theirs[held_out]).items()}
    if date is not None:
        loss |= _loss_of_users(tables, basis_map, date)
    return MeasuredMap(basis_map, int((~held_out).sum()), int(held_out.sum()), loss)


def held_out_items(item_ids: Sequence[str]) -> np.ndarray:
    """A mask (items,) bool of the items that the map isn't fitted on."""
    return np.array([zlib.crc32(item.encode()) % HELD_OUT == 0 for item in item_ids], dtype=bool)


def shared_items(tables: Tables, source: str, target: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The items with a vector in both bases, ascending, and their vectors (items, dimensions) in each."""
    embeddings = tables.scan("item_embeddings")
    of_source, of_target = (
        embeddings.filter(pl.col("basis_id") == basis_id).select("item_id", vector.alias(name))
        for basis_id, name, vector in ((source, "ours", pl.col("vector")), (target, "theirs", pl.col("vector")))
    )
    rows = of_source.join(of_target, "item_id").sort("item_id").collect()
    return rows["item_id"].to_list(), _matrix(rows["ours"]), _matrix(rows["theirs"])


def _loss_of_users(tables: Tables, basis_map: BasisMap, date: datetime.date) -> dict[str, float]:
    """The mean cosine of mapped and own LTEs of `date`, for each representation that both bases have."""
    rows = tables.scan("lte_snapshots").filter(snapshot_date=date)
    of_basis = [
        rows.filter(basis_id=basis).select("representation", "user_id", "vector_sum", "event_count")
        for basis in (basis_map.source, basis_map.target)
    ]
    both = of_basis[0].join(of_basis[1], ["representation", "user_id"], suffix="_theirs").collect()
    if both.is_empty():
        raise LTEError(
            f"table lte_snapshots holds no LTE of {date} in both {basis_map.source} and {basis_map.target}; run "
            f"jobs.snapshot_lte --date {date} --basis {basis_map.source} --basis {basis_map.target}"
        )
    loss: dict[str, float] = {}
    for (name,), of_name in both.partition_by("representation", as_dict=True).items():
        ours, theirs = (
            to_vector(_matrix(of_name[f"vector_sum{suffix}"]), of_name[f"event_count{suffix}"].to_numpy())
            for suffix in ("", "_theirs")
        )
        loss |= {f"users/{name}/cosine": mean_cosine(basis_map.apply(ours), theirs), f"users/{name}/count": len(ours)}
    return loss


def _matrix(lists: pl.Series) -> np.ndarray:
    return lists.explode().to_numpy().reshape(len(lists), -1) if len(lists) else np.zeros((0, 0))


# The cost in ranking.


@dataclass(frozen=True)
class MappedSet(TrainingSet):
    """A training set with the LTEs of `source`, the same set in another basis, mapped to its catalogue's basis.

    Its kind names the map, so that no ranker accepts it as its own.
    """

    source: TrainingSet
    basis_map: BasisMap

    def ltes(self, cases: pl.DataFrame, needed: list[datetime.date]) -> tuple[np.ndarray, np.ndarray]:
        """The LTEs of the source, mapped, and their event counts."""
        lte, event_counts = self.source.ltes(cases, needed)
        return self.basis_map.apply(lte), event_counts


def mapped_set(training_set: TrainingSet, source: TrainingSet, basis_map: BasisMap) -> MappedSet:
    """The training set, in the map's target basis, with the mapped LTEs of `source`, in the map's source basis.

    Raises `LTEError` for sets of other bases.
    """
    found = (source.kind.basis_id, training_set.kind.basis_id)
    if found != (basis_map.source, basis_map.target):
        raise LTEError(
            f"the map {basis_map.name} leads from basis {basis_map.source} to {basis_map.target}, and it is asked to "
            f"lead from {found[0]} to {found[1]}, which the model reads; give the map between those two"
        )
    kind = dataclasses.replace(training_set.kind, basis_id=basis_map.name)
    inside = {field.name: getattr(training_set, field.name) for field in dataclasses.fields(TrainingSet)}
    return MappedSet(**inside | {"kind": kind}, source=source, basis_map=basis_map)


def ranking_loss(training_set: TrainingSet, source: TrainingSet, ranker: Ranker, basis_map: BasisMap) -> Comparison:
    """Ranks the test users' targets by a ranker of the map's target basis: sides `own`, `mapped` and `none`.

    `training_set` is what the ranker reads, `source` the same set in the map's source basis. Only the LTE differs, not
    users, events or catalogue. Raises `LTEError` for sets of other bases, and where one lacks the LTEs.
    """
    ranker.require(training_set.kind, f"the training set of {training_set.training_date}")
    mapped = mapped_set(training_set, source, basis_map).cases("test")
    own = training_set.cases("test")
    sides: dict[str, Cases] = {
        OWN: own,
        MAPPED: mapped,
        NONE: dataclasses.replace(own, has_lte=np.zeros_like(own.has_lte)),
    }
    ranks = {side: ranks_of_cases(training_set, cases, ranker) for side, cases in sides.items()}
    return Comparison.of(ranks, training_set.tables.settings)


def ranking_figures(comparison: Comparison) -> dict[str, float]:
    """Each side's headline measure, and its relative difference from `own` with the interval.

    Undefined figures are left out.
    """
    headline = comparison.headline
    figures: dict[str, float] = {}
    for side, of_side in comparison.metrics().items():
        if (value := of_side[headline].value) is not None:
            figures[f"{side}/{headline}"] = value
    for side in (MAPPED, NONE):
        if ends := comparison.uplifts({side: (side, OWN)})[side][headline].defined:
            figures |= zip([f"{side} over own/{bound}" for bound in ("value", "low", "high")], ends, strict=True)
    return figures


# The files of the map.


def map_directory(settings: Settings, source: str, target: str) -> Path:
    """The folder of the map of two bases."""
    return Path(settings.checkpoints, "basis_maps", f"{source}-{target}")


def keep_map(settings: Settings, measured: MeasuredMap) -> Path:
    """Writes the map over the previous one and logs it; returns its directory."""
    basis_map = measured.basis_map
    directory = map_directory(settings, basis_map.source, basis_map.target)
    described = {
        "from": basis_map.source,
        "to": basis_map.target,
        "dimensions": list(basis_map.rotation.shape),
        "fitted_items": measured.fitted_items,
        "held_out_items": measured.held_out_items,
        "loss": dict(measured.loss),
    }
    write_atomically(directory / MAP_FILE, save_tensors({"rotation": np.ascontiguousarray(basis_map.rotation)}))
    write_atomically(directory / DESCRIPTION_FILE, json.dumps(described, indent=1).encode())
    with runs.basis_map_run(settings, basis_map.name):
        mlflow.set_tags({"basis_from": basis_map.source, "basis_to": basis_map.target})
        mlflow.log_metrics(
            {name.replace("@", "_at_").replace(" ", "_"): value for name, value in measured.loss.items()}
        )
        mlflow.log_artifacts(str(directory))
    return directory


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Maps one basis to another, and measures what is lost.")
    parser.add_argument(
        "--from", dest="source", default="", metavar="ID", help="from this basis (default: basis.basis_id)"
    )
    parser.add_argument("--to", dest="target", required=True, metavar="ID", help="the basis to map to")
    parser.add_argument("--date", type=parse_run_date, help="measure on the LTEs of this day too")
    parser.add_argument("--version", help="measure what the map costs this registered model, of basis --to")
    parser.add_argument("--training-date", type=parse_run_date, help="on the test users of this training")
    arguments, settings = parser.read_settings()
    if bool(arguments.version) != bool(arguments.training_date):
        raise LTEError("give --version and --training-date together: a model, and the test users that it ranks")
    source = basis_in_force(Tables(settings), arguments.source)
    measured = make_map(settings, source, arguments.target, arguments.date)
    if arguments.version:
        version = versions.version_of(settings, arguments.version)
        with tempfile.TemporaryDirectory() as folder:
            ranker = load_ranker(versions.fetch(settings, version, Path(folder)))
        training_set = read_by(settings, arguments.training_date, ranker)
        comparison = ranking_loss(training_set, training_set.in_basis(source), ranker, measured.basis_map)
        measured = dataclasses.replace(measured, loss={**measured.loss, **ranking_figures(comparison)})
    directory = keep_map(settings, measured)
    print(f"fitted on {measured.fitted_items:,} items, measured on {measured.held_out_items:,}")
    print(*(f"{name}: {value:.4g}" for name, value in measured.loss.items()), directory, sep="\n")


if __name__ == "__main__":
    run(main)
