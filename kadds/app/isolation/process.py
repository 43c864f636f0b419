"""The process of a source, as the engine's process holds it: started, listened to, ended, and buried.

It is in a process group of its own, so that a Ctrl-C reaches only the engine, which then decides. Nothing secret is in
its arguments, and variables of the environment that hold a secret of the source are not handed on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from kadds.api.errors import RetryableError
from kadds.api.settings import Settings
from kadds.app.isolation.wire import Asked, Wire
from kadds.app.secrets import scrubbed, secrets_in

_COMMAND = (sys.executable, "-P", "-m", "kadds.app.isolation")
_LINES_KEPT = 20
_BURIAL_SECONDS = 2.0  # for a process that has cut the wire and does not end
_logger = structlog.get_logger(__name__)


class Process:
    """A running child. `asked` is called for what it asks and tells."""

    def __init__(self, connector: str, settings: Settings, asked: Callable[[Wire, Asked], None]) -> None:
        self._connector = connector
        self._secrets = secrets_in(settings)
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=_environment(os.environ, self._secrets),
                process_group=0,
            )
        self._listener = threading.Thread(target=self._listen, name="kadds-child-stderr", daemon=True)
        self._listener.start()
        self.wire = Wire(ours, lambda one: asked(self.wire, one), self._ended)
        self.wire.start()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self, timeout_seconds: float) -> None:
        """Let it close its source, and end it."""
        self.wire.tell("close")
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.wire.close()

    def _listen(self) -> None:
        """What it, or a library in it, writes to standard error is kept for its obituary, and logged."""
        assert self._process.stderr is not None  # noqa: S101 - it is a pipe
        with self._process.stderr as lines:
            for line in lines:
                text = scrubbed(line.decode(errors="replace").rstrip(), self._secrets)
                self._said.append(text)
                _logger.warning("source_process_said", connector=self._connector, message=text)

    def _ended(self) -> None:
        try:
            code = self._process.wait(_BURIAL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._listener.join(_BURIAL_SECONDS)
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = "\n".join(self._said)
        self.wire.fail(
            RetryableError(
                f"the process of the source {ended}{f'; it said last:{chr(10)}{said}' if said else ''}",
                where=f"connector {self._connector}",
                hint="it is started again; `isolation: thread` runs the source in the engine's process",
            )
        )


def _environment(ours: Mapping[str, str], secrets: frozenset[str]) -> dict[str, str]:
    """Ours, without the variables that are one of the secrets, or a URL with one in it."""
    return {
        name: value
        for name, value in ours.items()
        if value not in secrets and not ("://" in value and any(secret in value for secret in secrets))
    }
