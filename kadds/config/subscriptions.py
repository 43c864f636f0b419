"""Reads `subscriptions` and checks how they fit together with sources, sinks and tenants, as far as a file can tell.

What depends on the tables themselves (columns, keys, types) is checked online, in the engine.
"""

from __future__ import annotations

from collections.abc import Mapping

from kadds.api.connector import Event, Mode
from kadds.config import names
from kadds.config.checking import Checker
from kadds.config.document import Node
from kadds.config.model import (
    SourceEntry,
    SubscriptionEntry,
    SubscriptionOptions,
    SubscriptionTable,
    TenantSettings,
)
from kadds.config.patterns import TablePatterns
from kadds.config.planned import HINT, MESSAGE
from kadds.config.problems import Place, suggestion
from kadds.config.sections import Sections
from kadds.config.tables import read_tables
from kadds.plugins import Installed


class Subscriptions:
    """Reads subscriptions; what is wrong goes to the checker's problems."""

    def __init__(
        self,
        checker: Checker,
        sections: Sections,
        installed: Mapping[str, Installed],
        *,
        tenants: Mapping[str, TenantSettings],
        sources: Mapping[str, SourceEntry],
        sink_connectors: Mapping[str, str],
    ) -> None:
        self._checker = checker
        self._problems = checker.problems
        self._sections = sections
        self._installed = installed
        self._tenants = tenants
        self._sources = sources
        self._sink_connectors = sink_connectors

    def read(self) -> dict[str, SubscriptionEntry]:
        """The subscriptions without a fault, by full name."""
        entries = {name: self._one(name, node) for name, node in self._sections.named("subscriptions").items()}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def _one(self, name: str, node: Node) -> SubscriptionEntry | None:
        label = f"subscriptions.{names.short(name)}"
        if not self._checker.is_map(node, label):
            return None
        own = set(SubscriptionOptions.model_fields)
        self._checker.refuse_unknown(node, own | {"tables"}, label=label, kind="subscription")
        part = Node({k: child for k, child in node.value.items() if k in own}, node.place, node.key_place)
        options = self._checker.check(SubscriptionOptions, part, label=label)
        if "tables" not in node.value:
            self._problems.add(node.key_place, f"`{label}` needs the setting `tables`", 'write tables: ["*"] for all')
            return None
        tables = read_tables(
            self._checker, node.value["tables"], SubscriptionTable, label=f"{label}.tables", kind="subscription table"
        )
        self._check_targets(tables, label)
        self._check_masks(names.tenant_of(name), node.value["tables"], label)
        sink = self._sink(name, node, label)
        source = self._source(name, node, label, sink)
        if options is None or source is None or sink is None:
            return None
        self._check_mode(options.mode, sink, node, label)
        self._check_tables(source, options.mode, tables, label)
        return SubscriptionEntry(**{**dict(options), "source": source, "sink": sink, "tables": tables})

    def _source(self, name: str, node: Node, label: str, sink: str | None) -> str | None:
        tenant = names.tenant_of(name)
        found = self._named(node, "source", tenant, self._sections.named("sources"), label)
        if found is not None and sink is not None and names.tenant_of(found) != tenant:
            self._problems.add(
                node.value["source"].place,
                f"`{label}` belongs to tenant {tenant} and uses source {found} of another tenant; "
                f"the share that this needs {MESSAGE}",
                f"use a source of {tenant}",
            )
            return None
        return found

    def _sink(self, name: str, node: Node, label: str) -> str | None:
        found = self._named(node, "sink", names.tenant_of(name), self._sink_connectors, label)
        if found is not None and names.tenant_of(found) != names.tenant_of(name):
            tenant = names.tenant_of(found)
            self._problems.add(
                node.key_place,
                f"`{label}` is named for tenant {names.tenant_of(name)}, and its sink {found} belongs to {tenant}",
                f"a subscription belongs to its sink's tenant: call it {tenant}/{name.split('/', 1)[1]}",
            )
            return None
        return found

    def _named(self, node: Node, side: str, tenant: str, known: Mapping[str, object], label: str) -> str | None:
        chosen = node.value.get(side)
        if chosen is None or chosen.broken or not isinstance(chosen.value, str):
            return None  # the options say so
        found = names.resolve(chosen.value, tenant, known)
        if found is None and self._sections.complete:
            choice = suggestion(chosen.value, map(names.short, known))
            extra = "a sink can also be registered with `kadds sink register`" if side == "sink" else None
            self._problems.add(chosen.place, f"`{label}.{side}`: there is no {side} {chosen.value!r}", choice or extra)
        return found

    def _check_mode(self, mode: Mode, sink: str, node: Node, label: str) -> None:
        place = node.value["mode"].place
        if mode is Mode.SNAPSHOT:
            self._problems.add(place, f"`{label}.mode: snapshot` {MESSAGE}", HINT)
            return
        installed = self._installed.get(self._sink_connectors[sink])
        side = installed.connector.sink if installed else None
        if side is not None and mode not in side.abilities.modes:
            able = ", ".join(sorted(side.abilities.modes))
            self._problems.add(
                place,
                f"`{label}.mode: {mode}` is nothing that sink {names.short(sink)} "
                f"(connector {self._sink_connectors[sink]}) can do",
                f"it can do: {able}",
            )

    def _check_targets(self, tables: TablePatterns[SubscriptionTable], label: str) -> None:
        first: dict[str, Place] = {}
        for entry in tables.entries:
            if "target" not in entry.given:
                continue
            target = entry.given["target"]
            if not entry.exact:
                self._problems.add(
                    target.place,
                    f"`{label}.tables.{entry.pattern}.target` would put several tables into one target",
                    "give a target to one table by its exact name",
                )
            elif target.value is not None:
                other = first.setdefault(str(target.value), target.place)
                if other is not target.place:
                    self._problems.add(
                        target.place, f"`{label}` has the target {target.value} twice", f"it is already at {other}"
                    )

    def _check_masks(self, tenant: str, tables: Node, label: str) -> None:
        key = self._tenants.get(tenant, TenantSettings()).mask_key
        if key is not None or not isinstance(tables.value, dict) or not self._sections.complete:
            return
        given = self._sections.named("tenants").get(tenant)
        if given is not None and "mask_key" in given.children:
            return  # it has a fault of its own
        for pattern, entry in tables.value.items():
            masks = entry.children.get("mask")
            for column, how in masks.children.items() if masks else ():
                if how.value == "hash":
                    self._problems.add(
                        how.place,
                        f"`{label}.tables.{pattern}.mask.{column}: hash` needs the mask key of tenant {tenant}",
                        f'give tenants: {{{tenant}: {{mask_key: "${{KADDS_MASK_KEY}}"}}}}',
                    )

    def _check_tables(self, source: str, mode: Mode, tables: TablePatterns[SubscriptionTable], label: str) -> None:
        captured = self._sources.get(source)
        if captured is None:
            return
        side = self._installed[captured.connector].connector.source
        changing = bool(side and side.abilities.events & {Event.UPDATE, Event.DELETE})
        lacks_images = changing and not (side and side.abilities.before_images)
        for entry in tables.entries:
            if not entry.excludes and entry.exact and not captured.tables.matches(entry.pattern):
                self._problems.add(
                    entry.place,
                    f"`{label}.tables`: source {names.short(source)} does not capture {entry.pattern}",
                    "add it to the source's `tables`, or look for an exclusion there",
                )
            filter_ = entry.given.get("where")
            if mode is Mode.APPEND and lacks_images and filter_ is not None and filter_.value is not None:
                self._problems.add(
                    filter_.place,
                    f"`{label}.tables.{entry.pattern}.where`: a filter in mode append needs full before images, "
                    f"which connector {captured.connector} does not give",
                    "filter in mode merge, or where the history is read",
                )
