"""Which tables a selection means, and with which settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadds.config.patterns import Entry, TablePatterns, sample
from kadds.config.problems import Place
from tests.unit.config.conftest import Files
from tests.unit.config.fake_connectors import PullTable


@pytest.mark.parametrize(
    ("patterns", "selected", "left_out"),
    [
        (["public.*"], ["public.a", "public.a.b"], ["other.a", "xpublic.a", "public"]),
        (["*"], ["a", "public.a", "a b.c"], []),
        (["*.orders"], ["public.orders", "x.y.orders"], ["orders", "public.orders2"]),
        (["public.o?"], ["public.o1"], ["public.o", "public.o12"]),
        (["public.[ab]*"], ["public.a", "public.beta"], ["public.c"]),
        (["public.[!ab]"], ["public.c"], ["public.a"]),
        (["public.*", "!public.audit_*"], ["public.a"], ["public.audit_x"]),
        (["!public.audit_*", "public.*"], ["public.a"], ["public.audit_x"]),
        (["public.audit_x", "!public.audit_*"], [], ["public.audit_x"]),
        (["Public.A"], ["Public.A"], ["public.a"]),
        (["a+b.c(d)"], ["a+b.c(d)"], ["aab.cd"]),
        (["public.*\n"], [], ["public.a"]),
    ],
)
def test_patterns_select_and_an_exclusion_always_wins(
    patterns: list[str], selected: list[str], left_out: list[str]
) -> None:
    tables: TablePatterns[PullTable] = TablePatterns.of(*patterns)
    assert [name for name in [*selected, *left_out] if tables.matches(name)] == selected


def test_entries_apply_from_least_to_most_specific_field_by_field(files: Files) -> None:
    loaded = files.load(
        """\
        sources:
          shop:
            connector: pull
            url: db://x
            tables:
              public.orders: {overlap: 3}
              "*": {column: any, overlap: 1, labels: {a: wide, b: wide}}
              public.*: {column: id, labels: {b: narrow}}
              "*.orders": {overlap: 2, labels: {c: middle}}
        """
    )
    tables = loaded.configuration.sources["default/shop"].tables
    orders = tables.settings("public.orders")
    assert (orders.column, orders.overlap, orders.labels) == ("id", 3, {"a": "wide", "b": "narrow", "c": "middle"})
    assert tables.settings("other.orders").overlap == 2
    assert tables.settings("x").column == "any"
    assert tables.settings("public.orders") is orders
    assert [(field, value, place.line) for field, value, place in tables.explain("public.orders")] == [
        ("column", "id", 8),
        ("labels.a", "wide", 7),
        ("labels.b", "narrow", 8),
        ("labels.c", "middle", 9),
        ("overlap", 3, 6),
    ]


def test_of_two_equally_specific_patterns_the_later_wins(files: Files) -> None:
    text = """\
        sources:
          shop:
            connector: pull
            url: db://x
            tables: {"%s": {column: first}, "%s": {column: second}}
        """
    for pair in (("a*z", "az*"), ("az*", "a*z")):
        tables = files.load(text % pair).configuration.sources["default/shop"].tables
        assert tables.settings("az").column == "second"


def test_a_narrower_entry_takes_a_setting_back_with_null(files: Files) -> None:
    text = """\
        sources:
          shop: {connector: pull, url: db://x, tables: {"*": {column: a, token: "${T}"}, b: {token: null}}}
        """
    tables = files.load(text, {"T": "secret"}).configuration.sources["default/shop"].tables
    assert tables.settings("b").token is None
    assert tables.settings("c").token is not None


def test_an_entry_without_settings_may_be_empty(files: Files) -> None:
    text = """\
        sources: {shop: {connector: stream, url: db://x, tables: {"a.*": , "b.*": {}, "!a.x": }}}
        """
    tables = files.load(text).configuration.sources["default/shop"].tables
    assert [tables.matches(name) for name in ("a.b", "b.c", "a.x")] == [True, True, False]


@given(st.text(st.sampled_from("ab.*?[]!-"), min_size=1, max_size=8))
def test_a_pattern_matches_its_own_sample(pattern: str) -> None:
    entry = Entry(pattern, False, Place.nowhere())
    if "[!" in pattern or "[-" in pattern or "[[" in pattern or "[]" in pattern or "-" in pattern:
        return  # a class whose first sign is no member; comparing falls back to what the patterns say in text
    assert entry.matches(sample(pattern))
