"""The log against a model in memory: random appends, seals, crashes and reads. A failing seed repeats exactly.

The model is a list: what was acknowledged, in the order in which it was. A crash is a copy of the folder taken while
the log is open; what was acknowledged by then must be there, and nothing that was not appended may be.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from kadds.api.change import ChangeBatch, Control, ControlKind, Transactions
from kadds.api.encoding import Decoder, Encoder
from kadds.api.position import Cursor
from kadds.log.log import Log
from kadds.log.producer import LogProducer
from kadds.log.stream import stream_name
from tests.unit.log.making import ROUNDS, TABLES, opened, rows, sequence
from tests.unit.log.reading import Found, found, slices

SOURCES = ("default/shop", "default/crm", "other/shop")
STEPS = 45


class Run:
    """A log and what it must hold."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.model: list[Found] = []
        self.resumes: dict[str, tuple[bytes, bytes]] = {}
        self.state: dict[str, Any] = {}
        self.numbers: dict[str, int] = {}
        self.cursors: list[Cursor] = []
        self.openings = 0
        self.settings = {"journal_file_bytes": self.random.choice([2048, 16384, 1 << 20])}
        self.next_id = 0
        self.log = self.open()

    def open(self) -> Log:
        log = opened(self.folder / str(self.openings), **self.settings)
        self.producers: dict[str, LogProducer] = {}
        return log

    def producer(self) -> tuple[str, LogProducer]:
        name = self.random.choice(SOURCES)
        if name not in self.producers or self.random.random() < 0.1:
            self.producers[name] = self.log.producer(name, "stream")
        return name, self.producers[name]

    # ------------------------------------------------------------------ what is appended

    def changes(self, source: str, number: int, first: int = 0) -> tuple[list[ChangeBatch], list[Control], list[Any]]:
        """Rows of several tables and a control record, their ordinals interleaved, and how they will be found."""
        batches, expected = [], []
        ordinal = first
        for table in self.random.sample(TABLES, self.random.randint(0, 3)):
            count = self.random.randint(1, 6)
            batch = rows(table, range(self.next_id, self.next_id + count), first_ordinal=ordinal)
            self.next_id += count
            batches.append(batch)
            name = stream_name(source, table)
            expected += [(name, "c", tuple(row.items())) for row in batch.values.to_pylist()]
            ordinal += count
        controls = []
        if self.random.random() < 0.4:
            controls.append(Control(ControlKind.PROGRESS, ordinal, None, {"number": number}))
            expected.append((stream_name(source, None), "progress", (("number", number),)))
        return batches, controls, expected

    def acknowledged(self, source: str, number: int, xid: str | None, expected: list[Any]) -> None:
        transaction = (f"{source}/stream", sequence(number), xid)
        for stream, what, values in expected:
            self.model.append(Found(len(self.model), stream, what, values, transaction))
        self.resumes[source] = (sequence(number), f"{number}".encode())
        self.numbers[source] = number

    # ------------------------------------------------------------------ steps

    def append(self) -> None:
        source, producer = self.producer()
        number = self.numbers.get(source, 0) + 1
        batches, controls, expected = self.changes(source, number)
        one = Transactions.one(sequence(number), batches, controls, xid=f"x{number}")
        appended = producer.append(Decoder().decode(b"".join(Encoder().encode(one))), f"{number}".encode()).result()
        assert (appended.first_offset, appended.end_offset) == (len(self.model), len(self.model) + len(expected))
        self.acknowledged(source, number, f"x{number}", expected)

    def repeat(self) -> None:
        source, producer = self.producer()
        last = self.numbers.get(source, 0)
        if last:
            number = self.random.randint(1, last)
            batches, controls, _ = self.changes(source, number)
            appended = producer.append(Transactions.one(sequence(number), batches, controls), b"repeat").result()
            assert appended.repeated == 1
            assert appended.first_offset == appended.end_offset

    def in_pieces(self) -> None:
        source, producer = self.producer()
        number = self.numbers.get(source, 0) + 1
        pieces = producer.begin(f"p{number}")
        large = self.random.random() < 0.3
        expected: list[Any] = []
        for _ in range(self.random.randint(1, 3)):
            batches, controls, found_as = self.changes(source, number)
            if large:
                table = self.random.choice(TABLES)
                batch = rows(table, [self.next_id], first_ordinal=len(found_as), size=4_300_000)
                self.next_id += 1
                batches.append(batch)
                found_as.append((stream_name(source, table), "c", tuple(batch.values.to_pylist()[0].items())))
            pieces.add(batches, controls)
            expected += found_as
            if large and self.random.random() < 0.3:
                self.log.seal()
        if self.random.random() < 0.3:
            pieces.abort()
        elif self.random.random() < 0.2:
            self.crash()  # with the transaction open
        else:
            pieces.commit(sequence(number), f"{number}".encode()).result()
            self.acknowledged(source, number, f"p{number}", expected)

    def keep(self) -> None:
        key = self.random.choice("abc")
        value = self.random.choice([None, {"n": len(self.model)}])
        self.log.state.put("default", "things", key, value)
        self.state[key] = value
        text = None if value is None else f'{{"n": {value["n"]}}}'
        row = (("key", key), ("value", text))
        transaction = ("default/_kadds/state", b"", None)
        what = "d" if value is None else "u"
        self.model.append(Found(len(self.model), "default/_kadds/things", what, row, transaction))

    def seal(self) -> None:
        self.log.seal()

    def reopen(self) -> None:
        self.log.close()
        self.log = self.open()

    def crash(self) -> None:
        """Go on with a copy of the folder as it is now, and forget the process."""
        old = self.folder / str(self.openings)
        self.openings += 1
        with self.log._sealer._busy:  # nothing is removed meanwhile
            _copy_of_one_moment(old, self.folder / str(self.openings))
        self.log.close()
        shutil.rmtree(old)
        self.log = self.open()

    def read(self) -> None:
        rows_max = self.random.choice([1, 3, 10, 65_536])
        assert found(self.log, max_rows=rows_max) == self.model
        assert self.log.end().offset() == len(self.model)
        for stream in self.log.streams():
            wanted = [one for one in self.model if one.stream == stream.label]
            assert found(self.log, streams=[stream.id], max_rows=rows_max) == wanted
        source = self.random.choice(SOURCES)
        wanted = [one for one in self.model if one.stream.startswith(f"{source}/")]
        assert found(self.log, source=source, max_rows=rows_max) == wanted
        for cursor in self.cursors:
            assert found(self.log, cursor, max_rows=rows_max) == self.model[cursor.offset() :]
        self.cursors = [piece.cursor for piece in slices(self.log, max_rows=5)][-4:]
        for source, resume in self.resumes.items():
            self.producers[source] = producer = self.log.producer(source, "stream")
            now = producer.resume()
            assert now is not None
            assert (now.sequence, now.state) == resume
        kept = {key: value for key, value in self.state.items() if value is not None}
        assert self.log.state.items("default", "things") == kept


def _copy_of_one_moment(folder: Path, copy: Path) -> None:
    """A folder to whose last journal file, and to new ones behind it, somebody may be appending.

    A listing that is made while files are created may have a later one and lack an earlier one.
    """
    listed: list[Path] = []
    while listed != (again := sorted(folder.rglob("*"))):
        listed = again
    for path in (folder, *listed):
        target = copy / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copy2(path, target)


@pytest.mark.parametrize("seed", range(6 * ROUNDS))
def test_a_log_holds_what_a_list_would_hold(seed: int, tmp_path: Path) -> None:
    run = Run(tmp_path, seed)
    steps = [run.append] * 6 + [run.in_pieces] * 3 + [run.repeat, run.keep, run.seal, run.reopen, run.crash, run.read]
    for _ in range(STEPS):
        run.random.choice(steps)()
    run.read()
    run.crash()
    run.read()
    run.log.seal()
    run.read()
    run.reopen()
    run.read()
    run.log.close()
