"""What a configuration promises, kept in the log as JSON, and every difference between two of them in words.

Nothing secret is kept: of a mask key a short fingerprint, of a URL its masked form. Selections of tables are compared
by what they do: for each pattern of either side a table that it matches is looked at under both.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from kadds.api.connector import Mode
from kadds.config import names, printing
from kadds.config.document import Node
from kadds.config.model import Configuration, SubscriptionEntry
from kadds.config.patterns import TablePatterns, sample
from kadds.plugins import Installed

SECTIONS = {"sources": "source", "sinks": "sink", "subscriptions": "subscription"}


class Effect(StrEnum):
    """What follows from a difference."""

    APPLIED = "applied"  # it goes on with the new setting from here
    ADDED = "added"  # something new begins
    REFUSED = "refused"  # what was delivered no longer fits: refused until `kadds resync`
    KEPT = "kept"  # it is no longer in the file; kept and warned of until it is removed by command


@dataclass(frozen=True)
class Difference:
    """One difference, in words. `subject` is the full name, `section` where it stands, `field` what differs."""

    section: str
    subject: str
    effect: Effect
    message: str
    hint: str | None = None
    table: str | None = None  # the pattern, where the difference is one of tables
    field: str | None = None

    def __str__(self) -> str:
        text = f"{SECTIONS[self.section]} {names.short(self.subject)}: {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


def describe_contracts(
    configuration: Configuration, root: Node, installed: Mapping[str, Installed]
) -> dict[str, dict[str, Any]]:
    """Section → full name → what it promises, as JSON."""
    shown = printing.whole(root, installed, shown=printing.kept)
    described: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for section in ("sources", "sinks"):
        for name, plain in shown.get(section, {}).items():
            own = (
                {"connector", "tables", "schedule", "poll_interval_seconds"} if section == "sources" else {"connector"}
            )
            one = {key: value for key, value in plain.items() if key in own and key != "tables"}
            one["settings"] = {key: value for key, value in plain.items() if key not in own}
            described[section][names.full(name)] = one
    written = printing.whole(root, installed, shown=printing.referred).get("sources", {})
    for name, source in configuration.sources.items():
        described["sources"][name]["tables"] = source.tables.described()
        settings = {key: written[names.short(name)][key] for key in described["sources"][name]["settings"]}
        described["sources"][name]["written"] = {"settings": settings, "folder": str(_folder_of(root, name))}
    for name, subscription in configuration.subscriptions.items():
        described["subscriptions"][name] = _subscription(subscription, configuration)
    plain = json.loads(json.dumps(described, default=str))
    return dict(plain)


def _folder_of(root: Node, source: str) -> Path:
    """Where the file is in which a source stands: what its paths and references are relative to."""
    entries: Mapping[str | int, Node] = root.value["sources"].children
    return next(node.place.file.parent for name, node in entries.items() if names.full(str(name)) == source)


def _subscription(subscription: SubscriptionEntry, configuration: Configuration) -> dict[str, Any]:
    schedule = subscription.schedule
    described: dict[str, Any] = {
        "source": subscription.source,
        "sink": subscription.sink,
        "mode": subscription.mode.value,
        "tables": subscription.tables.described(),
        "batch_rows": subscription.batch_rows,
        "on_schema_change": dict(subscription.on_schema_change) or None,
        "paused": subscription.paused,
        "schedule": schedule and schedule.model_dump(mode="json", exclude_defaults=True),
    }
    hashes = any("hash" in (one.get("given", {}).get("mask") or {}).values() for one in described["tables"])
    key = configuration.tenant(subscription.tenant).mask_key
    if hashes and key is not None:
        mark = hmac.digest(key.reveal().encode(), b"kadds: fingerprint of a mask key", "sha256")
        described["mask_key_fingerprint"] = mark.hex()[:12]
    return described


# ---------------------------------------------------------------------------------------------------- differences


def differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Every difference between two results of `Loaded.contracts`, in a stable order."""
    found: list[Difference] = []
    for section in SECTIONS:
        before, after = old.get(section, {}), new.get(section, {})
        for name in sorted({*before, *after}):
            if name not in after:
                found.append(_removed(section, name))
            elif name not in before:
                found.append(Difference(section, name, Effect.ADDED, "is new"))
            else:
                found += _entry_differences(section, name, before[name], after[name])
    return found


def _removed(section: str, name: str) -> Difference:
    kind = SECTIONS[section]
    command = f"kadds {kind} remove {names.short(name)}"
    return Difference(
        section,
        name,
        Effect.KEPT,
        "is no longer in the file; what the log has of it is kept",
        f"remove it with `{command}`",
    )


_REFUSED_FIELDS = {
    "sources": {"connector"},
    "sinks": {"connector"},
    "subscriptions": {"source", "sink", "mode", "mask_key_fingerprint"},
}


