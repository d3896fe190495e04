"""Changes the semantic basis of a tiny shop in a real Airflow, by the steps of lte_model/registry/BASIS_CHANGE.md.

The test triggers each DAG and edits the settings as a person would, then checks the tables and the registry. The first
champion is made without Airflow, by the same command lines, in one process.
"""

import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from infra.local.airflow_api import FINISHED
from infra.runs.airflow_runs import follow_promotion, run_once
from infra.runs.installation import read_feed
from jobs.retire_basis import TABLES_OF_BASES
from lte_model.domain.kind import KIND_FIELDS
from lte_model.domain.windows import ONE_DAY
from lte_model.errors import LTEError
from lte_model.registry import versions
from lte_model.registry.basis_change import change
from lte_model.registry.in_force import publications, readers
from lte_model.settings import load_settings
from lte_model.tracking.lineage import CHALLENGER, CHAMPION, PREVIOUS
from tests.production.every_table import BOOTSTRAP, TRAINING
from tests.repository import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.production, pytest.mark.timeout(3600)]

FIRST_CHAMPION = (
    *BOOTSTRAP,
    "jobs.snapshot_lte --date {first} --anchors",
    "jobs.snapshot_lte --date {first}",
    "jobs.publish_lte --date {first}",
    "jobs.count_popularity --date {first} --anchors",
    "jobs.build_training_set --date {first}",
    *TRAINING,
    "lte_model.registry.promotion gate --version 1",
    "lte_model.registry.promotion promote --version 1 --over ''",
)
IN_ONE_PROCESS = (
    "import sys\nfrom tests.production.every_table import run_command\nfor line in sys.argv[1:]: run_command(line)"
)
MAKE = {"dimensions": 12, "text_template": "{title} {category}"}
"""The options in which the new basis differs from the settings, as typed into the DAG's form."""


class Shop:
    """The installation, with the operations of a person who changes its basis."""

    def __init__(self, installation):
        self.api, self.progress = installation.stack.api, installation.progress
        self.file = Path(installation.stack.settings_file)
        self.settings = installation.settings
        self._text = self.file.read_text(encoding="utf-8")  # its last section is [basis]

    def put_in_force(self, basis_id, *beside):
        names = ", ".join(f'"{other}"' for other in beside)
        self.file.write_text(f'{self._text}basis_id = "{basis_id}"\nbeside = [{names}]\n', encoding="utf-8")
        self.settings = load_settings(self.file)

    def run(self, dag_id, date, conf=None):
        """Runs the DAG for `date` until it succeeds; returns the run's id."""
        run_once(self.progress, dag_id, date, conf)
        return self.api.run_of(dag_id, date)["dag_run_id"]

    def approve(self):
        """Follows and approves the promotion that the training's asset started; returns its question."""
        assert follow_promotion(self.progress, training_before=False) is None
        return self.api.question("lte_promotion", self.api.runs("lte_promotion")[0]["dag_run_id"], "approve")["body"]

    def refusal(self, date, basis_id):
        """The reason why the retirement's first task refuses the basis; asserts that no other task ran."""
        run_id = self.api.trigger("lte_basis_retirement", date, {"basis": basis_id})
        while self.api.run_of("lte_basis_retirement", date)["state"] not in FINISHED:
            time.sleep(0.5)
        states = {task["task_id"]: task["state"] for task in self.api.tasks("lte_basis_retirement", run_id)}
        assert states.pop("check_released") == "failed" and {*states.values()} == {"upstream_failed"}
        log = self.api.log("lte_basis_retirement", run_id, "check_released", 1)
        (reason,) = (line for line in log if line.startswith("error: "))
        return reason

    def rows(self, table):
        return pl.scan_delta(self.settings.table_path(table))

    def bases_of(self, table):
        return {*self.rows(table).select("basis_id").unique().collect()["basis_id"]}

    def live(self):
        """{basis: newest live date}."""
        newest = {row["basis_id"]: row["snapshot_date"] for row in publications(self.settings)}
        assert self.bases_of("lte_live") == {*newest}
        return newest

    def recommended_by(self, date):
        """(version, basis) of the recommendations of `date`."""
        rows = self.rows("recommendations").filter(date=date).select("model_version", "basis_id").unique().collect()
        ((number, basis_id),) = rows.rows()
        return str(number), basis_id

    def reads(self, alias):
        """The bases whose live LTEs the alias' served model accepts; it refuses the others by name."""
        model, taken = versions.load(self.settings, alias), set()
        for (basis_id,), rows in self.rows("lte_live").collect().partition_by("basis_id", as_dict=True).items():
            users = rows.head(5).select(
                *KIND_FIELDS, "vector_sum", "event_count", item_ids=pl.lit([], pl.List(pl.String))
            )
            try:
                assert len(model.predict(users.to_pandas())) == 5
                taken.add(basis_id)
            except LTEError as error:
                assert f"but the input's LTE has basis_id {basis_id}" in str(error)
        return taken

    def state(self):
        found = change(self.settings)
        return found.state, found.next_step


