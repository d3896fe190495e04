"""A proxy that stops answering on demand, and a small disk that fills up."""

import http.client
import http.server
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Self

import pytest


class Fault(Enum):
    """How a request is lost."""

    REFUSED = "the server never sees it"
    ANSWER_LOST = "the server has done it, and nobody hears of it"


class UnreliableServer:
    """A context manager: a proxy that listens on its own port and forwards requests to `127.0.0.1:port`.

    `answered` counts the requests since `heal` or `fail_after`.
    """

    def __init__(self, port: int):
        self._port = port
        self._lock = threading.Lock()
        self.heal()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def heal(self) -> None:
        """Answers every request from now on."""
        self.fail_after(None)

    def fail_after(self, requests: int | None, fault: Fault = Fault.REFUSED) -> None:
        """Answers `requests` more requests, and then none."""
        with self._lock:
            self.answered, self._left, self._fault = 0, requests, fault

    def fault_of_this_request(self) -> Fault | None:
        with self._lock:
            if self._left is not None and self.answered >= self._left:
                # A crashed server has handled at most the request in progress.
                fault, self._fault = self._fault, Fault.REFUSED
                return fault
            self.answered += 1
            return None

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, list, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler_of(server: UnreliableServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = server.fault_of_this_request()
            self.close_connection = fault is not None
            if fault is Fault.REFUSED:
                return
            sent = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            status, headers, content = server.forward(self.command, self.path, body, sent)
            if fault is Fault.ANSWER_LOST:
                return
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _pass_on

        def log_message(self, format: str, *values: object) -> None:
            """Logs nothing."""

    return Handler


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a disk that fills up is a mount, and mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def resize(disk: Path, size: int) -> None:
    """Changes the size of the file system."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
