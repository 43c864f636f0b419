"""References in values: `${VAR}`, `${VAR:-default}`, `${VAR:?message}`, `${file:/path}`, and `$$` for a dollar sign.

They are replaced after the YAML has been read, so that what a variable holds can never become structure. What came
out of a file is a secret. Messages name the variable or the path, never a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 64 << 10
_VARIABLE = re.compile(r"^(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?:(?P<how>:-|:\?)(?P<rest>.*))?$", re.DOTALL)


class UnresolvedError(Exception):
    """A reference that gives no value; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class Literal:
    """Text as it stands."""

    text: str


@dataclass(frozen=True)
class Reference:
    """One `${…}`; `inner` is what stands between the braces."""

    inner: str

    @property
    def is_file(self) -> bool:
        """Whether it names a file, so that its value is a secret."""
        return self.inner.startswith("file:")

    def written(self, *, mask: str | None = None) -> str:
        """As it stands in the file; `mask` replaces the default of a reference that stands for a secret."""
        match = _VARIABLE.match(self.inner)
        if mask is not None and match and match["how"] == ":-" and match["rest"]:
            return f"${{{match['name']}:-{mask}}}"
        return f"${{{self.inner}}}"


Part = Literal | Reference


def parts(text: str) -> tuple[Part, ...]:
    """`text` taken apart; UnresolvedError for a `${` that does not end, or that stands inside another."""
    found: list[Part] = []
    literal = ""
    at = 0
    while at < len(text):
        if text.startswith("$$", at):
            literal, at = literal + "$", at + 2
        elif text.startswith("${", at):
            end = text.find("}", at)
            if end < 0:
                raise UnresolvedError(
                    "a reference begins with ${ and does not end", "close it with }, or write $$ for $"
                )
            inner = text[at + 2 : end]
            if "${" in inner:
                raise UnresolvedError("a reference stands inside another", "a default is plain text, without ${ or }")
            found += [Literal(literal), Reference(inner)] if literal else [Reference(inner)]
            literal, at = "", end + 1
        else:
            literal, at = literal + text[at], at + 1
    return (*found, Literal(literal)) if literal or not found else tuple(found)


def resolve(part: Part, environment: Mapping[str, str], folder: Path) -> str:
    """The value of a part; paths are relative to `folder`, the one of the configuration file."""
    if isinstance(part, Literal):
        return part.text
    if part.is_file:
        return _read(part, folder)
    match = _VARIABLE.match(part.inner)
    if not match:
        raise UnresolvedError(
            f"{part.written(mask='…')} is not a reference",
            "write ${VAR}, ${VAR:-default}, ${VAR:?message} or ${file:/path}; $$ stands for a dollar sign",
        )
    value = environment.get(match["name"])
    if value or (value is not None and not match["how"]):
        return value
    if match["how"] == ":-":
        return match["rest"]
    message = match["rest"] or ""
    raise UnresolvedError(
        f"the environment variable {match['name']} is not set" + (f": {message}" if message else ""),
        f"set {match['name']}, or give a default with ${{{match['name']}:-…}}",
    )


def _read(part: Reference, folder: Path) -> str:
    path = folder / part.inner.removeprefix("file:")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UnresolvedError(f"the file {path} is over {MAX_FILE_BYTES} bytes", "a reference is for a secret")
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UnresolvedError(f"the file {path} is not UTF-8 text", "a reference is for text") from None
    except OSError as error:
        raise UnresolvedError(
            f"the file {path} cannot be read: {error.strerror}", "check that it exists and may be read by this user"
        ) from None
    except ValueError:
        raise UnresolvedError("the path of a file reference holds a zero byte", "write ${file:/path}") from None
