"""Runs: what a schedule or a person started, and how it ended; kept in the log (control state, kind `runs`).

The last twenty of each job are kept under the job's name (`source:tenant/name`, `subscription:tenant/name`). A run
that was under way when the process died is shown as `interrupted` by the next start of that job's engine.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from kadds.engine.states import Problem, utc_now
from kadds.log.log import Log

_KIND = "runs"
KEPT = 20


@dataclass(eq=False)
class Run:
    """One run of a job. `ended` is set when its outcome is known; `problems` says what failed, by table."""

    job: str
    trigger: str
    started_at: dt.datetime = field(default_factory=utc_now)
    ended_at: dt.datetime | None = None
    outcome: str = "running"  # running | done | failed | stopped | interrupted
    rows: int = 0
    problems: dict[str, Problem] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    def to_json(self) -> dict[str, Any]:
        """For the log and for status."""
        return {
            "job": self.job,
            "trigger": self.trigger,
            "started_at": self.started_at.isoformat(),
            "ended_at": self.ended_at and self.ended_at.isoformat(),
            "outcome": self.outcome,
            "rows": self.rows,
            "problems": {name: problem.to_json() for name, problem in self.problems.items()},
        }


class RunHistory:
    """Writes runs down as they begin and end."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()

    def began(self, run: Run) -> None:
        """The run is in the log when this returns."""
        self._keep(run, replace_last=False)

    def ended(self, run: Run, outcome: str) -> None:
        """The outcome is in the log when this returns; whoever waits for the run goes on."""
        run.outcome, run.ended_at = outcome, utc_now()
        try:
            self._keep(run, replace_last=True)
        finally:
            run.ended.set()

    def interrupted(self, job: str) -> None:
        """Mark what was under way when the last process ended."""
        runs = self.of(job)
        if any(run["outcome"] == "running" for run in runs):
            for run in runs:
                if run["outcome"] == "running":
                    run["outcome"] = "interrupted"
            self._log.state.put(_tenant(job), _KIND, job, runs)

    def of(self, job: str) -> list[dict[str, Any]]:
        """The last runs of a job, oldest first."""
        return list(self._log.state.get(_tenant(job), _KIND, job) or [])

    def all(self, tenants: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
        """The last runs of every job of the tenants."""
        found: dict[str, list[dict[str, Any]]] = {}
        for tenant in tenants:
            found.update(self._log.state.items(tenant, _KIND))
        return found

    def _keep(self, run: Run, *, replace_last: bool) -> None:
        with self._lock:
            runs = self.of(run.job)
            started = run.started_at.isoformat()
            if replace_last:
                runs = [old for old in runs if old["started_at"] != started]
            runs.append(run.to_json())
            self._log.state.put(_tenant(run.job), _KIND, run.job, runs[-KEPT:])


def _tenant(job: str) -> str:
    return job.split(":", 1)[1].split("/", 1)[0]
