"""The JSON Schema for editors knows what the loader knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kadds.config import Configuration, json_schema
from kadds.config.model import SourceOptions, SubscriptionEntry
from tests.unit.config.fake_connectors import INSTALLED, PullSettings, PullTable


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)


def _choice(side: str, connector: str) -> dict[str, Any]:
    entry = json_schema(INSTALLED)["properties"][side]["additionalProperties"]
    return next(one["then"] for one in entry["allOf"] if one["if"]["properties"]["connector"]["const"] == connector)


def test_it_has_every_key_of_the_file_and_no_other() -> None:
    schema = json_schema(INSTALLED)
    assert set(schema["properties"]) == {*Configuration.model_fields, "include"}
    assert schema["additionalProperties"] is False
    subscription = schema["properties"]["subscriptions"]["additionalProperties"]
    assert set(subscription["properties"]) == set(SubscriptionEntry.model_fields)
    assert set(subscription["required"]) == {"source", "sink", "mode", "tables"}


def test_the_settings_of_a_connector_depend_on_its_name() -> None:
    sources = json_schema(INSTALLED)["properties"]["sources"]["additionalProperties"]
    assert sources["properties"]["connector"]["enum"] == ["pull", "stream"]
    pull = _choice("sources", "pull")
    assert set(pull["properties"]) == {*SourceOptions.model_fields, *PullSettings.model_fields, "tables"}
    assert set(pull["required"]) == {"connector", "url", "tables"}
    assert pull["additionalProperties"] is False
    tables = pull["properties"]["tables"]["anyOf"][1]["additionalProperties"]["anyOf"][1]
    assert set(tables["properties"]) == set(PullTable.model_fields)
    assert "required" not in tables
    assert set(_choice("sinks", "put")["properties"]) == {"connector", "path", "key", "label"}


def test_descriptions_reach_the_editor() -> None:
    assert _choice("sources", "pull")["properties"]["url"]["description"] == "where it is"


def test_a_reference_may_stand_wherever_a_value_is_checked() -> None:
    rows = _choice("sources", "pull")["properties"]["fetch_rows"]
    assert {"type": "string", "pattern": r"\$\{.+\}"} in rows["anyOf"]
    assert all("format" not in one for one in _objects(json_schema(INSTALLED)) if "type" in one)


def test_it_stands_by_itself() -> None:
    for one in _objects(json_schema(INSTALLED)):
        assert "$ref" not in one
        assert "$defs" not in one
