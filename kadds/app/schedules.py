"""Jobs: what a schedule starts by itself, or a person by hand; one for each scheduled source and subscription.

A job's name is `source:tenant/name` or `subscription:tenant/name`; people of the default tenant leave the tenant out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kadds.api.errors import ConfigurationError
from kadds.config import Configuration, Schedule
from kadds.config import names as naming


@dataclass(frozen=True)
class Job:
    """One job and when it runs: `cron` (fields of APScheduler's CronTrigger) or every `interval_seconds`."""

    kind: str  # source | subscription
    subject: str  # tenant/name
    cron: Mapping[str, str] = field(default_factory=dict)
    cron_text: str | None = None
    interval_seconds: float | None = None
    timezone: str = "UTC"

    @property
    def name(self) -> str:
        """Unique in the process, and the name under which the log keeps its runs."""
        return f"{self.kind}:{self.subject}"

    @classmethod
    def of(cls, kind: str, subject: str, schedule: Schedule) -> Job:
        """The job of a scheduled thing."""
        return cls(kind, subject, schedule.cron_fields(), schedule.cron, schedule.interval_seconds, schedule.timezone)

    def to_json(self) -> dict[str, Any]:
        """Without its runs."""
        return {
            "job": self.name,
            "cron": self.cron_text,
            "interval_seconds": self.interval_seconds,
            "timezone": self.timezone,
        }


def jobs_of(configuration: Configuration) -> Iterator[Job]:
    """The jobs of a configuration, sources first."""
    for name, source in configuration.sources.items():
        if source.schedule is not None:
            yield Job.of("source", name, source.schedule)
    for name, subscription in configuration.subscriptions.items():
        if subscription.schedule is not None:
            yield Job.of("subscription", name, subscription.schedule)


def jobs_remembered(contracts: Mapping[str, Mapping[str, Any]]) -> Iterator[Job]:
    """The jobs of what the log remembers, where there is no file to ask."""
    for section, kind in (("sources", "source"), ("subscriptions", "subscription")):
        for name, plain in contracts.get(section, {}).items():
            if plain.get("schedule"):
                yield Job.of(kind, name, Schedule.model_validate(plain["schedule"]))


def job_name(text: str) -> str:
    """The full name of what a person wrote; ConfigurationError for what cannot be a job's name."""
    kind, colon, subject = text.partition(":")
    if not colon or kind not in ("source", "subscription") or not subject:
        raise ConfigurationError(
            f"{text!r} is not the name of a job", hint="jobs are called source:NAME or subscription:NAME"
        )
    return f"{kind}:{naming.full(subject)}"
