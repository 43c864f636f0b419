"""Settings on their way to another process: as JSON, with their secrets, over the wire and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from kadds.api.errors import ConfigurationError
from kadds.api.settings import Secret, Settings


def carried(settings: Settings) -> str:
    """JSON from which `unpacked` makes equal settings; ConfigurationError where that is not so."""
    try:
        text = json.dumps(_plain(settings))
        if unpacked(type(settings), text) == settings:
            return text
    except (ValidationError, PydanticSerializationError):
        pass  # the words of pydantic show values
    raise ConfigurationError(
        f"settings of the class {type(settings).__name__} cannot be carried to another process",
        hint="set `isolation: thread`",
    )


def unpacked(model: type[Settings], text: str) -> Settings:
    """The settings that `carried` wrote."""
    return model.model_validate_json(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Settings):
        return {name: _plain(getattr(value, name)) for name in sorted(value.model_fields_set)}
    if isinstance(value, Mapping):
        return {to_jsonable_python(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    return to_jsonable_python(value)
