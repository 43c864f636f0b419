"""Row filters: one boolean DuckDB expression over the columns of a row, checked without running anything.

What a filter may hold is an allow-list over DuckDB's own syntax tree: columns, constants, comparisons, casts, and
functions whose answer depends on nothing but their arguments, so that a replay decides as the first run did. What is
not on the list is refused by name. Whether the columns exist is known only with the table, in the engine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

import duckdb

from kadds.config.problems import suggestion

MAX_CHARACTERS = 10_000
_PREFIX = "SELECT 1 FROM t WHERE "
_LOCK = threading.Lock()

_ALLOWED = {
    "BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE",
}  # fmt: skip
_NAMED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "a star",
    "PARAMETER": "a parameter",
    "DEFAULT": "a default",
    "POSITIONAL_REFERENCE": "a positional reference",
}
#: Macros whose body is a pure expression; DuckDB's others read the catalog or the session.
_PURE_MACROS = {"date_add", "fmod", "ifnull", "nullif", "split_part"}
#: Functions that DuckDB calls consistent and that still look at the session, the catalog, the clock or a type's name.
_IMPURE = {
    "current_localtime", "current_localtimestamp", "index_key", "json_deserialize_sql", "json_serialize_plan",
    "json_serialize_sql", "parse_duckdb_log_message", "version", "cast_to_type", "can_cast_implicitly", "make_type",
    "create_sort_key", "invoke", "constant_or_null", "replace_type",
}  # fmt: skip


class WhereError(Exception):
    """A filter that is refused; `hint` says what to write."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def where_columns(text: str) -> frozenset[str]:
    """The columns that the filter names, as written; WhereError where it is no allowed filter.

    DuckDB compares names without regard to case.
    """
    if len(text) > MAX_CHARACTERS:
        raise WhereError(f"a filter has at most {MAX_CHARACTERS} characters")
    try:
        return _checked(text)
    except RecursionError:
        raise WhereError("a filter is nested too deeply", "write it flatter") from None


@lru_cache(maxsize=10_000)
def _checked(text: str) -> frozenset[str]:
    # Bare, it shows that no parenthesis of ours is closed early; in parentheses, that nothing follows the expression.
    _parse(f"{_PREFIX}{text}\n")
    tree = _parse(f"{_PREFIX}({text}\n)")
    if tree.get("class") == "CONSTANT" and tree["literal"]["kind"] not in ("BOOLEAN", "NULL"):
        raise WhereError("a filter is true or false, not a constant", "compare a column with it: status <> 'draft'")
    if tree.get("class") == "FUNCTION" and tree.get("function_name") == "row":
        raise WhereError("a filter is one expression, not a list", "join conditions with AND or OR")
    return frozenset(_columns(tree))


def _parse(statement: str) -> dict[str, Any]:
    if "\0" in statement:
        raise WhereError("a filter holds no zero byte")
    with _LOCK:
        (answer,) = _connection().execute("SELECT json_serialize_sql(?)", [statement]).fetchone() or ("{}",)
    parsed = json.loads(answer)
    if parsed.get("error", True):
        at = int(parsed.get("position", 0)) - len(_PREFIX)
        message = str(parsed.get("error_message", "it cannot be read"))
        raise WhereError(f"this is not a DuckDB expression: {' '.join(message.split())}", _near(at))
    node = parsed["statements"][0]["node"]
    clause = node.get("where_clause") if len(parsed["statements"]) == 1 else None
    plain = node.get("type") == "SELECT_NODE" and not node["group_expressions"] and not node["modifiers"]
    if clause is None or not plain or node.get("having") or node.get("qualify"):
        raise WhereError("a filter is one expression and no further clause", "write only what follows WHERE")
    return dict(clause)


def _near(at: int) -> str | None:
    return f"look at character {at + 1}" if at >= 0 else None


@cache
def _connection() -> duckdb.DuckDBPyConnection:
    settings: dict[str, Any] = {"enable_external_access": "false", "threads": "1", "memory_limit": "64MB"}
    return duckdb.connect(":memory:", config=settings)


@cache
def _functions() -> frozenset[str]:
    """Scalar functions all of whose forms depend on nothing but their arguments."""
    rows = (
        _connection()
        .execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' "
            "GROUP BY function_name HAVING bool_and(stability IS NOT DISTINCT FROM 'CONSISTENT')"
        )
        .fetchall()
    )
    names = {str(name) for (name,) in rows if not str(name).startswith("__internal")}
    return frozenset((names - _IMPURE) | _PURE_MACROS)


def _columns(node: Any) -> Iterator[str]:
    """Columns in a piece of the tree; refuses what is not allowed."""
    if isinstance(node, list):
        for item in node:
            yield from _columns(item)
    elif isinstance(node, Mapping):
        kind = node.get("class")
        if kind is not None:
            _check(node, str(kind))
        if kind == "COLUMN_REF":
            yield _column(node)
        for value in node.values():
            yield from _columns(value)


def _check(node: Mapping[str, Any], kind: str) -> None:
    if kind not in _ALLOWED:
        what = _NAMED.get(kind, f"`{kind.lower()}`")
        raise WhereError(f"a filter holds no {what.removeprefix('a ')}", "it is one expression over a row's columns")
    if kind == "FUNCTION":
        _check_function(node)


def _check_function(node: Mapping[str, Any]) -> None:
    name = str(node["function_name"]).lower()
    if node.get("schema") or node.get("catalog"):
        raise WhereError(f"`{name}` is written with a schema", "write a function's bare name")
    if node.get("distinct") or node.get("filter") or (node.get("order_bys") or {}).get("orders"):
        raise WhereError(f"`{name}` is used as an aggregate", "a filter looks at one row")
    with _LOCK:
        known = _functions()
        if name in known:
            return
        kinds = (
            _connection()
            .execute("SELECT DISTINCT function_type FROM duckdb_functions() WHERE function_name = ?", [name])
            .fetchall()
        )
    found = {str(kind) for (kind,) in kinds}
    if not found:
        close = suggestion(name, known)
        raise WhereError(
            f"there is no function `{name}`", close if close and close.startswith("did you mean") else None
        )
    if found & {"table", "table_macro", "pragma"} and "scalar" not in found:
        raise WhereError(f"`{name}` is a table function", "a filter looks at one row and at no file")
    if "aggregate" in found or "window" in found or name == "unnest":
        raise WhereError(f"`{name}` is an aggregate", "a filter looks at one row")
    raise WhereError(
        f"the answer of `{name}` depends on more than the row",
        "a replay must decide as the first run did: compare columns with constants",
    )


def _column(node: Mapping[str, Any]) -> str:
    names = [str(name) for name in node["column_names"]]
    if len(names) > 1:
        raise WhereError(f"`{'.'.join(names)}` has a dot", "write a column's bare name, quoted where it holds a dot")
    return names[0]
