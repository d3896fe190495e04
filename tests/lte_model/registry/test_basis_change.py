"""The states of a change of basis, the errors for invalid ones, and every reader's refusal of another basis' LTE."""

import dataclasses
import datetime
import sys

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.evaluation.ranked import load_side, over_champion, ranks_by_user
from lte_model.ranker.recommender import Recommender
from lte_model.ranker.saved import save_ranker
from lte_model.registry import basis_change, gate, promotion
from lte_model.registry.basis_change import RegisteredBasis, _state
from lte_model.registry.in_force import DAYS_BEHIND
from lte_model.registry.versions import register
from lte_model.serving.pyfunc import ServedRanker, input_example
from lte_model.settings import Basis, with_make
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, PREVIOUS
from lte_model.training.checkpoints import MODEL_DIRECTORY, side_directory
from lte_model.training.train import train
from lte_model.training.training_set import open_training_set
from tests.lte_model.registered import FEBRUARY, JANUARY, KIND, publish, random_ranker, trained
from tests.lte_model.registry.test_basis_map import OTHER, ranker_of, with_rotated_basis
from tests.lte_model.small_shop import TRAINING_DATE, write_table

A, B = "a" * 16, "b" * 16
OF_A, OF_B = (dataclasses.replace(KIND, basis_id=basis) for basis in (A, B))
DAY = datetime.timedelta(days=1)


def with_bases(settings, *in_force, registered=(A, B)):
    write_table(
        settings, "semantic_bases", pl.DataFrame({"basis_id": list(registered), "dimensions": [8] * len(registered)})
    )
    return settings.model_copy(update={"basis": Basis(basis_id=in_force[0], beside=in_force[1:])})


def registered(settings, kind, seed=0):
    trained(settings, JANUARY, kind=kind, seed=seed)
    return str(register(settings, JANUARY).version)


# The states.


READERS = st.dictionaries(
    st.sampled_from([CHAMPION, PREVIOUS, CHALLENGER]), st.tuples(st.booleans(), st.integers(1, 3))
)


@given(aliases=READERS, versions=st.tuples(st.integers(0, 3), st.integers(0, 3)), behind=st.integers(-1, 9))
def test_every_state_has_a_name_and_a_way_on_and_none_lets_a_basis_go_that_is_read(aliases, versions, behind):
    """`aliases` is {alias: (whether its version reads our basis, its number)}."""
    numbers = {}
    aliases = {alias: numbers.setdefault(number, (ours, str(number))) for alias, (ours, number) in aliases.items()}
    read = [
        {alias: number for alias, (is_ours, number) in aliases.items() if is_ours == ours} for ours in (True, False)
    ]
    live = (FEBRUARY, None if behind < 0 else FEBRUARY - behind * DAY)
    ours, beside = (
        RegisteredBasis(basis, 8, True, of_basis, 5, of_aliases, max(count, len({*of_aliases.values()})))
        for basis, of_basis, of_aliases, count in zip((A, B), live, read, versions, strict=True)
    )
    state, next_step = _state(ours, beside)
    assert next_step
    if state == "released":
        assert not beside.readers and "lte_basis_retirement" in next_step
    if state in ("training", "rolled back"):
        assert CHAMPION in beside.readers
    if state == "promoted":
        assert PREVIOUS in beside.readers and CHAMPION not in beside.readers
    if state == "challenged":
        assert not any({CHALLENGER, CHAMPION} <= {*basis.readers} for basis in (ours, beside))
    if state == "warming up":
        assert CHAMPION not in beside.readers
        waits = "wait for lte_daily" in next_step
        assert waits == (behind < 0 or behind > DAYS_BEHIND)


