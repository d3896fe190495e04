"""Runs command lines for an installation, and skips those that have succeeded before."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from infra.repository import REPOSITORY
from lte_model.errors import LTEError
from lte_model.settings import SETTINGS_VARIABLE

TRAININGS_AT_ONCE = 2

POLL_SECONDS = 0.5

LOG_LINES = 15
"""The number of last log lines shown when a command fails."""

DONE_FILE = "done.txt"
"""The command lines that succeeded, one a line."""


class Commands:
    """Runs the project's command lines for one installation, each with its own log file."""

    def __init__(self, home: Path):
        self.home = home
        self.environment = os.environ | {SETTINGS_VARIABLE: str(home / "settings.toml")}

    def run(self, command: str) -> None:
        """Runs the command, unless it has succeeded before. Raises `LTEError` if it fails."""
        self.run_all([command], at_once=1)

    def run_all(self, commands: Sequence[str], at_once: int) -> None:
        """Runs several commands, at most `at_once` at a time; commands that share the machine get one thread each.

        Skips commands that have succeeded before. Raises `LTEError` for the first that fails.
        """
        environment = self.environment | ({"LTE_TRAINING__THREADS": "1"} if at_once > 1 else {})
        done = self._done()
        waiting = [command for command in commands if command not in done]
        for command in commands:
            if command in done:
                print(f"          {command}: succeeded before, not run again", flush=True)
        running: dict[str, tuple[subprocess.Popen, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    command = waiting.pop(0)
                    running[command] = (self._start(command, environment), time.monotonic())
                for command, (process, begin) in list(running.items()):
                    if process.poll() is not None:
                        del running[command]
                        self._require(command, process.returncode)
                        print(f"{time.monotonic() - begin:6.0f} s  {command}", flush=True)
                        with (self.home / DONE_FILE).open("a", encoding="utf-8") as stream:
                            stream.write(f"{command}\n")
                time.sleep(POLL_SECONDS)
        finally:
            for process, _ in running.values():
                process.terminate()
                process.wait()

    def output(self, command: str) -> str:
        """Runs the command, even if it has succeeded before, and returns the last line that it prints."""
        print(f"          {command}", flush=True)
        self._require(command, self._start(command, self.environment).wait())
        return self._log(command).read_text(encoding="utf-8").rstrip().rpartition("\n")[2]

    def _start(self, command: str, environment: dict[str, str]) -> subprocess.Popen:
        log = self._log(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=REPOSITORY,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def _require(self, command: str, exit_code: int) -> None:
        if exit_code:
            log = self._log(command)
            print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:], sep="\n  ")
            raise LTEError(f"{command} failed; its log: {log}; correct the cause, then run this again")

    def _done(self) -> set[str]:
        file = self.home / DONE_FILE
        return set(file.read_text(encoding="utf-8").splitlines()) if file.exists() else set()

    def _log(self, command: str) -> Path:
        name = "".join(letter if letter.isalnum() or letter in "-_.@" else "_" for letter in command)
        return self.home / "logs" / f"{name[:150]}.log"
