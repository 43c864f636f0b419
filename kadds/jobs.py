"""Runs jobs by their schedules: APScheduler in this process, each job one line that calls app.

The job store is in memory and made anew from the configuration at each start; what ran and how it ended is kept in the
log. A run that is due while the last one of the same job is under way is left out, runs that were missed become one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from kadds.app import App, Job

MISFIRE_GRACE_SECONDS = 3600  # APScheduler's own second would lose runs on a busy machine without a word
THREADS_MAX = 32


class Jobs:
    """The schedules of an app; `start` once its engine runs, `close` before it ends."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._jobs = {job.name: job for job in app.jobs()}
        self._scheduler = BackgroundScheduler(
            jobstores={"default": MemoryJobStore()},
            executors={"default": ThreadPoolExecutor(max(1, min(THREADS_MAX, len(self._jobs))))},
            job_defaults={"misfire_grace_time": MISFIRE_GRACE_SECONDS, "coalesce": True, "max_instances": 1},
            timezone=dt.UTC,
        )

    def start(self) -> None:
        """From now on jobs run: those with an interval at once, those of cron at their time."""
        for job in self._jobs.values():
            options: dict[str, Any] = {} if job.cron else {"next_run_time": dt.datetime.now(dt.UTC)}
            self._scheduler.add_job(self._app.run_job, _trigger(job), args=[job.name], id=job.name, **options)
        self._app.next_runs = self.next_runs
        self._scheduler.start()

    def close(self) -> None:
        """Start nothing more; runs under way are the app's to end."""
        self._app.next_runs = dict
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def next_runs(self) -> Mapping[str, dt.datetime | None]:
        """When each job runs next."""
        return {job.id: job.next_run_time for job in self._scheduler.get_jobs()}


def _trigger(job: Job) -> CronTrigger | IntervalTrigger:
    zone = ZoneInfo(job.timezone)
    if job.cron:
        return CronTrigger(timezone=zone, **job.cron)
    return IntervalTrigger(seconds=job.interval_seconds, timezone=zone)
