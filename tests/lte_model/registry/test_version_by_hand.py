"""Versions that a person registered in MLflow's own pages.

Every command says that they aren't ours, and works again as soon as the alias is given back.
"""

import subprocess
import sys

import mlflow
import numpy as np
import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from lte_model.errors import LTEError
from lte_model.registry import basis_change, in_force, promotion, versions
from lte_model.registry.gate import gate
from lte_model.registry.version_tags import figure_tag
from lte_model.tracking import lineage
from tests.lte_model.registered import JANUARY, KIND, aliases, promoted, settings_file, trained

WHOLE = {
    "training_date": "2026-01-01",
    "basis_id": KIND.basis_id,
    "representation": "uniform",
    "lag_days": "30",
    "window_days": "365",
}

BY_HAND = {
    "no tag": ({}, "it has no tag training_date, basis_id, representation, lag_days, window_days"),
    "a tag of theirs": ({"team": "search"}, "it has no tag training_date, basis_id"),
    "some of our tags": ({"training_date": "2026-01-01", "lag_days": "30"}, "it has no tag basis_id, representation"),
    "an empty tag": (WHOLE | {"basis_id": ""}, "it has no tag basis_id,"),
    "a date in words": (WHOLE | {"training_date": "New Year"}, "its tag training_date is 'New Year',"),
    "a lag in words": (WHOLE | {"lag_days": "a month"}, "its tag lag_days is 'a month',"),
}
"""Tags of a version that a person registered, and what is wrong with them."""

COMMANDS = {
    "watch": lambda settings, number: promotion.watch(settings),
    "gate": gate,
    "promote": lambda settings, number: promotion.promote(settings, number, "1"),
    "rollback": lambda settings, number: promotion.rollback(settings, "why", number),
    "readers": lambda settings, number: in_force.readers(settings),
    "snapshots of a basis beside": lambda settings, number: in_force.representations_read(settings, "other"),
    "what is in force": lambda settings, number: in_force.out_of_force(settings),
    "retirement": lambda settings, number: basis_change.require_released(settings, KIND.basis_id),
}
"""What reads the tags of a version whose number it is given, or of one that has an alias."""


def registered_by_hand(settings, tags, alias=None):
    """The files of version 1 as a version without the tags that it came with."""
    client, name = MlflowClient(), settings.mlflow.model_name
    first = client.get_model_version(name, "1")
    number = client.create_model_version(name, first.source, first.run_id, tags=tags).version
    if alias:
        client.set_registered_model_alias(name, alias, number)
    return str(number)


def in_use(settings):
    """A champion that came by the gate, of a basis that is registered and the only one in force."""
    trained(settings, JANUARY)
    promoted(settings, str(versions.register(settings, JANUARY).version))
    bases = pl.DataFrame([{"basis_id": KIND.basis_id, "dimensions": 8}])
    bases.write_delta(settings.table_path("semantic_bases"))
    basis = settings.basis.model_copy(update={"basis_id": KIND.basis_id})
    return settings.model_copy(update={"basis": basis})


def test_every_command_names_a_champion_that_is_not_ours(installation):
    settings = in_use(installation)
    for tags, problem in BY_HAND.values():
        number = registered_by_hand(settings, tags | {"gate": "passed"}, "champion")
        for asks in COMMANDS.values():
            said = rf"version {number} \(champion\) isn't ours: {problem}.*rollback --version V"
            with pytest.raises(LTEError, match=said):
                asks(settings, number)
            assert aliases(settings) == {"champion": int(number), "challenger": 1}
        lines = versions.status(settings)
        assert "training of 2026-01-01" in lines[0] and lines[0].endswith("; challenger")
        assert f"version {number} isn't ours: {problem}" in lines[-1] and lines[-1].endswith("; champion")
        # The way out that the message names.
        promotion.rollback(settings, "it isn't ours", "1")
        assert promotion.watch(settings).endswith("version 1 is champion, as on record")
        assert aliases(settings) == {"champion": 1, "challenger": 1}
        basis_change.change(settings)


