"""PostgreSQL's text of a few cells of the commonest types as Arrow, without a call into Arrow (see `kadds.api.arrays`).

It reads the plain forms only, and gives the same as `cells.typed`, which takes whatever is not plain.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import pyarrow as pa

from kadds.api.arrays import validity, variable

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]{0,18})")
_DATE = rb"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIMESTAMP = _DATE + rb" [0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

_Value = Callable[[bytes], bytes]  # the text as the bytes of a value in memory


def typed_few(kind: pa.DataType, cells: Sequence[bytes | None]) -> pa.Array | None:
    """`cells` (None: NULL) as the type, None where one of them is not plain or the type has no plain form here."""
    if kind == pa.string():
        return _texts(cells)
    found = _form(kind)
    if found is None:
        return None
    pattern, value, width = found
    absent = bytes(width)
    parts = []
    for cell in cells:
        if cell is None:
            parts.append(absent)
        elif pattern.fullmatch(cell) is None:
            return None
        else:
            try:
                parts.append(value(cell))
            except (ValueError, OverflowError):
                return None
    return pa.Array.from_buffers(kind, len(cells), [validity(cells), pa.py_buffer(b"".join(parts))])


def _texts(cells: Sequence[bytes | None]) -> pa.Array | None:
    try:
        for cell in cells:
            if cell is not None:
                cell.decode()
    except UnicodeDecodeError:
        return None
    return variable(pa.string(), cells)


@lru_cache(maxsize=256)
def _form(kind: pa.DataType) -> tuple[re.Pattern[bytes], _Value, int] | None:
    """The plain form of a text, what makes a value of it, and how many bytes a value has."""
    if pa.types.is_signed_integer(kind):
        width = kind.bit_width // 8
        return _INTEGER, lambda text: int(text).to_bytes(width, "little", signed=True), width
    if pa.types.is_decimal128(kind) and 0 < kind.scale < kind.precision:
        return _decimal_form(kind.precision - kind.scale, kind.scale)
    if kind == pa.timestamp("us"):
        return re.compile(_TIMESTAMP), lambda text: _microseconds(_moment(text) - _EPOCH), 8
    if kind == pa.timestamp("us", "UTC"):
        return re.compile(_TIMESTAMP + rb"\+00"), lambda text: _microseconds(_moment(text) - _EPOCH), 8
    if kind == pa.date32():
        return re.compile(_DATE), lambda text: (_moment(text) - _EPOCH).days.to_bytes(4, "little", signed=True), 4
    return None


def _decimal_form(whole: int, scale: int) -> tuple[re.Pattern[bytes], _Value, int]:
    """With exactly the declared digits behind the point, which is how PostgreSQL writes numeric(p, s)."""
    pattern = re.compile(rb"-?(?:0|[1-9][0-9]{0,%d})\.[0-9]{%d}" % (whole - 1, scale))
    return pattern, lambda text: int(text.replace(b".", b"")).to_bytes(16, "little", signed=True), 16


def _moment(text: bytes) -> dt.datetime:
    return dt.datetime.fromisoformat(text.decode()).replace(tzinfo=dt.UTC)


def _microseconds(since: dt.timedelta) -> bytes:
    return (since // _MICROSECOND).to_bytes(8, "little", signed=True)
