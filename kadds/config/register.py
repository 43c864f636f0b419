"""Sinks that are registered by command instead of by file: the same checks, kept with their references unresolved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kadds.config import names, printing
from kadds.config.checking import Checker, with_absolute_paths
from kadds.config.document import Node, from_plain
from kadds.config.model import SinkEntry
from kadds.config.problems import Place, Problems
from kadds.config.sides import Sides
from kadds.plugins import Installed, connectors


@dataclass(frozen=True)
class Registration:
    """A registered sink: `written` is what the log keeps, without secrets because those are references."""

    name: str
    entry: SinkEntry
    written: Mapping[str, Any]
    printable: Mapping[str, Any]


def read_registration(
    name: str,
    given: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    *,
    folder: Path | None = None,
    installed: Mapping[str, Installed] | None = None,
) -> Registration:
    """Check a sink given as plain data: `connector` and the connector's settings.

    Paths are relative to `folder` (the working folder) and kept absolute, so that they mean the same after a restart.
    Raises ConfigurationProblems; a secret that is not a `${…}` reference is one.
    """
    available = connectors() if installed is None else installed
    folder = (folder or Path.cwd()).absolute()
    problems = Problems()
    place = Place(Path(f"sink {name}"))
    if fault := names.fault(name):
        problems.add(place, f"{name!r} cannot be used as a name", fault)
    given = _with_absolute_paths(given, available, folder)
    node = from_plain(given, place, environment, problems, folder=folder)
    entry = Sides(Checker(problems), available).sink(names.full(name), node)
    root = Node({"sinks": Node({names.full(name): node}, place, place)}, place, place)
    printing.find_literal_secrets(root, available, problems)
    problems.raise_any()
    if entry is None:
        raise AssertionError("a sink with a fault that nobody named")
    shown = printing.whole(root, available)["sinks"][names.short(names.full(name))]
    return Registration(names.full(name), entry, dict(given), shown)


def _with_absolute_paths(
    given: Mapping[str, Any], installed: Mapping[str, Installed], folder: Path
) -> Mapping[str, Any]:
    found = installed.get(str(given.get("connector")))
    if found is None or found.connector.sink is None:
        return given
    texts = {key: value for key, value in given.items() if not (isinstance(value, str) and "$" in value)}
    return {**given, **with_absolute_paths(found.connector.sink.settings, texts, folder)}
