"""Kadds as a person uses it: a configuration file and the command line, each call a process of its own.

Everything that such a process says is kept, so that a test can look for words in it, or for words that must not be
there.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kadds.api.errors import KaddsError
from kadds.log.socket import NobodyServesError, call
from tests.support.waiting import wait_until

COMMAND = (sys.executable, "-m", "kadds")
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    command: tuple[str, ...]
    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """All of its output."""
        return self.stdout + self.stderr

    def check(self, code: int = 0) -> Self:
        """Itself, if it ended with `code`; an assertion with all of its output if not."""
        assert self.code == code, f"{' '.join(self.command)} ended with {self.code}, not {code}:\n{self.said[-8000:]}"
        return self

    def json(self) -> Any:
        """Its standard output, which is one JSON document."""
        return json.loads(self.check().stdout)


class Running:
    """A command that runs; killed at the end of its `with` if it still does. `lines` is what it has said so far."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.command = tuple(command)
        self.process = subprocess.Popen(
            self.command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.lines: list[str] = []
        self._said_something = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if error is not None:
            error.add_note(f"{' '.join(self.command)} had said:\n{self.said[-8000:]}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._said_something:
                    self.lines.append(line.rstrip("\n"))
                    self._said_something.notify_all()
        with self._said_something:
            self._ended = True
            self._said_something.notify_all()

    @property
    def said(self) -> str:
        """All of its output so far."""
        return "\n".join(self.lines)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects among its lines."""
        found = []
        for line in list(self.lines):
            with suppress(ValueError):
                plain = json.loads(line)
                if isinstance(plain, dict):
                    found.append(plain)
        return found

    def wait_for_line(self, wanted: Callable[[str], bool], timeout_seconds: float = 60.0) -> str | None:
        """The first line that is wanted; None where it ended, or the time was up, without one."""

        def found() -> str | None:
            return next(filter(wanted, self.lines), None)

        with self._said_something:
            self._said_something.wait_for(lambda: found() is not None or self._ended, timeout_seconds)
            return found()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.process.kill()
        self.wait()

    def terminate(self, timeout_seconds: float = 45.0) -> Finished:
        """SIGTERM, and what it ended with."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Finished:
        """What it ended with."""
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # faulthandler, where it is on, shows where it hangs
            self.process.wait(10)
            self._reader.join(10)
            raise AssertionError(f"{' '.join(self.command)} did not end:\n{self.said[-8000:]}") from None
        self._reader.join(10)
        return Finished(self.command, code, self.said, "")


class Kadds:
    """One configuration in a folder of its own. `said` collects what every command said, `log` is the log's folder."""

    def __init__(
        self, folder: Path, configuration: Mapping[str, Any] | str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.path = folder / "kadds.yml"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("KADDS_")},
            "PYTHONFAULTHANDLER": "1",
            **(environment or {}),
        }
        self.said: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(configuration)

    def configure(self, configuration: Mapping[str, Any] | str) -> None:
        """Write the file anew; a mapping is written as JSON, which is YAML."""
        text, log = configuration, "data/log"
        if not isinstance(text, str):
            log = text.get("log", {}).get("path", log)
            text = json.dumps(configuration, ensure_ascii=False, indent=1)
        self.log = self.folder / log
        self.path.write_text(text, encoding="utf-8")

    def __call__(self, *arguments: str, timeout_seconds: float = TIMEOUT_SECONDS) -> Finished:
        """Run a command to its end."""
        command = (*COMMAND, *arguments)
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
        self.said.append(done.stdout + done.stderr)
        return Finished(command, done.returncode, done.stdout, done.stderr)

    def catch_up(self, timeout_seconds: float = TIMEOUT_SECONDS) -> Finished:
        """`kadds run --until-caught-up`."""
        return self("run", str(self.path), "--until-caught-up", timeout_seconds=timeout_seconds)

    def start(self, *more: str) -> Running:
        """`kadds run`, which goes on until it is told to stop."""
        return Running((*COMMAND, "run", str(self.path), *more), self.environment, self.folder)

    def status(self) -> Any:
        """`kadds status --json`."""
        return self("status", "--config", str(self.path), "--json").json()

    def try_status(self) -> Any:
        """What the running process answers to `kadds status`, or None while nobody answers.

        Asked through the socket, without the second that a new process of Python takes.
        """
        try:
            return call(self.log, "status", {})
        except (NobodyServesError, KaddsError):
            return None

    def wait_for_status(
        self, wanted: Callable[[Any], Any], timeout_seconds: float = 60.0, waiting_for: str | None = None
    ) -> Any:
        """The first status for which `wanted` is true."""
        last: list[Any] = []

        def found() -> Any:
            status = self.try_status()
            last[:] = [status]
            return status if status is not None and wanted(status) else None

        try:
            return wait_until(found, timeout_seconds, waiting_for or "the status")
        except AssertionError as error:
            error.add_note(f"the last status was {json.dumps(last, indent=1)[:6000]}")
            raise
