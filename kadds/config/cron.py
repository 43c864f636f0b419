"""Cron's five fields, with cron's own meaning.

APScheduler counts the days of the week from Monday = 0, cron from Sunday = 0; so numbers become names here. Where both
days are given, cron means either of them and APScheduler both; that is refused instead of being guessed.
"""

from __future__ import annotations

import re

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_RANGES = {"minute": (0, 59), "hour": (0, 23), "day": (1, 31), "month": (1, 12), "day_of_week": (0, 7)}
_ITEM = re.compile(r"^(?:\*|([0-9a-z]+)(?:-([0-9a-z]+))?)(?:/(\d+))?$")


def cron_fields(text: str) -> dict[str, str]:
    """Arguments of APScheduler's CronTrigger for the five fields; ValueError that names the field at fault."""
    fields = text.lower().split()
    if len(fields) != len(_RANGES):
        raise ValueError(f"must have five fields (minute, hour, day of month, month, day of week), not {len(fields)}")
    found = {name: _field(name, value) for name, value in zip(_RANGES, fields, strict=True)}
    if found["day"] != "*" and found["day_of_week"] != "*":
        raise ValueError("gives a day of the month and a day of the week; give one and write * for the other")
    return found


def _field(name: str, text: str) -> str:
    items = [_item(name, item) for item in text.split(",")]
    return ",".join(part for item in items for part in item)


def _item(name: str, text: str) -> list[str]:
    match = _ITEM.match(text)
    if not match:
        raise ValueError(f"has {text!r} for the {name.replace('_', ' ')}, which is not a number, a range or a step")
    first, last, step = match.groups()
    if step is not None and int(step) < 1:
        raise ValueError(f"has a step of {step} for the {name.replace('_', ' ')}")
    high = _RANGES[name][1]
    if first is None:
        if name != "day_of_week" or step is None:
            return [f"*/{step}" if step else "*"]
        start, end = 0, 6
    else:
        start = _number(name, first)
        end = _number(name, last) if last else (start if step is None else (6 if name == "day_of_week" else high))
    if start > end:
        raise ValueError(f"has the range {text!r} for the {name.replace('_', ' ')}, which runs backwards")
    if name == "day_of_week":
        return list(dict.fromkeys(_DAYS[number % 7] for number in range(start, end + 1, int(step or 1))))
    span = str(start) if start == end else f"{start}-{end}"
    return [f"{span}/{step}" if step and start != end else span]


def _number(name: str, text: str) -> int:
    names = {"month": {n: i for i, n in enumerate(_MONTHS, 1)}, "day_of_week": {n: i for i, n in enumerate(_DAYS)}}
    number = names.get(name, {}).get(text[:3] if len(text) > 2 and text.isalpha() else text)
    if number is None and text.isdecimal():
        number = int(text)
    low, high = _RANGES[name]
    if number is None or not low <= number <= high:
        raise ValueError(f"has {text!r} for the {name.replace('_', ' ')}, which goes from {low} to {high}")
    return number
