"""What a version says of itself by its tags: `versions.register` leaves them, and whoever asks for one asks here.

In MLflow's own pages a person can register any model under the name of the ranker, and give any version an alias. Such
a version has none of these tags, or some of them. It is not ours, and whoever needs to know what it reads, or what was
measured of it, refuses it by its number.
"""

import datetime
from collections.abc import Callable, Mapping
from typing import TypeVar

from mlflow.entities.model_registry import ModelVersion

from lte_model import figures
from lte_model.domain.kind import KIND_FIELDS
from lte_model.errors import LTEError
from lte_model.figures import Figure, from_json

Read = TypeVar("Read")

HEADLINE = "headline_metric"
"""The tag that names the metric which decides."""


def full_name(version: ModelVersion) -> str:
    """A version with its model, such as `lte-ranker version 3`."""
    return f"{version.name} version {version.version}"


def own_tags(version: ModelVersion) -> Mapping[str, str]:
    """The tags of a version that `register` made: they say of which training it is, and which LTEs it reads.

    Raises `LTEError` for a version that isn't ours.
    """
    missing = [name for name in _IDENTITY if not version.tags.get(name)]
    if missing:
        raise LTEError(_not_ours(version, f"it has no tag {', '.join(missing)}"))
    for name, read in _IDENTITY.items():
        read_tag(version, name, read)
    return version.tags


def is_ours(version: ModelVersion) -> bool:
    """Whether `own_tags` has something to say of the version."""
    try:
        own_tags(version)
    except LTEError:
        return False
    return True


def read_tag(version: ModelVersion, name: str, read: Callable[[str], Read]) -> Read:
    """What `read` makes of a tag. Raises `LTEError` where the version has no such tag, or `read` a `ValueError`."""
    if name not in version.tags:
        raise LTEError(_not_ours(version, f"it has no tag {name}"))
    try:
        return read(version.tags[name])
    except ValueError:
        raise LTEError(_not_ours(version, f"its tag {name} is {version.tags[name]!r}")) from None


def training_date(version: ModelVersion) -> datetime.date:
    """The day that its training ran on. Raises as `read_tag`."""
    return read_tag(version, "training_date", datetime.date.fromisoformat)


def figure_tag(side: str, metric: str) -> str:
    """The name of a figure's tag. MLflow refuses the @ of `ndcg@500` in names."""
    return f"{side}.{metric.replace('@', '_at_')}"


def headline(version: ModelVersion) -> str:
    """The metric that decides, as people write it. Raises as `read_tag`."""
    return figures.metric_label(read_tag(version, HEADLINE, str))


def figure(version: ModelVersion, side: str) -> Figure:
    """The metric that decides, of a side or a comparison. Raises as `read_tag`."""
    return read_tag(version, figure_tag(side, read_tag(version, HEADLINE, str)), _figure)


def with_interval(version: ModelVersion, side: str) -> str:
    """A side's figure, such as `NDCG@500 0.2321 [0.2204, 0.2453]`."""
    return f"{headline(version)} {measured(version, side)}"


def measured(version: ModelVersion, side: str) -> str:
    """The figure of a side that decides, with its interval, as text."""
    found = figure(version, side)
    return f"{found.number()} {found.interval()}".strip()


def uplift(version: ModelVersion, comparison: str) -> str:
    """The relative difference of a comparison, with its interval, as text."""
    found = figure(version, comparison)
    return f"{found.percent()} {found.percent_interval()}".strip()


def _figure(text: str) -> Figure:
    found = from_json(text)
    if not isinstance(found, Figure) or not all(
        end is None or isinstance(end, int | float) for end in (found.value, found.low, found.high)
    ):
        raise ValueError(text)
    return found


_IDENTITY: Mapping[str, Callable[[str], object]] = {
    "training_date": datetime.date.fromisoformat,
    **{field: int if field.endswith("_days") else str for field in KIND_FIELDS},
}
"""The tags without which nobody knows what a version reads, and how each is read."""


def _not_ours(version: ModelVersion, why: str) -> str:
    known_as = f" ({', '.join(sorted(version.aliases))})" if version.aliases else ""
    return (
        f"{full_name(version)}{known_as} isn't ours: {why}, as python -m lte_model.registry.versions register --date D "
        "leaves it. Register the training by that command, and give the alias back: python -m "
        "lte_model.registry.promotion rollback --version V --reason R, or take it away in MLflow"
    )
