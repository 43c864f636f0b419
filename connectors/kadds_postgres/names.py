"""Names in PostgreSQL: the one function that quotes them, and their length.

Every identifier that reaches SQL has gone through `quoted`; there is no way to say that one is quoted already.
"""

from __future__ import annotations

from kadds.api.errors import ConfigurationError

LONGEST_NAME_BYTES = 63  # NAMEDATALEN - 1; the server cuts longer ones off, so that two names could become one


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
