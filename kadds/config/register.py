"""What the log keeps with its references unresolved, and how it is read again by the same checks as a file: sinks that
are registered by command, and sources that stand in the file no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kadds.api.errors import ConfigurationError
from kadds.api.settings import MASK, Settings
from kadds.config import names, printing
from kadds.config.checking import Checker, with_absolute_paths
from kadds.config.document import Node, from_plain
from kadds.config.model import SinkEntry
from kadds.config.problems import Place, Problems
from kadds.config.sides import Sides
from kadds.plugins import Installed, connectors
from kadds.plugins import installed as named_connector


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


def read_source_again(
    name: str,
    contract: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    *,
    installed: Mapping[str, Installed] | None = None,
) -> Settings:
    """The settings of a source of which only the log knows: `contract` is what it remembers.

    Raises ConfigurationError where a reference has no value here, or where the file had a secret in plain text, which
    the log does not keep.
    """
    found = named_connector(str(contract.get("connector")), installed)
    written = contract.get("written")
    if written is None or found.connector.source is None or MASK in json.dumps(written):
        raise ConfigurationError(
            "the log does not keep all that it takes to reach this source",
            where=f"source {names.short(name)}",
            hint="secrets are kept as the references that they are in the file; one in plain text is not",
        )
    folder, problems = Path(written["folder"]), Problems()
    place = Place(folder / f"source {names.short(name)}")
    node = from_plain(written["settings"], place, environment, problems, folder=folder)
    settings = Checker(problems).check(found.connector.source.settings, node, label=f"sources.{names.short(name)}")
    problems.raise_any()
    assert settings is not None  # noqa: S101 - a fault would have been named
    return settings


def _with_absolute_paths(
    given: Mapping[str, Any], installed: Mapping[str, Installed], folder: Path
) -> Mapping[str, Any]:
    found = installed.get(str(given.get("connector")))
    if found is None or found.connector.sink is None:
        return given
    texts = {key: value for key, value in given.items() if not (isinstance(value, str) and "$" in value)}
    return {**given, **with_absolute_paths(found.connector.sink.settings, texts, folder)}
