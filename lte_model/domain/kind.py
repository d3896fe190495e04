"""What an LTE is of: the basis, representation, lag and window that its reader must share."""

import dataclasses
from dataclasses import dataclass

from lte_model.errors import LTEError


@dataclass(frozen=True)
class LTEKind:
    """What makes one LTE readable by a model that was trained on another date's: the same basis, the same
    representation, the same lag and window. A model that reads several representations joins their names by +."""

    basis_id: str
    representation: str
    lag_days: int
    window_days: int

    @property
    def representations(self) -> tuple[str, ...]:
        return tuple(self.representation.split("+"))

    def of(self, representation: str) -> "LTEKind":
        """The kind of one of the LTEs."""
        return dataclasses.replace(self, representation=representation)


def require_kind(ours: LTEKind, theirs: LTEKind, source: str) -> None:
    """Raises `LTEError` unless LTEs of kind `theirs`, which come from `source`, can be read where `ours` are."""
    for field in dataclasses.fields(LTEKind):
        known, found = getattr(ours, field.name), getattr(theirs, field.name)
        if known != found:
            raise LTEError(
                f"the model was trained on {field.name} {known}, but {source} has {field.name} {found}; "
                f"give it {source} of {field.name} {known}, or train a model on {found}"
            )
