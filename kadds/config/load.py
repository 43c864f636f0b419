"""Loads a configuration: reads, replaces references, checks every piece and how the pieces fit, all at once.

`Loaded` comes out only where nothing at all is wrong; otherwise ConfigurationProblems lists everything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kadds.config import names, printing
from kadds.config.checking import Checker
from kadds.config.contracts import describe_contracts
from kadds.config.document import Node, Reader
from kadds.config.model import Configuration, LogSettings, MemoryOptions, MetricsSettings, TenantSettings
from kadds.config.problems import Place, Problem, Problems
from kadds.config.sections import NAMED, Sections
from kadds.config.sides import Sides
from kadds.config.subscriptions import Subscriptions
from kadds.plugins import Installed, connectors

RegisteredSinks = Callable[[LogSettings], Mapping[str, str]]


@dataclass(frozen=True)
class Loaded:
    """A configuration without a fault, and where everything in it stands.

    `warnings` are what is better done otherwise: secrets written into a file.
    """

    configuration: Configuration = field(repr=False)
    files: tuple[Path, ...]
    warnings: tuple[Problem, ...]
    root: Node = field(repr=False)
    installed: Mapping[str, Installed] = field(repr=False)

    def place_of(self, path: Sequence[str | int]) -> Place:
        """Where `path`, such as ("sources", "shop", "url"), stands; else what is nearest above it."""
        steps = list(path)
        if len(steps) > 1 and steps[0] in NAMED:
            section = self.root.at(steps[:1])
            steps[1] = next((n for n in section.children if n in (steps[1], names.full(str(steps[1])))), steps[1])
        node = self.root.at(steps)
        return node.key_place if node.children else node.place

    def printable(self) -> str:
        """The whole configuration as one YAML text: references as written, secrets masked."""
        return printing.as_yaml(printing.whole(self.root, self.installed))

    def contracts(self) -> dict[str, dict[str, Any]]:
        """What sources capture and subscriptions promise, as JSON without secrets; see `contracts.differences`."""
        return describe_contracts(self.configuration, self.root, self.installed)


def load(
    path: Path | str,
    environment: Mapping[str, str] = os.environ,
    *,
    installed: Mapping[str, Installed] | None = None,
    registered_sinks: RegisteredSinks | None = None,
) -> Loaded:
    """Load the file and all that it includes.

    `installed` stands for the connectors of this environment. `registered_sinks` is asked, with the settings of the
    log, for the full names and connectors of sinks kept in the log, only if a subscription names a sink that the file
    does not have. Raises ConfigurationProblems with everything that is wrong.
    """
    problems = Problems()
    available = connectors() if installed is None else installed
    sections = Sections(Path(path), Reader(environment, problems), problems)
    loading = _Loading(sections, problems, available, registered_sinks)
    parts = loading.parts()
    problems.raise_any()
    root = Node(sections.top, sections.start, sections.start)
    warnings = Problems()
    printing.find_literal_secrets(root, available, warnings)
    return Loaded(Configuration(**parts), tuple(sections.files), tuple(warnings.listed()), root, available)


class _Loading:
    def __init__(
        self,
        sections: Sections,
        problems: Problems,
        installed: Mapping[str, Installed],
        registered_sinks: RegisteredSinks | None,
    ) -> None:
        self._sections = sections
        self._problems = problems
        self._checker = Checker(problems)
        self._installed = installed
        self._registered_sinks = registered_sinks

    def parts(self) -> dict[str, Any]:
        """The fields of the Configuration; those with a fault are left out."""
        log = self._log()
        parts: dict[str, Any] = {"log": log} if log else {}
        top = self._sections.top
        if "memory_limit" in top:
            only = Node({"memory_limit": top["memory_limit"]}, self._sections.start, self._sections.start)
            if options := self._checker.check(MemoryOptions, only, label=""):
                parts["memory_limit"] = options.memory_limit
        if "metrics" in top:
            parts["metrics"] = self._checker.check(MetricsSettings, self._sections.whole("metrics"), label="metrics")
        parts["tenants"] = self._tenants()
        sides = Sides(self._checker, self._installed)
        for section, read in (("sources", sides.source), ("sinks", sides.sink)):
            entries = {name: read(name, node) for name, node in self._sections.named(section).items()}
            parts[section] = {name: entry for name, entry in entries.items() if entry is not None}
        parts["subscriptions"] = Subscriptions(
            self._checker,
            self._sections,
            self._installed,
            tenants=parts["tenants"],
            sources=parts["sources"],
            sink_connectors=self._sink_connectors(log),
        ).read()
        return parts

    def _log(self) -> LogSettings | None:
        log = self._checker.check(LogSettings, self._sections.whole("log"), label="log", kind="log")
        if log is None or log.path.is_absolute():
            return log
        return log.model_copy(update={"path": (self._sections.start.file.parent / log.path).absolute()})

    def _tenants(self) -> dict[str, TenantSettings]:
        found = {}
        for name, node in self._sections.named("tenants").items():
            if node.value is not None:
                tenant = self._checker.check(TenantSettings, node, label=f"tenants.{name}", kind="tenant")
                found[name] = tenant or TenantSettings()
        return found

    def _sink_connectors(self, log: LogSettings | None) -> dict[str, str]:
        """Full name → connector ("" where that is not known) of every sink that a subscription may name."""
        own = {name: str(node.at(["connector"]).value) if "connector" in node.children else ""
               for name, node in self._sections.named("sinks").items()}  # fmt: skip
        wanted = [
            names.resolve(node.value["sink"].value, names.tenant_of(name), own)
            for name, node in self._sections.named("subscriptions").items()
            if isinstance(node.value, dict) and "sink" in node.value and isinstance(node.value["sink"].value, str)
        ]
        if None in wanted and self._registered_sinks is not None and log is not None:
            return {**self._registered_sinks(log), **own}
        return own
