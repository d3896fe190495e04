"""Files that appear whole or not at all, and locks that one process holds at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of `lte_model`."""

UNFINISHED = ".part"
"""The suffix of a file that is still being written. A kill may leave such a file behind."""


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes `file` (text as UTF-8); a reader sees the old or the new content, even after a kill or a power cut.

    Creates the folder if it is missing.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + UNFINISHED)
    with unfinished.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(file)


@contextlib.contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Holds an exclusive lock on `file` for the block; creates the file if needed.

    Other processes of this machine wait. The lock ends with the block, or with the process, however that ends.
    """
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
