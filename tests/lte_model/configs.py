"""The configuration of a small ranker: what a test doesn't say is as the settings have it."""

from typing import Any

from lte_model.ranker.model import RankerConfig
from lte_model.settings import Model


def ranker_config(items: int, dimensions: int, **options: Any) -> RankerConfig:
    """Without `id_dropout`, which would have a small ranker learn from chance, unless it is given."""
    sizes = Model().model_dump() | {"representations": 1, "id_dropout": 0.0, "popularity_counts": 3}
    return RankerConfig(items=items, dimensions=dimensions, **sizes | options)
