"""The items with a vector, as the engine reads them: ids, known days, vectors in grid units."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class ItemIndex:
    """The items with a vector: row i is the item `item_ids[i]`, known from day `known_day[i]` on."""

    item_ids: pa.Array
    known_day: np.ndarray

    def __len__(self) -> int:
        return len(self.known_day)


@dataclass(frozen=True)
class ItemVectors:
    """One basis's vectors: `units` (items, dimensions) int32, in grid units, in the order of the index."""

    basis_id: str
    index: ItemIndex
    units: np.ndarray

    @property
    def dimensions(self) -> int:
        """How many components a vector has."""
        return self.units.shape[1]
