"""Files that appear whole or not at all, and locks that one process holds at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".part"
"""How the name of a file ends that a kill may leave beside the one it was to become."""


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes `file`, text as UTF-8, so that a reader sees the old content or the new, also after a kill or a power cut.

    The folder is made where it isn't there.
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
    """Waits until no other process of this machine is in a block of the same lock file, which is made if need be.

    The lock ends with the block, or with the process, however that ends.
    """
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
