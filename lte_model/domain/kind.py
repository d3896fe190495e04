"""The kind of an LTE: the basis, representation, lag and window that a model and its LTEs must share."""

import dataclasses
from dataclasses import dataclass

from lte_model.domain.representations import split_names
from lte_model.errors import LTEError


@dataclass(frozen=True)
class LTEKind:
    """The kind of an LTE. A model only reads LTEs of the kind that it was trained on.

    For a model that reads several representations, `representation` joins their names.
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
        """This kind with one `representation`."""
        return dataclasses.replace(self, representation=representation)


KIND_FIELDS = tuple(field.name for field in dataclasses.fields(LTEKind))
"""The columns of a table, and the tags of a registered version, that hold the kind of an LTE."""


def require_kind(ours: LTEKind, theirs: LTEKind, source: str) -> None:
    """Raises `LTEError` unless LTEs of kind `theirs`, which come from `source`, are of the model's kind `ours`."""
    for field in KIND_FIELDS:
        known, found = getattr(ours, field), getattr(theirs, field)
        if known != found:
            raise LTEError(
                f"the model was trained on {field} {known}, but {source} has {field} {found}; "
                f"give it {source} of {field} {known}, or train a model on {found}"
            )
