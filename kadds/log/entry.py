"""Entries: one appended piece of the journal, as bytes and back.

Behind the entry's header (`frame`) stand a head and a body, both padded to 8 bytes. The head is JSON; the body holds
the resume state, the facts of the transactions (an Arrow IPC record batch message of `TRANSACTIONS`), then the blocks.

    all but CLOSED                producer · sections [bytes of resume, bytes of facts]
    COMMIT and FRAGMENT           producer_epoch · controls [[place, stream, kind, layout, facts]] · layouts · streams
    only COMMIT                   sequence (hex, the producer's last) · lineage · state (bool)
                                  · fragments [[entry number, rows]] (of an ABORT too: those that are dead)
    only FRAGMENT, ABORT          transaction (its number within the process that wrote it)

`layouts` ([number, text]) and `streams` ([id, name, incarnation, token]) define what the entry is the first to use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from kadds.api.change import TRANSACTIONS
from kadds.log.block import Block
from kadds.log.frame import ENTRY_HEADER_BYTES, EntryHeader
from kadds.log.layout import Layout


@dataclass(frozen=True, eq=False)
class Entry:
    """A decoded entry. `facts` is None for a fragment; blocks' places count from the commit's first offset."""

    header: EntryHeader
    head: Mapping[str, Any]
    resume: bytes
    facts: pa.RecordBatch | None
    blocks: Sequence[Block]

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        return self.header.entry_bytes


def encode_head(head: Mapping[str, Any]) -> bytes:
    """The head as JSON, padded with spaces to 8 bytes."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def encode_body(resume: bytes, facts: pa.RecordBatch | None, blocks: Sequence[Block]) -> tuple[list[int], list[Any]]:
    """The lengths of the sections, and the body's buffers."""
    facts_message = facts.serialize() if facts is not None else b""
    parts: list[Any] = [resume, bytes(-len(resume) % 8), facts_message, bytes(-len(facts_message) % 8)]
    for block in blocks:
        parts += block.encode()
    return [len(resume), len(facts_message)], parts


def decode_head(data: Any, position: int, header: EntryHeader) -> dict[str, Any]:
    """The head of the entry at `position`."""
    start = position + ENTRY_HEADER_BYTES
    head: dict[str, Any] = json.loads(bytes(data[start : start + header.head_bytes]))
    return head


def decode(data: pa.Buffer, header: EntryHeader, layout_of: Callable[[int], Layout], where: str) -> Entry:
    """The entry whose bytes (header and all) are `data`."""
    head = decode_head(memoryview(data), 0, header)
    position = ENTRY_HEADER_BYTES + header.head_bytes
    resume_bytes, facts_bytes = head.get("sections", (0, 0))
    resume = data.slice(position, resume_bytes).to_pybytes()
    position += resume_bytes + (-resume_bytes % 8)
    facts = None
    if facts_bytes:
        facts = pa.ipc.read_record_batch(pa.ipc.read_message(data.slice(position, facts_bytes)), TRANSACTIONS)
        position += facts_bytes + (-facts_bytes % 8)
    blocks = []
    while position < data.size:
        block, position = Block.decode(data, position, layout_of, where)
        blocks.append(block)
    return Entry(header, head, resume, facts, blocks)
