"""The index is derived (reliability row 65): garbled, cut, deleted or of another time, it is made again and answers the
same."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from kadds.log.index import Index
from kadds.log.log import Log
from tests.unit.log.making import ROUNDS, SOURCE, TABLES, opened, put
from tests.unit.log.reading import Found, found


def _answers(log: Log) -> tuple[list[Found], list[list[Found]], list[str]]:
    by_stream = [found(log, streams=[stream.id]) for stream in log.streams()]
    return found(log), by_stream, [stream.label for stream in log.streams(SOURCE)]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    """A log of three segments and an open tail, and what it answers."""
    folder = tmp_path_factory.mktemp("sealed") / "log"
    with opened(folder) as log:
        for number in range(1, 10):
            put(log.producer(SOURCE, "stream"), number, table=TABLES[number % 3]).result()
            if number % 3 == 0 and number < 9:
                log.seal()
        log.seal()
        put(log.producer(SOURCE, "stream"), 10).result()
        return folder, _answers(log)


def _deleted(index: Path) -> None:
    index.unlink()


def _empty(index: Path) -> None:
    index.write_bytes(b"")


def _cut(index: Path) -> None:
    index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])


def _of_zeros(index: Path) -> None:
    index.write_bytes(bytes(index.stat().st_size))


def _no_database(index: Path) -> None:
    index.write_bytes(b"this is no database\n" * 1000)


def _with_a_garbled_wal(index: Path) -> None:
    index.with_name("index.duckdb.wal").write_bytes(random.Random(1).randbytes(5000))


def _only_a_garbled_wal(index: Path) -> None:
    index.unlink()
    _with_a_garbled_wal(index)


def _of_another_log(index: Path) -> None:
    connection = duckdb.connect(str(index))
    connection.execute("UPDATE about SET log = 'another'")
    connection.close()


def _of_another_version(index: Path) -> None:
    connection = duckdb.connect(str(index))
    connection.execute("UPDATE about SET version = 99")
    connection.close()


def _with_a_segment_that_is_gone(index: Path) -> None:
    connection = duckdb.connect(str(index))
    connection.execute("INSERT INTO segments SELECT 77, fingerprint, 0, 5, NULL, NULL FROM segments LIMIT 1")
    connection.close()


def _without_a_segment(index: Path) -> None:
    connection = duckdb.connect(str(index))
    connection.execute("DELETE FROM segments WHERE number = 2")
    connection.execute("DELETE FROM extents WHERE segment = 2")
    connection.close()


def _of_an_older_segment_of_the_same_number(index: Path) -> None:
    connection = duckdb.connect(str(index))
    connection.execute("UPDATE segments SET fingerprint = '0' WHERE number = 2")
    connection.execute("DELETE FROM extents WHERE segment = 2")
    connection.close()


def _without_its_tables(index: Path) -> None:
    index.unlink()
    connection = duckdb.connect(str(index))
    connection.execute("CREATE TABLE something(a INTEGER)")
    connection.close()


@pytest.mark.parametrize(
    "garble",
    [
        _deleted,
        _empty,
        _cut,
        _of_zeros,
        _no_database,
        _with_a_garbled_wal,
        _only_a_garbled_wal,
        _of_another_log,
        _of_another_version,
        _with_a_segment_that_is_gone,
        _without_a_segment,
        _of_an_older_segment_of_the_same_number,
        _without_its_tables,
    ],
)
def test_row_65_an_index_that_cannot_be_used_is_made_again_and_answers_the_same(
    garble: Callable[[Path], None], sealed: tuple[Path, object], tmp_path: Path
) -> None:
    folder, expected = sealed
    shutil.copytree(folder, tmp_path / "log")
    garble(tmp_path / "log" / "index.duckdb")
    with opened(tmp_path / "log", writable=False) as log:
        assert _answers(log) == expected
    with opened(tmp_path / "log") as log:
        assert _answers(log) == expected
    told: list[str] = []
    with opened(tmp_path / "log", narrate=told.append) as log:
        assert _answers(log) == expected
    assert "third pass: the index is complete" in told, "and made again once"


def test_row_65_a_flipped_bit_in_the_index_never_changes_an_answer(sealed: tuple[Path, object], tmp_path: Path) -> None:
    folder, expected = sealed
    shutil.copytree(folder, tmp_path / "log")
    index = tmp_path / "log" / "index.duckdb"
    whole = index.read_bytes()
    used = [at for at in range(0, len(whole), 4096) if whole[at : at + 4096].strip(b"\0")]
    places = random.Random(65)
    for _ in range(10 * ROUNDS):
        flipped = bytearray(whole)
        flipped[places.choice(used) + places.randrange(4096)] ^= 1 << places.randrange(8)
        index.write_bytes(flipped)
        with opened(tmp_path / "log") as log:
            assert _answers(log) == expected


def test_row_65_an_index_that_takes_no_more_goes_on_in_memory(
    sealed: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk hits the index after the segment has become live: every stream of it must be found all the same."""
    folder, _ = sealed
    shutil.copytree(folder, tmp_path / "log")
    told: list[str] = []
    with opened(tmp_path / "log", narrate=told.append) as log:
        put(log.producer(SOURCE, "stream"), 11).result()
        expected = _answers(log)
        log._index._connection.execute("DROP TABLE extents")  # type: ignore[union-attr]
        log.seal()
        assert _answers(log) == expected
        assert any("goes on in memory" in line for line in told)
        assert log.status()["sealing_failure"] is None
    with opened(tmp_path / "log") as log:
        assert _answers(log) == expected
    assert Index is not None
