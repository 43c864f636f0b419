"""History: every change as a row of its own, behind the table's columns those of `kadds.api.change.HISTORY`.

Nothing is merged and nothing left out: both images of an update are rows, a truncate is a row whose cells are all not
given and which has no image. `_kadds_not_given` is NULL where every cell is given.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from kadds.api.change import HISTORY, Op
from kadds.api.connector import Append
from kadds.engine.cells import Bools, text_array
from kadds.engine.rows import Rows

_LETTERS = pa.array([op.letter for op in Op])
_LETTER_OF = np.full(256, -1, np.int8)
_LETTER_OF[[int(op) for op in Op]] = np.arange(len(Op))
_IMAGES = pa.array(["after", "before"])


def history(rows: Rows) -> Append:
    """The rows of history of changes after their contract; `rows.facts` must be there."""
    assert rows.facts is not None, "rows for a history are made with facts"  # noqa: S101
    facts = {name: rows.facts.column(name) for name in rows.facts.schema.names}
    columns = {
        "_kadds_op": _LETTERS.take(pa.array(_LETTER_OF[rows.ops])),
        "_kadds_offset": pa.array(rows.offsets),
        "_kadds_image": _images(rows),
        "_kadds_not_given": _names_not_given(rows.missing, rows),
        **facts,
    }
    arrays = [*rows.values.columns, *(columns[field.name] for field in HISTORY)]
    schema = pa.schema([*rows.values.schema, *HISTORY])
    return Append(pa.RecordBatch.from_arrays(arrays, schema=schema), text_array(rows.texts, len(rows)))


def _images(rows: Rows) -> pa.Array:
    return _IMAGES.take(pa.array(rows.before.astype(np.int8), mask=rows.ops == Op.TRUNCATE))


def _names_not_given(missing: Bools | None, rows: Rows) -> pa.Array:
    kind = HISTORY.field("_kadds_not_given").type
    if missing is None:
        return pa.nulls(len(rows), kind)
    counts = missing.sum(axis=1)
    offsets = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    names = pa.array(rows.values.schema.names, pa.string()).take(pa.array(np.nonzero(missing)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names, type=kind, mask=pa.array(counts == 0))
