"""PostgreSQL's text of cells, as Arrow: one decoder for the snapshot and the stream.

A column is cast at once; every value of every type that PostgreSQL writes comes out exactly. What the column's Arrow
type cannot hold (NaN in numeric(12,2), `infinity`, years outside 1 to 9999, 24:00:00, digits beyond the precision)
becomes null and is given as text beside it. Which texts those are is decided by the form of the text, in one pass.

The texts are those of a session with `connection.SESSION`: ISO dates, UTC, bytea in hex.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import AS_TEXT_TYPE
from kadds.api.errors import UnknownInputError
from kadds.api.schema import Column, Table

_DATE = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_ZONE = "[+-][0-9]{2}(?::[0-9]{2})?"


class Given(NamedTuple):
    """The cells of one column that its type cannot hold: their rows (int64, rising) and their texts (string)."""

    rows: npt.NDArray[np.int64]
    texts: pa.Array


def typed(
    column: Column, texts: pa.Array, where: Callable[[int], str] = lambda row: ""
) -> tuple[pa.Array, Given | None]:
    """`texts` (string, NULL = null; not yet known to be UTF-8) as the column's type, and what was given as text.

    UnknownInputError for bytes that are not UTF-8 and for texts that PostgreSQL does not write for such a type; it
    names the column, and the table that `where` gives for the number of the row.
    """
    kind = column.type
    if kind == _STRING:
        return _valid(column, texts, where), None
    convert = _CONVERSIONS.get(kind.id)
    try:
        return (texts.cast(kind) if convert is None else convert(texts, kind)), None
    except (pa.ArrowInvalid, ValueError):
        pass
    pattern = _pattern(kind)
    if pattern is None:
        raise _unknown(column, texts, where)
    texts = _valid(column, texts, where)
    fits = pc.match_substring_regex(texts, pattern)
    misfits = np.flatnonzero(pc.invert(fits).fill_null(False).to_numpy(zero_copy_only=False))
    fitting = pc.if_else(fits, texts, pa.scalar(None, _STRING))
    try:
        values = fitting.cast(kind) if convert is None else convert(fitting, kind)
    except (pa.ArrowInvalid, ValueError):
        raise _unknown(column, texts, where) from None
    return values, Given(misfits, texts.take(pa.array(misfits))) if len(misfits) else None


def typed_columns(
    columns: Sequence[Column], texts: Sequence[pa.Array], where: Callable[[int], str]
) -> tuple[list[pa.Array], pa.Array | None]:
    """Each column typed, and the `as_text` array of the rows (None where no cell is given as text)."""
    return gathered(typed(column, cells, where) for column, cells in zip(columns, texts, strict=True))


def gathered(columns: Iterable[tuple[pa.Array, Given | None]]) -> tuple[list[pa.Array], pa.Array | None]:
    """What `typed` gave for each column, as `typed_columns` returns it."""
    values, given = [], {}
    for number, (array, misfits) in enumerate(columns):
        values.append(array)
        if misfits is not None:
            given[number] = misfits
    return values, _as_text(given, len(values[0])) if given else None


def typed_batch(table: Table, texts: Sequence[pa.Array]) -> tuple[pa.RecordBatch, pa.Array | None]:
    """Rows of one table from the texts of its columns (see `typed`), and their `as_text`, None where there is none."""
    values, as_text = typed_columns(table.columns, texts, lambda row: table.qualified_name)
    return pa.RecordBatch.from_arrays(values, schema=table.arrow_schema), as_text


def _as_text(given: dict[int, Given], rows: int) -> pa.Array:
    places = np.concatenate([cells.rows for cells in given.values()])
    columns = np.concatenate([np.full(len(cells.rows), number, np.int16) for number, cells in given.items()])
    texts = pa.concat_arrays([cells.texts for cells in given.values()])
    order = np.argsort(places, kind="stable")
    counts = np.bincount(places, minlength=rows)
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    entries = pa.StructArray.from_arrays(
        [pa.array(columns[order]), texts.take(pa.array(order))], fields=list(AS_TEXT_TYPE.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(offsets), entries, type=AS_TEXT_TYPE, mask=pa.array(counts == 0))


# -------------------------------------------------------------------------------- what Arrow's own casts do not read

_STRING = pa.string()


def _booleans(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    values = pc.equal(texts, "t")
    if pc.any(pc.and_not(pc.not_equal(texts, "f"), values), min_count=0).as_py():
        raise ValueError("a truth is t or f")
    return values


def _bytes(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """`\\x00ff`: without the prefixes all cells are one run of hex digits, decoded at once."""
    texts = texts.view(pa.binary())
    if not pc.all(pc.starts_with(texts, b"\\x"), min_count=0).as_py():
        raise ValueError("bytea is written in hex")
    digits = pc.binary_slice(texts, 2, 2**31 - 1)  # without an end, Arrow fails for more than one cell
    validity, offsets, data = digits.buffers()
    ends = np.frombuffer(offsets, np.int32, len(digits) + 1, digits.offset * 4)
    if (ends & 1).any():
        raise ValueError("a byte has two hex digits")
    decoded = binascii.unhexlify(memoryview(data)[ends[0] : ends[-1]]) if len(digits) and data is not None else b""
    if digits.offset:
        validity = digits.is_valid().buffers()[1]
    places = pa.py_buffer(((ends - ends[0]) >> 1).astype(np.int32))
    return pa.Array.from_buffers(kind, len(digits), [validity, places, pa.py_buffer(decoded)], digits.null_count)


def _times(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Arrow reads no times of day; on a day they are timestamps, and 24:00:00 is refused as it must be."""
    return pc.binary_join_element_wise("1970-01-01", texts, " ").cast(pa.timestamp("us")).cast(kind)


