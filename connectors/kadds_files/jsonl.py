"""JSON lines out of Arrow columns, exact, column by column.

Numbers are exact JSON numbers; what JSON has no exact number for is text: decimals with all their digits, `NaN` and the
infinities. Times are ISO 8601, binary is base64, a value given as text is that text. A cell that was not given is left
out (its name stands in `_kadds_not_given`), NULL is `null`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import HISTORY, text_cells
from kadds.api.connector import Append, Target
from kadds.api.errors import DataError
from kadds.api.schema import decimal_text

TEXT = pa.large_string()
_PART_BYTES = 8 << 20
_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
_SHORT_ESCAPES = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
#: Pattern → what is replaced where it matches; the backslash first, since the others bring new ones.
_ESCAPES = {
    r'["\\]': [("\\", "\\\\"), ('"', '\\"')],
    r"[\x00-\x1f]": [(chr(code), _SHORT_ESCAPES.get(chr(code), f"\\u{code:04x}")) for code in range(32)],
}
_DAY_MICROSECONDS = 86_400_000_000
_YEARS = [np.datetime64(text, "D").astype(np.int64) for text in ("-32767-01-01", "32767-12-31")]


def json_lines(target: Target, step: Append) -> Iterator[pa.Buffer]:
    """The step's rows, each a line, in parts of a few megabytes."""
    rows = step.rows.num_rows
    at_once = max(1, min(rows, rows * _PART_BYTES // max(step.rows.nbytes, 1)))
    for start in range(0, rows, at_once):
        as_text = None if step.as_text is None else step.as_text.slice(start, at_once)
        yield _lines(target, step.rows.slice(start, at_once), as_text)


def _lines(target: Target, rows: pa.RecordBatch, as_text: pa.Array | None) -> pa.Buffer:
    missing = _not_given(rows)
    texts = text_cells(as_text)
    members = []
    for number, (name, values) in enumerate(zip(rows.schema.names, rows.columns, strict=True)):
        cells = _json(values, name)
        if number in texts:
            places, found = texts[number]
            cells = _put(cells, places, _quoted(found.cast(TEXT)))
        member = _joined(json.dumps(name, ensure_ascii=False) + ":", cells)
        if number < len(target.table.columns) and name in missing:
            member = pc.if_else(pa.array(missing[name]), pa.scalar(None, TEXT), member)
        members.append(member)
    line = pc.binary_join_element_wise(*members, pa.scalar(",", TEXT), null_handling="skip")
    whole = _joined("{", line, "}\n")
    offsets = np.frombuffer(whole.buffers()[1], np.int64)[whole.offset : whole.offset + len(whole) + 1]
    return whole.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _not_given(rows: pa.RecordBatch) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Column name → which rows do not give it."""
    names = rows.column(rows.schema.names.index(HISTORY.field("_kadds_not_given").name))
    flat = names.flatten()
    if not len(flat):
        return {}
    of_row = pc.list_parent_indices(names).to_numpy()
    found = {}
    for name in flat.unique().to_pylist():
        mask = np.zeros(rows.num_rows, np.bool_)
        mask[of_row[pc.equal(flat, name).to_numpy(zero_copy_only=False)]] = True
        found[name] = mask
    return found


def _json(values: pa.Array, column: str) -> pa.Array:
    """The JSON of each value as text; `null` for NULL."""
    return pc.fill_null(_plain(values, column), pa.scalar("null", TEXT))


def _plain(values: pa.Array, column: str) -> pa.Array:
    kind = values.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return values.cast(TEXT)
    if pa.types.is_floating(kind):
        return _floats(values)
    if pa.types.is_decimal(kind):
        return _joined('"', decimal_text(values).cast(TEXT), '"')
    if pa.types.is_binary(kind):
        return _joined('"', _base64(values), '"')
    if pa.types.is_temporal(kind):
        return _joined('"', _times(values, column), '"')
    if pa.types.is_list(kind):
        return _lists(values)
    if pa.types.is_null(kind):
        return values.cast(TEXT)
    return _quoted(values.cast(TEXT))


def _joined(*parts: str | pa.Array) -> pa.Array:
    texts = [pa.scalar(part, TEXT) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", TEXT))


def _quoted(values: pa.Array) -> pa.Array:
    for pattern, replacements in _ESCAPES.items():
        if pc.any(pc.match_substring_regex(values, pattern)).as_py():
            for raw, escaped in replacements:
                values = pc.replace_substring(values, raw, escaped)
    return _joined('"', values, '"')


def _put(cells: pa.Array, places: np.ndarray[Any, np.dtype[np.int64]], texts: pa.Array) -> pa.Array:
    indexes = np.arange(len(cells))
    indexes[places] = len(cells) + np.arange(len(places))
    return pa.concat_arrays([cells, texts]).take(pa.array(indexes))


def _floats(values: pa.Array) -> pa.Array:
    """The shortest number that reads back as the same bits; what is no number as text."""
    text = values.cast(TEXT)
    text = pc.if_else(pc.equal(text, "-0"), pa.scalar("-0.0", TEXT), text)
    for arrow, name in (("nan", '"NaN"'), ("inf", '"Infinity"'), ("-inf", '"-Infinity"')):
        text = pc.if_else(pc.equal(text, arrow), pa.scalar(name, TEXT), text)
    return text


def _times(values: pa.Array, column: str) -> pa.Array:
    kind = values.type
    if pa.types.is_date(kind):
        _refuse_outside(values.view(pa.int32()), 1, column, kind)
    elif pa.types.is_time(kind):
        return values.cast(TEXT)
    elif kind.unit == "us":
        _refuse_outside(values.view(pa.int64()), _DAY_MICROSECONDS, column, kind)
    if not pa.types.is_timestamp(kind):
        return values.cast(TEXT)
    text = pc.replace_substring(values.view(pa.timestamp(kind.unit)).cast(TEXT), " ", "T")
    return _joined(text, "Z") if kind.tz else text


def _refuse_outside(numbers: pa.Array, of_a_day: int, column: str, kind: pa.DataType) -> None:
    ends = pc.min_max(numbers).as_py()
    first, last = int(_YEARS[0]) * of_a_day, (int(_YEARS[1]) + 1) * of_a_day - 1
    for end in (ends["min"], ends["max"]):
        if end is not None and not first <= end <= last:
            raise DataError(
                f"column {column} has the {kind} {end}, a year beyond 32767 that has no text",
                hint="`format: parquet` keeps such values; or correct the row at the source",
            )


def _lists(values: pa.Array) -> pa.Array:
    parts = _quoted(values.flatten().cast(TEXT))
    offsets = pc.fill_null(pc.list_value_length(values), 0).to_numpy().cumsum()
    quoted = pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], offsets]), pa.int64()), parts)
    text = _joined("[", pc.binary_join(quoted, pa.scalar(",", TEXT)), "]")
    return text if not values.null_count else pc.if_else(values.is_valid(), text, pa.scalar(None, TEXT))


def _bytes(values: pa.Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of all values (none is NULL), one after the other."""
    offsets = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    return np.frombuffer(values.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]


def _base64(values: pa.Array) -> pa.Array:
    """Base64 of each value (RFC 4648, padded), by NumPy over all of them at once."""
    ends = pc.fill_null(pc.binary_length(values), 0).to_numpy().astype(np.int64).cumsum()
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    lengths = ends - starts
    groups = (lengths + 2) // 3
    first_group = np.concatenate([[0], groups.cumsum()])
    padded = np.zeros(3 * int(first_group[-1]), np.uint8)
    if len(padded):
        data = _bytes(values.drop_null())
        padded[np.arange(len(data)) + np.repeat(3 * first_group[:-1] - starts, lengths)] = data
    triples = padded.reshape(-1, 3).astype(np.uint32)
    bits = (triples[:, 0] << 16) | (triples[:, 1] << 8) | triples[:, 2]
    letters = _ALPHABET[(bits[:, None] >> np.array([18, 12, 6, 0], np.uint32)) & 63].reshape(-1)
    for missing in (1, 2):
        last = 4 * first_group[1:][(groups > 0) & (3 * groups - lengths >= missing)]
        letters[last - missing] = ord("=")
    offsets = pa.py_buffer(4 * first_group.astype(np.int64))
    text = pa.LargeStringArray.from_buffers(len(values), offsets, pa.py_buffer(letters))
    return text if not values.null_count else pc.if_else(values.is_valid(), text, pa.scalar(None, TEXT))
