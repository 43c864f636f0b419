"""Every secret of a configuration as text, so that what goes into logs and to screens can be freed of them.

Secrets are masked where they are printed; this is the second wall, for messages that come from drivers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kadds.api.settings import MASK, Secret, SecretUrl, Settings
from kadds.config import Configuration

_SHORTEST = 4  # shorter texts stand in too many words to be masked


def secrets_of(configuration: Configuration) -> frozenset[str]:
    """All of them: keys, passwords, the secret parts of URLs; those of tables too."""
    parts: list[Any] = [*configuration.tenants.values()]
    parts += [source.settings for source in configuration.sources.values()]
    parts += [sink.settings for sink in configuration.sinks.values()]
    for source in configuration.sources.values():
        parts += [given.value for entry in source.tables.entries for given in entry.given.values()]
    return secrets_in(*parts)


def secrets_in(*parts: Any) -> frozenset[str]:
    """The secrets of some settings."""
    return frozenset(text for part in parts for text in _inside(part) if len(text) >= _SHORTEST)


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, SecretUrl):
        yield from value.secrets()
    elif isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, Settings):
        for name in type(value).model_fields:
            yield from _inside(getattr(value, name))
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _inside(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _inside(one)


def scrubbed(text: str, secrets: frozenset[str]) -> str:
    """`text` without any of `secrets`."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text
