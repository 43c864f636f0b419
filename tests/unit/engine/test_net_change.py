"""Net change against a sequential model (reliability row 81), and the cases that a model must not be asked about."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kadds.api.connector import Delete, Rekey, Truncate, Upsert
from kadds.api.errors import DataError
from kadds.engine.net_change import net_change
from tests.unit.engine.changes import NOT_GIVEN, Change, Text, rows, table
from tests.unit.engine.model import State, apply

ORDERS = table("id", "a:string", "b:decimal128(12, 2)")
LINES = table("order", "a:string", "line:string", "b", key=("line", "order"))


class Source:
    """A table that is changed row by row and writes down its changes; keys are never in doubt."""

    def __init__(self, columns: int, key: tuple[int, ...]) -> None:
        self.columns, self.key = columns, key
        self.state: State = {}
        self.changes: list[Change] = []
        self.transaction = 0

    def where(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(row[n] for n in self.key)

    def put(self, letter: str, row: tuple[Any, ...]) -> None:
        self.state[self.where(row)] = tuple("text:" + cell if isinstance(cell, Text) else cell for cell in row)
        self.changes.append((letter, row, self.transaction))

    def delete(self, where: tuple[Any, ...], whole: bool) -> None:
        gone = self.state.pop(where)
        cells = gone if whole and not any(str(cell).startswith("text:") for cell in gone) else self.key_only(where)
        self.changes.append(("d", cells, self.transaction))

    def update(self, where: tuple[Any, ...], row: list[Any], kept: frozenset[int], before: str) -> None:
        old = self.state.pop(where)
        new = tuple(old[n] if n in kept and n not in self.key else cell for n, cell in enumerate(row))
        given_cells = tuple(NOT_GIVEN if n in kept and n not in self.key else cell for n, cell in enumerate(row))
        if self.where(new) != where or before != "none":
            textual = any(str(cell).startswith("text:") for cell in old)
            image = old if before == "whole" and not textual else self.key_only(where)
            self.changes.append(("b", image, self.transaction))
        self.state[self.where(new)] = tuple("text:" + c if isinstance(c, Text) else c for c in new)
        self.changes.append(("u", given_cells, self.transaction))

    def truncate(self) -> None:
        self.state.clear()
        self.changes.append(("t", (NOT_GIVEN,) * self.columns, self.transaction))

    def key_only(self, where: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(where[self.key.index(n)] if n in self.key else NOT_GIVEN for n in range(self.columns))


@st.composite
def histories(draw: st.DrawFn, composite: bool) -> tuple[State, Source]:
    """A table's state before a batch, and the source after it, with at most 8 changes for each of 4 keys."""
    key = (2, 0) if composite else (0,)
    columns = 4 if composite else 3
    number = st.integers(0, 3)

    def row(where: tuple[Any, ...]) -> tuple[Any, ...]:
        if composite:
            return (where[1], draw(st.sampled_from(["x", "y", None])), where[0], draw(number))
        cell = draw(st.sampled_from(["x", None, "é"]))
        return (where[0], cell, draw(st.sampled_from([None, Text("NaN"), Text("Infinity")])))

    wheres: list[tuple[Any, ...]] = [("p", 1), ("p", 2), ("q", 1), ("q", 2)] if composite else [(1,), (2,), (3,), (4,)]
    source = Source(columns, key)
    for where in draw(st.sets(st.sampled_from(wheres))):
        source.put("c", row(where))
    start, source.changes = dict(source.state), []
    for _ in range(draw(st.integers(1, 24))):
        source.transaction += draw(st.integers(0, 1))
        where = draw(st.sampled_from(wheres))
        op = draw(st.sampled_from("cuuuudkkkrt" if draw(st.integers(0, 9)) == 0 else "cuuuudkkkr"))
        if op == "t":
            source.truncate()
        elif where not in source.state:
            source.put("c" if op != "r" else "r", row(where))
        elif op == "d":
            source.delete(where, draw(st.booleans()))
        elif op == "r":
            source.put("r", row(where))
        else:
            to = where
            if op == "k":
                free = [other for other in wheres if other not in source.state]
                to = draw(st.sampled_from(free)) if free else where
                source.transaction += 1  # so that nobody may take it for a second owner of the key
            kept = frozenset(draw(st.sets(st.integers(0, columns - 1))))
            source.update(where, list(row(to)), kept, draw(st.sampled_from(["none", "key", "whole"])))
            if op == "k":
                source.transaction += 1
    return start, source