@pytest.fixture(scope="module")
def first_champion(home):
    """The first champion, trained two days before the feed ends. Made before Airflow starts, which would only wait."""
    feed, file = read_feed(home / "source" / "events.parquet"), home / "settings.toml"
    lines = [line.format(first=feed.last - ONE_DAY, since=feed.first) for line in FIRST_CHAMPION]
    commands = [f"{line} --settings {file}" for line in lines]
    subprocess.run([sys.executable, "-c", IN_ONE_PROCESS, *commands], cwd=REPOSITORY, check=True)


@pytest.fixture(scope="module")
def shop(first_champion, installation):
    return Shop(installation)


def test_one_basis_takes_the_place_of_another(installation, shop):
    first, second, last = (installation.training_date - days * ONE_DAY for days in (2, 1, 0))
    (old,) = shop.bases_of("semantic_bases")
    assert readers(shop.settings) == {CHAMPION: ("1", old), CHALLENGER: ("1", old)}

    # A new basis is fitted beside the one in force, and published for the first time; nothing reads it.
    shop.put_in_force(old)
    begun = shop.run("lte_basis_change", first, MAKE)
    (new,) = shop.bases_of("semantic_bases") - {old}
    assert shop.live() == {old: first, new: first} and shop.reads(CHAMPION) == {old}
    vectors = shop.rows("item_embeddings").filter(basis_id=new).select(pl.col("vector").list.len()).unique()
    assert vectors.collect()["vector"].to_list() == [MAKE["dimensions"]]
    next_step = f'put it in force: basis_id = "{old}", beside = ["{new}"]'
    assert shop.state() == ("settled", next_step)
    assert f"settled: {next_step}" in shop.api.log("lte_basis_change", begun, "status", 1)
    client = MlflowClient(shop.settings.mlflow.tracking_uri)
    experiment = client.get_experiment_by_name(shop.settings.mlflow.experiment)
    (mapped,) = client.search_runs([experiment.experiment_id], f"tags.basis_to = '{new}'")
    assert mapped.data.tags["basis_from"] == old and 0 < mapped.data.metrics["users/uniform/cosine"] < 1

    # Both bases are made every day, and the champion reads its own.
    shop.put_in_force(old, new)
    shop.run("lte_daily", second)
    assert shop.live() == {old: second, new: second}
    assert shop.recommended_by(second) == ("1", old) and shop.reads(CHAMPION) == {old}
    turned = f'basis_id = "{new}", beside = ["{old}"]'
    assert shop.state()[0] == "warming up" and shop.state()[1].endswith(f"turn the settings round: {turned}")

    # Swapped: the next training is in the new basis, and the gate compares it with the old basis' champion.
    shop.put_in_force(new, old)
    assert shop.state()[0] == "training"
    refused = shop.refusal(first, old)
    assert f"basis {old} can't be retired: version 1 is champion and reads it. Promote a model of another" in refused
    shop.run("lte_training", second)
    assert readers(shop.settings) == {CHAMPION: ("1", old), CHALLENGER: ("2", new)}
    question = shop.approve()
    assert f"basis `{new}`" in question and f"would replace version 1 (training of {first}" in question
    assert f"of basis `{old}`" in question
    assert readers(shop.settings) == {CHAMPION: ("2", new), CHALLENGER: ("2", new), PREVIOUS: ("1", old)}
    assert shop.reads(CHAMPION) == {new} and shop.reads(PREVIOUS) == {old}

    # A rollback stays possible until a person gives it up; then the old basis leaves the settings, then the tables.
    assert shop.state()[0] == "promoted"
    refused = shop.refusal(second, old)
    assert f"basis {old} can't be retired: version 1 is previous and reads it. A rollback would need it" in refused
    client.delete_registered_model_alias(shop.settings.mlflow.model_name, PREVIOUS)
    released = f"take {old} out of basis.beside, then run lte_basis_retirement for it"
    assert shop.state() == ("released", released)
    assert f"basis {old} can't be retired: it is in force" in shop.refusal(last, old)
    tables = [table.name for together in TABLES_OF_BASES.values() for table in together]
    there = [table for table in tables if Path(shop.settings.table_path(table)).exists()]
    assert {"lte_live", "publications", "lte_snapshots", "snapshot_accounts", "item_embeddings"} <= {*there}
    before = {table: shop.rows(table).filter(basis_id=new).collect() for table in there}
    shop.put_in_force(new)
    shop.run("lte_basis_retirement", last - 3 * ONE_DAY, {"basis": old})
    for table in there:
        rows = shop.rows(table).collect()
        assert rows.sort(pl.all().exclude(pl.List)).equals(before[table].sort(pl.all().exclude(pl.List))), table
    assert shop.bases_of("semantic_bases") == {old, new} and shop.state()[0] == "settled"

    # The next daily run works without it.
    shop.run("lte_daily", last)
    assert shop.live() == {new: last}
    assert shop.recommended_by(last) == ("2", new) and shop.reads(CHAMPION) == {new}
