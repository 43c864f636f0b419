"""Sinks that are registered by command: kept in the log (control state, kind `sinks`) as they were written.

What the log keeps has no secrets, only `${…}` references; the process that opens the sink resolves them from its own
environment. A name that stands in the file too is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kadds.api.errors import ConfigurationError
from kadds.config import Configuration, Registration, read_registration
from kadds.config import names as naming
from kadds.engine.states import utc_now
from kadds.log.log import Log

KIND = "sinks"


@dataclass(frozen=True)
class Registry:
    """The registered sinks of one log, by full name."""

    log: Log
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def written(self) -> dict[str, dict[str, Any]]:
        """Full name → what is kept of it: `connector`, settings, `registered_at`."""
        state = self.log.state
        found = {
            f"{tenant}/{name}": value
            for tenant in state.tenants(KIND)
            for name, value in state.items(tenant, KIND).items()
        }
        return dict(sorted(found.items()))

    def entry(self, name: str) -> Registration:
        """A registered sink with its references resolved; ConfigurationError where one has no value here."""
        kept = self.written()[name]
        return read_registration(name, kept["written"], self.environment, folder=Path("/"))

    def register(self, name: str, given: Mapping[str, Any], *, folder: Path) -> Registration:
        """Check a sink and keep it; returns when it is on disk. One that is there already is replaced.

        Paths in `given` are relative to `folder`. Raises ConfigurationProblems.
        """
        found = read_registration(name, given, self.environment, folder=folder)
        tenant, local = found.name.split("/", 1)
        value = {"written": dict(found.written), "registered_at": utc_now().isoformat()}
        self.log.state.put(tenant, KIND, local, value)
        return found

    def remove(self, name: str) -> None:
        """Forget a registered sink; KeyError if there is none."""
        self.written()[name]
        tenant, local = name.split("/", 1)
        self.log.state.put(tenant, KIND, local, None)

    def refuse_names_of(self, configuration: Configuration) -> None:
        """ConfigurationError where a registered sink has the name of one in the file."""
        if twice := sorted(self.written().keys() & configuration.sinks.keys()):
            shown = ", ".join(map(naming.short, twice))
            raise ConfigurationError(
                f"the file and the log both have a sink called {shown}",
                where=str(self.log.path),
                hint=f"rename it in the file, or `kadds sink remove {naming.short(twice[0])} --log {self.log.path}`",
            )