@pytest.mark.parametrize("composite", [False, True])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_steps_leave_what_the_changes_one_by_one_leave(composite: bool, data: st.DataObject) -> None:
    start, source = data.draw(histories(composite))
    of = LINES if composite else ORDERS
    batch = rows(of, *source.changes)
    assert apply(start, net_change(batch), of.key_indexes) == source.state


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cutting_a_batch_anywhere_between_changes_leaves_the_same(data: st.DataObject) -> None:
    start, source = data.draw(histories(composite=False))
    cuts = [n for n in range(1, len(source.changes)) if source.changes[n - 1][0] != "b"]
    cut = data.draw(st.sampled_from([0, *cuts]))
    state = start
    for part in (source.changes[:cut], source.changes[cut:]):
        if part:
            state = apply(state, net_change(rows(ORDERS, *part)), (0,))
    assert state == source.state


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_without_rekey_whole_rows_move_by_delete_and_insert(data: st.DataObject) -> None:
    start, source = data.draw(histories(composite=False))
    batch = rows(ORDERS, *source.changes)
    refused = None
    try:
        steps = net_change(batch, rekeys=False)
    except DataError as error:
        refused = str(error)
    if refused is not None:
        assert "changes a key without giving every cell" in refused
        return
    assert not any(isinstance(step, Rekey) for step in steps)
    assert apply(start, steps, (0,)) == source.state


def whole(number: int, name: str) -> tuple[Any, ...]:
    return (number, name, None)


def key_only(number: int) -> tuple[Any, ...]:
    return (number, NOT_GIVEN, NOT_GIVEN)


def test_a_swap_in_one_transaction_swaps() -> None:
    batch = rows(
        ORDERS,
        ("b", whole(1, "one")),
        ("u", whole(2, "one")),
        ("b", whole(2, "two")),
        ("u", whole(1, "two")),
    )
    start = {(1,): (1, "one", None), (2,): (2, "two", None), (3,): (3, "three", None)}
    expected = {**start, (1,): (1, "two", None), (2,): (2, "one", None)}
    assert apply(start, net_change(batch), (0,)) == expected
    assert apply(start, net_change(batch, rekeys=False), (0,)) == expected


@pytest.mark.parametrize("name", ["one", "another"])
@pytest.mark.parametrize("back", [1, 3])
def test_a_row_that_moves_on_in_its_transaction_leaves_nothing_behind(back: int, name: str) -> None:
    """With before images of the key alone no row stands where it moves: its key is checked row by row."""
    batch = rows(ORDERS, ("b", key_only(1)), ("u", whole(2, "one")), ("b", key_only(2)), ("u", whole(back, name)))
    for rekeys in (True, False):
        assert apply({(1,): whole(1, "one")}, net_change(batch, rekeys=rekeys), (0,)) == {(back,): whole(back, name)}


@pytest.mark.parametrize(
    ("before", "step", "numbers"),
    [
        (whole, 1, range(1, 10_001)),  # each key is taken before it is left
        (whole, -1, range(10_000, 0, -1)),
        (lambda number, _: key_only(number), -1, range(1, 10_001)),  # and here it has been left
    ],
)
def test_a_shift_of_ten_thousand_keys_in_one_transaction_moves_each_once(
    before: Any, step: int, numbers: range
) -> None:
    pairs: list[Change] = []
    for number in numbers:
        pairs += [("b", before(number, f"n{number}")), ("u", whole(number + step, f"n{number}"))]
    start = {(n,): whole(n, f"n{n}") for n in numbers}
    expected = {(n + step,): whole(n + step, f"n{n}") for n in numbers}
    assert apply(start, net_change(rows(ORDERS, *pairs)), (0,)) == expected


