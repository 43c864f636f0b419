"""Plans: deliveries to sinks that cannot keep a cursor in the transaction of the data.

What will be delivered is written down in the log (control state, kind `plans`) before the first byte leaves and
struck out afterwards. A plan found at a claim is finished exactly as it was decided, whatever the configuration says
by then: the same range of the log, the same contract under the same mask key, the same names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kadds.api.connector import Mode, Plan
from kadds.api.errors import ConfigurationError, UnknownInputError
from kadds.api.schema import Table
from kadds.engine.contract import TableContract
from kadds.engine.mask import key_fingerprint
from kadds.log.log import Log

_KIND = "plans"
_VERSION = 0


def mask_key_name(contract: TableContract, mask_key: bytes | None) -> str | None:
    """Which mask key a contract was executed with; None where it needs none."""
    return key_fingerprint(mask_key) if mask_key and contract.needs_mask_key() else None


@dataclass(frozen=True)
class RecordedPart:
    """One delivery of a plan: to which target, from which columns of the source, under which names."""

    plan: Plan
    target: str
    table: Table

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        return {
            "id": self.plan.id,
            "names": dict(self.plan.names),
            "target": self.target,
            "table": self.table.to_json(),
        }


@dataclass(frozen=True)
class RecordedPlan:
    """All that is needed to finish a step of one stream of one subscription."""

    subscription: str
    label: str
    stream_id: int
    mode: Mode
    contract: TableContract
    mask_key: str | None
    first: str
    end: str
    parts: tuple[RecordedPart, ...]

    @property
    def key(self) -> str:
        """A stream of a subscription has one plan at a time."""
        return f"{self.subscription}|{self.label}"

    def to_json(self) -> dict[str, Any]:
        """For the log; `contract_version` is there for people."""
        return {
            "version": _VERSION,
            "subscription": self.subscription,
            "label": self.label,
            "stream_id": self.stream_id,
            "mode": str(self.mode),
            "contract": self.contract.to_json(),
            "contract_version": self.contract.version,
            "mask_key": self.mask_key,
            "first": self.first,
            "end": self.end,
            "parts": [part.to_json() for part in self.parts],
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> RecordedPlan:
        """What `to_json` wrote; UnknownInputError for a plan of a later version."""
        if plain["version"] != _VERSION:
            raise UnknownInputError(
                f"a plan of version {plain['version']} is unfinished",
                where=f"{plain.get('subscription')} {plain.get('label')}",
                hint="a newer Kadds wrote it: let that one finish it",
            )
        return cls(
            plain["subscription"],
            plain["label"],
            plain["stream_id"],
            Mode(plain["mode"]),
            TableContract.from_json(plain["contract"]),
            plain["mask_key"],
            plain["first"],
            plain["end"],
            tuple(
                RecordedPart(
                    Plan(part["id"], plain["first"], plain["end"], part["names"]),
                    part["target"],
                    Table.from_json(part["table"]),
                )
                for part in plain["parts"]
            ),
        )

    def check_mask_key(self, mask_key: bytes | None) -> None:
        """ConfigurationError where the plan was begun under another mask key than there is now."""
        if self.mask_key is not None and (mask_key is None or key_fingerprint(mask_key) != self.mask_key):
            raise ConfigurationError(
                "an unfinished delivery was planned with another mask_key",
                where=f"{self.subscription} {self.label}",
                hint="start once with the old mask_key, so that it is finished, then change the key",
            )


def plan_id(subscription: str, label: str, first: str, end: str, part: int) -> str:
    """The same for the same range of the same stream, and for nothing else (24 hex digits)."""
    text = "\n".join((subscription, label, first, end, str(part)))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Plans:
    """The unfinished plans of one tenant, in the log."""

    def __init__(self, log: Log, tenant: str) -> None:
        self._log = log
        self._tenant = tenant

    def record(self, plan: RecordedPlan) -> None:
        """Returns when it is on disk."""
        self._log.state.put(self._tenant, _KIND, plan.key, plan.to_json())

    def finished(self, key: str) -> None:
        """Strike it out."""
        self._log.state.put(self._tenant, _KIND, key, None)

    def unfinished(self, subscription: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Keys and JSON forms of the plans of a subscription."""
        for key, plain in self._log.state.items(self._tenant, _KIND).items():
            if plain.get("subscription") == subscription:
                yield key, plain
