"""A Redis of one's own, for as long as it is needed: the `redis-server` of Debian, on a free port, in memory alone."""

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
    """What `online_store.connection` has to be; the server ends with the context."""
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
