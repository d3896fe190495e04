"""Runs a temporary Redis: Debian's `redis-server` on a free port, without persistence."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.loopback import free_port, wait_until_it_listens

MISSING = "no redis-server is installed: apt-get install redis-server"
PASSWORD = "a-secret"


def installed() -> bool:
    return shutil.which("redis-server") is not None


@contextmanager
def redis_server(password: str = PASSWORD) -> Iterator[str]:
    """The value for `online_store.connection`; the server runs until the block ends."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", password]
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--dir", folder, *options], stdout=subprocess.DEVNULL
        )
        try:
            wait_until_it_listens(server, port)
            yield f"127.0.0.1:{port},password={password}"
        finally:
            server.terminate()
            server.wait()
