"""What an LTE is of: the basis, representation, lag and window that its reader must share."""

import dataclasses
from dataclasses import dataclass

from lte_model.domain.representations import split_names
from lte_model.errors import LTEError


@dataclass(frozen=True)
class LTEKind:
    """What makes one LTE readable by a model that was trained on another date's: the same basis, the same
    representation, the same lag and window. A model that reads several representations has their names joined.
    """

    basis_id: str
    representation: str
    lag_days: int
    window_days: int

    @property
    def representations(self) -> tuple[str, ...]:
        """The names that `representation` joins."""
        return split_names(self.representation)

    def of(self, representation: str) -> "LTEKind":
        """The kind of one of the LTEs."""
        return dataclasses.replace(self, representation=representation)


KIND_FIELDS = tuple(field.name for field in dataclasses.fields(LTEKind))
"""The columns of a table, or the tags of a registered version, that have the kind of an LTE."""


def require_kind(ours: LTEKind, theirs: LTEKind, source: str) -> None:
    """Raises `LTEError` unless LTEs of kind `theirs`, which come from `source`, can be read where `ours` are."""
    for field in KIND_FIELDS:
        known, found = getattr(ours, field), getattr(theirs, field)
        if known != found:
            raise LTEError(
                f"the model was trained on {field} {known}, but {source} has {field} {found}; "
                f"give it {source} of {field} {known}, or train a model on {found}"
            )
