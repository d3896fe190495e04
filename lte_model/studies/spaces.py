"""What the drill compares: the vector spaces of LTEs, and the cells of ranker version × LTE version.

In the cell `v{i}v{j}`, a ranker that was trained on LTEs of encoder version i is served LTEs of version j. This module
imports no torch.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lte_model.errors import LTEError

VERSIONS = ("v1", "v2")
"""The earlier and the later version of encoder and ranker."""

NO_LTE = "none"
"""The control without LTE."""


@dataclass(frozen=True)
class Space:
    """How an encoder's vector space is made; all else is the same for every space.

    `learned_decoder`: the decoder is learned with the encoder; otherwise it is the frozen basis.
    `own_coordinates`: encoder and decoder start from the basis, rotated at random for each version and seed.
    """

    name: str
    description: str
    learned_decoder: bool = True
    own_coordinates: bool = False


SPACES = {
    space.name: space
    for space in (
        Space("fixed", "the decoder is the frozen basis: the project's autoencoder", learned_decoder=False),
        Space("free", "the decoder is learned, from coordinates of its own for each version", own_coordinates=True),
        Space("drifting", "the decoder is learned, and begins at the basis"),
    )
}


class CellPair(NamedTuple):
    """A comparison of two cells of one space."""

    text: str
    ours: str
    base: str


SKEWED = {
    "deployment": CellPair("LTE v2 to ranker v1", "v1v2", "v1v1"),
    "rollback": CellPair("LTE v1 to ranker v2", "v2v1", "v2v2"),
}
"""The two mismatches of ranker and LTE version, each compared with the ranker and the LTE of its own version."""

CHANGES = SKEWED | {
    "deployment over no LTE": CellPair("LTE v2 to ranker v1, over no LTE", "v1v2", "v1none"),
    "rollback over no LTE": CellPair("LTE v1 to ranker v2, over no LTE", "v2v1", "v2none"),
    "upgrade": CellPair("both of version 2, over both of version 1", "v2v2", "v1v1"),
}

MATRIX = tuple(f"{ranker}{lte}" for ranker in VERSIONS for lte in VERSIONS)
CELLS = tuple(f"{ranker}{lte}" for ranker in VERSIONS for lte in (*VERSIONS, NO_LTE))


def space_called(name: str) -> Space:
    """The space of that name. Raises `LTEError` for an unknown one."""
    if name not in SPACES:
        raise LTEError(f"there is no space {name!r}; choose of {', '.join(SPACES)}")
    return SPACES[name]
