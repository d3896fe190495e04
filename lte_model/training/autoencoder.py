"""Fits the encoder of the representation `autoencoder`: `python -m lte_model.training.autoencoder --date F`.

An LTE of this representation is the mean of *encoded* item vectors over the same lagged window:

    LTE(D) = 1/n Σ (E[i] + P[i])        the uniform average is P = 0, where the fit begins

1. E is the frozen semantic basis. P, one vector per item, is learned: the encoder departs from the basis where
   behaviour says so. E + P lies on the grid of the basis, so that the engine adds it up as exactly as E.
2. The decoder learns only a temperature and the weight of popularity: the logits of what a user chooses in
   [A−L, A) are cos(LTE(A), E)/τ + s·popularity. So every encoder of a basis keeps the coordinates of that basis, and a
   model that was trained on one version of the LTE reads the next.
3. The loss is the cross entropy of the items that were chosen in [A−L, A), for anchors A that step back from F by the
   lag: nothing dated or known on or after F is read. Weight decay pulls P back to zero, and `inertia` weighs the
   distance between the vectors of A and A−7.
4. Some users are held out. The fit ends when their loss stops falling, and keeps the P of the best epoch.

It writes `encoder.safetensors` and, last, `encoder.json` to `<checkpoints>/encoder/<basis>/<F>/`; `jobs.encode_items`
makes table rows of them. The same tables and settings give the same encoder.

The asymmetric autoencoder is from arXiv 2604.08181, which publishes neither encoder nor loss: both are ours.
"""

import datetime
import hashlib
import json
import math
from pathlib import Path

import mlflow
import numpy as np
import torch
from safetensors.numpy import save as save_tensors
from torch import nn
from torch.nn import functional

from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import GRID
from lte_model.domain.representations import AUTOENCODER
from lte_model.errors import LTEError
from lte_model.files import write_atomically
from lte_model.metrics import ndcg
from lte_model.ranker.ranks import ranks_of
from lte_model.settings import Autoencoder, Settings
from lte_model.tracking import runs
from lte_model.training.encoder_cases import EncoderCases, encoder_cases, read_events
from lte_model.training.encoder_files import DESCRIPTION_FILE, VECTORS_FILE, encoder_directory
from lte_model.warehouse.catalogue import Catalogue, basis_in_force, read_catalogue
from lte_model.warehouse.reading import Tables

CUTOFF = 500


