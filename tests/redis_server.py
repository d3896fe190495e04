"""A Redis of one's own, for as long as it is needed: the `redis-server` of Debian, on a free port, in memory alone."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

MISSING = "no redis-server is installed: apt-get install redis-server"
PASSWORD = "a-secret"


def installed() -> bool:
    return shutil.which("redis-server") is not None


@contextmanager
def redis_server(password: str = PASSWORD) -> Iterator[str]:
    """What `online_store.connection` has to be; the server ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--requirepass", password]
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--dir", folder, *options], stdout=subprocess.DEVNULL
        )
        try:
            _wait(server, port)
            yield f"127.0.0.1:{port},password={password}"
        finally:
            server.terminate()
            server.wait()


def _wait(server: subprocess.Popen, port: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError("redis-server does not answer") from None
            time.sleep(0.02)
