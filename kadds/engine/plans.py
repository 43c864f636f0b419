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
from kadds.engine.view import View
from kadds.log.log import Log

_KIND = "plans"
_VERSION = 0


def mask_key_name(contract: TableContract, mask_key: bytes | None) -> str | None:
    """Which mask key a contract was executed with; None where it needs none."""
    return key_fingerprint(mask_key) if mask_key and contract.needs_mask_key() else None


@dataclass(frozen=True)
class RecordedPart:
    """One delivery of a plan: under which names, from which columns of which stream, by which contract and mask key.

    `view` is what was taken of those columns.

    `contract_version` in the JSON form is there for people.
    """

    plan: Plan
    target: str
    stream_id: int
    table: Table
    contract: TableContract
    mask_key: str | None
    view: View

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        return {
            "id": self.plan.id,
            "names": dict(self.plan.names),
            "target": self.target,
            "stream_id": self.stream_id,
            "table": self.table.to_json(),
            "contract": self.contract.to_json(),
            "contract_version": self.contract.version,
            "mask_key": self.mask_key,
            "view": self.view.to_json(),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], first: str, end: str) -> RecordedPart:
        """What `to_json` wrote."""
        return cls(
            Plan(plain["id"], first, end, plain["names"]),
            plain["target"],
            plain["stream_id"],
            Table.from_json(plain["table"]),
            TableContract.from_json(plain["contract"]),
            plain["mask_key"],
            View.from_json(plain.get("view")),
        )

    def check_mask_key(self, mask_key: bytes | None) -> None:
        """ConfigurationError where the plan was begun under another mask key than there is now."""
        if self.mask_key != mask_key_name(self.contract, mask_key):
            raise ConfigurationError(
                "an unfinished delivery was planned with another mask_key",
                where=self.target,
                hint="start once with the old mask_key, so that it is finished, then change the key",
            )


@dataclass(frozen=True)
class RecordedPlan:
    """All that is needed to finish a step of one lane of one subscription."""

    subscription: str
    label: str
    mode: Mode
    first: str
    end: str
    parts: tuple[RecordedPart, ...]

    @property
    def key(self) -> str:
        """A lane has one plan at a time."""
        return f"{self.subscription}|{self.label}"

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        return {
            "version": _VERSION,
            "subscription": self.subscription,
            "label": self.label,
            "mode": str(self.mode),
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
        first, end = plain["first"], plain["end"]
        parts = tuple(RecordedPart.from_json(part, first, end) for part in plain["parts"])
        return cls(plain["subscription"], plain["label"], Mode(plain["mode"]), first, end, parts)


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

    def unfinished(self, subscription: str) -> Iterator[Mapping[str, Any]]:
        """The JSON forms of the plans of a subscription."""
        for plain in self._log.state.items(self._tenant, _KIND).values():
            if plain.get("subscription") == subscription:
                yield plain
