"""The sink of files: the conformance suite in each format, read by the public format alone, and what is its own."""

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kadds.api.change import HISTORY
from kadds.api.connector import Append, Delivery, Level, Mode, Plan, Sink, Target
from kadds.api.errors import (
    ConfigurationError,
    CorruptLogError,
    DataError,
    FencedError,
    KaddsError,
    LockedError,
    RefusedError,
    RetryableError,
    SchemaMismatchError,
)
from kadds.api.schema import Column, Table
from kadds.testing.faults import file_size_limit
from kadds.testing.sink_contract import SinkContract
from kadds.testing.sink_values import HOSTILE_NAMES, history_of, orders, rows_of, text_cell
from kadds_files import connector
from kadds_files.names import target_folder
from kadds_files.settings import FilesSettings
from kadds_files.sink import FilesSink

assert connector.sink is not None
SIDE = connector.sink
REPOSITORY = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------- a reader who knows docs/FILES_FORMAT.md and no more


def manifest_lines(root: Path) -> list[dict[str, Any]]:
    """Every line that counts, of every subscription."""
    found = []
    for part in sorted(root.glob("_manifest/*/*.jsonl")):
        for line in part.read_bytes().splitlines(keepends=True):
            text, _, checksum = line.rpartition(b',"crc32":"')
            assert line.endswith(b'"}\n')
            assert f"{zlib.crc32(text + b'}'):08x}".encode() == checksum[:8]
            found.append(json.loads(line))
    return found


def complete_files(root: Path, target: str) -> list[Path]:
    """The files of a target that are complete, verified."""
    found = []
    for line in manifest_lines(root):
        for file in line.get("files", []):
            path = root / file["path"]
            data = path.read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
            if file["target"] == target:
                found.append(path)
    return found


def read_target(root: Path, target: Target) -> pa.Table:
    """All complete rows of a target, in its own types."""
    fields = pa.schema([*target.table.arrow_schema, *HISTORY])
    tables = [fields.empty_table()]
    for path in complete_files(root, target.name):
        if path.suffix == ".parquet":
            table = pq.read_table(path, page_checksum_verification=True)
            lacking = [name for name in fields.names if name not in table.schema.names]
            for name in lacking:
                table = table.append_column(fields.field(name), pa.nulls(len(table), fields.field(name).type))
            tables.append(table.select(fields.names).cast(fields))
        else:
            tables.append(read_lines(path, fields))
    return pa.concat_tables(tables)


def read_lines(path: Path, fields: pa.Schema) -> pa.Table:
    with pa.input_stream(str(path), compression={".gz": "gzip", ".zst": "zstd"}.get(path.suffix)) as stream:
        rows = [json.loads(line, parse_float=str) for line in stream.read().splitlines()]
    columns = [pa.array([_value(row.get(f.name), f.type) for row in rows], _storage(f.type)) for f in fields]
    return pa.table([c.view(f.type) if c.type != f.type else c for c, f in zip(columns, fields, strict=True)], fields)


