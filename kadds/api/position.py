"""Places: `Position` in a source's own log, `Cursor` in ours.

Neither may be subtracted to count anything. Positions of different lineages have no order at all; asking for one is an
error, never a guess.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kadds.api.errors import ConfigurationError, GapError


@dataclass(frozen=True)
class Position:
    """A place in the source's log.

    `lineage` names the history in which sort keys mean something (system id and timeline, server UUID, …). `sort_key`
    is compared byte by byte, inside one lineage only. `token` is what the source needs to resume there, written as its
    administrators write it (an LSN, a GTID set, an SCN).
    """

    lineage: str
    sort_key: bytes
    token: str

    def reaches(self, other: Position) -> bool:
        """Whether this place is at or past `other`; GapError across lineages, where the answer is unknown."""
        if self.lineage != other.lineage:
            raise GapError(
                f"position {self.token} of lineage {self.lineage} cannot be compared with {other.token} "
                f"of lineage {other.lineage}",
                hint="the source is not the one that was captured before (restored, promoted, or another server); "
                "take a new snapshot with `kadds resync`",
            )
        return self.sort_key >= other.sort_key


@dataclass(frozen=True)
class Cursor:
    """A place in the log: everything below `offsets[shard]` has been read.

    It carries the identity of the log that gave it: its UUID, and number and random id of the opening (epoch) that
    wrote the entry before it. Printed and stored as one opaque string; only the log takes it apart.
    """

    log: uuid.UUID
    epoch: int
    epoch_id: str
    offsets: Mapping[int, int]

    def __str__(self) -> str:
        places = ",".join(f"{shard}:{offset}" for shard, offset in sorted(self.offsets.items()))
        return f"k0.{self.log.hex}.{self.epoch}-{self.epoch_id}.{places}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The cursor that was printed as `text`; ConfigurationError if it was not printed by Kadds."""
        try:
            version, log, epoch, places = text.split(".")
            if version != "k0":
                raise ValueError(version)
            number, epoch_id = epoch.split("-")
            pairs = (place.split(":") for place in places.split(",") if place)
            return cls(uuid.UUID(hex=log), int(number), epoch_id, {int(shard): int(offset) for shard, offset in pairs})
        except ValueError:
            raise ConfigurationError(
                f"{text!r} is not a cursor", hint="cursors are printed by `kadds status` and `kadds log read`"
            ) from None

    def offset(self, shard: int = 0) -> int:
        """The offset in `shard`; 0, the beginning, where the cursor has not been there."""
        return self.offsets.get(shard, 0)


def canonical_json(plain: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
