"""The representations of an LTE: the ways to turn a user's history into one vector, and what each may be used for.

All are weighted averages of item vectors on the grid of the basis, and all are stored alike. An *exact* representation
weighs every event alike: the engine adds vectors up, and may continue from another date's sum. The weights of the
others change with the date, so that each date is computed anew from all events of its window.
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
    """One way to turn a history into a vector.

    `exact`: a plain sum of vectors, which the engine computes. `lagged`: it reads [D−L−W, D−L), as an LTE must;
    otherwise it reads [D−W, D), where the targets are. `publishable`: it may go live.
    """

    name: str
    description: str
    exact: bool = False
    lagged: bool = True
    publishable: bool = True

    def lag_days(self, lag_days: int) -> int:
        """The lag of its rows in days, given the `lag_days` of the settings."""
        return lag_days if self.lagged else 0

    def largest_norm(self, dimensions: int) -> float:
        """An upper bound of the norm of its vectors.

        Content vectors have unit length up to rounding to the grid; an encoder's components only lie within [−1, 1].
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
"""The separator between the names of several representations."""


def join_names(names: Iterable[str]) -> str:
    """Joins names, as in `uniform+recency`."""
    return JOINT.join(names)


def split_names(joined: str) -> tuple[str, ...]:
    """The names that `join_names` joined."""
    return tuple(joined.split(JOINT))


def require_distinct(names: Sequence[str]) -> None:
    """Raises `LTEError` for a name that is unknown or repeated."""
    for name in names:
        representation(name)
        if names.count(name) > 1:
            raise LTEError(f"representation {name!r} is named {names.count(name)} times; once is enough")
