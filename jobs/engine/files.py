"""Finds the Parquet files with the rows of some days in the table's log, and cuts them into parts of about equal work.

Tasks read the files with Arrow, so that rows never pass through the JVM. This is valid for Delta tables without
deletion vectors and column mapping.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from lte_model.domain.windows import Interval
from lte_model.object_store import arrow_file

PART_BYTES = 128 * 2**20
"""The most compressed bytes of a part, which a task holds at once."""


@dataclass(frozen=True)
class Piece:
    """Share number `number` of a file's row groups, cut into `of` equal shares."""

    path: str
    number: int
    of: int


@dataclass(frozen=True)
class Listing:
    """The files of one table version: path, size_bytes, num_records, and the columns' min and max."""

    version: int
    root: str
    files: pl.DataFrame

    @property
    def records(self) -> int:
        """How many rows the files hold."""
        return int(self.files["num_records"].sum())

    def where(self, condition: pl.Expr) -> "Listing":
        """The files that match the condition on their columns."""
        return Listing(self.version, self.root, self.files.filter(condition))

    def of(self, partition: Mapping[str, str]) -> "Listing":
        """The files of one partition."""
        return self.where(
            pl.all_horizontal(
                pl.col(f"partition.{column}").cast(pl.String) == value for column, value in partition.items()
            )
        )

    def parts(self, at_least: int) -> list[list[Piece]]:
        """The files in parts of about `PART_BYTES` at most; in about `at_least` parts if that gives more."""
        total = int(self.files["size_bytes"].sum())
        share = max(1, min(PART_BYTES, -(-total // at_least)))
        pieces = []
        for path, size in self.files.select("path", "size_bytes").iter_rows():
            cuts = max(1, round(size / share))
            pieces += [(Piece(f"{self.root}/{path}", number, cuts), size / cuts) for number in range(cuts)]
        parts: list[list[Piece]] = []
        filled = share
        for piece, size in pieces:
            if filled + size / 2 > share:
                parts.append([])
                filled = 0
            parts[-1].append(piece)
            filled += size
        return parts


def list_files(path: str) -> Listing:
    """The files of the newest version of the table at `path`."""
    table = DeltaTable(path)
    return Listing(table.version(), path.rstrip("/"), pl.DataFrame(pa.table(table.get_add_actions(flatten=True))))


def overlaps(column: str, days: Interval) -> pl.Expr:
    """Selects files that may hold rows with `column` in `days`, also files without statistics."""
    low, high = pl.col(f"min.{column}"), pl.col(f"max.{column}")
    return ((high >= days.start) & (low < days.end)).fill_null(True)


def read_pieces(
    pieces: Sequence[Piece], columns: Sequence[str], condition: pc.Expression | None, dictionaries: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Each piece's rows that match; columns in `dictionaries` stay dictionary-encoded, as in the file."""
    form = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=set(dictionaries)))
    for piece in pieces:
        filesystem, path = arrow_file(piece.path)
        whole = form.make_fragment(path, filesystem)
        groups = whole.metadata.num_row_groups
        chosen = range(groups * piece.number // piece.of, groups * (piece.number + 1) // piece.of)
        fragment = form.make_fragment(path, filesystem, row_groups=list(chosen))
        if chosen:
            yield fragment.to_table(columns=list(columns), filter=condition, use_threads=False)


def in_days(column: str, days: Interval) -> pc.Expression:
    """Selects rows with `column` in `days`."""
    return (pc.field(column) >= pa.scalar(days.start, pa.date32())) & (
        pc.field(column) < pa.scalar(days.end, pa.date32())
    )
