"""The only place that turns an error's class into: try again (when), wait, or fail.

* RetryableError with `waiting_for`: shown as `waiting`, tried again for ever, never counted as failed.
* NoSpaceError: `no-space`, tried again for ever at short intervals, because room appears without warning.
* every other RetryableError: `retrying`, for ever, with exponential back-off and jitter up to a minute; a target that
  comes back after a weekend goes on by itself. Status shows since when and how often, and alerts watch that.
  (`--until-caught-up` calls what has been retrying for `GIVE_UP_SECONDS` failed, or a nightly job would never end.)
* HeldError: `held`, until a person has decided.
* every other KaddsError: `failed`, with its name and hint; nothing that repeats itself would cure it.
* anything else is a defect: `failed`, and the traceback is logged once.

`retry_after_seconds` of the error is honoured as it stands. Waiting is never done here or in a worker: whoever asks
gets a time and sets an alarm.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import structlog
import tenacity

from kadds.api.errors import KaddsError, NoSpaceError, RetryableError
from kadds.engine.schema_change import HeldError
from kadds.engine.states import Problem, State, utc_now

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 2.0  # for `waiting` and `no-space`: what is waited for is near and free to ask
GIVE_UP_SECONDS = 300.0

_back_off = tenacity.wait_exponential_jitter(multiplier=FIRST_SECONDS, max=LONGEST_SECONDS, jitter=FIRST_SECONDS)
_wait = tenacity.wait_exponential_jitter(multiplier=FIRST_SECONDS, max=LONGEST_WAIT_SECONDS, jitter=FIRST_SECONDS)
_logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What becomes of the thing that raised: its state, and in how many seconds it is tried again (None: not)."""

    state: State
    again_in_seconds: float | None = None


def verdict(error: BaseException, attempts: int) -> Verdict:
    """What to do after `attempts` failures in a row, this one included."""
    if not isinstance(error, RetryableError):
        return Verdict(State.HELD if isinstance(error, HeldError) else State.FAILED)
    patient = isinstance(error, NoSpaceError) or error.waiting_for is not None
    seconds = error.retry_after_seconds
    if seconds is None:
        call = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
        call.attempt_number = attempts
        seconds = (_wait if patient else _back_off)(call)
    if isinstance(error, NoSpaceError):
        return Verdict(State.NO_SPACE, seconds)
    return Verdict(State.WAITING if error.waiting_for is not None else State.RETRYING, seconds)


class Attempts:
    """Failures in a row of one thing; forgotten by `succeeded`."""

    def __init__(self) -> None:
        self._count = 0
        self._since: dt.datetime | None = None
        self._logged: tuple[str, str] | None = None

    @property
    def count(self) -> int:
        """How many."""
        return self._count

    @property
    def seconds(self) -> float:
        """For how long; 0 where the last attempt succeeded."""
        return 0.0 if self._since is None else (utc_now() - self._since).total_seconds()

    def succeeded(self) -> None:
        """The row is broken."""
        self._count, self._since, self._logged = 0, None, None

    def failed(self, error: BaseException, **names: str) -> tuple[Verdict, Problem]:
        """Count a failure: what to do, and how to show it. Logged once for each new kind of failure in a row."""
        self._count += 1
        self._since = self._since or utc_now()
        decided = verdict(error, self._count)
        next_at = None
        if decided.again_in_seconds is not None:
            next_at = utc_now() + dt.timedelta(seconds=decided.again_in_seconds)
        problem = Problem.of(error, attempts=self._count, since=self._since, next_attempt_at=next_at)
        self._log(error, decided, problem, names)
        return decided, problem

    def _log(self, error: BaseException, decided: Verdict, problem: Problem, names: dict[str, str]) -> None:
        told = (problem.kind, problem.message)
        if told == self._logged:
            return
        self._logged = told
        facts = {**names, "state": str(decided.state), "error": problem.kind, "where": problem.where}
        if not isinstance(error, KaddsError):
            _logger.error("defect", exc_info=error, **facts)
        elif decided.again_in_seconds is None:
            _logger.error(str(decided.state), message=problem.message, hint=problem.hint, **facts)
        else:
            _logger.warning("trying_again", message=problem.message, seconds=decided.again_in_seconds, **facts)