def test_a_new_basis_is_warmed_up_before_it_is_trained_in(installation):
    settings = with_bases(installation, A)
    publish(settings, OF_A)
    assert basis_change.change(settings).state == "settled"
    publish(settings, OF_B, FEBRUARY - 7 * DAY)
    assert basis_change.change(settings).next_step == f'put it in force: basis_id = "{A}", beside = ["{B}"]'
    settings = with_bases(installation, A, B)
    found = basis_change.change(settings)
    assert (found.state, found.next_step[:13]) == ("warming up", "wait for lte_")
    assert str(found.bases[1]) == f"basis {B}: 8 dimensions, in force, 1 users live of {FEBRUARY - 7 * DAY}, no alias"
    publish(settings, OF_B)
    assert f'turn the settings round: basis_id = "{B}", beside = ["{A}"]' in basis_change.change(settings).next_step


def test_what_must_not_be_is_named_with_what_to_do(installation):
    settings = with_bases(installation, A)
    number = registered(settings, OF_B)
    message = f"version {number}, challenger, reads basis {B}, which isn't in force .{A} is.: .* add it to basis.beside"
    with pytest.raises(LTEError, match=message):
        basis_change.change(settings)
    MlflowClient().set_registered_model_alias(settings.mlflow.model_name, CHAMPION, number)
    with pytest.raises(LTEError, match=f"version {number}, champion, reads basis {B}, which isn't in force"):
        promotion.watch(settings)
    with pytest.raises(LTEError, match=f"reads basis {B}, which is not registered in semantic_bases; restore"):
        basis_change.change(with_bases(installation, A, registered=(A,)))
    three = (A, B, "c" * 16)
    with pytest.raises(LTEError, match=r"3 bases are in force .*; one change at a time: take one out of basis.beside"):
        basis_change.change(with_bases(installation, *three, registered=three))
    with pytest.raises(
        LTEError, match=f"basis {B} can't be retired: version {number} is champion and reads it. Promote"
    ):
        basis_change.require_released(with_bases(installation, A), B)


def test_the_basis_that_was_fitted_last_is_found_by_its_make(installation):
    rows = [(A, FEBRUARY, 64), (B, FEBRUARY - DAY, 64), ("c" * 16, FEBRUARY + DAY, 64), ("d" * 16, FEBRUARY, 128)]
    columns = ["basis_id", "fitted_on", "dimensions"]
    bases = pl.DataFrame(rows, columns, orient="row").with_columns(
        encoder=pl.lit("hashed-text"), text_template=pl.lit(Basis().text_template)
    )
    write_table(installation, "semantic_bases", bases)

    def fitted(date, basis_id=A, **make):
        settings = installation.model_copy(update={"basis": Basis(basis_id=basis_id)})
        return basis_change.fitted(with_make(settings, make.get("dimensions"), make.get("text_template")), date)

    assert fitted(FEBRUARY) == B and fitted(FEBRUARY + DAY) == "c" * 16 and fitted(FEBRUARY, B) == A
    assert fitted(FEBRUARY, dimensions=128) == "d" * 16
    for date, make in ((FEBRUARY - 2 * DAY, {}), (FEBRUARY, {"text_template": "{title}"})):
        with pytest.raises(
            LTEError, match=f"was fitted on {date} or before beside {A}; run jobs.fit_basis --date {date}"
        ):
            fitted(date, **make)


def test_status_is_a_command(installation, tmp_path, monkeypatch, capsys):
    settings = with_bases(installation, A, B)
    publish(settings, OF_A)
    publish(settings, OF_B)
    file = tmp_path / "lte.toml"
    file.write_text(f'[basis]\nbasis_id = "{A}"\nbeside = ["{B}"]\n')

    def lines(*command):
        monkeypatch.setattr(sys, "argv", ["basis_change", *command, "--settings", str(file)])
        basis_change.main()
        return capsys.readouterr().out.splitlines()

    *bases, state = lines("status")
    assert [line.partition(":")[0] for line in bases] == [f"basis {A}", f"basis {B}"] and state.startswith(
        "warming up: "
    )
    with pytest.raises(LTEError, match=f"basis {B} can't be retired: it is in force"):
        lines("release", "--basis", B)
    file.write_text(f'[basis]\nbasis_id = "{A}"\n')
    assert lines("release", "--basis", B) == [f"basis {B} is neither in force nor read by an alias: it may be retired"]


