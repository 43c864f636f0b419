"""The base of every connector's settings, declared once and used for checking, help and printing.

A connector declares one frozen model per side. Unknown keys are refused. A value that must not be seen is a `Secret`,
or a `SecretUrl` whose password is masked wherever it is printed.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

MASK = "***"
_SECRET_PARAMETER = re.compile(r"pass|secret|token|credential|apikey|api_key|private", re.IGNORECASE)


class Settings(BaseModel):
    """A group of settings: immutable, complete, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=False)


class Secret:
    """A value that is never printed; `reveal()` is the only way to it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the one call that needs it."""
        return self._value

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "password" if cls is Secret else "uri"}

    @classmethod
    def _validate(cls, value: object) -> Secret:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError("must be text")
        return cls(value)


class SecretUrl(Secret):
    """A connection URL; printed with its password and secret parameters masked."""

    __slots__ = ()

    @classmethod
    def _validate(cls, value: object) -> Secret:
        checked = super()._validate(value)
        text = checked.reveal()
        if not re.match(r"^[A-Za-z][A-Za-z0-9+.\-]*:", text):
            raise ValueError("must be a URL such as postgresql://user@host/database")
        try:
            urlsplit(text).port  # noqa: B018 - reading it is what checks it
        except ValueError as error:
            raise ValueError(f"is not a valid URL: {error}".replace(text, MASK)) from None
        return checked

    def __str__(self) -> str:
        parts = urlsplit(self.reveal())
        user, at, host = parts.netloc.rpartition("@")
        if at:
            name, colon, _ = user.partition(":")
            host = f"{name}{colon}{MASK if colon else ''}@{host}"
        query = urlencode(
            [
                (k, MASK if _SECRET_PARAMETER.search(k) else v)
                for k, v in parse_qsl(parts.query, keep_blank_values=True)
            ],
            safe="*/:",
        )
        return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))

    def secrets(self) -> list[str]:
        """The parts that must not appear in a message, as written and decoded."""
        parts = urlsplit(self.reveal())
        found = [parts.password] if parts.password else []
        found += [v for k, v in parse_qsl(parts.query) if _SECRET_PARAMETER.search(k) and v]
        return [form for text in found for form in {text, unquote(text), quote(text, safe="")}]

    def scrub(self, message: str) -> str:
        """`message` (a driver's, say) with this URL and its secret parts masked."""
        message = message.replace(self.reveal(), str(self))
        for secret in self.secrets():
            message = message.replace(secret, MASK)
        return message
