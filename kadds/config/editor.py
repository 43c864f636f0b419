"""JSON Schema of the configuration file, for editors, with the settings of the connectors that are installed.

Wherever a value may be written, a `${…}` reference may stand instead; the schema allows that, so that an editor does
not complain of what `kadds validate` accepts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kadds.api.settings import Settings
from kadds.config.model import (
    LogSettings,
    MemoryOptions,
    MetricsSettings,
    SinkOptions,
    SourceOptions,
    SubscriptionOptions,
    SubscriptionTable,
    TenantSettings,
)
from kadds.config.names import NAME_PATTERN
from kadds.plugins import Installed, connectors

Schema = dict[str, Any]
_REFERENCE: Schema = {"type": "string", "pattern": r"\$\{.+\}"}
_KEPT_OUT = ("title", "format", "default", "$defs")
_PATTERNS: Schema = {"type": "array", "items": {"type": "string"}, "minItems": 1}


def json_schema(installed: Mapping[str, Installed] | None = None) -> Schema:
    """The schema (draft 7) of a configuration file; `installed` stands for the connectors of this environment."""
    available = connectors() if installed is None else installed
    sources = {name: one.connector.source for name, one in available.items() if one.connector.source}
    sinks = {name: one.connector.sink for name, one in available.items() if one.connector.sink}
    properties: Schema = {
        "include": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Further files with the same keys; patterns are relative to this file.",
        },
        "log": model_schema(LogSettings),
        **model_schema(MemoryOptions)["properties"],
        "metrics": model_schema(MetricsSettings),
        "tenants": _by_name(model_schema(TenantSettings), "Tenants by name."),
        "sources": _by_name(
            _sides(SourceOptions, {name: (s.settings, _tables(s.table_settings)) for name, s in sources.items()}),
            "Sources by name or tenant/name.",
        ),
        "sinks": _by_name(
            _sides(SinkOptions, {name: (s.settings, None) for name, s in sinks.items()}),
            "Sinks by name or tenant/name.",
        ),
        "subscriptions": _by_name(_subscription(), "Subscriptions by name or tenant/name."),
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Kadds configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def model_schema(model: type[Settings]) -> Schema:
    """The schema of one model, with its inner models written out."""
    schema = model.model_json_schema()
    found: Schema = _cleaned(schema, schema.get("$defs", {}))
    found["additionalProperties"] = False
    return found


def _cleaned(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_cleaned(item, definitions) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if reference := schema.get("$ref"):
        inner = _cleaned(definitions[str(reference).rsplit("/", 1)[-1]], definitions)
        return {**inner, **{key: value for key, value in schema.items() if key == "description"}}
    found = {
        key: _cleaned(value, definitions) for key, value in schema.items() if key not in (*_KEPT_OUT, "properties")
    }
    if "properties" in schema:
        found["properties"] = {name: _cleaned(one, definitions) for name, one in schema["properties"].items()}
    if found.get("type") in ("integer", "number", "boolean") or "enum" in found or "pattern" in found:
        description = {key: found.pop(key) for key in ("description",) if key in found}
        return {"anyOf": [found, _REFERENCE], **description}
    return found


def _by_name(schema: Schema, description: str) -> Schema:
    names = {"type": "string", "pattern": NAME_PATTERN}
    return {"type": "object", "propertyNames": names, "additionalProperties": schema, "description": description}


def _tables(settings: type[Settings] | None) -> Schema:
    one = model_schema(settings) if settings else {"type": "object", "additionalProperties": False}
    one.pop("required", None)  # it may come from an entry that matches the same table
    return {
        "description": 'Patterns over schema.table, "!pattern" excludes; or a map from pattern to settings.',
        "anyOf": [
            _PATTERNS,
            {"type": "object", "additionalProperties": {"anyOf": [{"type": "null"}, one]}, "minProperties": 1},
        ],
    }


def _sides(options: type[Settings], choices: Mapping[str, tuple[type[Settings], Schema | None]]) -> Schema:
    """An object whose further settings depend on its `connector`."""
    own = model_schema(options)["properties"]
    return {
        "type": "object",
        "required": ["connector"],
        "properties": {"connector": {"enum": sorted(choices), "description": own["connector"]["description"]}},
        "allOf": [
            {
                "if": {"properties": {"connector": {"const": name}}, "required": ["connector"]},
                "then": _choice(own, name, *choices[name]),
            }
            for name in sorted(choices)
        ],
    }


def _choice(own: Schema, name: str, settings: type[Settings], tables: Schema | None) -> Schema:
    theirs = model_schema(settings)
    required: Iterable[str] = theirs.get("required", ())
    return {
        "properties": {
            **own,
            **theirs.get("properties", {}),
            "connector": {"const": name},
            **({"tables": tables} if tables else {}),
        },
        "required": ["connector", *required, *(["tables"] if tables else [])],
        "additionalProperties": False,
    }


def _subscription() -> Schema:
    schema = model_schema(SubscriptionOptions)
    schema["properties"]["tables"] = _tables(SubscriptionTable)
    schema["required"] = [*schema.get("required", ()), "tables"]
    return schema
