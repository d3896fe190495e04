"""The representations of an LTE: in how many ways a user's history becomes one vector, and what each may be used for.

All of them are weighted averages of vectors of items on the grid of the basis, and all are stored alike. Those that
are *exact* weigh every event alike: the engine adds their vectors up, and may go on from another date's sum. The
weights of the others change with the date, so that each date is made anew from all events of its window.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lte_model.errors import LTEError

UNIFORM = "uniform"
RECENCY = "recency"
INVERSE_POPULARITY = "inverse_popularity"
AUTOENCODER = "autoencoder"
LEAKING = "leaking"


@dataclass(frozen=True)
class Representation:
    """What a representation is.

    `exact`: a plain sum of vectors, which the engine makes. `lagged`: it reads [D−L−W, D−L), as an LTE must; otherwise
    it reads [D−W, D), where the targets are. `publishable`: it may go live.
    """

    name: str
    description: str
    exact: bool = False
    lagged: bool = True
    publishable: bool = True

    def lag_days(self, lag_days: int) -> int:
        """The lag of its rows, in days, where the settings have `lag_days`."""
        return lag_days if self.lagged else 0

    def largest_norm(self, dimensions: int) -> float:
        """No vector of that many dimensions is longer: those of content have unit length, but for the grid, and those
        of an encoder only lie within [−1, 1].
        """
        return (math.sqrt(dimensions) if self.name == AUTOENCODER else 1) + 0.01


REPRESENTATIONS = {
    kind.name: kind
    for kind in (
        Representation(UNIFORM, "the average of the items' content vectors", exact=True),
        Representation(RECENCY, "an event weighs half as much for every half-life of its age"),
        Representation(INVERSE_POPULARITY, "an event weighs 1/√n, n the events of its item in the window"),
        Representation(AUTOENCODER, "the average of item vectors that were learned from behaviour", exact=True),
        Representation(
            LEAKING,
            "a window without lag, which holds the targets: a rival to show what a leak does",
            lagged=False,
            publishable=False,
        ),
    )
}


def representation(name: str) -> Representation:
    """The representation called `name`. Raises `LTEError` where there is none."""
    if name not in REPRESENTATIONS:
        raise LTEError(f"there is no representation {name!r}; take some of {', '.join(REPRESENTATIONS)}")
    return REPRESENTATIONS[name]


JOINT = "+"
"""What stands between the names where a model reads several representations."""


def join_names(names: Iterable[str]) -> str:
    """One text of several names, such as `uniform+recency`."""
    return JOINT.join(names)


def split_names(joined: str) -> tuple[str, ...]:
    """The names that `join_names` joined."""
    return tuple(joined.split(JOINT))


def require_distinct(names: Sequence[str]) -> None:
    """Raises `LTEError` for a name that isn't known, or stands there twice."""
    for name in names:
        representation(name)
        if names.count(name) > 1:
            raise LTEError(f"representation {name!r} is named {names.count(name)} times; once is enough")
