"""Reads entries of `sources` and `sinks`: Kadds' own settings and, inline beside them, those of the connector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from kadds.api.connector import Capture, Connector, SourceSide
from kadds.api.settings import Settings
from kadds.config import names
from kadds.config.checking import Checker
from kadds.config.document import Node
from kadds.config.model import SinkEntry, SinkOptions, SourceEntry, SourceOptions
from kadds.config.problems import suggestion
from kadds.config.tables import read_tables
from kadds.plugins import Installed

Options = TypeVar("Options", bound=Settings)


class Sides:
    """Reads sources and sinks; what is wrong goes to the checker's problems."""

    def __init__(self, checker: Checker, installed: Mapping[str, Installed]) -> None:
        self._checker = checker
        self._problems = checker.problems
        self._installed = installed

    def source(self, name: str, node: Node) -> SourceEntry | None:
        """The source written at `node`; None where it has a fault."""
        label = f"sources.{names.short(name)}"
        if not self._checker.is_map(node, label):
            return None
        connector = self._connector(node, label, "source")
        side = connector.source if connector else None
        model = side.settings if side else None
        options, settings = self._split(node, SourceOptions, model, label=label, kind="source", extra=("tables",))
        if "tables" not in node.value:
            self._problems.add(node.key_place, f"`{label}` needs the setting `tables`", 'write tables: ["*"] for all')
            return None
        tables = None
        if side is not None:
            faults = len(self._problems)
            tables = read_tables(
                self._checker, node.value["tables"], side.table_settings, label=f"{label}.tables", kind="source"
            )
            tables = tables if len(self._problems) == faults else None
        if options is not None and side is not None:
            self._check_capture(side, node, label)
        if options is None or settings is None or tables is None:
            return None
        return SourceEntry(**dict(options), tables=tables, settings=settings)

    def sink(self, name: str, node: Node) -> SinkEntry | None:
        """The sink written at `node`; None where it has a fault."""
        label = f"sinks.{names.short(name)}"
        if not self._checker.is_map(node, label):
            return None
        connector = self._connector(node, label, "sink")
        model = connector.sink.settings if connector and connector.sink else None
        options, settings = self._split(node, SinkOptions, model, label=label, kind="sink")
        if options is None or settings is None:
            return None
        return SinkEntry(**dict(options), settings=settings)

    def _connector(self, node: Node, label: str, side: str) -> Connector | None:
        chosen = node.value.get("connector")
        if chosen is None or chosen.broken or not isinstance(chosen.value, str):
            return None  # the options say so
        able = {name for name, found in self._installed.items() if getattr(found.connector, side) is not None}
        if chosen.value in able:
            return self._installed[chosen.value].connector
        if chosen.value in self._installed:
            message = f"`{label}.connector`: {chosen.value} cannot be a {side}"
        else:
            message = f"`{label}.connector`: no connector called {chosen.value!r} is installed"
        self._problems.add(chosen.place, message, suggestion(chosen.value, able))
        return None

    def _split(
        self,
        node: Node,
        options: type[Options],
        model: type[Settings] | None,
        *,
        label: str,
        kind: str,
        extra: tuple[str, ...] = (),
    ) -> tuple[Options | None, Any]:
        """Kadds' own options and the connector's settings; None for what has a fault."""
        own = {*options.model_fields, *extra}
        theirs = set(model.model_fields) if model else set()
        if clash := sorted(own & theirs):
            self._problems.add(
                node.value["connector"].place,
                f"`{label}`: the connector declares {', '.join(clash)}, which belongs to Kadds",
                "install another version of the connector",
            )
            return None, None
        if model is not None:
            self._checker.refuse_unknown(node, own | theirs, label=label, kind=kind)
        settings = self._checker.check(model, _part(node, theirs), label=label) if model else None
        return self._checker.check(options, _part(node, set(options.model_fields)), label=label), settings

    def _check_capture(self, side: SourceSide, node: Node, label: str) -> None:
        given = [name for name in ("schedule", "poll_interval_seconds") if name in node.value]
        if side.abilities.capture is not Capture.POLL:
            for name in given:
                self._problems.add(
                    node.value[name].key_place, f"`{label}.{name}` is for sources that are polled", "remove it"
                )
        elif len(given) == 2:
            self._problems.add(
                node.value["poll_interval_seconds"].key_place,
                f"`{label}.poll_interval_seconds` has no effect beside `schedule`",
                "give one of the two",
            )
        if side.abilities.capture is not Capture.STREAM and "isolation" in node.value:
            self._problems.add(
                node.value["isolation"].key_place, f"`{label}.isolation` is for sources that stream", "remove it"
            )


def _part(node: Node, keys: set[str]) -> Node:
    """The node with only some of its keys."""
    return Node({name: child for name, child in node.value.items() if name in keys}, node.place, node.key_place)
