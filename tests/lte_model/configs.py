"""The configuration of a small ranker, with the settings' defaults for all other options."""

from typing import Any

from lte_model.ranker.model import RankerConfig
from lte_model.settings import Model


def ranker_config(items: int, dimensions: int, **options: Any) -> RankerConfig:
    """The configuration with these sizes. `id_dropout` is 0 unless given: a small ranker would learn noise."""
    sizes = Model().model_dump() | {"representations": 1, "id_dropout": 0.0, "popularity_counts": 3}
    return RankerConfig(items=items, dimensions=dimensions, **sizes | options)
