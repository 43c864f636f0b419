"""A judge that cannot find a fault proves nothing: each fault that the acceptance tests look for, planted by hand."""

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from tests.support.oracle import happened_once, is_same, replayed

ROW = pa.schema(
    [
        pa.field("id", pa.int64()),
        pa.field("näme", pa.string()),
        pa.field("price", pa.decimal128(12, 2)),
        pa.field("weight", pa.float64()),
        pa.field("at", pa.timestamp("us", "UTC")),
        pa.field("version", pa.int64()),
    ]
)
CHANGE = pa.schema([*ROW, pa.field("op", pa.string()), pa.field("sequence", pa.int64())])
HISTORY = pa.schema(
    [
        *ROW,
        pa.field("_kadds_op", pa.string()),
        pa.field("_kadds_offset", pa.int64()),
        pa.field("_kadds_image", pa.string()),
    ]
)
AT = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)

Rows = list[dict[str, Any]]


def row(key: int, version: int, **other: Any) -> dict[str, Any]:
    plain = {"id": key, "näme": f"n {version}", "price": Decimal("1.10"), "weight": 0.0, "at": AT, "version": version}
    return {**plain, **other}


def changes() -> Rows:
    """1 is made, changed, deleted and made again; 2 is made and changed twice to the same values; 3 has NULLs."""
    happened = [
        ("c", row(1, 1)),
        ("c", row(2, 2)),
        ("u", row(1, 3)),
        ("d", row(1, 3)),
        ("u", row(2, 4)),
        ("u", row(2, 4)),
        ("c", row(1, 5, weight=float("nan"))),
        ("c", row(3, 6, näme=None, weight=None)),
    ]
    return [{**values, "op": op, "sequence": sequence} for sequence, (op, values) in enumerate(happened, 1)]


def history() -> Rows:
    """What Kadds makes of it: keys may be mixed otherwise than in the source, offsets have holes."""
    rows = changes()
    moved = [rows[1], rows[0], *rows[2:]]
    return [
        {
            **{name: value for name, value in one.items() if name not in ("op", "sequence")},
            "_kadds_op": one["op"],
            "_kadds_offset": 10 + 3 * place,
            "_kadds_image": "before" if one["op"] == "d" else "after",
        }
        for place, one in enumerate(moved)
    ]


def state() -> Rows:
    return [row(1, 5, weight=float("nan")), row(2, 4), row(3, 6, näme=None, weight=None)]


def table(rows: Rows, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema)


def judged(rows: Rows, **options: Any) -> list[str]:
    return happened_once(table(rows, HISTORY), table(changes(), CHANGE), key=["id"], order="sequence", **options)


def test_a_right_target_passes_in_any_order_of_rows_and_columns() -> None:
    shuffled = table(state()[::-1], ROW).select(ROW.names[::-1])
    assert is_same(table(state(), ROW), shuffled) == []


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        pytest.param(lambda rows: rows[1:], "1 rows of the source are missing", id="lost"),
        pytest.param(lambda rows: [*rows, rows[0]], "1 rows are not in the source", id="twice"),
        pytest.param(lambda rows: [{**rows[0], "price": Decimal("1.11")}, *rows[1:]], "are missing", id="value"),
        pytest.param(lambda rows: [rows[0], {**rows[1], "weight": -0.0}, rows[2]], "are missing", id="minus-zero"),
        pytest.param(lambda rows: [*rows[:2], {**rows[2], "näme": ""}], "are missing", id="empty-for-null"),
        pytest.param(lambda rows: [{**rows[0], "weight": None}, *rows[1:]], "are missing", id="null-for-nan"),
    ],
)
def test_a_fault_in_a_target_is_seen(plant: Callable[[Rows], Rows], complaint: str) -> None:
    faults = is_same(table(state(), ROW), table(plant(state()), ROW))
    assert any(complaint in fault for fault in faults), faults


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (pa.field("price", pa.decimal128(13, 2)), "column price is decimal128(13, 2) and should be decimal128(12, 2)"),
        (pa.field("weight", pa.float32()), "column weight is float and should be double"),
        (pa.field("at", pa.timestamp("us")), "column at is timestamp[us] and should be timestamp[us, tz=UTC]"),
    ],
)
def test_another_type_is_seen(wrong: pa.Field, complaint: str) -> None:
    schema = pa.schema([wrong if field.name == wrong.name else field for field in ROW])
    assert is_same(table(state(), ROW), table(state(), ROW).cast(schema)) == [complaint]


