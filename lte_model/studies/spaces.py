"""What the drill compares: the spaces that an LTE may be written in, and the cells of version × version.

A ranker of version i is trained on LTEs of the encoder of version i, and is served LTEs of version j: this is the cell
`v{i}v{j}`. Imports no torch.
"""

from dataclasses import dataclass
from typing import NamedTuple

from lte_model.errors import LTEError

VERSIONS = ("v1", "v2")
"""The earlier one and the later one."""

NO_LTE = "none"
"""Instead of a version of the LTE: nobody has one."""


@dataclass(frozen=True)
class Space:
    """How the space of an encoder comes about. What isn't said here is the same for all of them.

    `learned_decoder`: the decoder is learned with the encoder, where it is otherwise the frozen basis.
    `own_coordinates`: encoder and decoder begin at the basis turned at random, for each version and seed anew.
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
"""The two ways in which ranker and LTE are of different versions, over the ranker with the LTE of its own."""

CHANGES = SKEWED | {
    "deployment over no LTE": CellPair("LTE v2 to ranker v1, over no LTE", "v1v2", "v1none"),
    "rollback over no LTE": CellPair("LTE v1 to ranker v2, over no LTE", "v2v1", "v2none"),
    "upgrade": CellPair("both of version 2, over both of version 1", "v2v2", "v1v1"),
}

MATRIX = tuple(f"{ranker}{lte}" for ranker in VERSIONS for lte in VERSIONS)
CELLS = tuple(f"{ranker}{lte}" for ranker in VERSIONS for lte in (*VERSIONS, NO_LTE))


def space_called(name: str) -> Space:
    """Raises `LTEError` for a space that there isn't."""
    if name not in SPACES:
        raise LTEError(f"there is no space {name!r}; choose of {', '.join(SPACES)}")
    return SPACES[name]
