"""What the log remembers of the configuration it last ran with, and every difference named at the next start.

A source or subscription that is no longer in the file stays remembered, and is warned of at each start, until a person
removes it by command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kadds.api.errors import ConfigurationError
from kadds.config import Difference, Effect, Loaded, differences
from kadds.log.log import Log

KIND = "contracts"
SECTIONS = ("sources", "sinks", "subscriptions")
Contracts = Mapping[str, Mapping[str, Any]]
_NOT_YET = "take the old setting back, or give it another name and a new target (`kadds resync` is not in this version)"


@dataclass(frozen=True)
class Remembered:
    """The contracts in the log: section → full name → what it promised."""

    log: Log

    def contracts(self) -> dict[str, dict[str, Any]]:
        """All of them."""
        found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        for tenant in self.log.state.tenants(KIND):
            for key, value in self.log.state.items(tenant, KIND).items():
                section, name = key.split("/", 1)
                found[section][f"{tenant}/{name}"] = value
        return found

    def compare(self, loaded: Loaded) -> list[Difference]:
        """Every difference, with what this version makes of it; none where this log has run with no file yet."""
        before = self.contracts()
        if not any(before.values()):
            return []
        return [_explained(one) for one in differences(before, loaded.contracts())]

    def keep(self, new: Contracts) -> None:
        """Remember these; what they lack stays remembered as it is. Returns when it is on disk."""
        before = self.contracts()
        waiting = [
            self.log.state.put_soon(*_key(section, name), value)
            for section in SECTIONS
            for name, value in new.get(section, {}).items()
            if before[section].get(name) != value
        ]
        for future in waiting:
            future.result()

    def forget(self, section: str, name: str) -> None:
        """Forget one, so that nobody warns of it any more."""
        self.log.state.put(*_key(section, name), None)


def _key(section: str, name: str) -> tuple[str, str, str]:
    tenant, local = name.split("/", 1)
    return tenant, KIND, f"{section}/{local}"


def _explained(one: Difference) -> Difference:
    if one.effect is Effect.REFUSED:
        return replace(one, hint=_NOT_YET)
    if one.effect is Effect.ADDED and one.section == "sources" and one.table is not None:
        return replace(one, message=f"{one.message}; each begins with all that its source has")
    if one.effect is Effect.ADDED and one.section == "subscriptions":
        return replace(one, message=f"{one.message}; it begins with the first change in the log")
    return one


def refuse(found: Sequence[Difference]) -> None:
    """ConfigurationError that names every difference with which nothing may start."""
    refused = [one for one in found if one.effect is Effect.REFUSED]
    if not refused:
        return
    text = "\n".join(str(replace(one, hint=None)) for one in refused)
    if len(refused) > 1:
        text = f"{len(refused)} changes of the configuration do not fit what has been delivered:\n{text}"
    raise ConfigurationError(text, hint=_NOT_YET)