def test_another_alias_that_is_not_ours_is_named_by_what_reads_it_and_leaves_the_champion_alone(installation):
    settings = in_use(installation)
    for alias, asks in (
        ("challenger", promotion.challenger),
        ("previous", lambda settings: promotion.rollback(settings, "why")),
    ):
        number = registered_by_hand(settings, {}, alias)
        for ask in (asks, basis_change.change):
            with pytest.raises(
                LTEError, match=rf"version {number} \({alias}\) isn't ours: it has no tag training_date"
            ):
                ask(settings)
        assert promotion.watch(settings).endswith("version 1 is champion, as on record")
        gate(settings, "1").require()
        MlflowClient().delete_registered_model_alias(settings.mlflow.model_name, alias)


LACKING = (
    ("headline_metric", None),
    (figure_tag("prefix over none", "ndcg@500"), None),
    (figure_tag("prefix over none", "ndcg@500"), "+20 %"),
    (figure_tag("prefix over none", "ndcg@500"), '{"value": "much", "low": 0, "high": 1}'),
    (figure_tag("prefix over popularity_30d", "ndcg@500"), "[]"),
    (figure_tag("none", "ndcg@500"), "null"),
    ("test_users", None),
    ("test_users", "many"),
    ("test_users_with_lte", ""),
)
"""A tag of what was measured that a version lacks, or what it says in its place."""


def test_a_gate_names_what_it_lacks_of_a_version(installation):
    settings = in_use(installation)
    whole = versions.version_of(settings, "1").tags
    for tag, value in LACKING:
        tags = {name: kept for name, kept in whole.items() if name != tag}
        number = registered_by_hand(settings, tags if value is None else tags | {tag: value})
        with pytest.raises(LTEError, match=f"version {number} isn't ours: it.* tag {tag}"):
            gate(settings, number)
        assert len(versions.status(settings)) == int(number)
    number = registered_by_hand(settings, whole | {"test_users": "0", "test_users_with_lte": "0"})
    with pytest.raises(LTEError, match="enough users have an LTE: its test has no user"):
        gate(settings, number).require()


def test_what_a_tag_by_hand_protects_is_not_guessed(installation):
    settings = in_use(installation)
    for tags in ({}, {"training_date": "soon"}):
        registered_by_hand(settings, tags)
        assert lineage.registered_versions(settings)[-1].dated == "a date that it doesn't name"
    assert lineage.model_on(settings, JANUARY).version == 1
    number = registered_by_hand(settings, {"delta_version.events": "latest"})
    with pytest.raises(LTEError, match=f"version {number} has a tag delta_version.events that says 'latest'"):
        lineage.registered_versions(settings)


def test_a_model_of_another_library_ends_each_command_in_one_line(installation, tmp_path):
    from sklearn.linear_model import LinearRegression

    settings = in_use(installation)
    with mlflow.start_run():
        fitted = LinearRegression().fit(np.zeros((2, 1)), np.zeros(2))
        logged = mlflow.sklearn.log_model(fitted, name="m", serialization_format="cloudpickle")
    number = mlflow.register_model(logged.model_uri, settings.mlflow.model_name).version
    MlflowClient().set_registered_model_alias(settings.mlflow.model_name, "champion", number)
    file = settings_file(settings, tmp_path)
    for command, code in (
        ("promotion watch", 2),
        (f"promotion gate --version {number}", 2),
        (f"promotion rollback --version {number} --reason=why", 2),
        ("versions status", 0),
    ):
        done = subprocess.run(
            [sys.executable, "-m", *f"lte_model.registry.{command} --settings {file}".split()],
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        said = done.stderr if code else done.stdout
        assert (
            f"version {number}" in said
            and "isn't ours: it has no tag training_date" in said
            and "Traceback" not in said
        )
