"""History: a public format."""

from __future__ import annotations

from kadds.api.change import HISTORY
from kadds.engine.history import history
from tests.unit.engine.changes import COMMITTED_AT, NOT_GIVEN, Text, rows, table

OF = table("id", "a:string")


def test_every_image_is_a_row_with_its_transaction_behind_it() -> None:
    made = history(
        rows(
            OF,
            ("c", (1, "x"), 0),
            ("b", (1, "x"), 1),
            ("u", (1, NOT_GIVEN), 1),
            ("d", (1, NOT_GIVEN), 1),
            ("t", (NOT_GIVEN, NOT_GIVEN), 2),
            ("r", (2, Text("odd")), 2),
            facts=True,
        )
    )
    assert made.rows.schema.names == ["id", "a", *HISTORY.names]
    assert made.rows.schema.types[2:] == HISTORY.types
    plain = made.rows.to_pylist()
    assert [row["_kadds_op"] for row in plain] == list("cuudtr")
    assert [row["_kadds_image"] for row in plain] == ["after", "before", "after", "before", None, "after"]
    assert [row["_kadds_offset"] for row in plain] == [100, 101, 102, 103, 104, 105]
    assert [row["_kadds_not_given"] for row in plain] == [None, None, ["a"], ["a"], ["id", "a"], None]
    assert [row["_kadds_xid"] for row in plain] == ["x0", "x1", "x1", "x1", "x2", "x2"]
    assert [row["_kadds_position"] for row in plain] == ["0/0", "0/1", "0/1", "0/1", "0/2", "0/2"]
    assert {row["_kadds_committed_at"] for row in plain} == {COMMITTED_AT}
    assert made.as_text is not None
    assert made.as_text.to_pylist() == [None] * 5 + [[{"column": 1, "text": "odd"}]]


def test_changes_that_give_everything_need_no_bitmaps() -> None:
    made = history(rows(OF, ("c", (1, "x")), facts=True))
    assert made.as_text is None
    assert made.rows.column("_kadds_not_given").null_count == 1
