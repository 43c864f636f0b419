"""The facts of transactions: LSNs as keys and as text, times of commit, one Arrow row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.arrays import fixed, variable
from kadds.api.change import TRANSACTIONS
from kadds_postgres.wire import Block, Integers

#: PostgreSQL counts from 2000-01-01.
EPOCH_MICROSECONDS = 946_684_800_000_000
_TIME = pa.timestamp("us", "UTC")
_FEW = 16  # texts of so few transactions are made one by one
_DIGITS = np.frombuffer(b"0123456789ABCDEF", np.uint8)


def end_lsns(block: Block, commits: Integers) -> npt.NDArray[np.uint64]:
    """The LSN behind the commit record of each of these Commit messages."""
    return block.unsigned64[block.starts[commits] + 10].astype(np.uint64)


def committed_at(block: Block, commits: Integers) -> Integers:
    """When each of these Commit messages' transactions was committed: microseconds since 1970 UTC."""
    return block.unsigned64[block.starts[commits] + 18].astype(np.int64) + EPOCH_MICROSECONDS


def xids(block: Block, begins: Integers) -> npt.NDArray[np.uint32]:
    """The transaction ids of these Begin messages."""
    return block.unsigned32[block.starts[begins] + 17].astype(np.uint32)


def commit_lsns(block: Block, begins: Integers) -> npt.NDArray[np.uint64]:
    """The LSN at which the commit record will begin, which each of these Begin messages foretells."""
    return block.unsigned64[block.starts[begins] + 1].astype(np.uint64)


def lsn_text(lsn: int) -> str:
    """As PostgreSQL writes it: 16/B374D848."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_key(lsn: int) -> bytes:
    """Its 8 bytes, which compare as the LSNs do."""
    return lsn.to_bytes(8, "big")


class Committed(NamedTuple):
    """A transaction that was read by itself: the LSN behind it, its rows, xid, microseconds since 1970 UTC."""

    end_lsn: int
    rows: int
    xid: int
    committed_at: int


def facts_of_few(commits: Sequence[Committed], generation: bytes) -> pa.RecordBatch:
    """The facts of these transactions; `generation` is put before the sequences."""
    ends, rows, numbers, times = zip(*commits, strict=True)
    return _facts(
        np.array(ends, np.uint64), np.array(rows), np.array(numbers, np.uint32), np.array(times), [], generation
    )


def transaction_facts(
    block: Block, begins: Integers, commits: Integers, rows: Integers, origins: list[str | None], generation: bytes
) -> pa.RecordBatch:
    """The facts of the transactions from `begins` to `commits`, one each; `generation` is put before the sequences.

    `origins` is empty where none has one.
    """
    return _facts(
        end_lsns(block, commits), rows, xids(block, begins), committed_at(block, commits), origins, generation
    )


def _facts(
    ends: npt.NDArray[np.uint64],
    rows: Integers,
    numbers: npt.NDArray[np.uint32],
    times: Integers,
    origins: list[str | None],
    generation: bytes,
) -> pa.RecordBatch:
    count = len(ends)
    keys = ends.astype(">u8").view(np.uint8).reshape(-1, 8)
    sequences = np.empty((count, len(generation) + 8), np.uint8)
    sequences[:, : len(generation)] = np.frombuffer(generation, np.uint8)
    sequences[:, len(generation) :] = keys
    if count < _FEW:
        tokens = variable(pa.string(), [lsn_text(end).encode() for end in ends.tolist()])
        xid_texts = variable(pa.string(), [str(number).encode() for number in numbers.tolist()])
    else:
        tokens, xid_texts = _lsn_texts(ends), pa.array(numbers).cast(pa.string())
    return pa.RecordBatch.from_arrays(
        [
            _fixed_width(sequences),
            fixed(pa.uint32(), rows.astype(np.uint32)),
            _fixed_width(keys),
            tokens,
            xid_texts,
            fixed(_TIME, times),
            pa.array(origins, pa.string()) if origins else pa.nulls(count, pa.string()),
        ],
        schema=TRANSACTIONS,
    )


def _fixed_width(rows: npt.NDArray[np.uint8]) -> pa.Array:
    """Binary values of one width, a row each."""
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.Array.from_buffers(
        pa.binary(), len(rows), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))], 0
    )


def _lsn_texts(lsns: npt.NDArray[np.uint64]) -> pa.Array:
    """`lsn_text` of each."""
    return pc.binary_join_element_wise(_hex(lsns >> np.uint64(32)), _hex(lsns & np.uint64(0xFFFFFFFF)), "/")


def _hex(numbers: npt.NDArray[Any]) -> pa.Array:
    octets = numbers.astype(">u4").view(np.uint8)
    digits = np.empty((len(octets), 2), np.uint8)
    digits[:, 0], digits[:, 1] = _DIGITS[octets >> 4], _DIGITS[octets & 15]
    texts = _fixed_width(digits.reshape(-1, 8)).view(pa.string())
    without_zeros = pc.utf8_ltrim(texts, "0")
    return pc.if_else(pc.equal(without_zeros, ""), "0", without_zeros)
