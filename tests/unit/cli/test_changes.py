"""Changes as text: every value exact, texts and cells not given visible."""

import datetime as dt
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.change import AS_TEXT_TYPE, NOT_GIVEN_TYPE, Op, not_given_bitmap
from kadds.api.schema import Column, Table
from kadds.app import Part
from kadds.cli.changes import Line, json_values, lines, person_line


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([2**63 - 1, None, -(2**63)], pa.int64()), [2**63 - 1, None, -(2**63)]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([Decimal("0.0000000001"), None], pa.decimal128(38, 10)), ["0.0000000001", None]),
        (pa.array([Decimal("12.50")], pa.decimal256(60, 2)), ["12.50"]),
        (pa.array([0.1, float("nan"), float("-inf"), None]), [0.1, "NaN", "-Infinity", None]),
        (pa.array([b"\x00\xff", None]), ["00ff", None]),
        (pa.array(["", "Ærø\n"]), ["", "Ærø\n"]),
        (pa.array([True, None]), [True, None]),
        (pa.array([dt.date(1, 1, 1), dt.date(9999, 12, 31)]), ["0001-01-01", "9999-12-31"]),
        (pa.array([86_399_999_999], pa.int64()).cast(pa.time64("us")), ["23:59:59.999999"]),
        (pa.array([1], pa.int64()).cast(pa.timestamp("ns")), ["1970-01-01T00:00:00.000000001"]),
        (pa.array([0], pa.int64()).cast(pa.timestamp("us", "UTC")), ["1970-01-01T00:00:00.000000Z"]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_values_keep_every_digit(array: pa.Array, expected: list[Any]) -> None:
    assert json_values(array) == expected


def part() -> Part:
    """An update whose second column is given as text in one row and not given in another, then a delete."""
    table = Table("s", "t", (Column("id", pa.int64()), Column("n", pa.decimal128(5, 2))), ("id",))
    values = pa.record_batch(
        {"id": [1, 2, 3, 4], "n": pa.array([Decimal("1.50"), None, None, None], pa.decimal128(5, 2))}
    )
    rows = pa.record_batch(
        {
            "offset": pa.array([5, 6, 7, 8], pa.int64()),
            "op": pa.array([Op.UPDATE, Op.UPDATE, Op.UPDATE, Op.DELETE], pa.uint8()),
            "before": pa.array([True, False, False, True]),
            "committed_at": pa.array([0] * 4, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "xid": pa.array(["9"] * 4),
            "position": pa.array(["0/16B"] * 4),
            "values": pa.StructArray.from_arrays(values.columns, fields=list(values.schema)),
            "not_given": pa.array([None, None, not_given_bitmap([1], 2), None], NOT_GIVEN_TYPE),
            "as_text": pa.array([None, [{"column": 1, "text": "NaN"}], None, None], AS_TEXT_TYPE),
        }
    )
    return Part({"kind": "changes", "stream": "default/shop/s.t", "table": table.to_json()}, rows)


def shown() -> list[Line]:
    parts = [part(), Part({"kind": "cursor", "cursor": "k0"})]
    return [line for line in lines(parts) if isinstance(line, Line)]


def test_null_text_and_not_given_are_told_apart_for_machines() -> None:
    before, text, missing, deleted = (line.plain for line in shown())
    assert (before["image"], before["values"]) == ("before", {"id": 1, "n": "1.50"})
    assert (text["values"], text["as_text"], text["not_given"]) == ({"id": 2, "n": "NaN"}, ["n"], [])
    assert (missing["values"], missing["as_text"], missing["not_given"]) == ({"id": 3}, [], ["n"])
    assert (deleted["op"], deleted["values"]) == ("d", {"id": 4, "n": None})
    assert before["key"] == {"id": 1}
    assert before["committed_at"] == "1970-01-01T00:00:00.000000Z"


def test_null_text_and_not_given_are_told_apart_for_people() -> None:
    before, text, missing, deleted = map(person_line, shown())
    assert "u-" in before
    assert 'n="1.50"' in before
    assert 'n=text "NaN"' in text
    assert "n=<not given>" in missing
    assert "n=NULL" in deleted
    assert "shop/s.t" in before


def test_lines_of_many_parts_come_in_the_order_of_the_log() -> None:
    controls = Part(
        {"kind": "controls", "controls": [
            {"offset": 6, "control": "schema", "stream": "default/shop/", "table": None, "facts": {"why": "x"}}
        ]}
    )  # fmt: skip
    found = list(lines([part(), None, controls, Part({"kind": "cursor", "cursor": "k0"})]))
    assert [one.offset for one in found if isinstance(one, Line)] == [5, 6, 6, 7, 8]
    assert found[-1] == "k0"
