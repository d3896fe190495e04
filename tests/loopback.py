"""Finds free ports on 127.0.0.1 for servers that tests start, and waits until they listen."""

import contextlib
import socket
import subprocess
import time

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with contextlib.ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def free_port() -> int:
    return free_ports(1)[0]


def wait_until_it_listens(server: subprocess.Popen, port: int, seconds: float = 20) -> None:
    """Waits until the process accepts connections. Raises `RuntimeError` if it ends, or takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nothing answers on port {port}: {server.args}") from None
            time.sleep(0.02)
