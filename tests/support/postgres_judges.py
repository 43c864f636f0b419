"""The judges over PostgreSQL: is a target its source, does the log hold each transaction, does a history replay.

They ask PostgreSQL itself: rows are compared as its text by EXCEPT ALL in both directions, and the order of commits is
that of a replication slot of the judge's own. Each returns what is wrong in words, an empty list where all is well;
`tests/acceptance/test_postgres_judges.py` shows them failing.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from kadds.api.change import Op
from kadds.log.log import Log
from tests.support.postgres_tables import COMMITTED

_SHOWN = 3
JUDGE = "judge"  # the slot and the publication by which the judge knows the order of commits
Row = dict[str, str | None]


def name_of(table: str) -> sql.Composed:
    """`schema.table`, or a bare name, quoted."""
    return sql.SQL(".").join(map(sql.Identifier, table.split(".")))


# -------------------------------------------------------------------------------------------------------------- states


def differences(
    source_url: str, target_url: str, table: str, target: str | None = None, *, columns: Sequence[str] | None = None
) -> list[str]:
    """What tells a table of the target from that of the source: columns, and rows as a multiset of texts."""
    target = target or table
    with psycopg.connect(source_url) as source, psycopg.connect(target_url) as other:
        chosen = list(columns or columns_of(source, table))
        if missing := sorted(set(chosen) - set(columns_of(other, target))):
            return [f"{target} has no columns {', '.join(missing)}"]
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in chosen)
        rows = sql.SQL("SELECT {} FROM {}")
        other.execute(
            sql.SQL("CREATE TEMPORARY TABLE _expected ({}) ON COMMIT DROP").format(
                sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in chosen)
            )
        )
        with source.cursor() as reading, other.cursor() as writing:
            out = sql.SQL("COPY ({}) TO STDOUT").format(rows.format(texts, name_of(table)))
            with reading.copy(out) as given, writing.copy(sql.SQL("COPY _expected FROM STDIN")) as taken:
                for block in given:
                    taken.write(block)
        expected = sql.SQL("SELECT * FROM _expected")
        actual = rows.format(texts, name_of(target))
        found = []
        for what, one, minus in (
            ("rows of the source are missing", expected, actual),
            ("rows are not in the source", actual, expected),
        ):
            left = other.execute(sql.SQL("({}) EXCEPT ALL ({})").format(one, minus)).fetchall()
            found += told(f"{what} ({target})", [tuple(_short(cell) for cell in row) for row in left])
        return found


def columns_of(connection: psycopg.Connection[Any], table: str) -> list[str]:
    """The names of a table's columns, in its order."""
    found = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped "
        "ORDER BY attnum",
        [name_of(table).as_string(connection)],
    )
    return [str(name) for (name,) in found]


# ----------------------------------------------------------------------------------------------------------- the log


def watch_commits(source_url: str) -> None:
    """From now on the order of the writers' commits is known to the judge; before the writers begin."""
    with psycopg.connect(source_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(JUDGE), sql.Identifier(COMMITTED))
        )
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [_slot_of(source_url)])


def commits(source_url: str) -> list[str]:
    """The xids of the writers' transactions since `watch_commits`, in the order in which they committed."""
    with psycopg.connect(source_url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT xid::text FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, "
            "'proto_version', '1', 'publication_names', %s) WHERE get_byte(data, 0) = ascii('I')",
            [_slot_of(source_url), JUDGE],
        )
        return [str(xid) for (xid,) in found]


def _slot_of(source_url: str) -> str:
    return f"{JUDGE}_{psycopg.conninfo.conninfo_to_dict(source_url)['dbname']}"


@dataclass
class Logged:
    """What a log holds of the changes of one source."""

    order: list[str] = field(default_factory=list)  # xids of the stream's transactions, as they stand
    counts: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)  # xid → (table, op) → changes
    offsets: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # table → offsets of its rows
    snapshotted: Counter[str] = field(default_factory=Counter)  # xids of the writers' record found by a snapshot
    faults: list[str] = field(default_factory=list)


def read_log(folder: Path, *, schema: str = "public") -> Logged:
    """The whole log; nothing may run on it. Tables of `schema` go by their bare name."""
    found = Logged()
    changes: list[tuple[int, str, str, str]] = []  # offset, op, xid, table
    with Log.open(folder, writable=False) as log:
        for one in log.read(log.begin(), max_rows=1 << 17):
            xids = one.transactions.column("xid").to_pylist()
            for rows in one.changes:
                if "/_kadds/" in f"/{rows.stream.label}":
                    continue
                table = rows.table.qualified_name.removeprefix(f"{schema}.")
                offsets, ops = rows.offsets.to_pylist(), [Op(op).letter for op in rows.ops.to_pylist()]
                found.offsets[table] += offsets
                before = rows.before.to_pylist() if rows.before is not None else [False] * len(rows)
                numbers = rows.transactions.to_pylist()
                if table == COMMITTED:
                    noted = rows.values.column("xid").to_pylist()
                    found.snapshotted.update(xid for xid, op in zip(noted, ops, strict=True) if op == "r")
                changes += [
                    (offset, "" if op == "u" and old else op, xids[number], table)
                    for offset, op, old, number in zip(offsets, ops, before, numbers, strict=True)
                    if op != "r"
                ]
    changes.sort()
    for earlier, after in pairwise(changes):
        if earlier[0] == after[0]:
            found.faults.append(f"offset {after[0]} stands twice")
    for _, op, xid, table in changes:
        if not found.order or found.order[-1] != xid:
            if xid in found.counts:
                found.faults.append(f"transaction {xid} does not stand in one piece")
            found.order.append(xid)
            found.counts.setdefault(xid, Counter())
        if op:
            found.counts[xid][table, op] += 1
    return found


