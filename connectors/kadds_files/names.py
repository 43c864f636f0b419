"""Names of folders and files: harmless whatever a table is called, and different wherever the tables are.

A component has only ASCII letters, digits, `-`, `.`, `_` and percent-encoded bytes, begins with neither `.` nor `_`
(temporary files and what readers skip), and has at most 200 bytes. Nothing else of a name reaches the file system.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from kadds.api.connector import Plan, Target
from kadds.api.errors import ConfigurationError
from kadds.api.position import Cursor
from kadds_files.settings import FilesSettings

COMPONENT_BYTES_MAX = 200
_KEPT_OF_A_LONG_NAME = 150
_HINT = "give the target another name with `target:`"

SUFFIXES = {
    ("parquet", None): ".parquet",
    ("jsonl", "none"): ".jsonl",
    ("jsonl", "gzip"): ".jsonl.gz",
    ("jsonl", "zstd"): ".jsonl.zst",
}


def component(*names: str) -> str:
    """One component of a path that stands for these names, with dots between them, and for no others.

    ConfigurationError where a name is empty or no text.
    """
    try:
        encoded = ".".join(quote(name, safe="").replace("~", "%7E").replace(".", "%2E") for name in names)
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{names!r} is not text", hint=_HINT) from error
    if not all(names):
        raise ConfigurationError(f"{'.'.join(names)!r} has an empty part", hint=_HINT)
    if encoded.startswith("_"):
        encoded = f"%5F{encoded[1:]}"
    if len(encoded) <= COMPONENT_BYTES_MAX:
        return encoded
    return f"{encoded[:_KEPT_OF_A_LONG_NAME]}~{hashlib.sha256(encoded.encode()).hexdigest()[:32]}"


def target_folder(target: Target) -> str:
    """The folder of a target: `sales.orders`; a dot inside the name of a schema or a table is percent-encoded."""
    if target.name != target.table.qualified_name:
        return component(*target.name.split(".", 1))
    return component(*filter(None, [target.table.schema]), target.table.name)


def file_stem(subscription: str, target: Target, plan: Plan) -> str:
    """The name of a file, without its suffix: the offsets between which its changes lie, and a hash of the plan."""
    told_apart = "\n".join((subscription, plan.id, target.name, str(target.version)))
    return f"{_places(plan.first)}-{_places(plan.end)}-{hashlib.sha256(told_apart.encode()).hexdigest()[:16]}"


def _places(cursor: str) -> str:
    offsets = Cursor.parse(cursor).offsets if cursor else {}
    return "_".join(f"{offset:016d}" for _, offset in sorted(offsets.items())) or "0" * 16


def suffix(settings: FilesSettings) -> str:
    """What the names of new files end with."""
    if settings.format == "parquet":
        return SUFFIXES["parquet", None]
    return SUFFIXES["jsonl", settings.compression or "none"]
