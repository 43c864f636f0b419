"""Settings that Kadds has names for and that this version does not execute: refused by name, never ignored.

A setting leaves this list in the commit that executes it.
"""

from __future__ import annotations

_TABLE = frozenset({"on_new_table", "checks", "gate", "gates", "quality"})

PLANNED: dict[str, frozenset[str]] = {
    "configuration": frozenset(
        {"checks", "gates", "quality", "quotas", "retention", "shares", "tiers", "web", "api", "object_store"}
    ),
    "log": frozenset({"retention", "tiers", "mirror", "object_store", "max_value_bytes", "compaction", "engine"}),
    "tenant": frozenset({"shares", "quotas", "keys", "encryption_key", "roles"}),
    "source": frozenset({"snapshot", "shares", "share", "max_value_bytes"}) | _TABLE,
    "sink": frozenset({"quotas", "max_connections"}),
    "subscription": frozenset({"quarantine", "retention"}) | _TABLE,
    "subscription table": frozenset({"casts", "transform", "mode"}) | _TABLE,
}

MESSAGE = "is not executed by this version"
HINT = "remove it; a setting that would be ignored is refused"
