"""Makes one Python environment per kind of machine in production, each from extras in pyproject.toml, with uv.

    python -m infra.environments airflow jobs training              # into .cache/environments, or --into FOLDER
    python -m infra.environments executors --pack executors.tar.gz  # for `spark.archives`

infra/constraints.txt pins the versions. An environment with the same extras and versions is kept as it is. An
environment may be moved, or unpacked elsewhere. It doesn't contain the interpreter that made it: each machine that uses
the environment needs that interpreter at the same path.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from infra.repository import REPOSITORY
from lte_model.command_line import run
from lte_model.errors import LTEError
from lte_model.files import one_at_a_time

FOLDER = REPOSITORY / ".cache/environments"
ENVIRONMENTS = {
    "airflow": ("airflow", "kubernetes"),
    "jobs": ("jobs",),
    "training": ("training",),
    "executors": ("tables",),
}
"""{environment: extras}. Executors of a scoring job need `torch` as well; those of the other jobs don't."""


def make(name: str, folder: Path = FOLDER) -> Path:
    """Makes environment `name` in `folder` unless it is up to date; returns the path of its Python.

    Raises `LTEError` if uv can't make it.
    """
    place = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / f"{name}.lock"):  # two at once would install into each other
        stamp = place / "made-from"
        if not stamp.exists() or stamp.read_text() != _made_from(name):
            print(f"making environment {name} in {place}", flush=True)
            _uv("venv", "--quiet", "--clear", "--relocatable", "--python", sys.executable, str(place))
            extras = [word for extra in ENVIRONMENTS[name] for word in ("--extra", extra)]
            files = ["--requirements", "pyproject.toml", "--constraints", "infra/constraints.txt"]
            python = str(place / "bin/python")
            _uv("pip", "install", "--quiet", "--compile-bytecode", "--python", python, *files, *extras)
            stamp.write_text(_made_from(name))
    return place / "bin/python"


def pack(name: str, archive: Path, folder: Path = FOLDER) -> Path:
    """Packs the environment into an archive for Spark's executors, unless the archive is newer than the environment."""
    place = make(name, folder).parents[1]
    if not archive.exists() or archive.stat().st_mtime < (place / "made-from").stat().st_mtime:
        part = archive.with_name(f"part-{os.getpid()}-{archive.name}")
        with tarfile.open(part, "w:gz", compresslevel=1) as packed:
            packed.add(place, ".")
        part.replace(archive)
    return archive


def _made_from(name: str) -> str:
    content = hashlib.sha256(f"{sys.version} {ENVIRONMENTS[name]}".encode())
    for file in ("pyproject.toml", "infra/constraints.txt"):
        content.update((REPOSITORY / file).read_bytes())
    return content.hexdigest()


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise LTEError("uv was not found; run `make setup`, or install it: python -m pip install uv")
    done = subprocess.run([uv, *arguments], cwd=REPOSITORY, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LTEError(f"uv {' '.join(arguments[:2])} failed: {done.stderr[-800:]}")


def main() -> None:
    """Reads the command line and runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=list(ENVIRONMENTS), metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--into", type=Path, default=FOLDER, help="the folder of the environments")
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.gz", help="and pack the one that is named")
    arguments = parser.parse_args()
    if arguments.pack and len(arguments.names) > 1:
        raise LTEError("--pack packs one environment; name one")
    for name in arguments.names:
        print(make(name, arguments.into.resolve()))
        if arguments.pack:
            print(pack(name, arguments.pack.resolve(), arguments.into.resolve()))


if __name__ == "__main__":
    run(main)
