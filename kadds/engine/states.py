"""The states of sources, tables and subscriptions, and who may change each.

    state        meaning                                                        left by
    starting     opening, discovering, claiming                                 the engine
    running      data is moving                                                 the engine
    idle         everything there is has been moved (caught up)                 the engine
    polling      a polled table is being read                                   the engine
    retrying     a RetryableError; the next attempt has a time                  the engine, when an attempt succeeds
    waiting      something outside holds what is needed; never a failure        the engine, when it is free
    no-space     the log's disk is full; intake stops, delivery goes on         the engine, when there is room
    resyncing    a snapshot's rows are on their way                             the engine, at its end
    quarantined  rows wait for a decision                                       a person
    held         a change of columns waits for a decision                       a person (`subscription schema`)
    paused       a person stopped it                                            a person (`resume`)
    failed       an error that trying again does not cure                       a person (`resume`), or a restart
    stopped      the engine has ended, or the thing was removed                 nobody; a restart makes a new one

What the engine wants to change in a state that only a person leaves is ignored: `become` says so by returning False.
A subscription shows the state of its sink; each of its tables has a state of its own.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from kadds.api.errors import KaddsError


class State(StrEnum):
    """What something is doing; see the module."""

    STARTING = "starting"
    RUNNING = "running"
    IDLE = "idle"
    POLLING = "polling"
    RETRYING = "retrying"
    WAITING = "waiting"
    NO_SPACE = "no-space"
    RESYNCING = "resyncing"
    QUARANTINED = "quarantined"
    HELD = "held"
    PAUSED = "paused"
    FAILED = "failed"
    STOPPED = "stopped"


_LEFT_BY_A_PERSON = frozenset((State.PAUSED, State.FAILED, State.HELD, State.QUARANTINED))
STUCK = frozenset((State.FAILED, State.HELD))  # nobody wanted it: a problem says what to do
AT_REST = frozenset((*_LEFT_BY_A_PERSON, State.STOPPED))  # nothing moves, and nothing will by itself


def utc_now() -> dt.datetime:
    """Now, with its zone."""
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True)
class Problem:
    """An error as status shows it: no row values, the class's name as its kind."""

    kind: str
    message: str
    where: str | None = None
    hint: str | None = None
    waiting_for: str | None = None
    attempts: int = 1
    since: dt.datetime = field(default_factory=utc_now)
    next_attempt_at: dt.datetime | None = None

    @classmethod
    def of(cls, error: BaseException, **more: Any) -> Problem:
        """The problem that `error` is; a defect of Kadds where it is no KaddsError."""
        kind = type(error).__name__
        if isinstance(error, KaddsError):
            waiting_for = getattr(error, "waiting_for", None)
            return cls(kind, error.message, error.where, error.hint, waiting_for, **more)
        hint = "this is a defect in Kadds or a connector; its log has the traceback"
        return cls(kind, f"unexpected {kind}", None, hint, **more)

    def to_json(self) -> dict[str, Any]:
        """For status."""
        return {
            "kind": self.kind,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "waiting_for": self.waiting_for,
            "attempts": self.attempts,
            "since": self.since.isoformat(),
            "next_attempt_at": self.next_attempt_at and self.next_attempt_at.isoformat(),
        }


class StateBox:
    """One thing's state, since when, and why. `changed` is called after each change, outside the lock."""

    def __init__(self, changed: Callable[[], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._state = State.STARTING
        self._since = utc_now()
        self._problem: Problem | None = None
        self._changed = changed or (lambda: None)

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    @property
    def problem(self) -> Problem | None:
        """Why, where the state has a reason."""
        return self._problem

    @property
    def at_rest(self) -> bool:
        """Whether only a person, or nobody, sets it going again."""
        return self._state in AT_REST

    def become(self, state: State, problem: Problem | None = None) -> bool:
        """What the engine wants; False, and nothing changes, where only a person may."""
        with self._lock:
            if self._state is State.STOPPED or (self._state in _LEFT_BY_A_PERSON and state is not State.STOPPED):
                return False
            changed = self._set(state, problem)
        if changed:
            self._changed()
        return True

    def command(self, state: State) -> bool:
        """What a person wants: pause, or resume (`starting`); False where it has stopped for good."""
        with self._lock:
            if self._state is State.STOPPED:
                return False
            self._set(state, None)
        self._changed()
        return True

    def _set(self, state: State, problem: Problem | None) -> bool:
        changed = state is not self._state or problem != self._problem
        if state is not self._state:
            self._since = utc_now()
        self._state, self._problem = state, problem
        return changed

    def to_json(self) -> dict[str, Any]:
        """State, since and problem, for status."""
        problem = self._problem
        return {
            "state": str(self._state),
            "since": self._since.isoformat(),
            "problem": problem.to_json() if problem else None,
        }
