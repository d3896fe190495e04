"""How one representation's LTE is made for a date: lag, encoder, and whatever else decides its bits."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from jobs.engine.inputs import Inputs
from jobs.recipes.encoders import EncoderRecord, encoders_there, made_with, require_encoder
from jobs.spark.warehouse import Warehouse, sql_text
from lte_model.domain.kind import LTEKind
from lte_model.domain.representations import AUTOENCODER, RECENCY, Representation, representation


@dataclass(frozen=True)
class Recipe:
    """Whatever decides how a representation's snapshots are made. Dates with different encoders differ in recipe.

    The hash of the inputs includes `choices`: no LTE is made from one with other choices.
    """

    representation: Representation
    basis_id: str
    lag_days: int
    window_days: int
    choices: str = ""
    encoder: EncoderRecord | None = None

    @property
    def kind(self) -> LTEKind:
        """What a reader of these snapshots must share."""
        return LTEKind(self.basis_id, self.representation.name, self.lag_days, self.window_days)

    @property
    def columns(self) -> dict[str, Column]:
        """The columns of a row that hold its kind, as constants."""
        return {name: F.lit(value) for name, value in vars(self.kind).items()}

    @property
    def condition(self) -> str:
        """The SQL condition that selects LTEs of this basis and representation."""
        return lte_of(self.basis_id, self.representation.name)

    def partition(self, date: datetime.date) -> dict[str, str]:
        """The partition of `lte_snapshots` that holds the rows of `date`."""
        return {"basis_id": self.basis_id, "representation": self.representation.name, "snapshot_date": str(date)}

    def hash(self, inputs: Inputs, date: datetime.date) -> str:
        """16 hex digits of a hash of everything that decides the bits of the snapshot of `date`."""
        return inputs.hash(date, self.lag_days, self.window_days, self.choices)


def lte_of(basis_id: str, name: str) -> str:
    """The SQL condition that selects LTEs of a basis and a representation."""
    return f"basis_id = {sql_text(basis_id)} AND representation = {sql_text(name)}"


def recipes(
    warehouse: Warehouse, basis_id: str, name: str, dates: Sequence[datetime.date]
) -> dict[Recipe, list[datetime.date]]:
    """A representation's recipes and their dates, from ascending `dates`: one recipe, or one per encoder.

    Raises `LTEError` for a date without an encoder.
    """
    made_as, settings = representation(name), warehouse.settings
    lag_days, window_days = made_as.lag_days(settings.window.lag_days), settings.window.window_days
    if name != AUTOENCODER:
        choices = "" if made_as.exact else name
        if name == RECENCY:
            choices += f" half-life {settings.representations.half_life_days}"
        return {Recipe(made_as, basis_id, lag_days, window_days, choices): list(dates)}
    encoders, kept = encoders_there(warehouse, basis_id), made_with(warehouse, basis_id)
    by_id = {encoder.encoder_id: encoder for encoder in encoders}
    found: dict[Recipe, list[datetime.date]] = {}
    for date in dates:
        encoder = by_id.get(kept.get(date, "")) or require_encoder(encoders, date, basis_id)
        choices = f"encoder {encoder.encoder_id}"
        found.setdefault(Recipe(made_as, basis_id, lag_days, window_days, choices, encoder), []).append(date)
    return found


def recipe(warehouse: Warehouse, basis_id: str, name: str, date: datetime.date) -> Recipe:
    """A representation's recipe for one date. Raises `LTEError` if the date needs an encoder and has none."""
    return next(iter(recipes(warehouse, basis_id, name, [date])))
