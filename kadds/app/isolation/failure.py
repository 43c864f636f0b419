"""Errors as JSON: a KaddsError comes out on the other side with its class, words and hint."""

from __future__ import annotations

import traceback
from typing import Any

from kadds.api import errors
from kadds.api.errors import KaddsError, RetryableError

_CLASSES: dict[str, type[KaddsError]] = {
    name: found for name, found in vars(errors).items() if isinstance(found, type) and issubclass(found, KaddsError)
}


class DefectError(Exception):
    """Something in a source's process that is no KaddsError: a fault of the code, here with its traceback as text."""


def to_json(error: BaseException) -> dict[str, Any]:
    """A JSON object from which `from_json` makes the error; a connector's own class goes as the nearest of ours."""
    if not isinstance(error, KaddsError):
        return {"class": None, "message": "".join(traceback.format_exception(error)).rstrip()}
    plain: dict[str, Any] = {
        "class": next(one.__name__ for one in type(error).__mro__ if _CLASSES.get(one.__name__) is one),
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
    }
    if isinstance(error, RetryableError):
        plain |= {"retry_after_seconds": error.retry_after_seconds, "waiting_for": error.waiting_for}
    return plain


def from_json(plain: dict[str, Any]) -> Exception:
    """The error, made anew."""
    rest = dict(plain)
    name, message = rest.pop("class"), rest.pop("message")
    return DefectError(message) if name is None else _CLASSES[name](message, **rest)
