"""Ships files and the project's code to executors, which share no disk with the driver.

The driver serves them from a temporary folder until it ends, and each executor fetches a file once. Tasks find a file
by `SparkFiles.get`. They import the driver's copy of the code, whatever their machine has installed.
"""

import atexit
import shutil
import tempfile
import zipfile
from pathlib import Path

from pyspark.sql import SparkSession

from lte_model.files import PACKAGE

PACKAGES = ("jobs", "lte_model")
CODE = "lte-code.zip"


def served_folder() -> Path:
    """A new folder for files that executors fetch; deleted when the driver ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def ship_code(spark: SparkSession) -> None:
    """Lets this session's tasks import the driver's copy of the project's packages."""
    spark.sparkContext.addPyFile(str(write_code(served_folder() / CODE)))


def write_code(archive: Path) -> Path:
    """Writes the packages into an importable zip, which `spark-submit --py-files` takes too."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as code:
        for package in PACKAGES:
            for file in sorted((PACKAGE.parent / package).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    code.write(file, file.relative_to(PACKAGE.parent))
    return archive
