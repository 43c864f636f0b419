"""Where each setting of a table comes from, as `kadds validate --explain TABLE` prints it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kadds.api.errors import ConfigurationError
from kadds.config import names
from kadds.config.load import Loaded
from kadds.config.patterns import TablePatterns


def explain(loaded: Loaded, table: str) -> str:
    """What sources and subscriptions do with a table, each setting with the place that decided.

    `table` is `schema.table`, or `source/schema.table`, or `tenant/source/schema.table`. Raises ConfigurationError
    for a source that does not exist.
    """
    wanted, _, qualified_name = table.rpartition("/")
    sources = loaded.configuration.sources
    chosen = [name for name in sources if not wanted or name == names.full(wanted)]
    if not chosen:
        known = ", ".join(map(names.short, sources)) or "none"
        raise ConfigurationError(f"there is no source {wanted!r}", hint=f"the file has: {known}")
    lines = [qualified_name]
    for source in chosen:
        lines += _entry(loaded, "sources", source, sources[source].tables, qualified_name)
        for name, subscription in loaded.configuration.subscriptions.items():
            if subscription.source == source and sources[source].tables.matches(qualified_name):
                lines += _entry(loaded, "subscriptions", name, subscription.tables, qualified_name)
    return "\n".join(lines)


def _entry(loaded: Loaded, section: str, name: str, tables: TablePatterns[Any], qualified_name: str) -> Iterator[str]:
    yield f"  {section.removesuffix('s')} {names.short(name)}  ({loaded.place_of((section, name))})"
    if excluded := tables.excluded_by(qualified_name):
        yield f"    not selected: {json.dumps(excluded.written)} excludes it  ({excluded.place})"
        return
    entries = tables.entries_of(qualified_name)
    if not entries:
        yield f"    not selected: no pattern of `{section}.{names.short(name)}.tables` matches it"
        return
    for entry in entries:
        yield f"    selected by {json.dumps(entry.written)}  ({entry.place})"
    for field, value, place in tables.explain(qualified_name):
        yield f"    {field}: {json.dumps(value, ensure_ascii=False)}  ({place})"
    try:
        tables.settings(qualified_name)
    except ConfigurationError as error:
        yield f"    refused: {error.message}"
