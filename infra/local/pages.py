"""Serves an installation's reports and Data Docs over HTTP, and nothing else from its home.

    python -m infra.local.pages --settings FILE [--host ADDRESS] [--port 8090]

The pages name no user, but are not public: on any address but loopback a reader logs in as `admin` with the password in
UI_PASSWORD. Passwords travel in clear text: put a proxy with TLS between this server and other machines.
"""

import base64
import hmac
import http
import http.server
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from lte_model.command_line import CommandParser, run
from lte_model.errors import LTEError
from lte_model.settings import Settings, load_settings

LOOPBACK = "127.0.0.1"
USER = "admin"
PASSWORD_VARIABLE = "UI_PASSWORD"  # noqa: S105 – its name
MIN_PASSWORD = 12
"""The least number of characters in a password."""


def required_password(host: str, shown: str) -> str:
    """The password that protects `shown` on `host`: "" (none) on loopback, else the value of UI_PASSWORD.

    Raises `LTEError` if a host other than loopback has no password, or one that is too short.
    """
    if host == LOOPBACK:
        return ""
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if len(password) < MIN_PASSWORD:
        raise LTEError(
            f"host {host} is not {LOOPBACK}, and {shown} would be open to whoever reaches it; "
            f"set {PASSWORD_VARIABLE} to a password of {MIN_PASSWORD} characters or more, or leave --host out"
        )
    return password


def pages_server(settings: Settings, host: str, port: int, password: str) -> http.server.ThreadingHTTPServer:
    """A server for the installation's pages; `serve_forever` starts it. A password restricts it to user `admin`.

    Raises `LTEError` if it can't listen on `host` and `port`.
    """
    folders = {"reports": settings.reports, "data_docs": f"{settings.data_docs}/site"}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        return http.server.ThreadingHTTPServer((host, port), _pages_of(folders, password))
    except OSError as error:
        raise LTEError(f"the pages can't be served at http://{host}:{port}: {error}") from None


def _pages_of(folders: Mapping[str, str], password: str) -> type[http.server.SimpleHTTPRequestHandler]:
    """A request handler that serves each folder under its name."""
    expected = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()

    class Pages(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            name, _, rest = urllib.parse.urlsplit(path).path.lstrip("/").partition("/")
            self.directory = folders.get(name, os.devnull)
            return super().translate_path("/" + rest)

        def send_head(self):  # both GET and HEAD call it first
            if self.path == "/health" or self._may_read():
                return super().send_head()
            self.send_response(http.HTTPStatus.UNAUTHORIZED)
            self.send_header("WWW-Authenticate", 'Basic realm="pages", charset="UTF-8"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def do_GET(self) -> None:
            if self.path == "/health":
                self._answer(b"ok", "text/plain")
            elif self.path in ("/", "/index.html") and self._may_read():
                places = {"reports": "reports/", "gates": "data_docs/gates.html", "Data Docs": "data_docs/index.html"}
                links = "".join(f'<li><a href="{place}">{name}</a></li>' for name, place in places.items())
                self._answer(f"<!doctype html><title>Pages</title><ul>{links}</ul>".encode(), "text/html")
            else:
                super().do_GET()

        def log_message(self, format: str, *values: object) -> None:
            """Keeps quiet: the terminal is for the addresses."""

        def _may_read(self) -> bool:
            given = self.headers.get("Authorization", "")
            return not password or hmac.compare_digest(given.encode(), expected.encode())

        def _answer(self, body: bytes, kind: str) -> None:
            self.send_response(http.HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Pages


def main() -> None:
    """Reads the command line and runs the command."""
    parser = CommandParser(__doc__)
    parser.add_argument("--host", default=LOOPBACK, help=f"the address to listen on (default: {LOOPBACK})")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    password = required_password(arguments.host, "the reports")
    with pages_server(load_settings(arguments.settings), arguments.host, arguments.port, password) as server:
        server.serve_forever()


if __name__ == "__main__":
    run(main)
