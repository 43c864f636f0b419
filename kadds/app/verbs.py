"""The verbs: what a command, or another process through the socket, can ask of an app.

A verb is a function of an app and plain arguments that answers with JSON or with parts. Verbs that write say so: a
command that finds nobody running opens the log for reading only where that is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from kadds import plugins
from kadds.api.connector import Finding, RemovableSource
from kadds.api.errors import ConfigurationError, KaddsError, RefusedError
from kadds.app import reading, status
from kadds.app.app import App
from kadds.app.schedules import job_name
from kadds.config import ConfigurationProblems, read_source_again
from kadds.config import names as naming
from kadds.engine.following import SCHEMAS_KIND, clear_marks, decide, followed_by, state_key
from kadds.engine.schema_change import Reaction
from kadds.engine.supervisor import PAUSED_KIND
from kadds.log.socket import Answer, SocketServer
from kadds.log.stream import qualified_name


@dataclass(frozen=True)
class Verb:
    """`writes`: the log must be open for writing; `makes_log`: where there is none, one is made."""

    function: Callable[..., Any]
    writes: bool = False
    makes_log: bool = False


def answer(app: App, verb: str, arguments: Mapping[str, Any]) -> Answer:
    """What the verb answers; ConfigurationError for one that there is not, or for arguments that it does not take."""
    found = VERBS.get(verb)
    if found is None:
        raise ConfigurationError(
            f"this Kadds has no verb {verb!r}", hint="the process that runs may be of another version: start it again"
        )
    try:
        signature(found.function).bind(app, **arguments)
    except TypeError as error:
        raise ConfigurationError(f"verb {verb}: {error}", hint="use commands of the version that runs") from None
    try:
        return found.function(app, **arguments)
    except ConfigurationProblems as problems:
        raise ConfigurationError(str(problems)) from problems  # all of them, also through the socket


def serve(app: App) -> SocketServer:
    """Answer verbs to other processes until the app closes."""
    server = SocketServer(app.log.path, app.log.lock, lambda verb, arguments: answer(app, verb, arguments))
    app.on_close(server.close)
    return server


# -------------------------------------------------------------------------------------------------------------- sinks


def _sink_register(
    app: App, *, name: str, connector: str, settings: Mapping[str, Any], folder: str
) -> Mapping[str, Any]:
    full = naming.full(name)
    loaded = app.loaded_if_possible()
    if full in app.remembered.contracts()["sinks"] or (loaded and full in loaded.configuration.sinks):
        raise ConfigurationError(
            f"the file has a sink {naming.short(full)} already", hint="choose another name, or take it out of the file"
        )
    users = _users_of(app, full)
    if users and full in app.registry.written():
        raise ConfigurationError(
            f"sink {naming.short(full)} is registered already and used by {', '.join(users)}",
            hint="register the new one under another name, and let the subscription name that",
        )
    given = {"connector": connector, **settings}
    app.registry.register(full, given, folder=Path(folder))
    return status.named("sink", full, status.sinks(app))


def _sink_show(app: App, *, name: str) -> Mapping[str, Any]:
    return status.named("sink", name, status.sinks(app))


def _sink_test(app: App, *, name: str) -> list[dict[str, Any]]:
    """Open the sink and ask it; an error of level error for what it refuses."""
    full = naming.full(name)
    with closing(app.open_sink(app.sink_entry(full))) as sink:
        return [_finding(one) for one in sink.check(())]


def _finding(one: Finding) -> dict[str, Any]:
    return {"level": one.level.value, "where": one.where, "message": one.message, "hint": one.hint}


def _sink_remove(app: App, *, name: str) -> Mapping[str, Any]:
    found = status.named("sink", name, status.sinks(app))
    full = found["name"]
    if users := _users_of(app, full):
        raise ConfigurationError(
            f"sink {naming.short(full)} is used by {', '.join(users)}",
            hint="take those subscriptions out of the file and remove them with `kadds subscription remove`",
        )
    _refuse_configured(app, "sinks", full)
    if found["registered"]:
        app.registry.remove(full)
    else:
        app.remembered.forget("sinks", full)
    return {"removed": full}


def _users_of(app: App, sink: str) -> list[str]:
    running = app.running
    now = running.configuration.subscriptions if running else {}
    users = {name for name, entry in now.items() if entry.sink == sink}
    users |= {name for name, one in app.remembered.contracts()["subscriptions"].items() if one.get("sink") == sink}
    return sorted(map(naming.short, users))


def _sink_pause(app: App, *, name: str) -> list[str]:
    """Pause every subscription of the sink."""
    users = status.named("sink", name, status.sinks(app))["subscriptions"]
    for user in users:
        _pause(app, "subscription", user, None)
    return list(users)


def _sink_resume(app: App, *, name: str) -> list[str]:
    users = status.named("sink", name, status.sinks(app))["subscriptions"]
    for user in users:
        _resume(app, "subscription", user, None)
    return list(users)


# ------------------------------------------------------------------------------------------ sources and subscriptions


def _source_show(app: App, *, name: str) -> Mapping[str, Any]:
    plain = status.named("source", name, status.sources(app))
    return {**plain, "contract": app.contracts()["sources"].get(plain["name"])}


def _subscription_show(app: App, *, name: str) -> Mapping[str, Any]:
    plain = status.named("subscription", name, status.subscriptions(app))
    return {**plain, "contract": app.contracts()["subscriptions"].get(plain["name"])}


def _source_pause(app: App, *, name: str, table: str | None = None) -> Mapping[str, Any]:
    full = status.named("source", name, status.sources(app))["name"]
    return _pause(app, "source", full, table)


def _source_resume(app: App, *, name: str, table: str | None = None) -> Mapping[str, Any]:
    full = status.named("source", name, status.sources(app))["name"]
    return _resume(app, "source", full, table)


def _subscription_pause(app: App, *, name: str, table: str | None = None) -> Mapping[str, Any]:
    full = status.named("subscription", name, status.subscriptions(app))["name"]
    return _pause(app, "subscription", full, table)


def _subscription_resume(app: App, *, name: str, table: str | None = None) -> Mapping[str, Any]:
    full = status.named("subscription", name, status.subscriptions(app))["name"]
    return _resume(app, "subscription", full, table)


def _subscription_schema(
    app: App, *, name: str, table: str, decision: str | None = None, clear_mark: bool = False
) -> Mapping[str, Any]:
    """Decide on a change of columns that is held, or take a mark away."""
    full = status.named("subscription", name, status.subscriptions(app))["name"]
    reaction = None if decision is None else Reaction(decision)
    if app.engine is not None:
        app.engine.decide_schema(full, table, reaction, clear_mark=clear_mark)
    else:
        _keep_decision(app, full, table, reaction, clear_mark=clear_mark)
    return {"subscription": full, "table": table, "decision": decision, "mark_cleared": clear_mark}


def _keep_decision(app: App, name: str, table: str, reaction: Reaction | None, *, clear_mark: bool) -> None:
    """Where nothing runs, the decision is only kept; the next start finds it."""
    known = followed_by(app.log, name)
    chosen = [label for label in known if table in (label, qualified_name(label.split("@", 1)[0]))]
    if not chosen:
        raise ConfigurationError(
            f"subscription {naming.short(name)} has no table {table}",
            hint=f"`kadds subscription show {naming.short(name)}` tells what waits",
        )
    label = chosen[-1]
    if clear_mark:
        clear_marks(known[label], label)
    if reaction is not None:
        decide(known[label], label, reaction)
    app.log.state.put(naming.tenant_of(name), SCHEMAS_KIND, state_key(name, label), known[label].to_json())


def _pause(app: App, kind: str, name: str, table: str | None) -> Mapping[str, Any]:
    if app.engine is None:
        _keep_pause(app, kind, name, lambda paused: paused | {table or ""})
    elif kind == "source":
        app.engine.pause_source(name, table)
    else:
        app.engine.pause_subscription(name, table)
    return {"paused": name, "table": table}


def _resume(app: App, kind: str, name: str, table: str | None) -> Mapping[str, Any]:
    if app.engine is None:
        _keep_pause(app, kind, name, lambda paused: paused - {table or ""})
    elif kind == "source":
        app.engine.resume_source(name, table)
    else:
        app.engine.resume_subscription(name, table)
    return {"resumed": name, "table": table}


def _keep_pause(app: App, kind: str, name: str, change: Callable[[set[str]], set[str]]) -> None:
    """Where nothing runs, the pause is only kept; the next start finds it."""
    tenant, key = naming.tenant_of(name), f"{kind}:{name}"
    paused = change(set(app.log.state.get(tenant, PAUSED_KIND, key) or []))
    app.log.state.put(tenant, PAUSED_KIND, key, sorted(paused) or None)


def _source_remove(app: App, *, name: str, drop_slot: bool = False) -> Mapping[str, Any]:
    """Forget a source; with `drop_slot` what was made for it on its server goes first, or nothing is forgotten."""
    full = status.named("source", name, status.sources(app))["name"]
    contracts = app.remembered.contracts()
    if users := [other for other, one in contracts["subscriptions"].items() if one.get("source") == full]:
        raise ConfigurationError(
            f"source {naming.short(full)} is used by {', '.join(map(naming.short, users))}",
            hint="take those subscriptions out of the file and remove them with `kadds subscription remove`",
        )
    _refuse_configured(app, "sources", full)
    said = _taken_back(app, full, contracts["sources"].get(full, {}), drop_slot=drop_slot)
    _forget(app, "source", full)
    return {"removed": full, "said": list(said)}


def _taken_back(app: App, name: str, contract: Mapping[str, Any], *, drop_slot: bool) -> Sequence[str]:
    """What the source says of what was made for it on its server; an error only where that was to be taken back."""
    try:
        settings = read_source_again(name, contract, app.environment)
        with closing(plugins.open_source(str(contract.get("connector")), settings, lambda _: None)) as source:
            if isinstance(source, RemovableSource):
                return source.remove(drop_slot=drop_slot)
            return ()
    except KaddsError as error:
        if not drop_slot:
            return (f"what was made for it on its server, if anything, stays there ({error.message})",)
        raise RefusedError(
            f"nothing was removed, for what was made on the server could not be taken back: {error.message}",
            where=error.where or f"source {naming.short(name)}",
            hint="mend that and try again; or leave --drop-slot away and take back by hand what "
            "docs/CONFIGURATION.md says that the connector makes on a server",
        ) from error


def _subscription_remove(app: App, *, name: str) -> Mapping[str, Any]:
    full = status.named("subscription", name, status.subscriptions(app))["name"]
    _refuse_configured(app, "subscriptions", full)
    tenant = naming.tenant_of(full)
    for key, plan in app.log.state.items(tenant, "plans").items():
        if plan.get("subscription") == full:
            app.log.state.put(tenant, "plans", key, None)
    for label in followed_by(app.log, full):
        app.log.state.put(tenant, SCHEMAS_KIND, state_key(full, label), None)
    _forget(app, "subscription", full)
    return {"removed": full}


def _forget(app: App, kind: str, name: str) -> None:
    tenant = naming.tenant_of(name)
    for state in (PAUSED_KIND, "runs"):
        if app.log.state.get(tenant, state, f"{kind}:{name}") is not None:
            app.log.state.put(tenant, state, f"{kind}:{name}", None)
    app.remembered.forget(f"{kind}s", name)


def _refuse_configured(app: App, section: str, name: str) -> None:
    """What is in the file would be back at the next start."""
    loaded = app.running or app.loaded_if_possible()
    if loaded is not None and name in getattr(loaded.configuration, section):
        raise ConfigurationError(
            f"{section.removesuffix('s')} {naming.short(name)} is in the file",
            where=str(loaded.place_of((section, name))),
            hint="take it out there, start `kadds run` again, then remove it",
        )


# --------------------------------------------------------------------------------------------------------------- jobs


def _jobs_run(app: App, *, name: str) -> Mapping[str, Any]:
    """Run a job now; answers when it has ended."""
    full = job_name(name)
    app.needs_engine()
    known = [job.name for job in app.jobs()]
    if full not in known:
        shown = ", ".join(job.replace(f"{naming.DEFAULT_TENANT}/", "") for job in known) or "none"
        raise ConfigurationError(f"there is no job {name!r}", hint=f"there are: {shown}")
    run = app.start_job(full, trigger="manual")
    while not run.ended.wait(1.0):
        if app.closing.is_set():
            raise KaddsError("Kadds is ending; the run's outcome will be in `kadds jobs list`", where=full)
    return run.to_json()


VERBS: Mapping[str, Verb] = {
    "status": Verb(status.status),
    "source.list": Verb(status.sources),
    "source.show": Verb(_source_show),
    "source.pause": Verb(_source_pause, writes=True),
    "source.resume": Verb(_source_resume, writes=True),
    "source.remove": Verb(_source_remove, writes=True),
    "sink.list": Verb(status.sinks),
    "sink.show": Verb(_sink_show),
    "sink.test": Verb(_sink_test),
    "sink.register": Verb(_sink_register, writes=True, makes_log=True),
    "sink.remove": Verb(_sink_remove, writes=True),
    "sink.pause": Verb(_sink_pause, writes=True),
    "sink.resume": Verb(_sink_resume, writes=True),
    "subscription.list": Verb(status.subscriptions),
    "subscription.show": Verb(_subscription_show),
    "subscription.pause": Verb(_subscription_pause, writes=True),
    "subscription.resume": Verb(_subscription_resume, writes=True),
    "subscription.schema": Verb(_subscription_schema, writes=True),
    "subscription.remove": Verb(_subscription_remove, writes=True),
    "jobs.list": Verb(status.jobs),
    "jobs.run": Verb(_jobs_run),
    "log.streams": Verb(reading.streams),
    "log.read": Verb(reading.read),
    "log.tail": Verb(reading.tail),
}
