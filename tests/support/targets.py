"""What stands in the sinks, as their owners read it: tables of a DuckDB file, files that a manifest lists.

Readers of their own, from the formats' descriptions and not by Kadds' code, so that they can judge it.
"""

import base64
import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_DUCKDB_DIGITS_MAX = 38
_HISTORY = {"_kadds_op": pa.string(), "_kadds_offset": pa.int64(), "_kadds_image": pa.string()}


def duckdb_tables(path: Path, *names: tuple[str, str]) -> Iterator[pa.Table]:
    """The tables (schema, name) of a DuckDB file, without what is stored of Kadds' own."""
    with duckdb.connect(str(path), read_only=True, config={"threads": 1}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for schema, name in names:
            quoted = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
            yield connection.sql(f"SELECT * FROM {quoted}").to_arrow_table()


def duckdb_table(path: Path, name: str, schema: str = "main") -> pa.Table:
    """One table of a DuckDB file."""
    return next(duckdb_tables(path, (schema, name)))


def duckdb_table_names(path: Path) -> set[str]:
    """`schema.table` of every table in it, Kadds' own left out."""
    with duckdb.connect(str(path), read_only=True) as connection:
        rows = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
    return {f"{schema}.{name}" for schema, name in rows if not name.startswith("_kadds_")}


def as_duckdb_holds(table: pa.Table) -> pa.Table:
    """The table with the columns that DuckDB has no type for as their text: decimals of more than 38 digits."""
    for place, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type) and field.type.precision > _DUCKDB_DIGITS_MAX:
            texts = [
                None if value is None else f"{value:.{field.type.scale}f}" for value in table[field.name].to_pylist()
            ]
            table = table.set_column(place, field.name, pa.array(texts, pa.string()))
    return table


class Lake:
    """A folder of the files sink."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[dict[str, Any]]:
        """What the manifests say of each complete file, in the order of deliveries."""
        found: list[dict[str, Any]] = []
        for part in sorted(self.folder.glob("_manifest/*/*.jsonl")):
            for line in part.read_bytes().splitlines():
                plain = json.loads(line)
                found += plain.get("files", []) if plain["kind"] == "delivery" else []
        return found

    def faults(self) -> list[str]:
        """Where files and manifests disagree: what a reader by manifest and one by `*` would see differently."""
        listed = {entry["path"]: entry for entry in self.entries()}
        faults = [f"{path} is listed {times} times" for path, times in _counts(self.entries()).items() if times > 1]
        there = {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_file() and not path.relative_to(self.folder).parts[0].startswith("_")
        }
        data = {path for path in there if not Path(path).name.startswith("_")}
        faults += [f"{path} is there and in no manifest" for path in sorted(data - set(listed))]
        faults += [f"{path} is in a manifest and not there" for path in sorted(set(listed) - data)]
        for path in sorted(data & set(listed)):
            found = hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
            if found != listed[path]["sha256"]:
                faults.append(f"{path} is not as its manifest says")
        return faults

    def history(self, target: str, schema: pa.Schema) -> pa.Table:
        """All rows of a target (as the manifest calls it), in the columns of `schema` and those of the history."""
        wanted = pa.schema([*schema, *(pa.field(name, kind) for name, kind in _HISTORY.items())])
        paths = [self.folder / entry["path"] for entry in self.entries() if entry["target"] == target]
        tables = [_read(path, wanted) for path in paths if path.exists()]  # `faults` names those that are not there
        return pa.concat_tables([wanted.empty_table(), *tables])


def _counts(entries: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["path"]] = counts.get(entry["path"], 0) + 1
    return counts


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path, partitioning=None).select(schema.names)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    columns = [pa.array([_from_json(row[field.name], field.type) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _from_json(value: Any, kind: pa.DataType) -> Any:
    """A cell of JSON lines as what its column holds."""
    if value is None:
        return None
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_binary(kind):
        return base64.b64decode(value)
    if pa.types.is_date(kind):
        return dt.date.fromisoformat(value)
    if pa.types.is_timestamp(kind):
        return dt.datetime.fromisoformat(value)
    return value


def rows_of(table: pa.Table, **equal: Any) -> pa.Table:
    """The rows in which these columns have these values, None being NULL."""
    for name, value in equal.items():
        table = table.filter(table[name].is_null() if value is None else pc.equal(table[name], value))
    return table
