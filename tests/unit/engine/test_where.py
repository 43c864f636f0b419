"""Row filters: what they may say, and that they can reach nothing but the row."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from kadds.api.errors import ConfigurationError, DataError
from kadds.engine.where import Where
from tests.unit.engine.changes import table

OF = table("id", "status:string", "Big:decimal256(60, 2)", "made:timestamp[us, UTC]", "Odd name:bool")
ROWS = pa.RecordBatch.from_arrays(
    [
        pa.array([1, 2, 3, None], pa.int64()),
        pa.array(["open", "draft", None, "12"], pa.string()),
        pa.nulls(4, pa.decimal256(60, 2)),
        pa.array([dt.datetime(2026, 1, day, 23, 30, tzinfo=dt.UTC) for day in (1, 2, 3, 4)]).cast(
            pa.timestamp("us", "UTC")
        ),
        pa.array([True, False, None, True]),
    ],
    schema=OF.arrow_schema,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("status <> 'draft'", [True, False, False, True]),
        ("ID > 1 -- a comment", [False, True, True, False]),
        ("id in (1, 3) or status is null", [True, False, True, False]),
        ("not (status like 'd%')", [True, False, False, True]),
        ('"Odd name"', [True, False, False, True]),
        ("case when id = 1 then true else status = '12' end", [True, False, False, True]),
        ("coalesce(nullif(status, 'draft'), '') = ''", [False, True, True, False]),
        ("made::date = date '2026-01-02'", [False, True, False, False]),
        ("try_cast(status as integer) = 12", [False, False, False, True]),
        ("id between 2 and 3", [False, True, True, False]),
        ("true", [True, True, True, True]),
    ],
)
def test_a_filter_is_a_boolean_expression_in_which_null_is_no_match(text: str, expected: list[bool]) -> None:
    assert Where(text, OF).matches(ROWS).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stat = 'x'", "names a column 'stat'"),
        ("orders.status = 'x'", "own name alone"),
        ("status = ", "cannot be read"),
        ("status", "gives string, not true or false"),
        ("id + made = 1", "does not fit the columns"),
        ("id in (select 1)", "uses subquery"),
        ("exists (from read_text('x'))", "uses subquery"),
        ("sum(id) > 1", r"uses sum\(\)"),
        ("row_number() over () = 1", "uses window"),
        ("made > now()", r"uses now\(\)"),
        ("made > current_timestamp", "names a column 'current_timestamp'"),
        ("random() > 0.5", r"uses random\(\)"),
        ("sleep_ms(1000) = 1", r"uses sleep_ms\(\)"),
        ("current_setting('x') = '1'", r"uses current_setting\(\)"),
        ("no_such(id)", r"uses no_such\(\)"),
        ("$1 = id", "uses parameter"),
        ("columns('i.*') = 1", "uses star"),
        ("list_filter([id], lambda x: x > 1) = []", "uses lambda"),
        ("id = 1) , (id = 2", "more than one expression"),
        ("id = 1) from range(3) t(id", "more than"),
        ("id = 1) union all select (true", "more than one expression"),
        ("id = 1); drop table x; select (true", "cannot be read"),
        ("Big > 1", "more than 38 digits"),
    ],
)
def test_whatever_is_not_one_repeatable_expression_over_the_row_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Where(text, OF)
    assert "public.orders" in str(caught.value)


def test_a_filter_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for text in (f"(select content from read_text('{secret}')) = 'secret'", f"status = read_blob('{secret}')"):
        with pytest.raises(ConfigurationError):
            Where(text, OF)


def test_a_filter_that_fails_on_a_row_stops_without_quoting_the_row() -> None:
    where = Where("cast(status as integer) = 1", OF)
    with pytest.raises(DataError, match="fails on a row") as caught:
        where.matches(ROWS)
    assert "draft" not in str(caught.value)
    assert "open" not in str(caught.value)


def test_columns_that_differ_only_by_case_are_told_apart_or_refused() -> None:
    of = table("id", "A", "a")
    values = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], schema=of.arrow_schema)
    assert Where("A = 2", of).matches(values).tolist() == [True]
    assert Where("a = 3", of).matches(values).tolist() == [True]
    with pytest.raises(ConfigurationError, match="differ only by case"):
        Where("a = A", of)
