"""What a log holds, as plain Python, with every promise of a slice checked on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kadds.api.change import Op
from kadds.api.position import Cursor
from kadds.log.log import Log
from kadds.log.slice import Slice


@dataclass(frozen=True)
class Found:
    """One change or control record, and the transaction that it came in."""

    offset: int
    stream: str
    what: str  # letter of the op, or kind of the control record
    values: Any  # the row, or the facts
    transaction: tuple[str, bytes, str | None] = ("", b"", None)  # producer, sequence, xid


def found(log: Log, after: Cursor | None = None, **how: Any) -> list[Found]:
    """All that a read finds, in offset order."""
    return [one for piece in slices(log, after, **how) for one in contents(piece)]


def slices(log: Log, after: Cursor | None = None, **how: Any) -> Iterator[Slice]:
    """The slices of a read, each checked: they follow one another without a hole and say where they end."""
    at = (after or log.begin()).offset()
    whole = True
    for piece in log.read(after or log.begin(), **how):
        assert piece.first_offset >= at
        assert piece.end_offset > piece.first_offset
        assert piece.cursor.offset() == piece.end_offset
        log.check(Cursor.parse(str(piece.cursor)))
        at, whole = piece.end_offset, piece.whole
        yield piece
    assert whole, "a read to the end of a log ends with a whole transaction"


def contents(piece: Slice) -> list[Found]:
    """The changes and control records of a slice, in offset order."""
    facts = piece.transactions.to_pylist()
    assert [fact["first_offset"] for fact in facts] == sorted(fact["first_offset"] for fact in facts)
    result = []
    for changes in piece.changes:
        assert changes.values.schema == changes.table.arrow_schema
        offsets = changes.offsets.to_pylist()
        assert offsets == sorted(set(offsets))
        whose = [facts[number] for number in changes.transactions.to_pylist()]
        for offset, op, values, fact in zip(
            offsets, changes.ops.to_pylist(), changes.values.to_pylist(), whose, strict=True
        ):
            assert fact["first_offset"] <= offset < fact["first_offset"] + fact["rows"]
            transaction = (fact["producer"], fact["sequence"], fact["xid"])
            result.append(Found(offset, changes.stream.label, Op(op).letter, tuple(values.items()), transaction))
    for control in piece.controls:
        fact = [fact for fact in facts if fact["first_offset"] <= control.offset][-1]
        transaction = (fact["producer"], fact["sequence"], fact["xid"])
        plain = tuple(sorted(control.facts.items()))
        result.append(Found(control.offset, control.stream.label, str(control.kind), plain, transaction))
    result.sort(key=lambda one: one.offset)
    assert all(piece.first_offset <= one.offset < piece.end_offset for one in result)
    return result


def numbers(log: Log) -> list[int]:
    """The numbers of the transactions (as `making.transaction` numbers them) that the log holds, in its order."""
    return list(dict.fromkeys(int.from_bytes(one.transaction[1], "big") for one in found(log)))


def digest(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Every file of a folder with its content's hash, its mode and the time it was changed."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
