"""Rows on their way to the server: as the text format of COPY, and as array literals that a statement unnests.

docs/decisions/0006-postgres-sink.md has the figures of the ways that were tried. Both take columns of text;
`needs_care` says which of them may hold characters that mean something to the format.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from kadds_postgres.sink_text import in_quotes, joined

#: What COPY's text format takes for itself, the backslash first.
_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))


def copy_text(columns: Sequence[pa.Array], needs_care: Sequence[bool]) -> memoryview:
    """Rows in the text format: a tab between the cells, a line feed behind each row, `\\N` for NULL."""
    cells = [_escaped(texts) if care else texts for texts, care in zip(columns, needs_care, strict=True)]
    lines = pc.binary_join_element_wise(*cells, "\t", null_handling="replace", null_replacement="\\N")
    ends = pa.array([""], lines.type)
    return joined(pa.concat_arrays([lines, ends]), "\n")


def _escaped(texts: pa.Array) -> pa.Array:
    for special, escape in _ESCAPES:
        if pc.any(pc.match_substring(texts, special)).as_py():
            texts = pc.replace_substring(texts, special, escape)
    return texts


def array_literal(texts: pa.Array, needs_care: bool) -> bytes:
    """A column as one array of PostgreSQL, in its text form."""
    elements = in_quotes(texts) if needs_care else texts
    return b"".join([b"{", joined(pc.fill_null(elements, "NULL"), ","), b"}"])
