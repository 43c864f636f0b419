"""What there is and how it does, as JSON of a stable shape (docs/CLI.md), whether or not anything runs.

Where nothing runs, sources and subscriptions are those that the log remembers, in the state `not-running`.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kadds import __version__
from kadds.api.errors import ConfigurationError
from kadds.config import Effect
from kadds.config import names as naming
from kadds.engine.following import followed_by, shown
from kadds.engine.runs import RunHistory
from kadds.engine.states import utc_now

if TYPE_CHECKING:
    from kadds.app.app import App

NOT_RUNNING = "not-running"
_NO_STATE = {"state": NOT_RUNNING, "since": None, "problem": None}
Plain = dict[str, Any]


def status(app: App) -> Plain:
    """Everything."""
    engine = app.engine.status() if app.engine is not None else None
    log = dict(engine["log"] if engine else app.log.status())
    return {
        "kadds": __version__,
        "running": engine is not None,
        "state": engine["state"] if engine else NOT_RUNNING,
        "problem": engine and engine["problem"],
        "pid": os.getpid() if engine else None,
        "started_at": app.started_at and app.started_at.isoformat(),
        "config": app.config and str(app.config),
        "log": log,
        "sources": sources(app, engine),
        "sinks": sinks(app),
        "subscriptions": subscriptions(app, engine),
        "jobs": jobs(app),
        "warnings": warnings(app),
    }


def warnings(app: App) -> list[str]:
    """What a person should do something about: what the log keeps of things that are no longer in the file."""
    return [
        str(one) for one in app.differences if one.effect is Effect.KEPT and still_kept(app, one.section, one.subject)
    ]


def still_kept(app: App, section: str, name: str) -> bool:
    """Whether something that is not in the file is remembered; a command may have removed it since the start."""
    return name in app.remembered.contracts()[section]


# ------------------------------------------------------------------------------------------------------------ sources


def sources(app: App, engine: Mapping[str, Any] | None = None) -> list[Plain]:
    """The sources that run and those that are only remembered."""
    engine = engine or (app.engine.status() if app.engine is not None else None)
    known = app.contracts()["sources"]
    found = dict(engine["sources"]) if engine else {}
    return [_source(name, found.get(name), known.get(name, {})) for name in sorted({*found, *known})]


def _source(name: str, plain: Mapping[str, Any] | None, contract: Mapping[str, Any]) -> Plain:
    one: Mapping[str, Any] = plain or {**_NO_STATE, "tables": {}}
    tables = [_captured_table(table, it) for table, it in one["tables"].items()]
    lags = [table["lag_seconds"] for table in tables if table["lag_seconds"] is not None]
    return {
        "name": name,
        "connector": contract.get("connector"),
        **_state(one),
        "capture": one.get("capture"),
        "interval_seconds": one.get("interval_seconds"),
        "position": one.get("position"),
        "rows": one.get("rows"),
        "rows_per_second": one.get("rows_per_second"),
        "lag_seconds": max(lags, default=None),
        "tables": tables,
    }


def _state(plain: Mapping[str, Any]) -> Plain:
    return {key: plain[key] for key in ("state", "since", "problem")}


def _captured_table(name: str, plain: Mapping[str, Any]) -> Plain:
    return {
        "table": name,
        **_state(plain),
        "key": plain["key"],
        "columns": plain["columns"],
        "rows": plain["rows"],
        "rows_per_second": plain["rows_per_second"],
        "last_polled_at": plain["last_polled_at"],
        "lag_seconds": _seconds_since(plain["last_polled_at"]),
    }


def _seconds_since(text: str | None) -> float | None:
    """How long ago: for a polled table, how old what the log has of it may be."""
    if text is None:
        return None
    return round(max(0.0, (utc_now() - dt.datetime.fromisoformat(text)).total_seconds()), 3)


# -------------------------------------------------------------------------------------------------------------- sinks


def sinks(app: App) -> list[Plain]:
    """The sinks of the file, as the log remembers them, and the registered ones."""
    contracts = app.contracts()
    registered = app.registry.written()
    found = []
    for name in sorted({*contracts["sinks"], *registered}):
        kept = registered.get(name)
        plain = dict(kept["written"]) if kept else dict(contracts["sinks"][name])
        connector = plain.pop("connector", None)
        found.append(
            {
                "name": name,
                "connector": connector,
                "registered": kept is not None,
                "registered_at": kept and kept["registered_at"],
                "settings": plain if kept else plain.get("settings", {}),
                "subscriptions": sorted(
                    other for other, one in contracts["subscriptions"].items() if one.get("sink") == name
                ),
            }
        )
    return found


# ------------------------------------------------------------------------------------------------------ subscriptions


def subscriptions(app: App, engine: Mapping[str, Any] | None = None) -> list[Plain]:
    """The subscriptions that run and those that are only remembered."""
    engine = engine or (app.engine.status() if app.engine is not None else None)
    known = app.contracts()["subscriptions"]
    found = dict(engine["subscriptions"]) if engine else {}
    return [_subscription(app, name, found.get(name), known.get(name, {})) for name in sorted({*found, *known})]


def _subscription(app: App, name: str, plain: Mapping[str, Any] | None, contract: Mapping[str, Any]) -> Plain:
    one: Mapping[str, Any] = plain or {
        **contract, **_NO_STATE, "tables": {}, "schema_changes": _schema_changes(app, name),
    }  # fmt: skip
    tables = [_delivered_table(stream, it) for stream, it in one["tables"].items()]
    return {
        "name": name,
        "source": one.get("source"),
        "sink": one.get("sink"),
        "mode": one.get("mode"),
        **_state(one),
        "promise": one.get("promise"),
        "scheduled": bool(one.get("scheduled", contract.get("schedule"))),
        "rows": one.get("rows"),
        "rows_per_second": one.get("rows_per_second"),
        "lag_seconds": one.get("lag_seconds"),
        "lag_bytes": max((table["lag_bytes"] for table in tables), default=0) if plain else None,
        "heartbeat_lag_seconds": one.get("heartbeat_lag_seconds"),
        "failed_tables": one.get("failed_tables", []),
        "schema_changes": one["schema_changes"],
        "tables": tables,
    }


def _schema_changes(app: App, name: str) -> list[Plain]:
    """What waits for a decision and what is marked, as the log keeps it."""
    found = (shown(label, followed) for label, followed in followed_by(app.log, name).items())
    return [one for one in found if one is not None]


def _delivered_table(stream: str, plain: Mapping[str, Any]) -> Plain:
    return {
        "stream": stream,
        **_state(plain),
        "targets": plain["targets"],
        "cursor": plain["cursor"],
        "offset": plain["offset"],
        "caught_up": plain["caught_up"],
        "rows": plain["rows"],
        "rows_per_second": plain["rows_per_second"],
        "lag_seconds": plain["lag_seconds"],
        "lag_bytes": plain["lag_bytes"],
        "committed_at": plain["committed_at"],
    }


def jobs(app: App) -> list[Plain]:
    """The jobs, when each runs next, and its last runs (oldest first)."""
    history = RunHistory(app.log)
    planned = app.next_runs()
    found = []
    for job in app.jobs():
        runs = history.of(job.name)
        next_run = planned.get(job.name)
        found.append(
            {
                **job.to_json(),
                "next_run_at": next_run and next_run.isoformat(),
                "last_run": runs[-1] if runs else None,
                "runs": runs,
            }
        )
    return found


def named(kind: str, name: str, among: list[Plain]) -> Plain:
    """The one of that name; ConfigurationError that lists the others."""
    full = naming.full(name)
    for one in among:
        if one["name"] == full:
            return one
    known = ", ".join(naming.short(one["name"]) for one in among) or "none"
    raise ConfigurationError(f"there is no {kind} {name!r}", hint=f"there are: {known}")