def _entry_differences(section: str, name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for field in sorted({*old, *new} - {"tables", "settings", "written"}):
        before, after = old.get(field), new.get(field)
        if before == after:
            continue
        refused = field in _REFUSED_FIELDS[section]
        if field == "mask_key_fingerprint":
            message = "the tenant's mask key has changed, so that hashes no longer equal those already delivered"
        else:
            message = f"`{field}` was {_words(before)} and is {_words(after)}"
        yield Difference(
            section, name, Effect.REFUSED if refused else Effect.APPLIED, message, _resync(name) if refused else None,
            field=field,
        )  # fmt: skip
    before, after = old.get("settings", {}), new.get("settings", {})
    for field in sorted({*before, *after}):
        if before.get(field) != after.get(field):
            message = f"`{field}` was {_words(before.get(field))} and is {_words(after.get(field))}"
            yield Difference(section, name, Effect.APPLIED, message, field=field)
    if "tables" in old or "tables" in new:
        found = _table_differences(section, name, old.get("tables", []), new.get("tables", []))
        one_cursor = section == "subscriptions" and new.get("mode") == Mode.TRANSACTIONAL
        yield from map(_passed_by, found) if one_cursor else found


def _passed_by(one: Difference) -> Difference:
    """A subscription with one cursor for all its tables is past what a table that it is given later had before."""
    if one.effect is not Effect.ADDED:
        return one
    message = f"{one.message}, but in mode transactional its one cursor is past their older changes"
    hint = "give these tables a subscription of their own"
    return replace(one, effect=Effect.REFUSED, message=message, hint=hint)


def _resync(name: str) -> str:
    return f"take the old setting back, or start it anew with `kadds resync {names.short(name)}`"


def _words(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _table_differences(section: str, name: str, old: Any, new: Any) -> Iterator[Difference]:
    if old == new:
        return
    before, after = TablePatterns.from_described(old), TablePatterns.from_described(new)
    written = [{entry.written for entry in side.entries} for side in (before, after)]
    silent: set[str] = set()
    for pattern in sorted({*written[0], *written[1]}):
        found = list(_pattern_differences(section, name, pattern.removeprefix("!"), before, after))
        yield from found
        if not found and (pattern in written[0]) != (pattern in written[1]):
            silent.add(pattern)
    for pattern in sorted(silent):
        what = "added" if pattern in written[1] else "removed"
        message = f"the pattern {pattern!r} is {what}, which changes no table that the other patterns tell apart"
        yield Difference(section, name, Effect.APPLIED, message, table=pattern)


def _pattern_differences(
    section: str, name: str, pattern: str, old: TablePatterns[Any], new: TablePatterns[Any]
) -> Iterator[Difference]:
    table = sample(pattern)
    subscribed = section == "subscriptions"
    if old.matches(table) != new.matches(table):
        if new.matches(table):
            message = f"tables {pattern!r} are selected now"
            yield Difference(section, name, Effect.ADDED, message, table=pattern)
        elif subscribed:
            message = f"tables {pattern!r} are no longer selected: the contract is narrower"
            yield Difference(section, name, Effect.REFUSED, message, _resync(name), pattern)
        else:
            message = f"tables {pattern!r} are no longer captured; what the log has of them is kept"
            yield Difference(section, name, Effect.KEPT, message, "add the pattern back to go on", pattern)
        return
    if not new.matches(table):
        return
    before, after = old.kept(table), new.kept(table)
    for field in sorted({*before, *after}):
        if before.get(field) != after.get(field):
            yield _field_difference(section, name, pattern, field, before.get(field), after.get(field))


def _field_difference(section: str, name: str, pattern: str, field: str, before: Any, after: Any) -> Difference:
    message = f"tables {pattern!r}: `{field}` was {_words(before)} and is {_words(after)}"
    if section != "subscriptions" or field == "on_schema_change":  # what is to come, not what was delivered
        return Difference(section, name, Effect.APPLIED, message, table=pattern, field=field)
    verdict = _verdict(field, before, after)
    return Difference(section, name, Effect.REFUSED, f"{message}: {verdict}", _resync(name), pattern, field)


def _verdict(field: str, before: Any, after: Any) -> str:
    """In which way a contract over rows already delivered is another one. Each needs a resync: a wider one too,
    because the rows that it would have had were not delivered."""
    if field == "target":
        return "the rows already delivered stand elsewhere"
    if field == "columns":
        lost, gained = _columns_moved(before or (), after or ())
        if lost and not gained:
            return "the contract is narrower"
        return "the contract is wider" if gained and not lost else "the contract is another one"
    if before is None:
        return "the contract is narrower"
    return "the contract is wider" if after is None else "the contract is another one"


def _columns_moved(before: Any, after: Any) -> tuple[bool, bool]:
    """Whether columns are lost and whether some are gained, as far as the names tell."""

    def selects(columns: Any, column: str) -> bool:
        included = [one for one in columns if not one.startswith("!")]
        return f"!{column}" not in columns and (not included or column in included)

    mentioned = {column.removeprefix("!") for column in (*before, *after)} | {"\0any other"}
    lost = any(selects(before, column) and not selects(after, column) for column in mentioned)
    gained = any(selects(after, column) and not selects(before, column) for column in mentioned)
    return lost, gained
