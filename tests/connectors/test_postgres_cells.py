"""Types and cells by themselves: what a type becomes, and each value typed exactly or given as text."""

from __future__ import annotations

import struct
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadds.api.change import text_cells
from kadds.api.errors import UnknownInputError
from kadds.api.schema import Column, Table, type_text
from kadds_postgres.cells import typed, typed_batch
from kadds_postgres.few_cells import typed_few
from kadds_postgres.types import arrow_type

TYPES = {
    "boolean": "bool",
    "smallint": "int16",
    "integer": "int32",
    "bigint": "int64",
    "oid": "uint32",
    "real": "float32",
    "double precision": "float64",
    "bytea": "binary",
    "date": "date32",
    "numeric(12,2)": "decimal128(12, 2)",
    "numeric(38,38)": "decimal128(38, 38)",
    "numeric(39,0)": "decimal256(39, 0)",
    "numeric(76,76)": "decimal256(76, 76)",
    "time without time zone": "time64[us]",
    "time(3) without time zone": "time64[us]",
    "timestamp without time zone": "timestamp[us]",
    "timestamp(0) without time zone": "timestamp[us]",
    "timestamp with time zone": "timestamp[us, UTC]",
    "timestamp(6) with time zone": "timestamp[us, UTC]",
} | dict.fromkeys(
    (
        "numeric",
        "numeric(77,0)",
        "numeric(5,-2)",
        "numeric(3,5)",
        "text",
        "name",
        '"char"',
        "character(10)",
        "character varying(20)",
        "time with time zone",
        "time(3) with time zone",
        "interval",
        "uuid",
        "jsonb",
        "xid",
        "integer[]",
        "numeric(12,2)[]",
        "timestamp(3) with time zone[]",
        "public.date",
        '"my boolean"',
    ),
    "string",
)


@pytest.mark.parametrize(("declared", "expected"), TYPES.items())
def test_a_declared_type_has_one_arrow_type(declared: str, expected: str) -> None:
    assert type_text(arrow_type(declared)) == expected


def decoded(declared: str, *texts: str | None) -> tuple[list[Any], dict[int, str]]:
    """Values and the texts given beside them, by row."""
    values, given_as_text = typed(Column("v", arrow_type(declared), declared), pa.array(texts, pa.string()))
    values.validate(full=True)
    if given_as_text is None:
        return values.to_pylist(), {}
    rows, beside = given_as_text.rows.tolist(), given_as_text.texts.to_pylist()
    return values.to_pylist(), dict(zip(rows, beside, strict=True))


