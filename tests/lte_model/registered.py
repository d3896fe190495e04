"""Makes models with random weights, plus the files that training and evaluation leave, so that they can register."""

import dataclasses
import datetime

import polars as pl
import torch
from mlflow.tracking import MlflowClient

from lte_model.domain.basis import GRID
from lte_model.domain.kind import LTEKind
from lte_model.evaluation import results
from lte_model.figures import Figure, to_json
from lte_model.ranker.model import Ranker
from lte_model.ranker.saved import save_ranker
from lte_model.registry import gate, promotion, versions
from lte_model.tracking import runs
from lte_model.training.checkpoints import MODEL_DIRECTORY, side_directory
from lte_model.training.training_set import open_training_set
from tests.lte_model.configs import ranker_config
from tests.lte_model.small_shop import TRAINING_DATE

JANUARY, FEBRUARY = datetime.date(2026, 1, 1), datetime.date(2026, 2, 1)
KIND = LTEKind("3f2ac41b907d", "uniform", 30, 365)
ITEMS, DIMENSIONS = 20, 8


def figure(value, spread):
    return Figure(value, value - spread, value + spread)


def random_ranker(kind=KIND, seed=0, item_ids=None, content=None, **options):
    """A prefix model over `item_ids`, by default twenty items."""
    torch.manual_seed(seed)
    if content is None:
        item_ids = [f"item {row}" for row in range(ITEMS)]
        content = torch.nn.functional.normalize(torch.randn(ITEMS, DIMENSIONS), dim=1)
        content = (content * GRID).round() / GRID
    config = ranker_config(*content.shape, max_tokens=6, width=16, heads=2, **options)
    ranker = Ranker(config, kind, item_ids, content).eval()
    if config.popularity_bias:
        torch.nn.init.normal_(ranker.popularity_scale)
        ranker.popularity.normal_()
    return ranker


def evaluated(settings, date, ranker, over_none=0.2, over_popularity=0.3, with_lte=900):
    """Saves the ranker as a training's prefix model, and an evaluation with these figures."""
    save_ranker(ranker, side_directory(settings, date, "prefix") / MODEL_DIRECTORY)
    metrics = {name: figure(0.15, 0.02) for name in ("ndcg@10", "ndcg@500", "recall@500")}
    evaluation = {
        "training_date": date.isoformat(),
        **dataclasses.asdict(ranker.kind),
        "anchors": ["2025-10-01", "2025-11-01"],
        "validation": ["2025-11-15", "2025-12-01"],
        "test": ["2025-12-01", date.isoformat()],
        "test_users": 1045,
        "test_users_with_lte": with_lte,
        "sides": {
            "prefix": {"run_id": runs.find_or_create_run(settings, date, "prefix"), "metrics": metrics},
            **{side: {"metrics": metrics} for side in ("none", "popularity_all", "popularity_30d", "popularity_7d")},
        },
        "uplift": {
            results.OVER_NONE: {"ndcg@500": figure(over_none, 0.1)},
            results.OVER_POPULARITY: {"ndcg@500": figure(over_popularity, 0.1)},
        },
        "tables": {"training_set": {"version": 6}, "events": {"version": 41}},
    }
    path = results.evaluation_path(settings, date)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(evaluation), encoding="utf-8")
    return ranker


FIGURES = ("over_none", "over_popularity", "with_lte")


def trained(settings, date, **options):
    """Writes a model with random weights and its evaluation, like a training and an evaluation do."""
    figures = {name: options.pop(name) for name in FIGURES if name in options}
    return evaluated(settings, date, random_ranker(**options), **figures)


def registered_of_shop(settings, scale, seed=0, **options):
    """Registers a version that ranks the small shop's items by popularity (scale 1), or against it (−1).

    Returns its number.
    """
    figures = {name: options.pop(name) for name in FIGURES if name in options}
    training_set = open_training_set(settings, TRAINING_DATE)
    catalogue = training_set.catalogue
    ranker = random_ranker(
        kind=options.pop("kind", training_set.kind),
        seed=seed,
        item_ids=catalogue.item_ids.to_list(),
        content=torch.from_numpy(catalogue.vectors),
        popularity_bias=True,
        **options,
    )
    with torch.no_grad():
        ranker.popularity_scale.fill_(50.0 * scale)  # outweighs the random weights
    evaluated(settings, TRAINING_DATE, ranker, **figures)
    return str(versions.register(settings, TRAINING_DATE).version)


def promoted(settings, number, over=None):
    gate.gate(settings, number)
    return promotion.promote(settings, number, over)


def publish(settings, kind, date=FEBRUARY, users=("u",)):
    """Writes a row of `lte_live` for each user and their publication, by default of 1 February."""
    of_date = {"snapshot_date": date} | dataclasses.asdict(kind)
    rows = pl.DataFrame([{"user_id": user} | of_date for user in users])
    rows.write_delta(settings.table_path("lte_live"), mode="append")
    published = pl.DataFrame([of_date | {"users": len(users)}])
    published.write_delta(settings.table_path("publications"), mode="append")


def aliases(settings):
    named = MlflowClient().get_registered_model(settings.mlflow.model_name).aliases
    return {alias: int(version) for alias, version in named.items()}


def settings_file(settings, folder):
    """A settings file with the keys that the registry's commands read."""
    options, file = settings.mlflow, folder / "lte.toml"
    file.write_text(
        f'[mlflow]\ntracking_uri = "{options.tracking_uri}"\nexperiment = "{options.experiment}"\n'
        f'artifacts = "artifacts"\nmodel_name = "{options.model_name}"\n'
    )
    return file


def register_again(settings, number):
    """Registers a version's files and figures as a new version, which becomes challenger."""
    runs.configure(settings)
    client, name = MlflowClient(), settings.mlflow.model_name
    first = client.get_model_version(name, number)
    tags = {tag: value for tag, value in first.tags.items() if not tag.startswith(("gate", "approv", "promot"))}
    second = client.create_model_version(name, first.source, first.run_id, tags=tags)
    client.set_registered_model_alias(name, "challenger", second.version)
