"""Packed columns are the same columns, whatever they hold; a payload that does not fit is named."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kadds.api.change import AS_TEXT_TYPE
from kadds.api.errors import CorruptLogError
from kadds.log.packing import pack, unpack
from tests.unit.log.test_values import VALUES

_INTEGERS = {
    kind: st.one_of(st.integers(low, high), st.integers(0, 3), st.sampled_from([low, high]))
    for kind, low, high in [
        *[(pa.type_for_alias(f"int{bits}"), -(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)],
        *[(pa.type_for_alias(f"uint{bits}"), 0, (1 << bits) - 1) for bits in (8, 16, 32, 64)],
    ]
}
_OTHERS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.bool_(): st.booleans(),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.date32(): st.dates(),
    pa.timestamp("us", "UTC"): st.integers(-(2**63), 2**63 - 1),
    pa.decimal128(12, 2): st.decimals(-(10**10) + 1, 10**10 - 1, places=2, allow_nan=False),
    pa.decimal128(38, 3): st.decimals(-(10**34), 10**34, places=3, allow_nan=False),
    pa.decimal256(60, 0): st.integers(-(10**59), 10**59),
    pa.null(): st.none(),
    AS_TEXT_TYPE: st.lists(st.fixed_dictionaries({"column": st.integers(0, 9), "text": st.text()}), max_size=2),
}


def packed(*columns: pa.Array) -> pa.Buffer:
    return pa.py_buffer(b"".join(map(bytes, pack(columns))))


@settings(max_examples=300)
@given(st.data())
def test_any_column_comes_back_as_it_was_also_as_a_slice(data: st.DataObject) -> None:
    kind, values = data.draw(st.sampled_from(list((_INTEGERS | _OTHERS).items())))
    nulls = st.none() if data.draw(st.booleans()) else values
    array = pa.array(data.draw(st.lists(st.one_of(values, nulls), max_size=40)), kind)
    start = data.draw(st.integers(0, len(array)))
    part = array.slice(start, data.draw(st.integers(0, len(array) - start)))
    (found,) = unpack(packed(part), [kind], len(part), "here")
    found.validate(full=True)
    assert found.equals(part)
    assert found.null_count == part.null_count


@pytest.mark.parametrize("name", VALUES)
def test_every_type_of_the_log_keeps_its_edges(name: str) -> None:
    kind, values = VALUES[name]
    array = pa.array([*values, None, *values], kind)
    (found,) = unpack(packed(array), [kind], len(array), "here")
    assert found.to_string(window=99) == array.to_string(window=99)  # as text, since NaN is not NaN
    assert found.equals(array) or pa.types.is_floating(kind)


def test_columns_stand_beside_one_another() -> None:
    columns = [pa.array([1, None]), pa.array(["a", "b"]), pa.nulls(2), pa.array([True, False])]
    found = unpack(packed(*columns), [column.type for column in columns], 2, "here")
    assert found == columns


def test_numbers_that_rise_take_hardly_any_room() -> None:
    rising = pa.array(range(10**12, 10**12 + 65_536))
    assert packed(rising).size < 300


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, 2, "buffer length"),
        (4, 9, "IndexError"),
        (6, 7, "KeyError"),
        (7, 9, "does not know the form"),
        (8, 9, "does not know the form"),
        (9, 9, "does not know the codec"),
        (16, 200, "buffer length"),
    ],
    ids=["count", "column", "part", "form", "width", "codec", "stored bytes"],
)
def test_a_payload_that_does_not_fit_is_named(at: int, value: int, says: str) -> None:
    payload = bytearray(packed(pa.array(range(1000))))
    payload[at] = value
    with pytest.raises(CorruptLogError, match=says):
        unpack(pa.py_buffer(bytes(payload)), [pa.int64()], 1000, "here")


def test_a_payload_with_something_behind_it_is_named() -> None:
    with pytest.raises(CorruptLogError, match="its slots"):
        unpack(pa.py_buffer(bytes(packed(pa.array([1]))) + b"x"), [pa.int64()], 1, "here")