def test_a_column_too_few_or_too_many_is_seen() -> None:
    target = table(state(), ROW)
    assert is_same(target, target.drop_columns(["näme"])) == ["column näme is missing"]
    assert is_same(target.drop_columns(["näme"]), target) == ["column näme is too many"]


def test_a_right_history_passes() -> None:
    assert judged(history()) == []


def test_a_right_history_replays_to_the_table() -> None:
    again = replayed(table(history()[::-1], HISTORY), key=["id"])  # the order of files and rows says nothing
    assert is_same(table(state(), ROW), again) == []


def _swapped(rows: Rows, one: int, other: int) -> Rows:
    """The two changes take each other's place."""
    rows = [dict(change) for change in rows]
    rows[one]["_kadds_offset"], rows[other]["_kadds_offset"] = rows[other]["_kadds_offset"], rows[one]["_kadds_offset"]
    return rows


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        pytest.param(lambda rows: rows[:-1], "1 changes are missing in the history", id="last-lost"),
        pytest.param(lambda rows: rows[:3] + rows[4:], "1 changes are missing in the history", id="delete-lost"),
        pytest.param(lambda rows: rows[:5] + rows[6:], "1 changes are missing in the history", id="equal-one-lost"),
        pytest.param(lambda rows: [*rows, {**rows[2], "_kadds_offset": 99}], "not so often", id="twice"),
        pytest.param(lambda rows: [*rows, rows[2]], "1 offsets stand twice", id="the-very-row-twice"),
        pytest.param(lambda rows: [{**rows[0], "näme": "m"}, *rows[1:]], "never happened", id="value"),
        pytest.param(lambda rows: [{**rows[0], "_kadds_op": "u"}, *rows[1:]], "never happened", id="op"),
        pytest.param(lambda rows: [{**rows[0], "_kadds_image": "before"}, *rows[1:]], "wrong image", id="image"),
        pytest.param(lambda rows: _swapped(rows, 1, 2), "wrong order", id="update-before-create"),
        pytest.param(lambda rows: _swapped(rows, 2, 3), "wrong order", id="update-behind-delete"),
        pytest.param(lambda rows: _swapped(rows, 0, 4), "wrong order", id="far-apart"),
    ],
)
def test_a_fault_in_a_history_is_seen(plant: Callable[[Rows], Rows], complaint: str) -> None:
    faults = judged(plant(history()))
    assert any(complaint in fault for fault in faults), faults


def test_a_reordered_history_replays_to_something_else() -> None:
    again = replayed(table(_swapped(history(), 3, 6), HISTORY), key=["id"])
    assert any("missing" in fault for fault in is_same(table(state(), ROW), again))


def test_where_a_poll_may_miss_versions_only_what_happened_may_stand_there() -> None:
    seen = [one for one in history() if one["version"] in (4, 5, 6)]
    seen.pop(0)  # one of the two equal updates
    assert judged(seen, every=False) == []
    assert judged(seen, every=True) != []
    assert any("not so often" in fault for fault in judged([*seen, {**seen[-1], "_kadds_offset": 99}], every=False))
    made_up = [*seen, {**seen[-1], "_kadds_offset": 99, "version": 7}]
    assert any("never happened" in fault for fault in judged(made_up, every=False))


def test_ops_can_be_left_to_the_way_of_polling() -> None:
    guessed = [{**one, "_kadds_op": "u"} for one in history() if one["_kadds_op"] != "d"]
    assert judged(guessed, every=False, ops=False) == []
    assert judged(guessed, every=False) != []


def test_a_history_without_its_columns_is_seen() -> None:
    bare = table(history(), HISTORY).drop_columns(["_kadds_offset"])
    faults = happened_once(bare, table(changes(), CHANGE), key=["id"], order="sequence")
    assert faults == ["the history has no column _kadds_offset"]
