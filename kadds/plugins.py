"""Finds connectors by entry point and opens them; knows no connector by name.

One connector name belongs to one distribution: two that claim it are refused, both named. Finding and describing import
no driver; a driver that is missing when a source or a sink is opened names the extra to install.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, TypeVar

from kadds.api.connector import Connector, Event, KeyKind, SinkSide, Source, SourceSide
from kadds.api.connector import Sink as OpenedSink
from kadds.api.errors import ConfigurationError
from kadds.api.settings import Secret, Settings

GROUP = "kadds.connectors"
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Installed:
    """A connector, and which distribution ships it; `modules` says where a driver is declared: module → extra."""

    name: str
    connector: Connector
    distribution: str
    version: str
    modules: Mapping[str, str] = field(default_factory=dict)


def connectors(found: Iterable[EntryPoint] | None = None) -> Mapping[str, Installed]:
    """Every installed connector by name; `found` stands for the entry points of this environment (looked up once).

    Raises ConfigurationError for a name claimed by two distributions, for an entry point whose import fails, and for
    one that is no Connector of that name.
    """
    return _installed() if found is None else _load(found)


@cache
def _installed() -> Mapping[str, Installed]:
    return _load(entry_points(group=GROUP))


def _load(found: Iterable[EntryPoint]) -> Mapping[str, Installed]:
    claims: dict[str, EntryPoint] = {}
    for entry in sorted(found, key=lambda entry: (entry.name, _distribution(entry))):
        other = claims.setdefault(entry.name, entry)
        if (_distribution(other), other.value) != (_distribution(entry), entry.value):
            raise ConfigurationError(
                f"two distributions have a connector called {entry.name!r}: "
                f"{_distribution(other)} ({other.value}) and {_distribution(entry)} ({entry.value})",
                hint="uninstall one of the two; which of them would run must not depend on chance",
            )
    return MappingProxyType({name: _import(entry) for name, entry in claims.items()})


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unknown distribution"


def _import(entry: EntryPoint) -> Installed:
    where = f"connector {entry.name} of {_distribution(entry)}"
    try:
        connector = entry.load()
    except Exception as error:
        raise ConfigurationError(
            f"importing {entry.value} failed: {type(error).__name__}: {error}",
            where=where,
            hint=f"install {_distribution(entry)} again in a version that fits this Kadds, or uninstall it",
        ) from error
    if not isinstance(connector, Connector) or connector.name != entry.name:
        found = f"a connector called {connector.name!r}" if isinstance(connector, Connector) else repr(type(connector))
        raise ConfigurationError(
            f"{entry.value} is {found}, not a Connector called {entry.name!r}",
            where=where,
            hint="the name of the entry point and `Connector.name` must be the same",
        )
    version = entry.dist.version if entry.dist else ""
    return Installed(entry.name, connector, _distribution(entry), version, _modules(entry.dist))


def _modules(distribution: Distribution | None) -> dict[str, str]:
    """Module name → the smallest extra of `distribution` that installs it, as far as names tell."""
    pattern = re.compile(r"""^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['"]([^'"]+)['"]""")
    lines = (distribution.requires or []) if distribution else []
    pairs = [(match[1].lower().replace("-", "_"), match[2]) for match in map(pattern.match, lines) if match]
    sizes = Counter(extra for _, extra in pairs)
    return dict(sorted(pairs, key=lambda pair: sizes[pair[1]], reverse=True))


# ------------------------------------------------------------------------------------------------------- opening


def installed(name: str, among: Mapping[str, Installed] | None = None) -> Installed:
    """The connector called `name`; ConfigurationError that lists the others if there is none."""
    among = connectors() if among is None else among
    if name not in among:
        raise ConfigurationError(
            f"there is no connector called {name!r}",
            hint=f"installed are: {', '.join(sorted(among)) or 'none'} (`kadds connectors` lists them)",
        )
    return among[name]


def open_source(
    name: str,
    settings: Settings,
    settings_of: Callable[[str], Any],
    *,
    among: Mapping[str, Installed] | None = None,
) -> Source:
    """Open a source; `settings_of(qualified name)` gives the settings of one of its tables.

    Raises ConfigurationError where the connector has no source or its driver is missing, else what `open` raises.
    """
    found = installed(name, among)
    if found.connector.source is None:
        raise ConfigurationError(f"connector {name} cannot be a source", hint=f"it {_sides(found.connector)}")
    side = found.connector.source
    return _with_driver(found, lambda: side.open(settings, settings_of))


def open_sink(name: str, settings: Settings, *, among: Mapping[str, Installed] | None = None) -> OpenedSink:
    """Open a sink; errors as in `open_source`."""
    found = installed(name, among)
    if found.connector.sink is None:
        raise ConfigurationError(f"connector {name} cannot be a sink", hint=f"it {_sides(found.connector)}")
    side = found.connector.sink
    return _with_driver(found, lambda: side.open(settings))


def _sides(connector: Connector) -> str:
    return "is a source only" if connector.source else "is a sink only"


def _with_driver(found: Installed, opening: Callable[[], Opened]) -> Opened:
    try:
        return opening()
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        own = _package(found.connector)
        if not module or module in ("kadds", own):
            raise  # a fault of the code, which no extra mends
        extra = found.modules.get(module.lower(), found.connector.extra)
        install = f"{found.distribution}[{extra}]" if extra else module
        raise ConfigurationError(
            f"connector {found.name} needs the Python module {module}, which is not installed",
            hint=f"pip install '{install}'",
        ) from error


def _package(connector: Connector) -> str:
    side = connector.source or connector.sink
    return side.open.__module__.split(".")[0] if side else ""


# ---------------------------------------------------------------------------------------------------- describing


@dataclass(frozen=True)
class SettingDescription:
    """One setting as people write it; `default` is JSON-able and None where it is required or unset."""

    name: str
    type: str
    required: bool
    default: Any = None
    description: str = ""
    secret: bool = False


@dataclass(frozen=True)
class SourceDescription:
    """What the source half can do, and its settings."""

    abilities: Mapping[str, Any]
    settings: tuple[SettingDescription, ...]
    table_settings: tuple[SettingDescription, ...] = ()


@dataclass(frozen=True)
class SinkDescription:
    """What the sink half can do, and its settings. `abilities["cells"]` is mode → event → kinds of key."""

    abilities: Mapping[str, Any]
    settings: tuple[SettingDescription, ...]


@dataclass(frozen=True)
class Description:
    """What `kadds connectors describe` prints."""

    name: str
    summary: str
    distribution: str
    version: str
    extra: str | None
    source: SourceDescription | None
    sink: SinkDescription | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the same fields."""
        return asdict(self)


