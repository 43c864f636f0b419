"""The facts of transactions: LSNs as keys and as text, times of commit, one Arrow row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import TRANSACTIONS
from kadds_postgres.wire import Block, Integers

#: PostgreSQL counts from 2000-01-01.
EPOCH_MICROSECONDS = 946_684_800_000_000
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
    keys = [lsn_key(commit.end_lsn) for commit in commits]
    columns: list[list[Any]] = [
        [generation + key for key in keys],
        [commit.rows for commit in commits],
        keys,
        [lsn_text(commit.end_lsn) for commit in commits],
        [str(commit.xid) for commit in commits],
        [commit.committed_at for commit in commits],
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, TRANSACTIONS.types, strict=False)]
    return pa.RecordBatch.from_arrays([*arrays, pa.nulls(len(commits), pa.string())], schema=TRANSACTIONS)


def transaction_facts(
    block: Block, begins: Integers, commits: Integers, rows: Integers, origins: list[str | None], generation: bytes
) -> pa.RecordBatch:
    """The facts of the transactions from `begins` to `commits`, one each; `generation` is put before the sequences."""
    ends = end_lsns(block, commits)
    keys = ends.astype(">u8").view(np.uint8).reshape(-1, 8)
    prefix = np.broadcast_to(np.frombuffer(generation, np.uint8), (len(ends), len(generation)))
    return pa.RecordBatch.from_arrays(
        [
            _fixed_width(np.concatenate([prefix, keys], 1)),
            pa.array(rows.astype(np.uint32)),
            _fixed_width(keys),
            pa.array([lsn_text(end) for end in ends.tolist()], pa.string()) if len(ends) < 16 else _lsn_texts(ends),
            pa.array(xids(block, begins)).cast(pa.string()),
            pa.array(committed_at(block, commits)).view(pa.timestamp("us", "UTC")),
            pa.array(origins, pa.string()) if any(origins) else pa.nulls(len(ends), pa.string()),
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
