"""Changes as text: exact values, cells given as text and cells not given visible.

Columns are turned into texts as columns; only the last step, a line a change, is per row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import Op, given_mask, text_cells
from kadds.api.schema import Table, decimal_text
from kadds.app import Part

_OPS = {int(op): op.letter for op in Op}


@dataclass(frozen=True)
class Line:
    """A change or a control record as `--json` prints it, and its offset for sorting."""

    offset: int
    plain: Mapping[str, Any]


def lines(parts: Iterable[Part | None]) -> Iterator[Line | str]:
    """The lines of an answer in offset order; a text is the cursor behind all lines before it."""
    group: list[Line] = []
    for part in parts:
        if part is None:
            continue
        match part.head["kind"]:
            case "changes":
                group += _changes(part)
            case "controls":
                group += [
                    Line(plain["offset"], {"type": "control", **_without_columns(plain)})
                    for plain in part.head["controls"]
                ]
            case "cursor":
                yield from sorted(group, key=lambda line: line.offset)
                group = []
                yield str(part.head["cursor"])


def _without_columns(control: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in control.items() if key != "table"}
    if control["table"] is not None:
        plain["columns"] = {column["name"]: column["type"] for column in control["table"]["columns"]}
    return plain


def _changes(part: Part) -> Iterator[Line]:
    rows = part.rows
    assert rows is not None  # noqa: S101 - a part of changes has them
    table = Table.from_json(part.head["table"])
    count = rows.num_rows
    cells = _cells(table, rows, count)
    committed = _times(rows.column("committed_at"))
    offsets, ops, before = (rows.column(name).to_pylist() for name in ("offset", "op", "before"))
    xids, positions = (rows.column(name).to_pylist() for name in ("xid", "position"))
    for at in range(count):
        given = {name: cell.values[at] for name, cell in cells.items() if cell.given is None or cell.given[at]}
        plain: dict[str, Any] = {
            "type": "change",
            "offset": offsets[at],
            "op": _OPS[ops[at]],
            "image": "before" if before[at] else "after",
            "stream": part.head["stream"],
            "key": {name: given.get(name) for name in table.key},
            "committed_at": committed[at],
            "xid": xids[at],
            "position": positions[at],
            "values": given,
            "as_text": [name for name, cell in cells.items() if at in cell.texts],
            "not_given": [name for name in cells if name not in given],
        }
        yield Line(offsets[at], plain)


@dataclass(frozen=True)
class _Cells:
    """One column: JSON-able values, which rows give it (None: all), and which of them as text."""

    values: list[Any]
    given: Any
    texts: frozenset[int]


def _cells(table: Table, rows: pa.RecordBatch, count: int) -> dict[str, _Cells]:
    columns = rows.column("values").flatten()
    names = rows.schema.names
    not_given = rows.column("not_given") if "not_given" in names else None
    texts = text_cells(rows.column("as_text")) if "as_text" in names else {}
    found = {}
    for number, column in enumerate(table.columns):
        values = json_values(columns[number])
        places, given_texts = texts.get(number, ((), pa.array([], pa.string())))
        for place, text in zip(places, given_texts.to_pylist(), strict=True):
            values[int(place)] = text
        mask = None if not_given is None else given_mask(not_given, number, count)
        found[column.name] = _Cells(values, mask, frozenset(int(place) for place in places))
    return found


def json_values(column: pa.Array) -> list[Any]:
    """Exact JSON forms of a column's values: see `kadds log read` in docs/CLI.md."""
    kind = column.type
    if pa.types.is_decimal(kind):
        return list(decimal_text(column).to_pylist())
    if pa.types.is_temporal(kind):
        return _times(column)
    if pa.types.is_binary(kind):
        return [None if value is None else value.hex() for value in column.to_pylist()]
    if pa.types.is_floating(kind):
        return [_number(value) for value in column.to_pylist()]
    return list(column.to_pylist())


def _number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _times(column: pa.Array) -> list[str | None]:
    texts = column.cast(pa.string())
    if pa.types.is_timestamp(column.type):
        texts = pc.replace_substring(texts, " ", "T")
    return list(texts.to_pylist())


# ------------------------------------------------------------------------------------------------------- for people


def person_line(line: Line) -> str:
    """A line for a person: offset, op, stream, key, commit time, values."""
    plain = line.plain
    stream = str(plain["stream"]).removeprefix("default/")
    if plain["type"] == "control":
        facts = " ".join(f"{name}={value}" for name, value in plain["facts"].items())
        return f"{plain['offset']:>10}  {click.style(plain['control'], dim=True)}  {stream}  {facts}".rstrip()
    op = "u-" if plain["op"] == "u" and plain["image"] == "before" else f"{plain['op']} "
    key = " ".join(f"{name}={_shown(value)}" for name, value in plain["key"].items())
    values = [
        f"{name}={'text ' if name in plain['as_text'] else ''}{_shown(value)}"
        for name, value in plain["values"].items()
    ]
    values += [f"{name}=<not given>" for name in plain["not_given"]]
    when = plain["committed_at"] or "-"
    return f"{plain['offset']:>10}  {op}  {stream}  {key or '-'}  {when}  {' '.join(values)}"


def _shown(value: Any) -> str:
    return "NULL" if value is None else json.dumps(value, ensure_ascii=False)
