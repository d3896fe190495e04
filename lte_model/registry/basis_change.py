"""Which bases are in force, which models read them, and how one basis replaces another.

    python -m lte_model.registry.basis_change status                every basis, who reads it, and what comes next
    python -m lte_model.registry.basis_change fitted --date D       the basis fitted as of D, not yet in force, as JSON
    python -m lte_model.registry.basis_change release --basis ID    exits with 2 while an alias or the settings keep it

A change from basis A to basis B goes through these states. They are derived from the settings, the registry and what
is published, and stored nowhere else, so that they can't go stale.

    state        [basis]                       aliases read        what ends it
    settled      basis_id A                    A                   lte_basis_change fits B and publishes its first date
    warming up   basis_id A, beside [B]        A                   lte_daily has published B as long as A; then the
                                                                   settings are turned round
    training     basis_id B, beside [A]        A                   lte_training registers a challenger of B
    challenged   basis_id B, beside [A]        A; challenger B     lte_promotion: the gate, and a person
    promoted     basis_id B, beside [A]        champion B, A       the next promotion: `previous` reads B too
    rolled back  basis_id B, beside [A]        champion A, B       lte_promotion again, or the settings turned back
    released     basis_id B, beside [A]        B                   A leaves beside; lte_basis_retirement removes it

In every state a model reads the LTEs of its own basis, by their basis id. States in which these would be missing are
refused: an alias on a basis that is not in force, and more than two bases in force.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from lte_model.command_line import CommandParser, run
from lte_model.domain.basis import chosen_basis
from lte_model.errors import LTEError
from lte_model.registry.in_force import DAYS_BEHIND, named_bases, out_of_force, publications, readers
from lte_model.settings import Settings, with_make
from lte_model.tracking import lineage
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, PREVIOUS
from lte_model.warehouse.reading import scan


@dataclass(frozen=True)
class RegisteredBasis:
    """A registered basis: its newest live date with the users of that date, and the models that read it.

    `readers` are {alias: version}; `versions` counts the registered versions that were trained in the basis.
    `is_in_force`: the settings name it.
    """

    basis_id: str
    dimensions: int
    is_in_force: bool
    live_date: datetime.date | None
    users: int
    readers: Mapping[str, str]
    versions: int

    def __str__(self) -> str:
        published = f"{self.users:,} users live of {self.live_date}" if self.live_date else "nothing live"
        read_by = ", ".join(f"{alias} (version {number})" for alias, number in self.readers.items())
        force = "in force" if self.is_in_force else "not in force"
        return f"basis {self.basis_id}: {self.dimensions} dimensions, {force}, {published}, {read_by or 'no alias'}"


@dataclass(frozen=True)
class Change:
    """Where a change of basis stands: `state` is in the table above, `next_step` says what a person does now."""

    state: str
    bases: tuple[RegisteredBasis, ...]
    next_step: str


def registered_bases(settings: Settings) -> tuple[RegisteredBasis, ...]:
    """Every basis of table semantic_bases.

    Raises `LTEError` where there is none, where the settings name an unknown one, and where they leave a choice open.
    """
    rows = scan(settings, "semantic_bases").select("basis_id", "dimensions").sort("basis_id").collect()
    registered, place = rows["basis_id"].to_list(), settings.table_path("semantic_bases")
    in_force = [chosen_basis(registered, wanted, place) for wanted in settings.basis.in_force]
    published, read_by = publications(settings), readers(settings)
    trained_in = [version.tags.get("basis_id") for version in lineage.registered_versions(settings)]

    def described(basis_id: str, dimensions: int) -> RegisteredBasis:
        of_basis = [row for row in published if row["basis_id"] == basis_id]
        return RegisteredBasis(
            basis_id,
            dimensions,
            basis_id in in_force,
            max((row["snapshot_date"] for row in of_basis), default=None),
            max((row["users"] for row in of_basis), default=0),
            {alias: number for alias, (number, of_alias) in read_by.items() if of_alias == basis_id},
            trained_in.count(basis_id),
        )

    return tuple(described(*row) for row in rows.iter_rows())


def change(settings: Settings) -> Change:
    """Where the change stands.

    Raises `LTEError` for a forbidden state: an alias reads a basis that isn't in force or isn't registered, or more
    than two bases are in force.
    """
    bases = registered_bases(settings)
    known = {basis.basis_id for basis in bases}
    for alias, (number, basis_id) in readers(settings).items():
        if basis_id not in known:
            raise LTEError(
                f"version {number}, {alias}, reads basis {basis_id}, which is not registered in semantic_bases; "
                "restore the table, or give the alias to another version"
            )
    for problem in out_of_force(settings).values():
        raise LTEError(problem)
    in_force = {basis.basis_id: basis for basis in bases if basis.is_in_force}
    if len(in_force) > 2:
        raise LTEError(
            f"{len(in_force)} bases are in force ({', '.join(in_force)}); one change at a time: take one out of "
            "basis.beside and run lte_basis_retirement for it"
        )
    if len(in_force) == 1:
        (basis_id,) = in_force
        fitted = [basis.basis_id for basis in bases if basis.live_date and not basis.is_in_force and not basis.versions]
        if fitted:
            return Change("settled", bases, f'put it in force: basis_id = "{basis_id}", beside = ["{fitted[0]}"]')
        return Change("settled", bases, f"nothing to do; lte_basis_change fits a basis beside {basis_id}")
    ours = in_force[settings.basis.basis_id]
    (beside,) = (basis for basis in in_force.values() if basis is not ours)
    state, next_step = _state(ours, beside)
    return Change(state, bases, next_step)


def _state(ours: RegisteredBasis, beside: RegisteredBasis) -> tuple[str, str]:
    """The state and the next step of two bases in force; models are trained in `ours`."""
    turned = f'basis_id = "{beside.basis_id}", beside = ["{ours.basis_id}"]'
    of = {alias: basis for basis in (ours, beside) for alias in basis.readers}
    champion, challenger, previous = (of.get(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS))
    # After a rollback, the version that was rolled back is both challenger and previous.
    was_champion = challenger and challenger.readers[CHALLENGER] == challenger.readers.get(PREVIOUS)
    if challenger and champion is not challenger and not was_champion:
        return "challenged", "approve or reject the challenger in lte_promotion"
    if champion is beside and previous is ours:
        return "rolled back", f"promote another version of {ours.basis_id}, or turn the settings back: {turned}"
    if champion is beside:
        return "training", f"run lte_training: it registers a challenger of {ours.basis_id}"
    if previous is beside:
        return (
            "promoted",
            f"leave {beside.basis_id} in basis.beside: a rollback reads it, until `previous` is of {ours.basis_id}",
        )
    if beside.versions:
        return "released", f"take {beside.basis_id} out of basis.beside, then run lte_basis_retirement for it"
    if ours.live_date and (not beside.live_date or (ours.live_date - beside.live_date).days > DAYS_BEHIND):
        return "warming up", f"wait for lte_daily, or backfill it, until {beside.basis_id} is live of {ours.live_date}"
    return "warming up", f"let lte_daily measure it for some days, then turn the settings round: {turned}"


def fitted(settings: Settings, date: datetime.date) -> str:
    """The newest basis with the settings' encoder, dimensions and template, fitted by `date` and not in force.

    Raises `LTEError` where there is none.
    """
    wanted = settings.basis
    registered_bases(settings)  # raises where the table is wrong
    rows = scan(settings, "semantic_bases").filter(
        pl.col("fitted_on") <= date, ~pl.col("basis_id").is_in(named_bases(settings)),
        encoder=wanted.encoder, dimensions=wanted.dimensions, text_template=wanted.text_template,
    )  # fmt: skip
    found = rows.select("fitted_on", "basis_id").sort(pl.all()).collect()["basis_id"].to_list()
    if not found:
        raise LTEError(
            f"no basis of {wanted.dimensions} dimensions and template {wanted.text_template!r} was fitted on {date} or "
            f"before beside {', '.join(named_bases(settings))}; run jobs.fit_basis --date {date} --refit"
        )
    return found[-1]


def require_released(settings: Settings, basis_id: str) -> None:
    """Raises `LTEError` while the basis can't be retired: the settings name it, or an alias's version reads it."""
    if basis_id not in {basis.basis_id for basis in registered_bases(settings)}:
        raise LTEError(
            f"basis {basis_id} is not registered; python -m lte_model.registry.basis_change status lists those that are"
        )
    if not named_bases(settings):
        raise LTEError(
            f"the settings name no basis, so that {basis_id} may be the one in force; set basis.basis_id first"
        )
    for alias, (number, of_alias) in readers(settings).items():
        if of_alias == basis_id:
            raise LTEError(
                f"basis {basis_id} can't be retired: version {number} is {alias} and reads it. {_MOVES[alias]}"
            )
    if basis_id in named_bases(settings):
        raise LTEError(
            f"basis {basis_id} can't be retired: it is in force; take it out of [basis] of the settings first"
        )


_MOVES = {
    CHAMPION: "Promote a model of another basis first",
    PREVIOUS: "A rollback would need it: promote another model of the new basis, or remove the alias in MLflow",
    CHALLENGER: "Register another challenger with lte_training, or remove the alias in MLflow",
}


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser("Says which bases are in force and who reads them.")
    parser.add_command("status", "every basis, who reads it, the state of a change and what comes next")
    asks = parser.add_command(
        "fitted", "prints the basis that was fitted last and isn't in force, as JSON", "as of this day"
    )
    asks.add_argument("--dimensions", type=int, help="of the basis (default: those of the settings)")
    asks.add_argument("--text-template", help="of the basis (default: that of the settings)")
    releases = parser.add_command("release", "checks that nothing keeps a basis from being retired")
    releases.add_argument("--basis", required=True, metavar="ID")
    arguments, settings = parser.read_settings()
    if arguments.command == "fitted":
        made = with_make(settings, arguments.dimensions, arguments.text_template)
        print(json.dumps([{"basis": fitted(made, arguments.date)}]))
        return
    if arguments.command == "release":
        require_released(settings, arguments.basis)
        print(f"basis {arguments.basis} is neither in force nor read by an alias: it may be retired")
        return
    found = change(settings)
    print(*found.bases, f"{found.state}: {found.next_step}", sep="\n")


if __name__ == "__main__":
    run(main)