VALUES = [
    ("boolean", "t", True),
    ("smallint", "-32768", -32768),
    ("bigint", "9223372036854775807", 2**63 - 1),
    ("oid", "4294967295", 2**32 - 1),
    ("real", "-0", -0.0),
    ("real", "Infinity", float("inf")),
    ("double precision", "5e-324", 5e-324),
    ("numeric(12,2)", "-9999999999.99", Decimal("-9999999999.99")),
    ("numeric(2,2)", "0.99", Decimal("0.99")),
    ("numeric(39,1)", "9" * 38 + ".9", Decimal("9" * 38 + ".9")),
    ("bytea", "\\x", b""),
    ("bytea", "\\x00ff5c78", b"\x00\xff\\x"),
    ("date", "0001-01-01", date(1, 1, 1)),
    ("time without time zone", "23:59:59.999999", time(23, 59, 59, 999999)),
    ("time without time zone", "00:00:00", time()),
    ("timestamp without time zone", "9999-12-31 23:59:59.999999", datetime(9999, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001
    ("timestamp with time zone", "0001-01-01 00:00:00.1+00", datetime(1, 1, 1, 0, 0, 0, 100_000, UTC)),
    ("text", "ä\U0010ffff", "ä\U0010ffff"),
]
BEYOND = [
    ("numeric(12,2)", "NaN"),
    ("numeric(12,2)", "10000000000.00"),
    ("numeric(12,2)", "0.001"),
    ("numeric(39,1)", "Infinity"),
    ("date", "-infinity"),
    ("date", "0044-03-15 BC"),
    ("date", "12345-01-01"),
    ("time without time zone", "24:00:00"),
    ("timestamp without time zone", "infinity"),
    ("timestamp without time zone", "0044-03-15 00:00:00 BC"),
    ("timestamp with time zone", "0044-03-15 00:00:00+00 BC"),
    ("timestamp with time zone", "294276-12-31 23:59:59.999999+00"),
]


@pytest.mark.parametrize(("declared", "text", "value"), VALUES)
def test_a_value_is_exact_alone_and_beside_null(declared: str, text: str, value: Any) -> None:
    assert decoded(declared, text) == ([value], {})
    assert decoded(declared, None, text, None) == ([None, value, None], {})
    assert decoded(declared) == ([], {})
    assert decoded(declared, None) == ([None], {})


PLAIN = (
    "smallint",
    "bigint",
    "numeric(12,2)",
    "date",
    "timestamp without time zone",
    "timestamp with time zone",
    "text",
)
TEXTS = st.one_of(
    st.none(),
    st.sampled_from([text for _, text, _ in VALUES] + [text for _, text in BEYOND]),
    st.integers(-(2**63), 2**63 - 1).map(str),
    st.decimals(-(10**10), 10**10, allow_nan=False, places=2).map(str),
    st.dates().map(str),
    st.datetimes().map(lambda moment: f"{moment}+00"),
    st.from_regex(r"[-0-9 .:+a-z]{1,12}", fullmatch=True),
)


@pytest.mark.parametrize("declared", PLAIN)
@given(texts=st.lists(TEXTS, max_size=4))
def test_few_cells_are_typed_as_many_or_left_to_what_types_many(declared: str, texts: list[str | None]) -> None:
    cells = [None if text is None else text.encode() for text in texts]
    few = typed_few(arrow_type(declared), cells)
    if few is None:
        return
    few.validate(full=True)
    assert few.equals(typed(Column("v", arrow_type(declared), declared), pa.array(texts, pa.string()))[0])


@pytest.mark.parametrize(("declared", "text"), [(declared, text) for declared, text, _ in VALUES if declared in PLAIN])
def test_few_plain_cells_need_nothing_else(declared: str, text: str) -> None:
    assert typed_few(arrow_type(declared), [text.encode(), None]) is not None


@pytest.mark.parametrize(("declared", "text"), BEYOND)
def test_what_the_type_cannot_hold_is_null_and_given_as_text(declared: str, text: str) -> None:
    fitting = next(known for of, known, _ in VALUES if of == declared)
    value = next(value for of, known, value in VALUES if (of, known) == (declared, fitting))
    assert decoded(declared, text) == ([None], {0: text})
    assert decoded(declared, fitting, text, None, fitting, text) == (
        [value, None, None, value, None],
        {1: text, 4: text},
    )


def test_a_slice_of_texts_is_typed_as_the_slice() -> None:
    for declared, text, value in VALUES:
        texts = pa.array([None, "1", text, None, "x"], pa.string()).slice(2, 2)
        values, given_as_text = typed(Column("v", arrow_type(declared)), texts)
        assert (values.to_pylist(), given_as_text) == ([value, None], None)


@given(st.lists(st.floats(width=32) | st.none()))
def test_real_is_the_float_that_was_meant(numbers: list[float | None]) -> None:
    """The text is the shortest that means the value as float32; read as float64 first, it would be rounded twice."""
    texts = [None if number is None else shortest(number) for number in numbers]
    values, _ = typed(Column("v", pa.float32()), pa.array(texts, pa.string()))
    expected = [None if n is None else struct.pack("<f", n) for n in numbers if n == n or n is None]
    assert [None if v is None else struct.pack("<f", v) for v in values.to_pylist() if v == v or v is None] == expected


def shortest(number: float) -> str:
    """As PostgreSQL writes float4."""
    text = np.format_float_scientific(np.float32(number), unique=True, trim="-")
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)


def test_a_real_between_two_roundings() -> None:
    """Nearest to 1 + 2^-24 as float64, which lies halfway and would go to the even 1.0; as float32 it is above."""
    text = "1.00000005960464477540"
    assert struct.pack("<f", float(text)) == struct.pack("<f", 1.0)
    assert decoded("real", text)[0] == [1.0 + 2**-23]


def test_several_columns_of_a_row_can_be_given_as_text() -> None:
    table = Table(
        "public",
        "t",
        tuple(Column(f"c{n}", arrow_type(d), d) for n, d in enumerate(("numeric(12,2)", "text", "date"))),
    )
    texts = [["NaN", "1.00", "NaN", None], ["a", "NaN", None, ""], ["infinity", "infinity", "2026-11-22", None]]
    values, as_text = typed_batch(table, [pa.array(column, pa.string()) for column in texts])
    assert values.schema == table.arrow_schema
    found = {number: (rows.tolist(), cells.to_pylist()) for number, (rows, cells) in text_cells(as_text).items()}
    assert found == {0: ([0, 2], ["NaN", "NaN"]), 2: ([0, 1], ["infinity", "infinity"])}
    assert as_text.to_pylist()[0] == [{"column": 0, "text": "NaN"}, {"column": 2, "text": "infinity"}]
    assert as_text.to_pylist()[3] is None


@pytest.mark.parametrize(
    ("declared", "cell", "message"),
    [
        ("text", b"\xff", "not UTF-8"),
        ("numeric(12,2)", b"\xff", "not UTF-8"),
        ("integer", b"x", "no text of that type"),
        ("integer", b"2147483648", "no text of that type"),
        ("boolean", b"true", "no text of that type"),
        ("bytea", b"\\000", "no text of that type"),
        ("bytea", b"\\x0", "no text of that type"),
        ("bytea", b"\\xzz", "no text of that type"),
        ("date", b"2026-02-30", "no text of that type"),
    ],
)
def test_a_cell_that_no_server_writes_is_named(declared: str, cell: bytes, message: str) -> None:
    table = Table("public", "t", (Column("v", arrow_type(declared), declared),))
    good = {"text": b"a", "numeric(12,2)": b"1.00", "boolean": b"t", "bytea": b"\\x00", "date": b"2026-11-22"}
    texts = pa.array([None, good.get(declared, b"1"), cell], pa.binary()).view(pa.string())
    with pytest.raises(UnknownInputError, match=rf"(?s)public\.t: column v .*{message}"):
        typed_batch(table, [texts])
