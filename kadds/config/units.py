"""Sizes as people write them: a number of bytes, or `512MB` and `64MiB`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base**power
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$")
_FACTORS = {unit.upper(): factor for unit, factor in _UNITS.items()}


def parse_size(value: Any) -> Any:
    """Bytes out of `512MB`, `1.5 GiB` or a number; ValueError for other text."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value.strip())
    if not match or match[2].upper() not in _FACTORS:
        raise ValueError("must be a size such as 512MB, 64MiB or a number of bytes")
    return (
        int(float(match[1]) * _FACTORS[match[2].upper()])
        if "." in match[1]
        else int(match[1]) * _FACTORS[match[2].upper()]
    )


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGT]i?)?B?$"}]}
    ),
]
