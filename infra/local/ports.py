"""The local stack's ports: which are configured, which are free, which answer."""

import http.client
import os
import socket
import urllib.parse
from dataclasses import dataclass

from infra.local.pages import LOOPBACK
from lte_model.errors import LTEError


@dataclass(frozen=True)
class Ports:
    """A stack's three ports."""

    airflow: int
    mlflow: int
    pages: int

    @classmethod
    def from_environment(cls, host: str = LOOPBACK) -> "Ports":
        """The ports in AIRFLOW_PORT, MLFLOW_PORT and PAGES_PORT; by default 8080, 5000 and 8090.

        Raises `LTEError` if one is not a number, or is taken on `host`.
        """
        names = {"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5000, "PAGES_PORT": 8090}
        try:
            ports = cls(*(int(os.environ.get(name) or default) for name, default in names.items()))
        except ValueError as error:
            raise LTEError(f"a port in {', '.join(names)} is not a number: {error}") from None
        for name, port in zip(names, (ports.airflow, ports.mlflow, ports.pages), strict=True):
            if not is_free(host, port):
                raise LTEError(f"port {port} is taken on {host}; stop what listens there, or set {name} to another")
        return ports

    @classmethod
    def free(cls) -> "Ports":
        """Three ports that are free now."""
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            for sock in (first, second, third):
                sock.bind((LOOPBACK, 0))
            return cls(*(sock.getsockname()[1] for sock in (first, second, third)))


def reached_at(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return LOOPBACK if host == "0.0.0.0" else host  # noqa: S104 – compared, not bound


def answers_at(url: str) -> bool:
    """Whether a GET of the URL is answered with 200 within five seconds."""
    address = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or LOOPBACK, address.port, timeout=5)
    try:
        connection.request("GET", address.path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on the port of `host`."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True
