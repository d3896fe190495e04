"""Tables and files on S3, or on a store that speaks its language: one spelling of a URL, and what its readers are told.

Polars, deltalake, Arrow, and boto3 within MLflow and Airflow take all they need from AWS's own variables: the
credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the machine's role, and the rest from AWS_ENDPOINT_URL
and AWS_REGION. So `[s3]` of the settings goes there, for the process and those that it starts. Spark
gets options that are made of the same variables; credentials are not among them, for its S3 client finds them itself.
"""

import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lte_model.errors import LTEError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem  # settings are read where no file is, and should be quick

_SPELLINGS = ("s3a://", "s3n://")
_HADOOP = "org.apache.hadoop.fs.s3a"
_SECRETS = {
    "access.key": "AWS_ACCESS_KEY_ID",
    "secret.key": "AWS_SECRET_ACCESS_KEY",
    "session.token": "AWS_SESSION_TOKEN",
}
"""How Hadoop's options end that hold credentials, and where these belong."""


def one_spelling(url: str) -> str:
    """`s3a://bucket/folder`, as Hadoop has it, as `s3://bucket/folder`, which every reader knows; others unchanged."""
    return next((f"s3://{url[len(spelling) :]}" for spelling in _SPELLINGS if url.startswith(spelling)), url)


def announce(endpoint: str, region: str) -> None:
    """Puts the store's address and region, where they are given, into the environment, over what is there."""
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    if region:
        os.environ["AWS_REGION"] = os.environ["AWS_DEFAULT_REGION"] = region
    if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        # Polars and deltalake alone ask whether they may do without TLS.
        os.environ.setdefault("AWS_ALLOW_HTTP", "true")


def spark_options() -> dict[str, str]:
    """Lets Spark read `s3://` by Hadoop's S3A, at the address that the environment names. Needs hadoop-aws's jars where
    such a URL is read, and nothing where none is.
    """
    options = {
        "spark.hadoop.fs.s3.impl": f"{_HADOOP}.S3AFileSystem",
        "spark.hadoop.fs.AbstractFileSystem.s3.impl": f"{_HADOOP}.S3A",
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        options |= {
            "spark.hadoop.fs.s3a.endpoint": endpoint,
            "spark.hadoop.fs.s3a.path.style.access": "true",  # no name server knows the buckets of such a store
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
    """Raises `LTEError` for the name of an option of Spark that holds a credential of S3: it would be shown in logs."""
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
    """One client for all files of a bucket at an address, which Arrow reads from the environment too: each keeps
    connections of its own.
    """
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"s3://{name}")[0]
