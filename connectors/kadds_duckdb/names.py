"""Names in DuckDB: how they are quoted, and which table a target means.

Every identifier that reaches SQL has gone through `quoted`; there is no way to say that one is quoted already. DuckDB
does not tell names apart by case, the systems that changes come from do: `same_to_duckdb` finds what would collide.
"""

from __future__ import annotations

from dataclasses import dataclass

from kadds.api.connector import Target
from kadds.api.errors import ConfigurationError

OWN_PREFIX = "_kadds_"  # our tables, and the history columns


@dataclass(frozen=True)
class TableName:
    """A table: its schema and its name, both as written."""

    schema: str
    table: str

    @property
    def sql(self) -> str:
        """The quoted name, ready for SQL."""
        return f"{quoted(self.schema)}.{quoted(self.table)}"

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


def quoted(identifier: str) -> str:
    """`identifier` as SQL; ConfigurationError for one that no SQL can name."""
    if not identifier or "\0" in identifier:
        raise ConfigurationError(
            f"{identifier!r} cannot be a name in DuckDB", hint="give the target another name with `target:`"
        )
    return '"' + identifier.replace('"', '""') + '"'


def same_to_duckdb(one: str, other: str) -> bool:
    """Whether DuckDB takes both for one name: it folds the letters A to Z, and no others."""
    return folded(one) == folded(other)


def folded(name: str) -> str:
    """`name` as DuckDB compares it."""
    return "".join(chr(ord(letter) + 32) if "A" <= letter <= "Z" else letter for letter in name)


def table_name(target: Target, default_schema: str) -> TableName:
    """The table that `target` means: `sales.orders` is orders in schema sales, `orders` is in the default schema.

    A name that is the source's own is taken apart where the source does, so that dots inside it stay. Raises
    ConfigurationError for our own tables and for what cannot be a name.
    """
    if target.name == target.table.qualified_name:
        schema, table = target.table.schema or default_schema, target.table.name
    else:
        first, dot, rest = target.name.partition(".")
        schema, table = (first, rest) if dot else (default_schema, first)
    quoted(schema), quoted(table)
    if folded(table).startswith(OWN_PREFIX):
        raise ConfigurationError(
            f"target {target.name} would stand among the tables in which Kadds keeps its cursors",
            hint="give the target another name with `target:`",
        )
    return TableName(schema, table)
