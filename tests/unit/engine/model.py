"""What steps do to a table, row by row: the plain model that the columnar code is compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from kadds.api.connector import Delete, Rekey, Step, Truncate, Upsert
from kadds.engine.cells import missing_cells

State = dict[tuple[Any, ...], tuple[Any, ...]]


def keys_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """The rows of a batch as tuples."""
    return list(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def apply(state: State, steps: Iterable[Step], key: tuple[int, ...]) -> State:
    """The state after the steps; AssertionError where a sink would refuse."""
    state = dict(state)
    for step in steps:
        match step:
            case Truncate():
                state.clear()
            case Delete(keys=keys):
                for row in keys_of(keys):
                    state.pop(row, None)
            case Rekey(old=old, new=new):
                pairs = list(zip(keys_of(old), keys_of(new), strict=True))
                moved = {after: state.pop(before) for before, after in pairs if before in state}
                for after, row in moved.items():
                    assert after not in state, f"{after} is taken"
                    cells = list(row)
                    for place, part in zip(key, after, strict=True):
                        cells[place] = part
                    state[after] = tuple(cells)
            case Upsert(rows=batch, not_given=not_given, as_text=as_text):
                missing = missing_cells(not_given, batch.num_columns)
                seen = set()
                for number, row in enumerate(keys_of(batch)):
                    cells = list(row)
                    for entry in (as_text[number].as_py() or ()) if as_text is not None else ():
                        assert cells[entry["column"]] is None
                        cells[entry["column"]] = "text:" + entry["text"]
                    where = tuple(cells[place] for place in key)
                    assert where not in seen, f"{where} stands twice"
                    seen.add(where)
                    if missing is not None and missing[number].any():
                        assert where in state, f"{where} is not there and not whole"
                        cells = [state[where][n] if missing[number, n] else cell for n, cell in enumerate(cells)]
                    state[where] = tuple(cells)
            case _:
                raise AssertionError(step)
    return state
