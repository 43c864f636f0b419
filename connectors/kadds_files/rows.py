"""Rows on their way into a file: many steps of one target as one stream of batches, in either format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kadds.api.change import HISTORY, text_cells
from kadds.api.connector import Append, Target
from kadds.api.errors import ConfigurationError, DataError, UnknownInputError
from kadds_files.jsonl import json_lines
from kadds_files.tree import HashedFile

_ROW_GROUP_ROWS = 1 << 17


@dataclass(frozen=True, eq=False)
class FileRows:
    """What one file will hold; the steps have been checked against the target."""

    target: Target
    steps: tuple[Append, ...]

    @classmethod
    def of(cls, target: Target, steps: Sequence[object]) -> FileRows:
        """The rows of `steps`; an error by name for a step that is no history or has other columns."""
        wanted = schema_of(target)
        for step in steps:
            if not isinstance(step, Append):
                raise ConfigurationError(
                    f"target {target.name} gets a {type(step).__name__}", hint="files hold history: use mode `append`"
                )
            if step.rows.schema.names != wanted.names or step.rows.schema.types != wanted.types:
                raise UnknownInputError(f"rows have {step.rows.schema.to_string()}, the target {wanted.to_string()}")
        return cls(target, tuple(step for step in steps if isinstance(step, Append) and step.rows.num_rows))

    @property
    def rows(self) -> int:
        """How many rows the file will have."""
        return sum(step.rows.num_rows for step in self.steps)

    def writer(self, suffix: str, compression: str | None) -> Callable[[HashedFile], object]:
        """What fills the file, by the suffix of its name; DataError for a value that cannot stand in it."""
        if suffix == ".parquet":
            batches = [_for_parquet(_with_texts(self.target, step)) for step in self.steps]
            return lambda file: _write_parquet(file, batches, compression or "zstd")
        return lambda file: _write_lines(file, self._lines(), suffix)

    def _lines(self) -> Iterator[pa.Buffer]:
        for step in self.steps:
            yield from json_lines(self.target, step)


def schema_of(target: Target) -> pa.Schema:
    """The columns of a file: the target's, then those of the history."""
    return pa.schema([*target.table.arrow_schema, *HISTORY])


def _with_texts(target: Target, step: Append) -> pa.RecordBatch:
    """The step's rows with texts in columns of text; Parquet's other columns have no room for one."""
    rows = step.rows
    for number, (places, texts) in text_cells(step.as_text).items():
        column = target.table.columns[number]
        if column.type != pa.string():
            raise DataError(
                f"column {column.name} of target {target.name} is {column.type} and cannot hold {texts[0].as_py()!r}",
                hint="`format: jsonl` keeps such values as text; or leave the column out of the contract",
            )
        rows = rows.set_column(number, rows.schema.field(number), with_texts(rows.column(number), places, texts))
    return rows


def _for_parquet(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Decimals whose scale Parquet does not know (below 0, or above the precision) in a wider type, value by value."""
    for number, field in enumerate(rows.schema):
        kind = field.type
        if pa.types.is_decimal(kind) and not 0 <= kind.scale <= kind.precision:
            digits = max(kind.precision + max(-kind.scale, 0), kind.scale)
            wider = (pa.decimal128 if digits <= 38 else pa.decimal256)(digits, max(kind.scale, 0))
            rows = rows.set_column(number, field.with_type(wider), rows.column(number).cast(wider))
    return rows


def with_texts(values: pa.Array, places: np.ndarray[tuple[int], np.dtype[np.int64]], texts: pa.Array) -> pa.Array:
    """`values`, a column of text, with `texts` at `places`."""
    indexes = np.arange(len(values))
    indexes[places] = len(values) + np.arange(len(places))
    return pa.concat_arrays([values, texts]).take(pa.array(indexes))


def _write_parquet(file: HashedFile, batches: Sequence[pa.RecordBatch], compression: str) -> None:
    with pq.ParquetWriter(
        file, batches[0].schema, compression=compression, write_page_checksum=True, version="2.6"
    ) as writer:
        writer.write_table(pa.Table.from_batches(batches), row_group_size=_ROW_GROUP_ROWS)


def _write_lines(file: HashedFile, lines: Iterator[pa.Buffer], suffix: str) -> None:
    codec = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}.get(suffix)
    if codec is None:
        for part in lines:
            file.write(part)
        return
    with pa.CompressedOutputStream(pa.PythonFile(file, "w"), codec) as stream:
        for part in lines:
            stream.write(part)
