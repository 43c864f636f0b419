"""What a contract lets through, hides and refuses."""

from __future__ import annotations

import decimal
import hashlib
import hmac
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.connector import Mode
from kadds.api.errors import ConfigurationError, DataError
from kadds.api.schema import Table
from kadds.engine.contract import BoundContract, TableContract, column_choice
from kadds.engine.mask import Mask
from kadds.engine.rows import Rows
from tests.unit.engine.changes import NOT_GIVEN, Text, letters, rows, stream, table

ORDERS = table("id", "status:string", "email:string", "total:decimal128(12, 2)")
KEY = b"k" * 32


def bound(contract: TableContract, of: Table = ORDERS, mode: Mode = Mode.MERGE, **more: Any) -> BoundContract:
    return BoundContract(contract, stream(), of, mode, mask_key=KEY, **more)


def cells(of: Rows) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in of.values.to_pylist()]


def order(number: int, status: Any, email: Any = "a@b", total: Any = None) -> tuple[Any, ...]:
    return (number, status, email, total)


# ------------------------------------------------------------------------------------------------- columns


def test_an_empty_contract_lets_everything_through_unchanged() -> None:
    contract = bound(TableContract())
    given = rows(ORDERS, ("c", order(1, "new", total=decimal.Decimal("1.50"))))
    assert contract.apply(given).values is given.values
    assert contract.target.table == ORDERS
    assert contract.target.name == "public.orders"


def test_chosen_columns_keep_the_tables_order_and_carry_their_sparse_cells_along() -> None:
    contract = bound(TableContract(include=("total", "id", "email"), target="sales.orders"))
    made = contract.apply(
        rows(ORDERS, ("u", (1, NOT_GIVEN, NOT_GIVEN, Text("NaN"))), ("u", (2, "x", "e", decimal.Decimal("2.00"))))
    )
    assert contract.target.name == "sales.orders"
    assert [column.name for column in made.table.columns] == ["id", "email", "total"]
    assert cells(made) == [(1, None, None), (2, "e", decimal.Decimal("2.00"))]
    assert made.missing is not None
    assert made.missing.tolist() == [[False, True, False], [False, False, False]]
    assert made.texts is not None
    assert made.texts.array(2).to_pylist() == [[{"column": 2, "text": "NaN"}], None]


def test_column_entries_with_an_exclamation_mark_exclude() -> None:
    assert column_choice(["!card"]) == (None, ("card",))
    assert column_choice(["id", "a", "!b"]) == (("id", "a"), ("b",))


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (TableContract(include=("id", "nope")), "`columns` names 'nope'"),
        (TableContract(exclude=("nope",)), "`columns` names 'nope'"),
        (TableContract(masks={"nope": Mask.HASH}), "`mask` names 'nope'"),
        (TableContract(exclude=("id",)), "takes away 'id', a column of the key"),
        (TableContract(masks={"id": Mask.REDACT}), "redacts 'id', a column of the key"),
        (TableContract(include=("id",), exclude=("id",)), "leaves no column"),
    ],
)
def test_columns_that_cannot_be_are_refused_by_name(contract: TableContract, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        bound(contract)
    assert "default/shop/public.orders" in str(caught.value)
    assert caught.value.hint


def test_a_table_without_a_key_is_refused_in_merge_and_let_through_in_append() -> None:
    keyless = table("id", key=())
    with pytest.raises(ConfigurationError, match="has no key"):
        bound(TableContract(), keyless)
    assert bound(TableContract(), keyless, Mode.APPEND).target.table.key == ()


def test_append_may_leave_out_the_key() -> None:
    assert bound(TableContract(exclude=("id",)), mode=Mode.APPEND).target.table.key == ()


# ------------------------------------------------------------------------------------------------- masks


def digest(text: str) -> str:
    return hmac.new(KEY, text.encode(), hashlib.sha256).hexdigest()


def test_hash_is_hmac_sha256_of_the_text_and_keeps_null_and_texts() -> None:
    contract = bound(TableContract(masks={"email": Mask.HASH, "total": Mask.HASH}))
    made = contract.apply(
        rows(
            ORDERS,
            ("c", (1, "x", "a@b", decimal.Decimal("12.50"))),
            ("c", (2, "x", None, Text("NaN"))),
            ("c", (3, "x", "a@b", None)),
        )
    )
    assert made.values.column("email").to_pylist() == [digest("a@b"), None, digest("a@b")]
    assert made.values.column("total").to_pylist() == [digest("12.50"), digest("NaN"), None]
    assert made.texts is None
    assert contract.target.table.column("total").type == pa.string()


def test_redact_is_null_in_the_columns_own_type_whatever_was_given() -> None:
    made = bound(TableContract(masks={"total": Mask.REDACT})).apply(
        rows(ORDERS, ("c", (1, "x", "e", Text("NaN"))), ("u", (2, "x", "e", NOT_GIVEN)))
    )
    assert made.values.column("total").to_pylist() == [None, None]
    assert made.values.column("total").type == pa.decimal128(12, 2)
    assert made.texts is None
    assert made.missing is None or not made.missing.any()


def test_a_key_masked_with_hash_is_the_same_key_in_every_batch() -> None:
    contract = bound(TableContract(masks={"id": Mask.HASH}))
    first = contract.apply(rows(ORDERS, ("c", order(7, "x"))))
    second = contract.apply(rows(ORDERS, ("d", (7, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN))))
    assert first.values.column("id").to_pylist() == second.values.column("id").to_pylist() == [digest("7")]
    assert contract.target.table.key == ("id",)


def test_hash_without_a_mask_key_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="mask_key"):
        BoundContract(TableContract(masks={"email": Mask.HASH}), stream(), ORDERS, Mode.MERGE)


