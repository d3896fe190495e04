"""What a job brings to its executors, which share no disk with it: files, and the project's own code.

The driver serves them from a folder of its own for as long as it lives, and an executor fetches each once; its tasks
find a file by `SparkFiles.get`, and import the code as it is here, whatever their machine has of it.
"""

import atexit
import shutil
import tempfile
import zipfile
from pathlib import Path

from pyspark.sql import SparkSession

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "lte_model")
CODE = "lte-code.zip"


def served_folder() -> Path:
    """A new folder, for files that executors fetch; deleted when the driver ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ship_code(spark: SparkSession) -> None:
    """Lets the tasks of this session import the packages of the project from a copy of those that the driver runs."""
    spark.sparkContext.addPyFile(str(write_code(served_folder() / CODE)))


def write_code(archive: Path) -> Path:
    """Writes the packages into a zip that Python imports from: also for `spark-submit --py-files`."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as code:
        for package in PACKAGES:
            for file in sorted((REPOSITORY / package).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    code.write(file, file.relative_to(REPOSITORY))
    return archive