class Encoder(nn.Module):
    """The learned item vectors E + P, and the decoder that scores items from an LTE.

    `basis` is the frozen (items, dimensions) matrix of unit vectors E.

    `learned_decoder` also trains the decoder, which begins at E. Such an encoder is never published: the drill compares
    with it (lte_model/studies/drill.py).
    """

    basis: torch.Tensor
    decoder: torch.Tensor
    popularity: torch.Tensor

    def __init__(self, basis: torch.Tensor, popularity: torch.Tensor, learned_decoder: bool = False):
        super().__init__()
        self.register_buffer("basis", basis)
        if learned_decoder:
            self.decoder = nn.Parameter(basis.clone())
        else:
            self.register_buffer("decoder", basis, persistent=False)
        self.register_buffer("popularity", popularity)  # (anchors, counts, items)
        self.departure = nn.Parameter(torch.zeros_like(basis))
        self.log_temperature = nn.Parameter(torch.tensor(-2.0))
        self.popularity_scale = nn.Parameter(torch.zeros(popularity.shape[1]))

    def vectors(self) -> torch.Tensor:
        """What an item adds to an LTE, (items, dimensions)."""
        return self.basis + self.departure

    def encode(self, bags: tuple[torch.Tensor, torch.Tensor], users: int, dropout: float = 0.0) -> torch.Tensor:
        """The mean encoded vector of each bag, (users, dimensions). `dropout` is the share of events left out."""
        items, bag = bags
        if dropout:
            kept = torch.rand(len(items)) >= dropout
            items, bag = items[kept], bag[kept]
        sums = torch.zeros(users, self.basis.shape[1]).index_add(0, bag, functional.embedding(items, self.vectors()))
        counts = torch.bincount(bag, minlength=users).clamp(min=1)
        return sums / counts[:, None]

    def logits(self, lte: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        """Logits (users, items), from LTEs (users, dimensions) at anchors (users,)."""
        bias = torch.einsum("k,aki->ai", self.popularity_scale, self.popularity)
        return functional.normalize(lte, dim=1) @ self.decoder.T / self.log_temperature.exp() + bias[anchors]

    def frozen(self) -> np.ndarray:
        """`vectors` on the grid of the basis, (items, dimensions) float32."""
        return on_grid(self.vectors().detach())


def on_grid(vectors: torch.Tensor) -> np.ndarray:
    """The vectors as float32, each component rounded to a multiple of 2^-14 in [−1, 1]."""
    return (torch.round(vectors * GRID).clamp(-GRID, GRID) / GRID).numpy()


class EncoderFit:
    """The epochs of one fit."""

    def __init__(self, options: Autoencoder, encoder: Encoder, cases: EncoderCases):
        self.options, self.encoder, self.cases = options, encoder, cases
        self.fitted, self.held_out = np.flatnonzero(~cases.held_out), np.flatnonzero(cases.held_out)
        if not len(self.held_out):  # a very small shop is measured on the users it learns from
            self.held_out = self.fitted
        parameters = list(encoder.parameters())
        matrices = [parameter for parameter in parameters if parameter.dim() == 2]
        scalars = [parameter for parameter in parameters if parameter.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options.weight_decay},
                {"params": scalars, "weight_decay": 0.0},
            ],
            lr=options.learning_rate,
        )

    def run(self) -> list[dict[str, float]]:
        """Runs the epochs and restores the encoder of the best one; returns the curve up to it."""
        best, best_epoch, best_state, curve = math.inf, 0, {}, []
        for epoch in range(1, self.options.epochs + 1):
            loss, measured = self.epoch(epoch), self.measure()
            # What the last step of an epoch broke shows here first.
            held_out = measured["held_out_loss"]
            _require_number(held_out, f"the loss of held-out users is {held_out} after epoch {epoch}")
            curve.append({"epoch": epoch, "training_loss": loss, **measured})
            print(
                f"epoch {epoch}: loss {loss:.4f}, held-out users: loss {measured['held_out_loss']:.4f}, "
                f"NDCG@{CUTOFF} {measured[f'held_out_ndcg@{CUTOFF}']:.4f}, inertia {measured['inertia']:.4f}",
                flush=True,
            )
            if measured["held_out_loss"] < best:
                best, best_epoch = measured["held_out_loss"], epoch
                best_state = {name: tensor.clone() for name, tensor in self.encoder.state_dict().items()}
            if epoch - best_epoch >= self.options.patience:
                break
        self.encoder.load_state_dict(best_state)
        return curve[:best_epoch]

    def epoch(self, epoch: int) -> float:
        """One pass over the users that are not held out; returns the mean loss of a case."""
        seed = int(np.random.SeedSequence((self.options.seed, epoch)).generate_state(1)[0])
        torch.manual_seed(seed)
        order, losses = np.random.default_rng(seed).permutation(self.fitted), []
        for batch in np.array_split(order, max(1, round(len(order) / self.options.batch_size))):
            lte = self.encoder.encode(self.cases.windows.of(batch), len(batch), self.options.event_dropout)
            loss = self.cross_entropy(self.logits(lte, batch), batch).mean()
            if self.options.inertia and len(closeness := self.inertia(batch)):
                loss = loss + self.options.inertia * (1 - closeness).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            _require_number(losses[-1], f"the loss is {losses[-1]} in epoch {epoch}, batch {len(losses)}")
        return float(np.mean(losses))

    def inertia(self, batch: np.ndarray) -> torch.Tensor:
        """The cosine (cases,) between each case's LTE and that of the week before, for cases that have both."""
        batch = batch[self.cases.week_before.sizes[batch] > 0]
        lte = self.encoder.encode(self.cases.windows.of(batch), len(batch))
        return functional.cosine_similarity(lte, self.encoder.encode(self.cases.week_before.of(batch), len(batch)))

    def logits(self, lte: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        """The logits (cases, items) of the cases `batch`, whose LTEs are `lte` (cases, dimensions)."""
        return self.encoder.logits(lte, torch.from_numpy(self.cases.anchors[batch]))

    def cross_entropy(self, logits: torch.Tensor, batch: np.ndarray) -> torch.Tensor:
        """The mean loss (cases,) of the items that each case's user chose; `logits` is (cases, items)."""
        items, case = self.cases.chosen.of(batch)
        of_chosen = torch.zeros(len(batch)).index_add(0, case, logits[case, items])
        return logits.logsumexp(dim=1) - of_chosen / torch.bincount(case, minlength=len(batch))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The held-out cases' loss, NDCG of the decoder's ranking, and cosine with the week before."""
        losses, quality, inertia = [], [], []
        for batch in np.array_split(self.held_out, max(1, -(-len(self.held_out) // self.options.batch_size))):
            lte = self.encoder.encode(self.cases.windows.of(batch), len(batch))
            logits = self.logits(lte, batch)
            losses.append(self.cross_entropy(logits, batch))
            items, case = self.cases.chosen.of(batch)
            quality.append(ndcg(ranks_of(logits[case], items).numpy(), CUTOFF))
            inertia.append(self.inertia(batch))
        return {
            "held_out_loss": float(torch.cat(losses).mean()),
            f"held_out_ndcg@{CUTOFF}": float(np.concatenate(quality).mean()),
            "inertia": float(torch.cat(inertia).mean()) if sum(map(len, inertia)) else 1.0,
        }


def _require_number(loss: float, found: str) -> None:
    """Raises `LTEError`, with what was `found`, for a loss that is no number: no encoder is kept of such a fit."""
    if not math.isfinite(loss):
        raise LTEError(f"{found}; lower autoencoder.learning_rate, or look for broken vectors in item_embeddings")


def fingerprint_of(cases: EncoderCases, catalogue: Catalogue, options: Autoencoder) -> str:
    """A hash of everything that decides an encoder."""
    content = hashlib.sha256(cases.digest() + catalogue.vectors.tobytes())
    content.update(json.dumps(options.model_dump(), sort_keys=True).encode())
    return content.hexdigest()


def fit_encoder(settings: Settings, date: datetime.date, basis_id: str = "") -> Path:
    """Fits the encoder of `date` in a basis ("": that of the settings), or finds it done; returns its directory.

    Raises `LTEError` if a table is missing, if there are no cases, if a loss is NaN, and if an encoder of that date was
    fitted to other rows or settings: snapshots may have been made with it, so it is never replaced.
    """
    tables = Tables(settings)
    basis_id = basis_in_force(tables, basis_id)
    catalogue = read_catalogue(tables, basis_id, date)
    cases = encoder_cases(read_events(tables, catalogue, date), len(catalogue), date, settings)
    fingerprint = fingerprint_of(cases, catalogue, settings.autoencoder)
    directory = encoder_directory(settings, basis_id, date)
    if (directory / DESCRIPTION_FILE).is_file():
        there = json.loads((directory / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        if there["fingerprint"] == fingerprint:
            print(f"the encoder of {date} is there already: {there['encoder_id']}", flush=True)
            return directory
        raise LTEError(
            f"the encoder of {date} in {directory} was fitted to other rows or settings, and snapshots may have been "
            "made with it; fit one of a later date, or remove the folder and the rows of item_encodings of that date"
        )
    print(f"encoder of {date}: {len(cases):,} cases at {len(cases.popularity)} anchors, {len(catalogue):,} items")
    torch.manual_seed(settings.autoencoder.seed)
    encoder = Encoder(torch.from_numpy(catalogue.vectors), torch.from_numpy(cases.popularity))
    fit = EncoderFit(settings.autoencoder, encoder, cases)
    start = fit.measure()
    with runs.training_run(settings, date, f"encoder {fingerprint[:8]}"):
        mlflow.set_tags({"basis_id": basis_id, "representation": AUTOENCODER})
        mlflow.log_params(settings.autoencoder.model_dump())
        for table, version in tables.versions.items():
            runs.log_dataset(settings, table, version, "training")
        curve = fit.run()
        for epoch in curve:
            mlflow.log_metrics(
                {name.replace("@", "_at_"): value for name, value in epoch.items()}, step=int(epoch["epoch"])
            )
        vectors = encoder.frozen()
        encoder_id = hashlib.sha256(basis_id.encode() + vectors.tobytes()).hexdigest()[:16]
        mlflow.set_tag("encoder_id", encoder_id)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(directory / VECTORS_FILE, save_tensors({"vectors": vectors}))
    description = {
        "encoder_id": encoder_id,
        "basis_id": basis_id,
        "fitted_on": str(date),
        "fingerprint": fingerprint,
        "anchors": len(cases.popularity),
        "cases": len(cases),
        "temperature": encoder.log_temperature.exp().item(),
        "popularity_scale": encoder.popularity_scale.tolist(),
        "before": start,
        "curve": curve,
        "item_ids": catalogue.item_ids.to_list(),
    }
    write_atomically(directory / DESCRIPTION_FILE, json.dumps(description, indent=1).encode())
    print(f"encoder {encoder_id}: {directory}", flush=True)
    return directory


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser(
        "Fits the encoder of the representation autoencoder.", "the day from which on it may be used"
    )
    parser.add_argument("--anchors", action="store_true", help="one for every date that the training of --date reads")
    parser.add_argument("--if-read", action="store_true", help="only where model.representations has autoencoder")
    parser.add_argument("--basis", metavar="ID", default="", help="in this basis (default: basis.basis_id)")
    arguments, settings, date = parser.read()
    if arguments.if_read and AUTOENCODER not in settings.model.representations:
        print(f"nothing to fit: {AUTOENCODER} is not among model.representations of the settings")
        return
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    for fitted_on in settings.training_set.dates(date).snapshot_dates if arguments.anchors else (date,):
        fit_encoder(settings, fitted_on, arguments.basis)


if __name__ == "__main__":
    run(main)