def test_a_swap_by_a_third_key_in_one_transaction_swaps() -> None:
    batch = rows(
        ORDERS,
        ("b", key_only(1)),
        ("u", whole(-1, "one")),
        ("b", key_only(2)),
        ("u", whole(1, "two")),
        ("b", key_only(-1)),
        ("u", whole(2, "one")),
    )
    start = {(1,): whole(1, "one"), (2,): whole(2, "two")}
    assert apply(start, net_change(batch), (0,)) == {(1,): whole(1, "two"), (2,): whole(2, "one")}


def test_a_key_that_changes_twice_and_gives_only_its_last_cells_keeps_the_others() -> None:
    batch = rows(
        ORDERS,
        ("b", key_only(1), 0),
        ("u", (2, NOT_GIVEN, NOT_GIVEN), 0),
        ("b", key_only(2), 1),
        ("u", (3, "new", NOT_GIVEN), 1),
    )
    assert apply({(1,): (1, "old", 7)}, net_change(batch), (0,)) == {(3,): (3, "new", 7)}


def test_a_cell_given_only_by_the_before_image_is_known() -> None:
    batch = rows(ORDERS, ("b", (1, "old", None)), ("u", (2, NOT_GIVEN, None)))
    [delete, upsert] = net_change(batch, rekeys=False)
    assert isinstance(delete, Delete)
    assert isinstance(upsert, Upsert)
    assert upsert.not_given is None
    assert upsert.rows.to_pylist() == [{"id": 2, "a": "old", "b": None}]


def test_what_was_before_a_truncate_is_void() -> None:
    batch = rows(ORDERS, ("c", whole(1, "x")), ("t", (NOT_GIVEN,) * 3), ("c", whole(2, "y")))
    [truncate, upsert] = net_change(batch)
    assert isinstance(truncate, Truncate)
    assert isinstance(upsert, Upsert)
    assert upsert.rows.column("id").to_pylist() == [2]


def test_a_key_deleted_and_made_again_without_all_cells_shows_nothing_of_the_old_row() -> None:
    batch = rows(ORDERS, ("u", (1, "old", None)), ("d", key_only(1)), ("c", (1, NOT_GIVEN, None)))
    [delete, upsert] = net_change(batch)
    assert isinstance(delete, Delete)
    assert isinstance(upsert, Upsert)
    assert upsert.rows.column("a").to_pylist() == [None]
    assert upsert.not_given is not None


def test_where_two_rows_end_under_one_key_the_later_stands_and_the_key_stands_once() -> None:
    batch = rows(
        ORDERS,
        ("b", whole(1, "one")),
        ("u", whole(2, "one")),
        ("b", whole(2, "two")),  # the row that was there first, for its image differs
        ("u", whole(2, "TWO")),
    )
    start = {(1,): whole(1, "one"), (2,): whole(2, "two")}
    for rekeys in (True, False):
        assert apply(start, net_change(batch, rekeys=rekeys), (0,)) == {(2,): whole(2, "TWO")}


@pytest.mark.parametrize(("cell", "why"), [(None, "NULL"), (NOT_GIVEN, "does not give"), (Text("NaN"), "cannot hold")])
def test_a_key_that_is_no_value_is_refused_by_column_and_offset(cell: Any, why: str) -> None:
    with pytest.raises(DataError, match=rf"'id'.*offset 101.*{why}"):
        net_change(rows(ORDERS, ("c", whole(1, "x")), ("c", (cell, "x", None))))
