"""Sealing sorts what fits in memory: a shape of many streams is taken some streams at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kadds.api.change import Transactions
from kadds.log import seal
from tests.unit.log.making import LINES, ORDERS, SOURCE, WIDE, opened, rows, sequence


def _read(log: Any, **what: Any) -> list[tuple[str, int, dict[str, Any]]]:
    return sorted(
        (changes.stream.name, offset, row)
        for found in log.read(log.begin(), **what)
        for changes in found.changes
        for offset, row in zip(changes.offsets.to_pylist(), changes.values.to_pylist(), strict=True)
    )


@pytest.mark.parametrize("limit", [1, 5_000, 20_000, 1 << 30])
def test_streams_of_one_shape_are_sealed_in_parts_and_read_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(seal, "SORTED_BYTES_MAX", limit)
    with opened(tmp_path / "log") as log:
        producer = log.producer(SOURCE, "stream")
        for number in range(20):
            first, count = number * 100, 30 if number % 3 else 3
            batches = [
                rows(ORDERS, range(first, first + count), size=20),
                rows(LINES, range(first, first + 40), first_ordinal=count, size=5),
                rows(WIDE, range(first, first + 2), first_ordinal=count + 40),
            ]
            producer.append(Transactions.one(sequence(number), batches), b"").result()
        before = _read(log)
        each = {stream.id: _read(log, streams=[stream.id]) for stream in log.streams()}
        log.seal()
        assert len(before) == 20 * 42 + 13 * 30 + 7 * 3
        assert _read(log) == before
        assert {number: _read(log, streams=[number]) for number in each} == each
    with opened(tmp_path / "log") as log:
        assert _read(log) == before
