"""Arrays by their buffers are what Arrow would have made."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadds.api.arrays import byte_count, fixed, offsets_of, repeated, values_of, variable


@given(st.lists(st.none() | st.text().map(str.encode), max_size=20), st.data())
def test_texts_by_their_buffers_are_the_same_array(cells: list[bytes | None], data: st.DataObject) -> None:
    for kind in (pa.binary(), pa.string()):
        array = variable(kind, cells)
        array.validate(full=True)
        assert array.equals(pa.array(cells, pa.binary()).cast(kind))
        part = array.slice(data.draw(st.integers(0, len(cells))))
        lengths = [len(cell or b"") for cell in part.cast(pa.binary()).to_pylist()]
        assert np.diff(offsets_of(part)).tolist() == lengths


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.data())
def test_numbers_come_out_as_they_went_in(numbers: list[int], data: st.DataObject) -> None:
    array = fixed(pa.int64(), np.array(numbers, np.int64))
    array.validate(full=True)
    assert array.equals(pa.array(numbers, pa.int64()))
    start = data.draw(st.integers(0, len(numbers)))
    assert values_of(array.slice(start), np.int64).tolist() == numbers[start:]


@given(st.text(), st.integers(0, 5))
def test_one_text_many_times(text: str, count: int) -> None:
    assert repeated(text, count).equals(pa.array([text] * count, pa.string()))


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, None],
        ["a" * 100, None, "bc"],
        [b"a" * 100, None],
        [True, False],
        [[1, 2], [3]],
        [{"a": 1}],
        [],
    ],
    ids=str,
)
def test_bytes_are_counted_about_as_arrow_counts_them(values: list[object]) -> None:
    batch = pa.RecordBatch.from_pydict({"v": values})
    for part in (batch, batch.slice(1)):
        assert abs(byte_count(part) - part.nbytes) <= 8 + part.num_rows