def log_faults(found: Logged, source_url: str) -> list[str]:
    """Whether every transaction of the writers stands in the log once, whole and in commit order.

    A transaction that the snapshot saw stands there with its rows as they were found, and not as a transaction.
    """
    with psycopg.connect(source_url) as connection:
        noted = {
            str(xid): Counter({(table, op): count for table, ops in rows.items() for op, count in ops.items()})
            for xid, rows in connection.execute(f"SELECT xid, rows FROM {COMMITTED}")
        }
    faults = list(found.faults)
    own = {xid for xid, counts in found.counts.items() if counts[COMMITTED, "c"]}
    faults += told("transactions are lost", sorted(set(noted) - own - set(found.snapshotted)))
    faults += told("transactions stand in the log and in the snapshot", sorted(own & set(found.snapshotted)))
    faults += told("transactions are in the log that never committed", sorted(own - set(noted)))
    for xid in sorted(own & set(noted)):
        expected = Counter({**noted[xid], (COMMITTED, "c"): 1})
        if +found.counts[xid] != +expected:
            faults.append(f"transaction {xid} holds {dict(found.counts[xid])} and should hold {dict(expected)}")
    order = [xid for xid in found.order if xid in own]
    expected_order = [xid for xid in commits(source_url) if xid in own]
    if order != expected_order:
        at = next((n for n, (a, b) in enumerate(zip(order, expected_order, strict=False)) if a != b), -1)
        faults.append(f"transactions do not stand in commit order: {order[at : at + 4]}, {expected_order[at : at + 4]}")
    return faults[:20]


# --------------------------------------------------------------------------------------------------------- histories


def postgres_history(url: str, table: str) -> list[Row]:
    """The rows of a history in PostgreSQL, in offset order, every cell as PostgreSQL's text."""
    with psycopg.connect(url) as connection:
        names = columns_of(connection, table)
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
        found = connection.execute(
            sql.SQL("SELECT {} FROM {} AS t ORDER BY t._kadds_offset").format(texts, name_of(table))
        ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


def history_faults(history: Iterable[Row], offsets: Sequence[int]) -> list[str]:
    """Whether each change that the log has of the table stands in the history, and stands there once."""
    given = Counter((row["_kadds_xid"], row["_kadds_position"], row["_kadds_offset"]) for row in history)
    faults = told("changes stand twice", [change for change, count in given.items() if count > 1])
    there = {int(offset or 0) for _, _, offset in given}
    faults += told("changes are missing", sorted(set(offsets) - there))
    return faults + told("changes are not in the log", sorted(there - set(offsets)))


def replayed(history: Iterable[Row], key: Sequence[str]) -> list[Row]:
    """The rows that applying a history in its order gives.

    Several rows have one key for a moment where a deferrable constraint allows it: what is taken away from a key is
    what stood there longest.
    """
    state: dict[tuple[str | None, ...], list[Row]] = {}
    moving: Row | None = None
    for row in history:
        named = tuple(row[name] for name in key)
        missing = set(_names(row["_kadds_not_given"]))
        given = {name: value for name, value in row.items() if not name.startswith("_kadds_") and name not in missing}
        match row["_kadds_op"], row["_kadds_image"]:
            case "t", _:
                state.clear()
            case "d", _:
                _taken(state, named)
            case "u", "before":
                moving = _taken(state, named)
            case "u", _:
                old = moving if moving is not None else _taken(state, named)
                state.setdefault(named, []).append({**old, **given})
                moving = None
            case _:  # a row that a snapshot finds again stands in the place of the one before
                state[named] = [given]
    return [row for rows in state.values() for row in rows]


def replay_faults(source_url: str, table: str, rows: Sequence[Row]) -> list[str]:
    """What tells `rows`, the state that a history gives, from the table of the source."""
    with psycopg.connect(source_url) as connection:
        names = columns_of(connection, table)
        texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in names)
        found = connection.execute(sql.SQL("SELECT {} FROM {}").format(texts, name_of(table))).fetchall()
    expected = Counter(found)
    actual = Counter(tuple(row.get(name, "(never given)") for name in names) for row in rows)
    faults = told(f"rows of the source are not in the replay ({table})", [*map(_all_short, expected - actual)])
    return faults + told(f"rows of the replay are not in the source ({table})", [*map(_all_short, actual - expected)])


def _taken(state: dict[tuple[str | None, ...], list[Row]], key: tuple[str | None, ...]) -> Row:
    rows = state.get(key)
    if not rows:
        return {}  # a change behind a snapshot that saw what came after it
    first = rows.pop(0)
    if not rows:
        del state[key]
    return first


def _names(text: str | None) -> list[str]:
    """The elements of a text[] whose elements are plain names, as an array or as JSON."""
    if not text or text == "{}":
        return []
    if text.startswith("["):
        return [str(name) for name in json.loads(text)]
    return [name.strip('"') for name in text.strip("{}").split(",")]


# ------------------------------------------------------------------------------------------------------------- words


def told(what: str, found: Sequence[Any]) -> list[str]:
    """A fault in words, with some of the rows that show it."""
    if not found:
        return []
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return [f"{len(found)} {what}: {', '.join(map(repr, found[:_SHOWN]))}{more}"]


def _short(cell: Any) -> Any:
    return f"{cell[:20]}… ({len(cell)})" if isinstance(cell, str) and len(cell) > 60 else cell


def _all_short(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(map(_short, row))
