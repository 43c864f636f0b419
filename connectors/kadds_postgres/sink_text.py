"""Values as the text that PostgreSQL reads them from, a column at a time; DataError for one that it cannot have.

This is how columns go that have no binary form (`binary`), and values that were given as text ('infinity', 'NaN'): the
server parses both by the type of the column. `SESSION` of the connection says how times are read (ISO, UTC).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.arrays import offsets_of, values_of
from kadds.api.errors import DataError
from kadds.api.schema import decimal_text

_DAY_US = 86_400_000_000
_PLAIN_DAYS = (-719_162, 2_932_896)  # 0001-01-01 to 9999-12-31, which Arrow writes as PostgreSQL reads them
_FIRST_DAY = -2_440_588  # 4714-11-24 BC, the first day of the Julian calendar, of dates and timestamps alike
_LAST_DATE = 2_145_042_541  # 5874897-12-31
_END_TIMESTAMP_US = 9_224_318_016_000_000_000  # 294277-01-01, the first that a timestamp does not hold

_Integers = np.ndarray[Any, np.dtype[np.int64]]


def texts(values: pa.Array, column: str, there: str) -> pa.Array:
    """The text of each value, null where it is null, for a column of type `there` as `format_type` writes it."""
    kind = values.type
    if kind == pa.string():
        refuse_nul(values, column)
        return values
    if pa.types.is_decimal(kind):
        return decimal_text(values)
    if kind == pa.binary():
        return _hex(values)
    refuse_out_of_range(values, column)
    if pa.types.is_time(kind):
        return values.cast(pa.string())
    if kind == pa.date32():
        return _dates(values)
    if pa.types.is_timestamp(kind):
        written = _timestamps(values)
        in_words = values.type.tz is not None and there != "timestamp with time zone"  # which a reader cannot guess
        return pc.binary_join_element_wise(written, "+00", "") if in_words else written
    if pa.types.is_list(kind):
        return _lists(values, column)
    if kind == pa.float32() and there == "double precision":
        values = values.cast(pa.float64())  # its own shortest text would be another number there
    return values.cast(pa.string())


def joined(values: pa.Array, separator: str) -> memoryview:
    """All of a column's texts, which has no nulls, with `separator` between them, as UTF-8."""
    whole = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    text = pc.binary_join(whole, separator)
    return memoryview(text.buffers()[2] or b"")