def _storage(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None or pa.types.is_list(kind) or pa.types.is_string(kind) or pa.types.is_boolean(kind):
        return value
    if pa.types.is_decimal(kind):
        assert isinstance(value, str), "a decimal is text, so that no reader makes a float of it"
        number = Decimal(value)
        return number if number.is_finite() else None  # the text of what the type cannot hold
    if pa.types.is_binary(kind):
        return base64.b64decode(value, validate=True)
    if pa.types.is_floating(kind):
        number = float({"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(value, value))
        return np.float32(number) if kind.bit_width == 32 and math.isfinite(number) else number
    if pa.types.is_time(kind):
        return _ticks("1970-01-01T" + value, "us")
    if pa.types.is_date(kind):
        return _ticks(value, "D")
    if pa.types.is_timestamp(kind):
        assert value.endswith("Z") == (kind.tz is not None)
        return _ticks(value.removesuffix("Z"), kind.unit)
    return value


def _ticks(text: str, unit: str) -> int:
    return int(np.datetime64(text, unit).astype(np.int64))


# ----------------------------------------------------------------------------------------------- the suite, each format


class TestParquetFiles(SinkContract):
    abilities = SIDE.abilities
    settings: ClassVar[dict[str, Any]] = {}

    def fresh_storage(self, folder: Path) -> None:
        self.root = folder / "history"

    def make_sink(self) -> Sink:
        return SIDE.open(FilesSettings(path=self.root, **self.settings))

    def read_target(self, target: Target) -> pa.Table:
        return read_target(self.root, target)


class TestJsonLines(TestParquetFiles):
    settings: ClassVar[dict[str, Any]] = {"format": "jsonl"}


class TestCompressedJsonLines(TestParquetFiles):
    settings: ClassVar[dict[str, Any]] = {"format": "jsonl", "compression": "zstd"}


# -------------------------------------------------------------------------------------------------------- own tests


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
def open_sink(root: Path) -> Iterator[Callable[..., FilesSink]]:
    opened: list[FilesSink] = []

    def make(**settings: Any) -> FilesSink:
        opened.append(SIDE.open(FilesSettings(path=root, **settings)))
        return opened[-1]

    yield make
    for sink in opened:
        sink.close()


TARGET = orders(Mode.APPEND)


def delivery(*numbers: int, target: Target = TARGET) -> Delivery:
    rows = rows_of(target, [(number, "a", number, f"note {number}") for number in numbers])
    return Delivery(target, (Append(history_of(target, rows, "c" * len(numbers), offset=numbers)),))


def planned(name: str, first: int = 0, end: int = 100, **more: Any) -> Plan:
    log = "k0.0123456789abcdef0123456789abcdef.1-a1b2.0:"
    return Plan(name, f"{log}{first}", f"{log}{end}", **more)


def ids(root: Path, target: Target = TARGET) -> list[int]:
    return sorted(read_target(root, target).column("id").to_pylist())


def test_names_tell_offsets_and_no_temporary_file_stays(root: Path, open_sink: Any) -> None:
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    plan = planned("p1", 100, 250)
    (name,) = session.plan(TARGET, plan).values()
    session.deliver([delivery(101, 249)], {"stream": plan.end}, plan)
    assert name.startswith("public.orders/0000000000000100-0000000000000250-")
    assert sorted(path.name for path in (root / "public.orders").iterdir()) == [name.split("/")[1], "_schema.json"]
    (line,) = [line for line in manifest_lines(root) if line["kind"] == "delivery"]
    assert (line["plan"], line["cursors"], line["epoch"]) == ("p1", {"stream": plan.end}, 1)
    (file,) = line["files"]
    assert (file["rows"], file["first_offset"], file["last_offset"], file["path"]) == (2, 101, 249, name)


def test_anybody_reads_the_complete_files_with_duckdb(
    root: Path, open_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    session.deliver([delivery(1, 2)], {}, planned("p1"))
    session.deliver([delivery(3)], {}, planned("p2", 100, 200))
    page = (REPOSITORY / "docs" / "FILES_FORMAT.md").read_text(encoding="utf-8")
    variable, query = re.findall(r"^    (SET VARIABLE .*?);\n    (SELECT .*?)\n\n", page, re.DOTALL | re.MULTILINE)[0]
    monkeypatch.chdir(root)
    with duckdb.connect() as connection:
        connection.execute(variable.replace("sales.orders", TARGET.name))
        found = connection.execute(f"SELECT sum(id), count(*) FROM ({query})").fetchall()
    assert found == [(6, 3)]


def test_what_a_crash_left_half_written_is_written_over_and_never_seen(root: Path, open_sink: Any) -> None:
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    plan = planned("p1")
    folder, name = next(iter(session.plan(TARGET, plan).values())).split("/")
    (root / folder / f".tmp-{name}").write_bytes(b"half")
    (root / folder / name).write_bytes(b"renamed, and not in the manifest")
    assert ids(root) == []
    session.deliver([delivery(1)], {}, plan)
    assert ids(root) == [1]
    assert not list(root.rglob(".tmp-*"))


def test_a_plan_is_finished_under_the_name_it_was_recorded_with(root: Path, open_sink: Any) -> None:
    session = open_sink(format="jsonl", compression="gzip").claim("default/s")
    plan = planned("p1")
    plan = replace(plan, names=session.plan(TARGET, plan))
    session = open_sink(format="parquet").claim("default/s")
    session.prepare(TARGET)
    session.deliver([delivery(1)], {}, plan)
    assert [path.suffixes for path in complete_files(root, TARGET.name)] == [[".jsonl", ".gz"]]
    assert ids(root) == [1]
    elsewhere = planned("p2", names={"public.orders@0": "../../etc/passwd"})
    with pytest.raises(DataError, match="passwd"):
        session.deliver([delivery(1)], {}, elsewhere)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_of_the_manifest_is_as_if_it_had_not_been(root: Path, open_sink: Any, cut: int) -> None:
    sink = open_sink()
    session = sink.claim("default/s")
    session.prepare(TARGET)
    session.deliver([delivery(1)], {"stream": "1"}, planned("p1"))
    (part,) = root.glob("_manifest/*/*.jsonl")
    before = part.stat().st_size
    session.deliver([delivery(2)], {"stream": "2"}, planned("p2", 100, 200))
    sink.close()
    os.truncate(part, max(before, part.stat().st_size - cut))
    session = sink.claim("default/s")
    assert dict(session.cursors) == {"stream": "1"}
    assert ids(root) == [1]
    session.deliver([delivery(2)], {"stream": "2"}, planned("p2", 100, 200))
    assert ids(root) == [1, 2]


def test_damage_inside_the_manifest_is_named_and_not_served(root: Path, open_sink: Any) -> None:
    sink = open_sink()
    session = sink.claim("default/s")
    session.prepare(TARGET)
    session.deliver([delivery(1)], {"stream": "1"}, planned("p1"))
    sink.close()
    (part,) = root.glob("_manifest/*/*.jsonl")
    data = bytearray(part.read_bytes())
    data[data.index(b'"epoch"') + 8] ^= 1
    part.write_bytes(data)
    with pytest.raises(CorruptLogError, match="damaged") as caught:
        sink.claim("default/s")
    assert str(part) in str(caught.value)


def test_the_manifest_goes_on_in_a_new_part_and_a_claim_reads_only_the_last(
    root: Path, open_sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kadds_files.manifest.PART_BYTES_MAX", 1000)
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    for number in range(1, 7):
        session.deliver(
            [delivery(number)], {f"stream {number % 3}": str(number)}, planned(f"p{number}", number, number + 1)
        )
    parts = sorted(root.glob("_manifest/*/*.jsonl"))
    assert len(parts) > 2
    session = open_sink().claim("default/s")
    assert dict(session.cursors) == {"stream 0": "6", "stream 1": "4", "stream 2": "5"}
    session.deliver([delivery(1)], {"stream 1": "1"}, planned("p1", 1, 2))
    assert ids(root) == [1, 2, 3, 4, 5, 6]
    assert dict(open_sink().claim("default/s").cursors)["stream 1"] == "4"


_CLAIM = """
import sys, pathlib
from kadds_files import connector
from kadds_files.names import target_folder
from kadds_files.settings import FilesSettings
sink = connector.sink.open(FilesSettings(path=pathlib.Path(sys.argv[1])))
session = sink.claim("default/s")
print("claimed", flush=True)
input()
"""


def test_a_second_process_is_refused_by_the_pid_of_the_first(root: Path, open_sink: Any) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _CLAIM, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "claimed\n"
    sink = open_sink()
    with pytest.raises(LockedError, match=f"PID {other.pid}"):
        sink.claim("default/s")
    sink.claim("default/another")
    other.kill()
    other.communicate()
    sink.claim("default/s")


def test_a_manifest_that_somebody_else_wrote_to_fences(root: Path, open_sink: Any) -> None:
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    (part,) = root.glob("_manifest/*/*.jsonl")
    with part.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(FencedError):
        session.deliver([delivery(1)], {}, planned("p1"))


def test_symbolic_links_in_the_tree_are_refused(root: Path, open_sink: Any, tmp_path: Path) -> None:
    sink = open_sink()
    session = sink.claim("default/s")
    (outside := tmp_path / "outside").mkdir()
    (root / "public.orders").symlink_to(outside)
    with pytest.raises(RefusedError, match=r"public\.orders"):
        session.prepare(TARGET)
    (root / "public.orders").unlink()
    session.prepare(TARGET)
    plan = planned("p1")
    name = next(iter(session.plan(TARGET, plan).values()))
    (victim := outside / "victim").write_text("mine")
    (root / "public.orders" / f".tmp-{name.split('/')[1]}").symlink_to(victim)
    with pytest.raises(RefusedError):
        session.deliver([delivery(1)], {}, plan)
    assert victim.read_text() == "mine"


def test_a_folder_with_other_peoples_files_is_not_taken(root: Path, open_sink: Any) -> None:
    (root / "public.orders").mkdir(parents=True)
    (root / "public.orders" / "mine.csv").write_text("1,2")
    sink = open_sink()
    assert [finding.level for finding in sink.check([TARGET])] == [Level.ERROR]
    with pytest.raises(SchemaMismatchError, match=r"mine\.csv"):
        sink.claim("default/s").prepare(TARGET)


def test_on_a_full_disk_a_delivery_waits_and_nothing_is_half_visible(root: Path, open_sink: Any) -> None:
    sink, items = open_sink(format="jsonl"), orders(Mode.APPEND, name="items")
    session = sink.claim("default/s")
    session.prepare(TARGET)
    session.prepare(items)
    session.deliver([delivery(1)], {"stream": "1"}, planned("p1"))
    batch = [delivery(2), delivery(*range(1000), target=items)]
    plan = planned("p2", 100, 200)
    with file_size_limit(20_000), pytest.raises(RetryableError) as caught:
        session.deliver(batch, {"stream": "2"}, plan)
    assert caught.value.waiting_for is not None
    assert (ids(root), ids(root, items)) == ([1], [])
    assert len(list(root.rglob("0*.jsonl"))) == 2, "one file of data and one part of the manifest"
    session = sink.claim("default/s")
    assert dict(session.cursors) == {"stream": "1"}
    session.deliver(batch, {"stream": "2"}, plan)
    assert (ids(root), ids(root, items)) == ([1, 2], list(range(1000)))


def test_after_a_manifest_line_that_could_not_be_written_only_a_new_claim_goes_on(root: Path, open_sink: Any) -> None:
    sink = open_sink()
    session = sink.claim("default/s")
    session.prepare(TARGET)
    many = {f"stream {number}": "x" * 100 for number in range(300)}
    session.deliver([], many, planned("p1"))
    (part,) = root.glob("_manifest/*/*.jsonl")
    with file_size_limit(part.stat().st_size + 50), pytest.raises(RetryableError):
        session.deliver([delivery(1)], {"stream 1": "2"}, planned("p2", 100, 200))
    with pytest.raises(RetryableError, match="not known"):
        session.deliver([delivery(1)], {"stream 1": "2"}, planned("p2", 100, 200))
    session = sink.claim("default/s")
    assert dict(session.cursors) == many
    session.deliver([delivery(1)], {"stream 1": "2"}, planned("p2", 100, 200))
    assert ids(root) == [1]


_DELIVER_FOREVER = """
import sys, pathlib
from kadds.api.connector import Append, Delivery, Mode, Plan
from kadds.testing.sink_values import HOSTILE_NAMES, history_of, orders, rows_of
from kadds_files import connector
from kadds_files.names import target_folder
from kadds_files.settings import FilesSettings
sink = connector.sink.open(FilesSettings(path=pathlib.Path(sys.argv[1])))
session = sink.claim("default/s")
target = orders(Mode.APPEND)
session.prepare(target)
number = int(session.cursors.get("stream", 0))
log = "k0.0123456789abcdef0123456789abcdef.1-a1b2.0:"
while True:
    number += 1
    rows = rows_of(target, [(number * 10 + i, "a", number, "x" * 200) for i in range(10)])
    plan = Plan(f"p{number}", f"{log}{number}", f"{log}{number + 1}")
    step = Append(history_of(target, rows, "c" * 10))
    session.deliver([Delivery(target, (step,))], {"stream": str(number)}, plan)
    print(number, flush=True)
"""


def test_killed_between_any_two_instructions_rows_and_cursor_agree(root: Path, open_sink: Any) -> None:
    acknowledged = 0
    for round_number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _DELIVER_FOREVER, str(root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(3 + 7 * round_number):
            acknowledged = int(process.stdout.readline())
        process.kill()
        process.communicate()
        sink = open_sink()
        cursor = int(sink.claim("default/s").cursors["stream"])
        sink.close()
        assert cursor >= acknowledged
        assert ids(root) == [number * 10 + i for number in range(1, cursor + 1) for i in range(10)]


def test_text_that_parquet_cannot_hold_is_refused_and_json_lines_keep_it(root: Path, open_sink: Any) -> None:
    rows = history_of(TARGET, rows_of(TARGET, [(1, "a", None, None), (2, "b", 2, None)]), "cc")
    step = Append(rows, text_cell(2, 0, 2, 'NaN "quoted"'))
    session = open_sink(format="parquet").claim("default/s")
    session.prepare(TARGET)
    with pytest.raises(DataError, match=r"column amount .*NaN") as caught:
        session.deliver([Delivery(TARGET, (step,))], {}, planned("p1"))
    assert "jsonl" in str(caught.value)
    session = open_sink(format="jsonl").claim("default/s")
    session.deliver([Delivery(TARGET, (step,))], {}, planned("p1"))
    (path,) = complete_files(root, TARGET.name)
    assert [json.loads(line)["amount"] for line in path.read_text().splitlines()] == ['NaN "quoted"', "2.00"]


def test_a_cell_that_was_not_given_is_left_out_of_json_lines(root: Path, open_sink: Any) -> None:
    rows = rows_of(TARGET, [(1, "a", None, None), (2, "b", None, None)])
    step = Append(history_of(TARGET, rows, "uu", not_given=[["amount"], []]))
    session = open_sink(format="jsonl").claim("default/s")
    session.prepare(TARGET)
    session.deliver([Delivery(TARGET, (step,))], {}, planned("p1"))
    (path,) = complete_files(root, TARGET.name)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert ("amount" in first, first["note"], first["_kadds_not_given"]) == (False, None, ["amount"])
    assert ("amount" in second, second["amount"]) == (True, None)


def test_base64_of_every_length_and_of_slices() -> None:
    from kadds_files.jsonl import _base64

    values = [os.urandom(length) if length != 5 else None for length in range(50)] * 3
    array = pa.array(values, pa.binary())
    expected = [None if value is None else base64.b64encode(value).decode() for value in values]
    assert _base64(array).to_pylist() == expected
    assert _base64(array.slice(7, 60)).to_pylist() == expected[7:67]
    assert _base64(array.slice(5, 1)).to_pylist() == [None]
    assert _base64(array.slice(0, 0)).to_pylist() == []


def test_without_a_plan_or_with_a_step_for_a_table_nothing_is_written(root: Path, open_sink: Any) -> None:
    session = open_sink().claim("default/s")
    session.prepare(TARGET)
    with pytest.raises(ConfigurationError, match="plan"):
        session.deliver([delivery(1)], {})
    assert ids(root) == []


def test_settings_that_do_not_fit_each_other_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="zstd or gzip"):
        FilesSettings(path=root, format="jsonl", compression="snappy")


def test_every_error_of_the_operating_system_becomes_one_of_ours(root: Path, open_sink: Any) -> None:
    root.parent.joinpath("file").write_text("")
    sink = SIDE.open(FilesSettings(path=root.parent / "file" / "below"))
    with pytest.raises(KaddsError):
        sink.claim("default/s")


def test_folders_of_different_targets_are_different_and_harmless() -> None:
    def folder(*names: str, name: str | None = None) -> str:
        schema, table = (None, *names)[-2:]
        source = Table(schema, table, (Column("id", pa.int64()),))
        return target_folder(Target("s", name or source.qualified_name, source, Mode.APPEND))

    names = [(one, two) for one in HOSTILE_NAMES for two in ("x", *HOSTILE_NAMES)]
    names += [("a.b", "c"), ("a", "b.c"), ("a", "b%2Ec"), ("a~b", "c"), ("y" * 301, "x"), ("y" * 302, "x")]
    folders = [folder(*pair) for pair in names] + [folder(name) for name in (*HOSTILE_NAMES, "_manifest", "~")]
    assert len(set(folders)) == len(folders)
    for encoded in folders:
        assert re.fullmatch(r"[A-Za-z0-9%-][A-Za-z0-9%._~-]{0,199}", encoded)
    assert folder("shop", "orders", name="sales.orders") == folder("sales", "orders") == "sales.orders"