_CONVERSIONS: dict[int, Callable[[pa.Array, pa.DataType], pa.Array]] = {
    pa.bool_().id: _booleans,
    pa.binary().id: _bytes,
    pa.time64("us").id: _times,
}


def _pattern(kind: pa.DataType) -> str | None:
    """The form of the texts that `kind` holds, None where it holds every value of its type in PostgreSQL."""
    if pa.types.is_decimal(kind):
        whole = kind.precision - kind.scale
        digits = f"(?:0|[1-9][0-9]{{0,{whole - 1}}})" if whole else "0"
        return rf"^-?{digits}(?:\.[0-9]{{0,{kind.scale}}}0*)?$"
    if pa.types.is_date(kind):
        return f"^{_DATE}$"
    if pa.types.is_time(kind):
        return f"^{_TIME}$"
    if pa.types.is_timestamp(kind):
        return f"^{_DATE} {_TIME}{_ZONE if kind.tz else ''}$"
    return None


def _valid(column: Column, texts: pa.Array, where: Callable[[int], str]) -> pa.Array:
    """`texts` when they are UTF-8: a database in SQL_ASCII holds, and sends, anything."""
    try:
        texts.validate(full=True)
        return texts
    except pa.ArrowInvalid:
        pass
    for row, cell in enumerate(texts.view(pa.binary()).to_pylist()):
        try:
            (cell or b"").decode()
        except UnicodeDecodeError:
            raise UnknownInputError(
                f"column {column.name} has a text that is not UTF-8: {_shown(cell)}",
                where=where(row) or None,
                hint="correct the row at the source (its database's encoding, SQL_ASCII, checks nothing), "
                "or declare the column as bytea",
            ) from None
    raise AssertionError("Arrow and Python differ on what UTF-8 is")


def _unknown(column: Column, texts: pa.Array, where: Callable[[int], str]) -> UnknownInputError:
    """The error that shows the first text which stands alone for what went wrong."""
    binary = texts.view(pa.binary())
    convert: Any = _CONVERSIONS.get(column.type.id) or (lambda cells, kind: cells.cast(kind))
    for row in range(len(texts)):
        try:
            convert(texts[row : row + 1], column.type)
        except (pa.ArrowInvalid, ValueError):
            return UnknownInputError(
                f"column {column.name} ({column.declared or column.type}) has {_shown(binary[row].as_py())}, "
                f"which is no text of that type",
                where=where(row) or None,
                hint="the session or the column is not as it was discovered: restart the source",
            )
    raise AssertionError("a column that cannot be cast has a cell that cannot be cast")


def _shown(cell: bytes) -> str:
    return repr(cell if len(cell) <= 40 else cell[:40] + b"...")