def refuse_nul(values: pa.Array, column: str) -> None:
    """DataError for a text that PostgreSQL cannot have."""
    offsets = offsets_of(values)
    data = np.frombuffer(values.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    if not data.all():
        raise DataError(
            f"column {column} has a text with a NUL character, which PostgreSQL has no place for",
            hint="correct the row at the source, or leave the column out of the contract",
        )


def refuse_out_of_range(values: pa.Array, column: str) -> None:
    """DataError for a date, a time or a timestamp that PostgreSQL cannot have; nanoseconds are kept as text."""
    kind = values.type
    if kind == pa.date32():
        _refuse_outside(values, np.int32, column, _FIRST_DAY, _LAST_DATE)
    elif kind == pa.time64("us"):
        _refuse_outside(values, np.int64, column, 0, _DAY_US - 1)
    elif pa.types.is_timestamp(kind) and kind.unit == "us":
        _refuse_outside(values, np.int64, column, _FIRST_DAY * _DAY_US, _END_TIMESTAMP_US - 1)


def _refuse_outside(values: pa.Array, integer: type[np.signedinteger[Any]], column: str, first: int, last: int) -> None:
    integers, kind = values_of(values, integer), values.type
    if values.null_count:
        integers = integers[values.is_valid().to_numpy(zero_copy_only=False)]
    for end in (int(integers.min()), int(integers.max())) if len(integers) else ():
        if not first <= end <= last:
            raise DataError(
                f"column {column} has the {kind} {end}, which is out of PostgreSQL's range",
                hint="correct the row at the source, or leave the column out of the contract",
            )


def _hex(values: pa.Array) -> pa.Array:
    """`\\x` and two digits a byte."""
    count = len(values)
    offsets = np.frombuffer(values.buffers()[1], np.int32, count + 1, values.offset * 4)
    data = memoryview(values.buffers()[2] or b"")[int(offsets[0]) : int(offsets[-1])]
    digits = pa.StringArray.from_buffers(
        count,
        pa.py_buffer((offsets - offsets[0]) * 2),
        pa.py_buffer(data.hex().encode()),
        values.is_valid().buffers()[1] if values.null_count else None,
    )
    return pc.binary_join_element_wise("\\x", digits, "")


def _lists(values: pa.Array, column: str) -> pa.Array:
    """Lists of text as array literals; only `_kadds_not_given` is one."""
    elements = values.flatten()
    if len(elements) == 0:
        return pc.if_else(values.is_valid(), pa.scalar("{}"), pa.scalar(None, pa.string()))
    escaped = in_quotes(texts(elements, column, "text"))
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    inner = pc.binary_join(pa.ListArray.from_arrays(offsets, escaped), ",")
    literals = pc.binary_join_element_wise("{", inner, "}", "")
    return pc.if_else(values.is_valid(), literals, pa.scalar(None, literals.type))


def in_quotes(values: pa.Array) -> pa.Array:
    """Elements of an array literal: in double quotes, with what they hold escaped."""
    for special in ("\\", '"'):
        if pc.any(pc.match_substring(values, special)).as_py():
            values = pc.replace_substring(values, special, "\\" + special)
    quote = pa.scalar('"', values.type)
    return pc.binary_join_element_wise(quote, values, quote, pa.scalar("", values.type))


# -------------------------------------------------------------------------------------------------- dates and times


def _dates(values: pa.Array) -> pa.Array:
    days = values.view(pa.int32())
    if _within(days, *_PLAIN_DAYS):
        return values.cast(pa.string())
    day, era = _calendar(pc.fill_null(days, 0).to_numpy().astype(np.int64))
    return _with_nulls(pc.binary_join_element_wise(day, era, ""), values)


def _timestamps(values: pa.Array) -> pa.Array:
    unit, integers = values.type.unit, values.view(pa.int64())
    plain = values.view(pa.timestamp(unit))
    if unit == "ns":  # kept as text, and all of them lie within the years that Arrow writes
        return plain.cast(pa.string())
    if _within(integers, _PLAIN_DAYS[0] * _DAY_US, (_PLAIN_DAYS[1] + 1) * _DAY_US - 1):
        return plain.cast(pa.string())
    days, of_day = np.divmod(pc.fill_null(integers, 0).to_numpy(), _DAY_US)
    day, era = _calendar(days)
    time = pa.array(of_day).view(pa.time64("us")).cast(pa.string())
    return _with_nulls(pc.binary_join_element_wise(pc.binary_join_element_wise(day, time, " "), era, ""), values)


def _within(integers: pa.Array, first: int, last: int) -> bool:
    ends = pc.min_max(integers).as_py()
    return ends["min"] is None or (first <= ends["min"] and ends["max"] <= last)


def _with_nulls(values: pa.Array, like: pa.Array) -> pa.Array:
    return pc.if_else(like.is_valid(), values, pa.scalar(None, pa.string()))


def _calendar(days: _Integers) -> tuple[pa.Array, pa.Array]:
    """Days since 1970 as year-month-day, and ` BC` or nothing; the proleptic Gregorian calendar (H. Hinnant's way)."""
    shifted = days + 719_468
    era, of_era = np.divmod(shifted, 146_097)
    year_of_era = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * of_year + 2) // 153
    day = of_year - (153 * month_from_march + 2) // 5 + 1
    month = np.where(month_from_march < 10, month_from_march + 3, month_from_march - 9)
    year = year_of_era + era * 400 + (month <= 2)
    before_christ = year <= 0
    parts = [
        pc.utf8_lpad(pa.array(number).cast(pa.string()), width, "0")
        for number, width in ((np.where(before_christ, 1 - year, year), 4), (month, 2), (day, 2))
    ]
    return pc.binary_join_element_wise(*parts, "-"), pa.array(np.where(before_christ, " BC", ""))