def describe(name: str, *, among: Mapping[str, Installed] | None = None) -> Description:
    """Everything that the connector declares; ConfigurationError for an unknown name."""
    found = installed(name, among)
    connector = found.connector
    return Description(
        name=name,
        summary=connector.summary,
        distribution=found.distribution,
        version=found.version,
        extra=connector.extra,
        source=_describe_source(connector.source) if connector.source else None,
        sink=_describe_sink(connector.sink) if connector.sink else None,
    )


def _describe_source(side: SourceSide) -> SourceDescription:
    can = side.abilities
    return SourceDescription(
        abilities={
            "capture": can.capture.value,
            "events": [event.value for event in Event if event in can.events],
            "before_images": can.before_images,
            "transactions": can.transactions,
            "schema_changes": sorted(change.value for change in can.schema_changes),
        },
        settings=describe_settings(side.settings),
        table_settings=describe_settings(side.table_settings) if side.table_settings else (),
    )


def _describe_sink(side: SinkSide) -> SinkDescription:
    can = side.abilities
    matrix = {
        mode.value: {
            event.value: kinds
            for event in Event
            if (kinds := [kind.value for kind in KeyKind if (event, mode, kind) in can.cells])
        }
        for mode in sorted(can.modes)
    }
    changes = {
        mode.value: sorted(change.value for change, where in can.schema_changes if where is mode)
        for mode in sorted(can.modes)
    }
    return SinkDescription(
        abilities={"promise": can.promise.value, "cells": matrix, "schema_changes": changes},
        settings=describe_settings(side.settings),
    )


def describe_settings(model: type[Settings]) -> tuple[SettingDescription, ...]:
    """The settings of a model, from the one declaration that also checks them."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    described = []
    for name, declared in schema.get("properties", {}).items():
        own = model.model_fields[name]
        default = None if own.is_required() else own.get_default(call_default_factory=True, validated_data={})
        described.append(
            SettingDescription(
                name=name,
                type=_type_in_words(declared, definitions),
                required=own.is_required(),
                default=_plain(default),
                description=own.description or "",
                secret=holds_secret(own.annotation),
            )
        )
    return tuple(described)


def holds_secret(annotation: Any) -> bool:
    """Whether a field so annotated may hold a Secret, directly or as one of several choices."""
    if isinstance(annotation, type) and issubclass(annotation, Secret):
        return True
    return any(holds_secret(part) for part in getattr(annotation, "__args__", ()))


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "nothing",
}


def _type_in_words(declared: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if reference := declared.get("$ref"):
        return _type_in_words(definitions[str(reference).rsplit("/", 1)[-1]], definitions)
    if choices := declared.get("enum"):
        return "one of " + ", ".join(map(str, choices))
    if "const" in declared:
        return str(declared["const"])
    if options := declared.get("anyOf") or declared.get("oneOf"):
        words = [_type_in_words(option, definitions) for option in options]
        return " or ".join(dict.fromkeys(word for word in words if word != "nothing"))
    if (format_ := declared.get("format")) in ("password", "uri", "path"):
        return {"password": "secret text", "uri": "URL", "path": "path"}[str(format_)]
    match declared.get("type"):
        case "array":
            return f"list of {_type_in_words(declared.get('items', {}), definitions)}"
        case "object":
            return "map"
        case str() as name:
            return _WORDS[name]
    return "anything"