def test_targets_differ_in_version_where_what_they_carry_differs() -> None:
    plain, hashed = bound(TableContract()), bound(TableContract(masks={"email": Mask.HASH}))
    other_key = BoundContract(
        TableContract(masks={"email": Mask.HASH}), stream(), ORDERS, Mode.MERGE, mask_key=b"other"
    )
    versions = {contract.target.version for contract in (plain, hashed, other_key)}
    assert len(versions) == 3
    assert bound(TableContract()).target.version == plain.target.version


def test_the_json_form_makes_the_same_contract() -> None:
    contract = TableContract("id > 1", ("id", "email"), ("total",), {"email": Mask.HASH}, "x.y")
    again = TableContract.from_json(contract.to_json())
    assert again == contract
    assert again.version == contract.version
    assert TableContract().version != contract.version


# ------------------------------------------------------------------------------------------------- where in merge


def test_in_merge_a_row_that_does_not_match_is_deleted_except_where_a_create_says_it_was_not_there() -> None:
    made = bound(TableContract(where="status <> 'draft'")).apply(
        rows(
            ORDERS,
            ("c", order(1, "open")),
            ("c", order(2, "draft")),
            ("u", order(3, "draft")),
            ("r", order(4, "draft")),
            ("u", order(5, None)),
            ("d", (6, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN)),
            ("t", (NOT_GIVEN,) * 4),
            ("u", order(7, "open")),
        )
    )
    assert letters(made) == "cDDDDtu"
    assert made.values.column("id").to_pylist() == [1, 3, 4, 5, 6, None, 7]


def test_in_merge_an_update_that_leaves_with_its_key_deletes_the_old_key_too() -> None:
    made = bound(TableContract(where="status <> 'draft'")).apply(
        rows(ORDERS, ("b", (1, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN)), ("u", order(2, "draft")))
    )
    assert letters(made) == "DD"
    assert made.values.column("id").to_pylist() == [1, 2]


def test_the_filter_sees_raw_values_behind_masks_and_columns_not_delivered() -> None:
    contract = bound(TableContract(where="email = 'a@b' and total > 1", exclude=("total",), masks={"email": Mask.HASH}))
    made = contract.apply(
        rows(ORDERS, ("c", (1, "x", "a@b", decimal.Decimal(2))), ("c", (2, "x", "a@b", decimal.Decimal(1))))
    )
    assert cells(made) == [(1, "x", digest("a@b"))]


@pytest.mark.parametrize(("cell", "why"), [(NOT_GIVEN, "does not give"), (Text("odd"), "cannot hold")])
def test_a_filter_over_a_cell_that_cannot_be_read_stops_by_the_columns_name(cell: Any, why: str) -> None:
    with pytest.raises(DataError, match=rf"reads column 'status'.*{why}"):
        bound(TableContract(where="status = 'x'")).apply(rows(ORDERS, ("u", order(1, cell))))


def test_a_delete_need_not_give_what_the_filter_reads() -> None:
    given = rows(ORDERS, ("d", (1, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN)))
    assert letters(bound(TableContract(where="status = 'x'")).apply(given)) == "D"


# ------------------------------------------------------------------------------------------------- where in append


def test_append_with_where_needs_full_before_images() -> None:
    with pytest.raises(ConfigurationError, match="full before images"):
        bound(TableContract(where="status = 'x'"), mode=Mode.APPEND)


def test_append_with_where_judges_each_image_by_itself() -> None:
    contract = bound(TableContract(where="status = 'x'"), mode=Mode.APPEND, before_images=True)
    made = contract.apply(
        rows(
            ORDERS,
            ("b", order(1, "x")),
            ("u", order(1, "y")),
            ("b", order(2, "y")),
            ("u", order(2, "x")),
            ("d", order(3, "x")),
            ("d", order(4, "y")),
            ("t", (NOT_GIVEN,) * 4),
        )
    )
    assert letters(made) == "UuDt"
    with pytest.raises(DataError, match="reads column 'status'"):
        contract.apply(rows(ORDERS, ("d", (1, NOT_GIVEN, NOT_GIVEN, NOT_GIVEN))))
