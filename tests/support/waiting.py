"""Waiting for something to become true, with a deadline: the only place in this repository that pauses by the clock.

A fixed sleep is too long on a quick machine and too short on a busy one; a condition with a deadline is neither.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.002
_LONGEST_PAUSE_SECONDS = 0.1


class WaitedTooLongError(AssertionError):
    """The deadline passed; an assertion, because in a test the thing that did not happen is the failure."""


def wait_until(predicate: Callable[[], T], timeout_seconds: float = 30.0, waiting_for: str | None = None) -> T:
    """Returns the first true value of `predicate`.

    An exception from `predicate` ends the wait: whoever expects one (a refused connection while a server starts)
    catches it inside. The last value is part of the message, so that a failure says how far things came.
    """
    deadline = time.monotonic() + timeout_seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        value = predicate()
        if value:
            return value
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            wanted = waiting_for or getattr(predicate, "__qualname__", "the condition")
            raise WaitedTooLongError(f"waited {timeout_seconds:g} s for {wanted}; last value: {value!r}")
        threading.Event().wait(min(pause_seconds, left_seconds))
        pause_seconds = min(pause_seconds * 1.5, _LONGEST_PAUSE_SECONDS)
