"""Files that appear whole or not at all, and locks that one process holds at a time."""

import os
from pathlib import Path


def write(path: Path, content: str) -> None:
    """Puts the page in place whole."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, path)


def write_atomically(file: Path, content: bytes) -> None:
    """Writes `file` so that a reader, or a kill, sees the old content or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, file)
