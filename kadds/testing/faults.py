"""Faults to order: what a test wants to go wrong next, and real limits of the operating system.

A fault is switched on by the test and used up by the next call that meets it, so that the call after it succeeds.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class When(StrEnum):
    """Where in a delivery it goes wrong; each is a RetryableError."""

    BEFORE_COMMIT = "before-commit"  # nothing has been kept
    AFTER_COMMIT = "after-commit"  # all has been kept, the caller is not told
    NEVER_KNOWN = "never-known"  # as after-commit, and the session is lost: only a new claim goes on


@dataclass
class SinkFaults:
    """What goes wrong in a `FakeSink`; shared by all its sessions.

    `next_deliveries` are used up one per call of `deliver`. `bad_keys` are tuples of key values whose rows are a
    DataError for as long as they stand here. While `gate` is cleared, deliveries wait for it: a slow sink; `waiting` is
    set while one does. `next_claims` are raised by the next calls of `claim`.
    """

    next_deliveries: list[When | Exception] = field(default_factory=list)
    next_claims: list[Exception] = field(default_factory=list)
    bad_keys: set[tuple[Any, ...]] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def pass_gate(self, timeout_seconds: float = 60.0) -> None:
        """Wait until the gate is open; an error after `timeout_seconds`, so that a forgotten gate is no silent hang."""
        if self.gate.is_set():
            return
        self.waiting.set()
        try:
            if not self.gate.wait(timeout_seconds):
                raise TimeoutError("the gate of a fake sink was not opened")
        finally:
            self.waiting.clear()


@contextmanager
def file_size_limit(max_bytes: int) -> Iterator[None]:
    """Inside, this process cannot write a file beyond `max_bytes`: the operating system refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
