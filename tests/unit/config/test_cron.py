"""Cron's fields mean here what they mean to cron, and reach APScheduler so."""

from __future__ import annotations

import datetime as dt

import pytest
from apscheduler.triggers.cron import CronTrigger

from kadds.config.cron import cron_fields


def _next(text: str, after: str) -> str:
    trigger = CronTrigger(timezone=dt.UTC, **cron_fields(text))
    moment = dt.datetime.fromisoformat(after).replace(tzinfo=dt.UTC)
    return trigger.get_next_fire_time(None, moment).strftime("%a %Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("0 0 * * 0", "Sun 2026-01-04 00:00"),
        ("0 0 * * 7", "Sun 2026-01-04 00:00"),
        ("0 0 * * 1", "Mon 2026-01-05 00:00"),
        ("0 0 * * mon-fri", "Fri 2026-01-02 00:00"),
        ("0 0 * * 6-7", "Sat 2026-01-03 00:00"),
        ("0 0 * * */2", "Sat 2026-01-03 00:00"),
        ("*/15 * * * *", "Thu 2026-01-01 12:15"),
        ("30 4 1 feb *", "Sun 2026-02-01 04:30"),
        ("0 9-17/4 * * *", "Thu 2026-01-01 13:00"),
        ("5,50 * * * *", "Thu 2026-01-01 12:05"),
        ("7/20 * * * *", "Thu 2026-01-01 12:07"),
    ],
)
def test_a_line_of_cron_fires_when_cron_would(text: str, fires: str) -> None:
    assert _next(text, "2026-01-01T12:01") == fires


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("* * * *", "five fields"),
        ("@daily", "five fields"),
        ("60 * * * *", "'60' for the minute"),
        ("* * 0 * *", "'0' for the day"),
        ("* * * 13 *", "'13' for the month"),
        ("* * * * noday", "'noday' for the day of week"),
        ("*/0 * * * *", "step of 0"),
        ("5-1 * * * *", "backwards"),
        ("1,,2 * * * *", "not a number"),
        ("0 0 1 * 1", "give one and write"),
    ],
)
def test_what_is_no_cron_names_its_field(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cron_fields(text)
