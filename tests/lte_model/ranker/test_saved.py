"""A ranker on disk: what comes back, and what is refused."""

import dataclasses
import json

import pytest
import torch

from lte_model.errors import LTEError
from lte_model.ranker.model import RankerConfig
from lte_model.ranker.saved import DESCRIPTION_FILE, EARLIER_DEFAULTS, load_ranker, save_ranker
from tests.lte_model.ranker.small_rankers import EVERYTHING, KIND, integrations, make_ranker, users


@pytest.mark.parametrize(
    ("field", "value"), [("basis_id", "77c0"), ("representation", "recency"), ("lag_days", 7), ("window_days", 90)]
)
def test_an_lte_of_another_kind_is_refused_by_name(field, value):
    with pytest.raises(LTEError) as refused:
        make_ranker().require(dataclasses.replace(KIND, **{field: value}), "the snapshot of 2024-05-01")
    for name in (field, str(value), str(getattr(KIND, field)), "the snapshot of 2024-05-01"):
        assert name in str(refused.value)
    make_ranker().require(KIND, "the snapshot of 2024-05-01")


@integrations
@pytest.mark.parametrize("options", [{}, {"id_embedding": False}, EVERYTHING], ids=["plain", "content", "everything"])
def test_a_saved_ranker_comes_back_the_same(tmp_path, integration, options):
    ranker = make_ranker(integration, **options)
    save_ranker(make_ranker(seed=1), tmp_path / "model")
    save_ranker(ranker, tmp_path / "model")  # replaces
    loaded = load_ranker(tmp_path / "model")
    batch = users(3, 4, representations=ranker.config.representations)
    assert torch.equal(loaded.scores(batch), ranker.scores(batch))
    assert (loaded.kind, loaded.config, loaded.item_ids) == (ranker.kind, ranker.config, ranker.item_ids)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_description_of_the_first_release_is_read_as_its_models_were(tmp_path):
    ranker = make_ranker(popularity_counts=3)
    save_ranker(ranker, tmp_path)
    description = json.loads((tmp_path / DESCRIPTION_FILE).read_text())
    first = ("items", "dimensions", "max_tokens", "width", "blocks", "heads", "dropout", "id_embedding", "integration")
    description["config"] = {field: description["config"][field] for field in first}
    (tmp_path / DESCRIPTION_FILE).write_text(json.dumps(description))
    loaded = load_ranker(tmp_path)
    assert loaded.config == ranker.config and torch.equal(loaded.scores(users(3, 4)), ranker.scores(users(3, 4)))
    assert {*first, *EARLIER_DEFAULTS} == {field.name for field in dataclasses.fields(RankerConfig)}


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(LTEError, match=r"there is no trained model in .*nowhere.*lte_model.training.train"):
        load_ranker(tmp_path / "nowhere")
