"""The composition root: configuration, plugins, log and engine put together, and the verbs that faces call.

Command line, jobs and later the web know only this package and the interface; what they need of the parts below is
given on here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kadds import plugins
from kadds.app.app import App
from kadds.app.asking import ask
from kadds.app.checking import Found, check_online, exit_code
from kadds.app.metrics import serve_metrics
from kadds.app.places import Place, find, find_config
from kadds.app.schedules import Job
from kadds.app.secrets import scrubbed, secrets_of
from kadds.app.status import status
from kadds.app.verbs import serve
from kadds.config import (
    ConfigurationProblems,
    Difference,
    Effect,
    Loaded,
    LogSettings,
    Problem,
    SinkEntry,
    explain,
    json_schema,
    load,
    read_registration,
)
from kadds.engine.supervisor import Outcome
from kadds.log.manifest import MANIFEST_NAME
from kadds.log.socket import Part

__all__ = [
    "App",
    "ConfigurationProblems",
    "Difference",
    "Effect",
    "Found",
    "Job",
    "Loaded",
    "Outcome",
    "Part",
    "Place",
    "Problem",
    "ask",
    "describe_connector",
    "exit_code",
    "explain",
    "find",
    "find_config",
    "json_schema",
    "list_connectors",
    "load_configuration",
    "scrubbed",
    "secrets_of",
    "serve",
    "serve_metrics",
    "status",
    "validate_online",
]


def load_configuration(path: Path, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Load a configuration; sinks that only the log has are asked for there, if a subscription names one.

    Raises ConfigurationProblems with everything that is wrong.
    """

    def registered(settings: LogSettings) -> Mapping[str, str]:
        return {name: one["connector"] for name, one in _registered(settings.path, environment).items()}

    return load(path, environment, registered_sinks=registered)


def validate_online(loaded: Loaded, environment: Mapping[str, str] = os.environ) -> Iterator[Found]:
    """Connect to everything that the configuration names; see `checking`."""

    def registered(name: str) -> SinkEntry:
        kept = _registered(loaded.configuration.log.path, environment)[name]
        given = {"connector": kept["connector"], **kept["settings"]}
        return read_registration(name, given, environment, folder=Path("/")).entry

    return check_online(loaded, registered)


def _registered(log: Path, environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The sinks that are registered in a log, by full name, whether or not anything runs on it."""
    if not (log / MANIFEST_NAME).exists():
        return {}
    return {one["name"]: one for one in ask(Place(log), "sink.list", environment=environment) if one["registered"]}


def list_connectors() -> list[str]:
    """The names of the installed connectors."""
    return sorted(plugins.connectors())


def describe_connector(name: str) -> dict[str, Any]:
    """What a connector declares, as JSON; ConfigurationError for an unknown name."""
    return plugins.describe(name).to_json()
