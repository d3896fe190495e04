"""Runs a temporary S3 server: versitygw over a folder, on a free port of loopback.

    with s3_server() as s3:                     # s3.environment is what a process needs to reach it
        s3.make_bucket("lte")
        s3.stop(); s3.start()                   # gone, and there again: the same port, the same objects

s3_weather.py makes it refuse requests or answer slowly.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from tests.loopback import free_port, wait_until_it_listens
from tests.repository import REPOSITORY

VERSITYGW = REPOSITORY / ".cache" / "versitygw" / "versitygw"
MISSING = "no versitygw in .cache, or no boto3: make object-storage (needs Go)"

REGION = "eu-central-1"
ACCESS_KEY, SECRET_KEY = "lte-test", "a-secret-of-the-tests"


def installed() -> bool:
    return VERSITYGW.is_file() and find_spec("boto3") is not None


class S3Server:
    """A server over `folder`: a bucket is a folder, an object is a file. The port stays the same after a restart."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables (AWS's own) with which a process reaches the server."""
        return environment_of(self.endpoint)

    def start(self) -> None:
        """Returns when the server answers."""
        objects, attributes = self.folder / "objects", self.folder / "attributes"
        for folder in (objects, attributes):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # Metadata goes into files, because not every file system has extended attributes.
                [VERSITYGW, "--quiet", "--port", f"127.0.0.1:{self.port}", "--region", REGION,
                 "posix", "--sidecar", attributes, objects],
                env={**os.environ, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until_it_listens(self._process, self.port)

    def stop(self) -> None:
        """Kills the server, like a power cut. Does nothing if it doesn't run."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @cached_property
    def _client(self):
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def make_bucket(self, name: str) -> None:
        self._client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """{key: size in bytes} of every object whose key begins with `prefix`, sorted by key."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def read(self, bucket: str, key: str) -> bytes:
        return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A running server; the server and its objects are deleted after the block."""
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def environment_of(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint,
        # Only object_store (in polars and deltalake) requires this to work without TLS.
        "AWS_ALLOW_HTTP": "true",
        # Clients must not ask the EC2 metadata service for credentials.
        "AWS_EC2_METADATA_DISABLED": "true",
    }
