"""`_schema.json` of a target: the columns that its files may have, and their types.

It is the union over time: a column that comes is added, one that goes stays and is simply absent in later files. A
column never changes its type; a folder with other people's files in it is not taken.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from typing import Any

from kadds.api.change import HISTORY
from kadds.api.connector import Target
from kadds.api.errors import CorruptLogError, SchemaMismatchError
from kadds.api.schema import Column
from kadds_files.tree import TEMPORARY, Folder

NAME = "_schema.json"
FORMAT = 0
OWN_PREFIX = "_kadds_"
_HINT = "give the target another name with `target:`, or move the folder away"


def problems(target: Target, folder: Folder | None) -> list[str]:
    """What keeps the folder (None: there is none yet) from taking the target's files, one sentence each."""
    found = [
        f"column {column.name} has the name of a column of the history"
        for column in target.table.columns
        if column.name.startswith(OWN_PREFIX)
    ]
    if folder is None:
        return found
    stored = _read(folder)
    if stored is None:
        others = [name for name in folder.names() if not name.startswith(TEMPORARY)]
        return [*found, f"the folder has files that Kadds did not write ({min(others)!r})"] if others else found
    if stored.get("target") != target.name:
        found.append(f"the folder belongs to target {stored.get('target')}")
    there = {column["name"]: column["type"] for column in stored["columns"]}
    for column in target.table.columns:
        now = column.to_json()["type"]
        if there.get(column.name, now) != now:
            found.append(f"column {column.name} is {there[column.name]} there, and {now} in the stream")
    return found


def keep(target: Target, folder: Folder) -> None:
    """Match the target with the folder's schema and add what is new; SchemaMismatchError names every difference."""
    fcntl.flock(folder.descriptor, fcntl.LOCK_EX)  # until the folder is closed: two subscriptions may share a target
    if found := problems(target, folder):
        raise SchemaMismatchError(f"{folder.path.name}: {'; '.join(found)}", hint=_HINT)
    stored = _read(folder) or {"columns": []}
    known = {column["name"] for column in stored["columns"]}
    new = [column for column in target.table.columns if column.name not in known]
    if new or "target" not in stored:
        columns = stored["columns"] + [_plain(column) for column in new]
        plain = {"format": FORMAT, "target": target.name, "key": list(target.table.key), "columns": columns}
        plain["history"] = [{"name": field.name, "type": str(field.type)} for field in HISTORY]
        data = json.dumps(plain, ensure_ascii=False, indent=1).encode()
        folder.write(NAME, lambda file: file.write(data))


def _plain(column: Column) -> dict[str, Any]:
    plain = column.to_json()
    return {name: plain[name] for name in ("name", "type", "declared") if name in plain}


def _read(folder: Folder) -> Mapping[str, Any] | None:
    try:
        stored = json.loads(folder.read(NAME))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CorruptLogError(f"{NAME} is not JSON: {error}", where=str(folder.path / NAME)) from error
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise CorruptLogError(f"{NAME} has another format than {FORMAT}", where=str(folder.path / NAME))
    return stored
