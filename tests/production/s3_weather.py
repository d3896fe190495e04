"""An unreliable S3: a proxy process that forwards each request to a server, delays it, or answers 503 itself.

    with s3_weather(server) as weather:                  # the server's objects, by weather.environment
        with weather.failing(share=0.3):                 # three of ten requests are answered 503 SlowDown
            …
        with weather.failing(share=0.3, after=True):     # S3 handles these requests before the 503
            …
        with weather.slow(seconds=0.5):                  # each request takes half a second longer
            …
        weather.counts()                                 # {"asked": …, "refused": …}

Signatures stay valid, because the proxy passes on the address that the client signed. It is a process, not a thread,
because a client such as deltalake blocks the other threads of its process while it waits.
"""

import http.client
import http.server
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.production.s3_server import S3Server, environment_of
from tests.repository import REPOSITORY

CONTROL = "/-/weather"
"""The proxy's control path; no bucket can have this name."""

SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>'
)


class S3Weather:
    """The client's side: the proxy's address, and control of its faults."""

    def __init__(self, port: int):
        self.port = port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which a process reaches S3 through the proxy."""
        return environment_of(self.endpoint)

    @contextmanager
    def failing(self, share: float = 1.0, after: bool = False) -> Iterator[None]:
        """Answers a `share` of the requests with 503 SlowDown; with `after`, S3 handles them first."""
        self._set(share=share, after=after)
        try:
            yield
        finally:
            self._set(share=0.0, after=False)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Delays every request."""
        self._set(seconds=seconds)
        try:
            yield
        finally:
            self._set(seconds=0.0)

    def counts(self) -> dict[str, int]:
        """The numbers of requests received and refused so far."""
        return self._set()

    def _set(self, **changes: float | bool) -> dict[str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("PUT", CONTROL, json.dumps(changes))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def s3_weather(server: S3Server) -> Iterator[S3Weather]:
    """Runs the proxy until the block ends; at first it forwards everything."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.production.s3_weather", str(server.port)],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield S3Weather(int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class _Sky(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: int):
        super().__init__(("127.0.0.1", 0), _Request)
        self.upstream = upstream
        self.weather = {"share": 0.0, "after": False, "seconds": 0.0}
        self.counts = {"asked": 0, "refused": 0}
        self.random, self.lock = random.Random(0), threading.Lock()

    def fate(self) -> tuple[bool, bool]:
        """For the next request: (whether to forward it, whether to refuse it)."""
        with self.lock:
            refused = self.random.random() < self.weather["share"]
            self.counts["asked"] += 1
            self.counts["refused"] += refused
            return not refused or self.weather["after"], refused


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Sky

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == CONTROL:
            self.server.weather |= json.loads(body)
            self._answer(200, [], json.dumps(self.server.counts).encode())
            return
        passed_on, refused = self.server.fate()
        time.sleep(self.server.weather["seconds"])
        answer = self._asked(body) if passed_on else None
        self._answer(*(answer if answer and not refused else (503, [("Content-Type", "application/xml")], SLOW_DOWN)))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """S3's answer; None if it is down."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            hop = ("connection", "keep-alive", "transfer-encoding")
            return answer.status, [h for h in answer.getheaders() if h[0].lower() not in hop], answer.read()
        except OSError:
            return None
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers) and status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    sky = _Sky(int(sys.argv[1]))
    print(sky.server_address[1], flush=True)
    sky.serve_forever()