# The gate between two bases.


def test_the_gate_asks_that_both_bases_are_in_force_and_live_for_the_same_users(installation):
    settings = with_bases(installation, A)
    old = registered(settings, OF_A)
    publish(settings, OF_A, users=[f"u{number}" for number in range(100)])
    gate.gate(settings, old).require()
    promotion.promote(settings, old, None)
    new = registered(settings, OF_B, seed=1)

    def broken(*in_force):
        return [line for line in gate.gate(with_bases(installation, *in_force), new).broken if "test users" not in line]

    assert any(f"version 2 reads basis {B}, and in force is {A}: add it to basis.beside" in line for line in broken(A))
    assert any(line.startswith("reads the live LTEs: ") for line in broken(B, A))
    publish(settings, OF_B, FEBRUARY - 2 * DAY, users=["u0"])
    assert any(
        f"of its basis {B} only those of {FEBRUARY - 2 * DAY}: put it into basis.beside" in line
        for line in broken(B, A)
    )
    publish(settings, OF_B, users=[f"u{number}" for number in range(1, 97)])
    assert broken(B, A) == [
        f"its basis has the LTEs of the champion's users: 97.0 % of those of basis {A} have one in basis {B}, "
        "at least 98.0 %"
    ]
    publish(settings, OF_B, users=["u97"])
    assert broken(B, A) == []
    # A person approves a day later, after the basis was removed from the settings.
    MlflowClient().set_model_version_tag(settings.mlflow.model_name, new, "gate", "passed")
    with pytest.raises(
        LTEError, match=f"version 2 is not promoted: since the gate .* reads basis {B}, and in force is {A}"
    ):
        promotion.promote(with_bases(installation, A), new, old)
    assert any(f"version 1 reads basis {A}, and in force is {B}" in line for line in broken(B))


def test_a_rollback_to_a_basis_that_is_not_made_any_more_is_refused(installation):
    settings = with_bases(installation, A)
    old = registered(settings, OF_A)
    publish(settings, OF_A)
    gate.gate(settings, old)
    promotion.promote(settings, old, None)
    new = registered(settings, OF_B, seed=1)
    MlflowClient().set_registered_model_alias(settings.mlflow.model_name, CHAMPION, new)
    publish(settings, OF_B)
    with pytest.raises(
        LTEError, match=f"version 1 can't be champion again: its basis, and .* reads basis {A}, and in force"
    ):
        promotion.rollback(with_bases(installation, B), "why", old)
    publish(settings, OF_B, FEBRUARY + 7 * DAY)
    with pytest.raises(
        LTEError, match=f"version 1 can't be champion again: reads the live .* of its basis {A} only those"
    ):
        promotion.rollback(with_bases(installation, B, A), "why", old)
    publish(settings, OF_A, FEBRUARY + 7 * DAY)
    assert str(promotion.rollback(with_bases(installation, B, A), "why", old).version) == old


def test_each_model_ranks_the_test_users_by_the_ltes_of_its_own_basis(own_shop):
    settings, kind = with_rotated_basis(own_shop)
    ours, theirs = (ranker_of(settings, dataclasses.replace(kind, basis_id=basis)) for basis in (kind.basis_id, OTHER))
    # The same model in rotated coordinates: its inputs and its content vectors are rotated too.
    contents = [ranker.content.numpy().astype(np.float64) for ranker in (ours, theirs)]
    turn = torch.from_numpy(np.linalg.lstsq(contents[1], contents[0], rcond=None)[0].astype(np.float32))
    state = ours.state_dict() | {"content": theirs.content}
    for name, weight in ours.state_dict().items():
        if weight.dim() == 2 and weight.shape[1] == ours.config.dimensions and name != "content":
            state[name] = weight @ turn.T
    theirs.load_state_dict(state)
    ranks = [ranks_by_user(settings, TRAINING_DATE, ranker)["rank"].to_numpy() for ranker in (ours, theirs)]
    apart = np.abs(ranks[0] - ranks[1])  # the rotated basis' grid rounds differently
    assert len(apart) > 10 and apart.mean() < 0.5 and apart.max() <= 3
    uplift, users = over_champion(settings, TRAINING_DATE, theirs, ours)
    assert users == len(ranks[0]) and abs(uplift.value) < 0.05


