"""Row filters are checked without a table and without running anything."""

from __future__ import annotations

import contextlib

import pytest

from kadds.config.where import MAX_CHARACTERS, WhereError, where_columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("status <> 'draft'", {"status"}),
        ("region IN ('EU', 'UK') AND NOT deleted", {"region", "deleted"}),
        ('"Odd name" IS NOT NULL', {"Odd name"}),
        ("amount BETWEEN 1 AND 2 OR name LIKE 'a%'", {"amount", "name"}),
        ("CASE WHEN a THEN b ELSE c END", {"a", "b", "c"}),
        ("CAST(made AS DATE) >= DATE '2026-01-01'", {"made"}),
        ("coalesce(nullif(a, ''), b) = lower(c)", {"a", "b", "c"}),
        ("a % 2 = 0 -- the even ones", {"a"}),
        ("true", set()),
        ("active", {"active"}),
        ("\"user\" = 'x'", {"user"}),
    ],
)
def test_a_filter_is_one_expression_over_columns(text: str, columns: set[str]) -> None:
    assert where_columns(text) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status = ", "not a DuckDB expression"),
        ("a = 1; DROP TABLE x", "not a DuckDB expression"),
        ("a = 1) OR (b = 1", "not a DuckDB expression"),
        ("a = 1 LIMIT 1", "no further clause"),
        ("a = 1 GROUP BY a", "no further clause"),
        ("a = 1 UNION SELECT 1", "no further clause"),
        ("a = 1, b = 2", "not a DuckDB expression"),
        ("(a = 1, b = 2)", "not a list"),
        ("", "not a DuckDB expression"),
        ("a IN (SELECT 1)", "holds no subquery"),
        ("EXISTS (FROM read_text('/etc/passwd'))", "holds no subquery"),
        ("read_text('/etc/passwd') = 'x'", "is a table function"),
        ("read_csv(a) = 'x'", "is a table function"),
        ("count(*) > 1", "is an aggregate"),
        ("sum(a) > 1", "is an aggregate"),
        ("row_number() OVER () = 1", "holds no window"),
        ("unnest([1]) = 1", "`unnest`"),
        ("made > now()", "depends on more than the row"),
        ("random() > 0.5", "depends on more than the row"),
        ("getvariable('x') = 1", "depends on more than the row"),
        ("current_setting('home_directory') = 'x'", "depends on more than the row"),
        ("json_serialize_plan('select 1') = ''", "depends on more than the row"),
        ("nextval('s') = 1", "depends on more than the row"),
        ("lowr(a) = 'x'", "no function `lowr`"),
        ("main.lower(a) = 'x'", "with a schema"),
        ("orders.status = 'x'", "has a dot"),
        ("$1 = a", "holds no parameter"),
        ("*", "holds no star"),
        ("COLUMNS('a') = 1", "holds no star"),
        ("'yes'", "not a constant"),
        ("5", "not a constant"),
        ("a\0b", "zero byte"),
        ("a = '" + "x" * MAX_CHARACTERS + "'", "at most"),
    ],
)
def test_what_is_no_repeatable_expression_over_a_row_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(WhereError, match=message):
        where_columns(text)


def test_a_misspelt_function_is_put_right() -> None:
    with pytest.raises(WhereError) as caught:
        where_columns("lowwer(a) = 'x'")
    assert caught.value.hint == "did you mean `lower`?"


@pytest.mark.parametrize("deep", ["(" * 4000 + "a" + ")" * 4000, "NOT " * 2400 + "a", "a" + " OR a" * 1900])
def test_a_filter_made_to_exhaust_the_stack_is_an_error_and_no_crash(deep: str) -> None:
    with contextlib.suppress(WhereError):
        assert where_columns(deep) == {"a"}
