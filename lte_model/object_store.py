"""Tables and files on S3 or a compatible store: one spelling of URLs, and the options of each reader.

Polars, deltalake, Arrow, and boto3 within MLflow and Airflow read AWS's own variables: the credentials from
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the machine's role, the address and region from AWS_ENDPOINT_URL and
AWS_REGION. So `[s3]` of the settings is exported to these variables, for this process and its children. Spark gets
options made of the same variables, without credentials: its S3 client finds them itself.
"""

import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lte_model.errors import LTEError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem  # slow to import, and most readers of settings open no file

_SPELLINGS = ("s3a://", "s3n://")
_HADOOP = "org.apache.hadoop.fs.s3a"
_SECRETS = {
    "access.key": "AWS_ACCESS_KEY_ID",
    "secret.key": "AWS_SECRET_ACCESS_KEY",
    "session.token": "AWS_SESSION_TOKEN",
}
"""The endings of Hadoop's options that hold credentials, and the variables that should hold them instead."""


def one_spelling(url: str) -> str:
    """Turns Hadoop's `s3a://` and `s3n://` into `s3://`, which every reader knows; other URLs stay unchanged."""
    return next((f"s3://{url[len(spelling) :]}" for spelling in _SPELLINGS if url.startswith(spelling)), url)


def announce(endpoint: str, region: str) -> None:
    """Exports the store's address and region, if given, to the environment, and overwrites what is there."""
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    if region:
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = region
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        # Only Polars and deltalake need a permission to work without TLS.
        os.environ.setdefault("AWS_ALLOW_HTTP", "true")


def spark_options() -> dict[str, str]:
    """Options that let Spark read `s3://` through Hadoop's S3A, at the address that the environment names.

    Reading such a URL needs the jars of hadoop-aws; without such a URL they aren't needed.
    """
    options = {
        "spark.hadoop.fs.s3.impl": f"{_HADOOP}.S3AFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.s3.impl": f"{_HADOOP}.S3A",
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options |= {
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",  # such a store has no DNS name per bucket
            "spark.executorEnv.AWS_ENDPOINT_URL": endpoint,
        }
    if plain := os.environ.get("AWS_ALLOW_HTTP"):
        options["spark.executorEnv.AWS_ALLOW_HTTP"] = plain
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options |= {
            "spark.hadoop.fs.s3a.endpoint.region": region,
            "spark.executorEnv.AWS_REGION": region,
            "spark.executorEnv.AWS_DEFAULT_REGION": region,
        }
    return options


def require_no_secret(options: Iterable[str], where: str) -> None:
    """Raises `LTEError` if a Spark option is the name of an S3 credential, which logs would show."""
    for name in options:
        for ending, variable in _SECRETS.items():
            if ".fs.s3" in name and name.endswith(ending):
                raise LTEError(f"{where}: {name} is a secret; put it into {variable} of the environment")


def arrow_file(place: str) -> tuple["FileSystem", str]:
    """Arrow's file system for a path or URL, and the file's name in it."""
    from pyarrow.fs import FileSystem

    scheme, colon, rest = one_spelling(place).partition("://")
    if colon and scheme == "s3":
        return _bucket(rest.partition("/")[0], os.environ.get("AWS_ENDPOINT_URL")), rest
    return FileSystem.from_uri(place)


@functools.cache
def _bucket(name: str, endpoint: str | None) -> "FileSystem":
    """One client per bucket and address, because each client keeps its own connections.

    Arrow reads the address from the environment; `endpoint` is only part of the cache's key.
    """
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"s3://{name}")[0]
