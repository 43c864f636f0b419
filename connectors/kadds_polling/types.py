"""Columns of driver values → Arrow, exact or given as text, never coerced.

A column is converted at once where all its values fit its type, which is nearly always. A value that does not fit is
found by halving the column; it becomes null in the typed column and its text is returned beside it. Text is parsed only
where it has exactly one meaning, so that writing the value gives the text back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import AS_TEXT_TYPE

_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_ZONE = r"(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)"
_NUMBER = r"^[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?$"
_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, TypeError, ValueError)


@dataclass(frozen=True, eq=False)
class Cells:
    """One column: its typed values, and the text of each cell (by row) that its type cannot hold."""

    values: pa.Array
    texts: Mapping[int, str]


def decode(values: Sequence[Any], arrow: pa.DataType) -> Cells:
    """The column of `values` (as a driver gave them) as `arrow`."""
    return _decode(values, arrow, 0)


def _decode(values: Sequence[Any], arrow: pa.DataType, first: int) -> Cells:
    kinds = set(map(type, values))
    kinds.discard(type(None))
    try:
        return Cells(_convert(values, kinds, arrow), {})
    except _MISFIT:
        return _split(values, arrow, first)


def _split(values: Sequence[Any], arrow: pa.DataType, first: int = 0) -> Cells:
    """A column that holds at least one misfit, which is found by halving: the good stretches are still done at once."""
    if len(values) == 1:
        return Cells(pa.nulls(1, arrow), {first: text_of(values[0])})
    middle = len(values) // 2
    halves = [_decode(values[:middle], arrow, first), _decode(values[middle:], arrow, first + middle)]
    return Cells(pa.concat_arrays([half.values for half in halves]), {**halves[0].texts, **halves[1].texts})


def text_of(value: object) -> str:
    """The text that stands for a value which its column's type cannot hold; bytes as SQL writes them, x'00ff'."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"x'{bytes(value).hex()}'"
    return repr(value) if isinstance(value, float) else str(value)


def _convert(values: Sequence[Any], kinds: set[type], arrow: pa.DataType) -> pa.Array:
    """`values`, whose types are `kinds`, as `arrow`; one of _MISFIT if any of them does not fit."""
    if not kinds:
        return pa.nulls(len(values), arrow)
    if kinds == {str} and (parse := _parser(arrow)):
        return parse(pa.array(values, pa.string()), arrow)
    accepted = _accepted(arrow)
    if not kinds <= accepted:
        raise TypeError(f"{kinds} in a column of {arrow}")
    if arrow == pa.bool_() and int in kinds:
        if not set(values) <= {0, 1, None}:
            raise ValueError("a truth that is neither 0 nor 1")
        return pa.array(values, pa.int8()).cast(pa.bool_())
    if kinds & {datetime, time} and any(
        (v.tzinfo is None) != (getattr(arrow, "tz", None) is None) for v in values if v
    ):
        raise ValueError("a time with a zone in a column without, or without in a column with")
    return pa.array(values, arrow)


def _accepted(arrow: pa.DataType) -> frozenset[type]:
    """The Python types that a driver may give for a column of `arrow`."""
    kinds: tuple[type, ...]
    if arrow == pa.bool_():
        kinds = (bool, int)
    elif pa.types.is_integer(arrow):
        kinds = (int,)
    elif pa.types.is_floating(arrow):
        kinds = (float,)
    elif pa.types.is_decimal(arrow):
        kinds = (Decimal,)
    elif pa.types.is_binary(arrow):
        kinds = (bytes, bytearray, memoryview)
    elif pa.types.is_date(arrow):
        kinds = (date,)
    elif pa.types.is_timestamp(arrow):
        kinds = (datetime,)
    elif pa.types.is_time(arrow):
        kinds = (time,)
    else:
        kinds = (str,)
    return frozenset(kinds)


def _parser(arrow: pa.DataType) -> Callable[[pa.Array, pa.DataType], pa.Array] | None:
    if pa.types.is_decimal(arrow):
        return _parse_decimal
    if pa.types.is_temporal(arrow):
        return _parse_time
    return None


def _matching(texts: pa.Array, pattern: str) -> None:
    if not pc.all(pc.match_substring_regex(texts, pattern), min_count=0).as_py():
        raise ValueError(f"text that is not of the form {pattern}")


def _parse_decimal(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    """Arrow's own cast refuses what would lose a digit, and takes 1e3; it must not see NaN."""
    _matching(texts, _NUMBER)
    return texts.cast(arrow)


def _parse_time(texts: pa.Array, arrow: pa.DataType) -> pa.Array:
    """Years 0001 to 9999 only: what Python and most databases can write back."""
    if pa.types.is_time(arrow):
        _matching(texts, f"^{_TIME}$")
        # Arrow parses no times of day; on a day they are timestamps, and 24:00:00 is refused as it must be.
        return pc.binary_join_element_wise("1970-01-01", texts, " ").cast(pa.timestamp("us")).cast(arrow)
    if pc.any(pc.starts_with(texts, "0000"), min_count=0).as_py():
        raise ValueError("there is no year 0")
    if pa.types.is_date(arrow):
        _matching(texts, f"^{_DATE}$")
        return texts.cast(arrow)
    if arrow.tz is not None and pc.any(pc.match_substring_regex(texts, f"{_ZONE}$"), min_count=0).as_py():
        _matching(texts, f"^{_DATE}[ T]{_TIME}{_ZONE}$")
        return texts.cast(arrow)
    _matching(texts, f"^{_DATE}[ T]{_TIME}$")
    # Sessions are set to UTC: a product that writes such a time without its zone (MySQL) means UTC.
    return texts.cast(pa.timestamp("us")).cast(arrow)


def as_text_column(rows: int, texts_by_column: Mapping[int, Mapping[int, str]]) -> pa.Array | None:
    """The `as_text` array of a ChangeBatch from each column's texts; None where there are none."""
    by_row: dict[int, list[dict[str, Any]]] = {}
    for column, texts in sorted(texts_by_column.items()):
        for row, text in texts.items():
            by_row.setdefault(row, []).append({"column": column, "text": text})
    if not by_row:
        return None
    present = sorted(by_row)
    indices = np.full(rows, -1, np.int64)
    indices[present] = np.arange(len(present))
    taken = pa.array(indices, mask=indices < 0)
    return pa.array([by_row[row] for row in present], AS_TEXT_TYPE).take(taken)


def decimal_or_text(precision: int | None, scale: int | None) -> pa.DataType:
    """The type of numeric(precision, scale): what no decimal of Arrow is made for is text."""
    if precision is None or not 1 <= precision <= 76 or scale is None or not 0 <= scale <= precision:
        return pa.string()
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, scale)


def arguments(declared: str) -> tuple[int, ...]:
    """The numbers in the first brackets of a declared type: (12, 2) of numeric(12,2)."""
    match = re.search(r"\(\s*(-?\d+)\s*(?:,\s*(-?\d+)\s*)?\)", declared)
    return tuple(int(number) for number in match.groups() if number is not None) if match else ()
