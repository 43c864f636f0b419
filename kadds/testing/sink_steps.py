"""Random steps for a merging target, and the simple model of what they leave; the suite of sinks compares the two."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import strategies as st

from kadds.api.change import NOT_GIVEN_TYPE, not_given_bitmap
from kadds.api.connector import Delete, Event, Rekey, Step, Target, Truncate, Upsert
from kadds.testing.sink_values import Row, keys_of, rows_of


@st.composite
def random_steps(draw: st.DrawFn, target: Target, model: dict[int, Row], events: set[Event]) -> list[list[Step]]:
    """Deliveries of steps made from operations on few keys, at most 8 on each; `model` becomes what they leave."""
    letters = "cud" + "n" * (Event.NOT_GIVEN in events) + "k" * (Event.KEY_CHANGE in events)
    keys = range(1, 5)
    todo = {key: list(draw(st.text(letters, max_size=8))) for key in keys}
    deliveries: list[list[Step]] = [[]]
    number = 0
    while any(todo.values()):
        if deliveries[-1] and draw(st.integers(0, 3)) == 0:
            deliveries.append([])
        if Event.TRUNCATE in events and draw(st.integers(0, 30)) == 0:
            model.clear()
            deliveries[-1].append(Truncate())
        chosen = draw(st.lists(st.sampled_from([key for key in keys if todo[key]]), min_size=1, unique=True))
        letter = todo[chosen[0]][0]
        chosen = [key for key in chosen if todo[key] and todo[key][0] == letter]
        for key in chosen:
            todo[key].pop(0)
        number += 1
        if step := _step(target, model, letter, chosen, number):
            deliveries[-1].append(step)
    return deliveries


def _step(target: Target, model: dict[int, Row], letter: str, keys: Sequence[int], number: int) -> Step | None:
    """One step over several keys, and what it does to the model; None where none of the keys can take it."""
    if letter == "n":
        keys = [key for key in keys if key in model]
    elif letter == "k":
        keys = [key for key in keys if key in model and key + 10 * number not in model]
    if not keys:
        return None
    rows: list[Row] = [(key, "p", number, f"note {number}") for key in keys]
    match letter:
        case "d":
            for key in keys:
                model.pop(key, None)
            return Delete(keys_of(target, *rows))
        case "k":
            new: list[Row] = [(key + 10 * number, "p", None, None) for key in keys]
            for old, row in zip(rows, new, strict=True):
                model[row[0]] = (row[0], *model.pop(old[0])[1:])
            return Rekey(keys_of(target, *rows), keys_of(target, *new))
        case "n":
            for row in rows:
                model[row[0]] = (row[0], "p", model[row[0]][2], row[3])
            missing = pa.array([not_given_bitmap([2], 4)] * len(rows), NOT_GIVEN_TYPE)
            return Upsert(rows_of(target, rows), missing)
    for row in rows:
        model[row[0]] = row
    return Upsert(rows_of(target, rows))
