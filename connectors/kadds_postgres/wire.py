"""Messages of a replication stream joined into one buffer, so that many are read in one step.

A message is what CopyData carries: `w`, 24 bytes (start and end LSN, time; not needed here), then one message of
pgoutput, whose first byte says its kind. https://www.postgresql.org/docs/current/protocol-replication.html
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kadds.api.errors import UnknownInputError

HEADER_BYTES = 25
_PADDING = bytes(8)  # a read of an integer behind the last byte of the last message stays inside

Integers = npt.NDArray[np.int64]


class Block:
    """Messages one behind the other: `starts` of their kind bytes and `ends`, as places in `data`; their `kinds`."""

    def __init__(self, data: bytes, starts: Integers, ends: Integers) -> None:
        self.data = data
        self.starts = starts
        self.ends = ends
        self.octets = np.frombuffer(data, np.uint8)
        self.kinds = self.octets[starts]

    @classmethod
    def of(cls, messages: Sequence[bytes]) -> Block:
        """The messages as received; UnknownInputError where one is no XLogData with something in it."""
        data = b"".join([*messages, _PADDING])
        lengths = np.fromiter(map(len, messages), np.int64, len(messages))
        ends = lengths.cumsum()
        if len(lengths):
            heads = np.frombuffer(data, np.uint8)[ends - lengths]
            if int(lengths.min()) <= HEADER_BYTES or (heads != ord("w")).any():
                raise UnknownInputError("a message is not XLogData with a message of pgoutput", where="pgoutput")
        return cls(data, ends - lengths + HEADER_BYTES, ends)

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """All messages of `blocks`, in order, each without what lies before its first and behind its last."""
        blocks = [block for block in blocks if len(block)]
        if not blocks:
            return cls(_PADDING, _NONE, _NONE)
        if len(blocks) == 1:
            return blocks[0]
        parts, starts, ends = [], [], []
        base = 0
        for block in blocks:
            low, high = int(block.starts[0]), int(block.ends[-1])
            parts.append(memoryview(block.data)[low:high])
            starts.append(block.starts + (base - low))
            ends.append(block.ends + (base - low))
            base += high - low
        data = b"".join([*parts, _PADDING])
        return cls(data, np.concatenate(starts), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> Block:
        return Block(self.data, self.starts[part], self.ends[part])

    @property
    def nbytes(self) -> int:
        """Bytes from the first message to the last."""
        return int(self.ends[-1] - self.starts[0]) if len(self) else 0

    def message(self, number: int) -> bytes:
        """One message of pgoutput, its kind included."""
        return self.data[self.starts[number] : self.ends[number]]

    @cached_property
    def unsigned16(self) -> npt.NDArray[Any]:
        """The big-endian 16-bit integer that begins at each byte."""
        return np.ndarray((len(self.data) - 1,), ">u2", self.data, 0, (1,))

    @cached_property
    def unsigned32(self) -> npt.NDArray[Any]:
        """The big-endian 32-bit integer that begins at each byte."""
        return np.ndarray((len(self.data) - 3,), ">u4", self.data, 0, (1,))

    @cached_property
    def unsigned64(self) -> npt.NDArray[Any]:
        """The big-endian 64-bit integer that begins at each byte."""
        return np.ndarray((len(self.data) - 7,), ">u8", self.data, 0, (1,))


_NONE = np.zeros(0, np.int64)
