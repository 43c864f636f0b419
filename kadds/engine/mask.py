"""Masks: what a contract puts in the place of a value that its reader must not see.

* `hash`: HMAC-SHA-256 of the value's text under the tenant's `mask_key`, in hex. Equal values give equal hashes, in
  every table and batch, so that a masked key is still a key and masked columns still join. NULL stays NULL. The text
  of a value is Arrow's own (`12.50`, `true`, `2020-01-01 00:00:00.000000Z`), of text and bytes the bytes themselves.
* `redact`: NULL, whatever the value, in the column's own type. NULL and not a fixed text, because it fits every type
  and no reader takes it for a value.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum

import pyarrow as pa

from kadds.api.schema import Column, decimal_text


class Mask(StrEnum):
    """The masks of this version."""

    HASH = "hash"
    REDACT = "redact"


def masked_column(column: Column, mask: Mask) -> Column:
    """The column as the sink gets it: text for a hash, nullable for what is redacted."""
    if mask is Mask.HASH:
        return replace(column, type=pa.string(), declared="", generated=False)
    return replace(column, nullable=True, generated=False)


def masked_values(values: pa.Array, mask: Mask, key: bytes | None) -> pa.Array:
    """The values behind the mask; hashes are computed once for each different value."""
    if mask is Mask.REDACT:
        return pa.nulls(len(values), values.type)
    assert key is not None, "a contract with a hash is bound with a key"  # noqa: S101
    encoded = _plain(values).dictionary_encode()
    hashes = pa.array(_hashes(key, encoded.dictionary.to_pylist()), pa.string())
    return hashes.take(encoded.indices)


def masked_texts(texts: pa.Array, key: bytes | None) -> pa.Array:
    """The hashes of values that were given as text."""
    return masked_values(texts, Mask.HASH, key)


def key_fingerprint(key: bytes) -> str:
    """Tells one mask key from another without telling the key; kept in plans."""
    return hmac.digest(key, b"kadds: which mask key", hashlib.sha256).hex()[:16]


def _plain(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return values
    return decimal_text(values) if pa.types.is_decimal(kind) else values.cast(pa.string())


def _hashes(key: bytes, values: Iterable[str | bytes | None]) -> Iterable[str | None]:
    for value in values:
        if value is None:
            yield None
        else:
            data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
            yield hmac.digest(key, data, hashlib.sha256).hex()
