"""Names in PostgreSQL: the one function that quotes them, their length, and which table a target means.

Every identifier that reaches SQL has gone through `quoted`; there is no way to say that one is quoted already.
"""

from __future__ import annotations

from dataclasses import dataclass

from kadds.api.connector import Target
from kadds.api.errors import ConfigurationError

LONGEST_NAME_BYTES = 63  # NAMEDATALEN - 1; the server cuts longer ones off, so that two names could become one


@dataclass(frozen=True)
class TableName:
    """A table: its schema and its name, both as written."""

    schema: str
    table: str

    @property
    def sql(self) -> str:
        """The quoted name, ready for SQL."""
        return quoted(self.schema, self.table)

    def __str__(self) -> str:
        return f"{self.schema}.{self.table}"


def quoted(*identifiers: str) -> str:
    """`schema.table` as SQL; ConfigurationError for a name that the server would not keep as it is."""
    return ".".join(_quoted(identifier) for identifier in identifiers)


def _quoted(identifier: str) -> str:
    if not identifier or "\0" in identifier or len(identifier.encode()) > LONGEST_NAME_BYTES:
        raise ConfigurationError(
            f"{identifier!r} cannot be a name in PostgreSQL",
            hint=f"names have 1 to {LONGEST_NAME_BYTES} bytes; give the target another name with `target:`",
        )
    return '"' + identifier.replace('"', '""') + '"'


def table_name(target: Target, default_schema: str, state_schema: str) -> TableName:
    """The table that `target` means: `sales.orders` is orders in schema sales, `orders` is in the default schema.

    A name that is the source's own is taken apart where the source does, so that dots inside it stay. Raises
    ConfigurationError for what cannot be a name, and for Kadds' own schema.
    """
    if target.name == target.table.qualified_name:
        schema, table = target.table.schema or default_schema, target.table.name
    else:
        first, dot, rest = target.name.partition(".")
        schema, table = (first, rest) if dot else (default_schema, first)
    quoted(schema, table)
    if schema == state_schema:
        raise ConfigurationError(
            f"target {target.name} would stand among the tables in which Kadds keeps its cursors",
            hint="give the target another name with `target:`, or set `state_schema`",
        )
    return TableName(schema, table)