# A model refuses an LTE of another basis on every path.


def test_training_and_evaluation_refuse_the_other_basis_by_name(own_shop, tmp_path):
    settings, kind = with_rotated_basis(own_shop)
    turned = settings.model_copy(update={"basis": Basis(basis_id=OTHER, beside=(kind.basis_id,), dimensions=8)})
    with pytest.raises(
        LTEError,
        match=f"the training_set of {TRAINING_DATE} is of basis {kind.basis_id}, and basis.basis_id is {OTHER}; "
        "run python -m jobs.build_training_set",
    ):
        train(turned, TRAINING_DATE, "prefix")
    training_set = open_training_set(settings, TRAINING_DATE)
    evaluated = ranker_of(settings, dataclasses.replace(kind, basis_id=OTHER))
    save_ranker(evaluated, side_directory(settings, TRAINING_DATE, "prefix") / MODEL_DIRECTORY)
    with pytest.raises(
        LTEError, match=f"trained on basis_id {OTHER}, but the training set of .* has basis_id {kind.basis_id}"
    ):
        load_side(training_set, "prefix", torch.device("cpu"))
    load_side(training_set.in_basis(OTHER), "prefix", torch.device("cpu"))


@given(theirs=st.sampled_from([A, B, "", f"{A}->{B}", A[:-1]]))
def test_what_is_served_takes_the_ltes_of_its_basis_alone(theirs):
    served = ServedRanker()
    served.recommender = Recommender(random_ranker(OF_A))
    users = input_example(served.recommender.ranker).assign(basis_id=theirs)
    if theirs == A:
        assert len(served.predict(None, users)) == len(users)
        return
    with pytest.raises(LTEError, match=f"trained on basis_id {A}, but the input's LTE has basis_id {theirs}"):
        served.predict(None, users)


def test_a_served_model_looks_up_its_own_basis_while_both_are_live(own_shop, monkeypatch):
    """The model gets user ids only."""
    settings, kind = with_rotated_basis(own_shop)
    snapshots = pl.read_delta(settings.table_path("lte_snapshots")).filter(representation="uniform")
    live = snapshots.filter(pl.col("snapshot_date") == snapshots["snapshot_date"].max())
    write_table(settings, "lte_live", live)
    monkeypatch.setattr("lte_model.serving.pyfunc.load_settings", lambda: settings)
    users = live["user_id"].unique().sort()[:5].to_list()
    for basis_id in (kind.basis_id, OTHER):
        served = ServedRanker()
        served.recommender = Recommender(ranker_of(settings, dataclasses.replace(kind, basis_id=basis_id)))
        found = served.predict(None, pl.DataFrame({"item_ids": [[]] * 5, "user_id": users}).to_pandas())
        own = live.filter(basis_id=basis_id).filter(pl.col("user_id").is_in(users)).sort("user_id")
        given_rows = own.select("vector_sum", "event_count", "basis_id", "representation", "lag_days", "window_days")
        rows = given_rows.with_columns(item_ids=pl.Series([[]] * 5, dtype=pl.List(pl.String))).to_pandas()
        assert found["item_ids"].tolist() == served.predict(None, rows)["item_ids"].tolist()
    gone = live.filter(basis_id=kind.basis_id)
    write_table(settings, "lte_live", gone)
    with pytest.raises(
        LTEError, match=f"lte_live holds no uniform LTE of basis {OTHER}, which the model reads; publish it"
    ):
        served.predict(None, pl.DataFrame({"item_ids": [[]], "user_id": users[:1]}).to_pandas())
