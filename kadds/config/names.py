"""Names: `tenant/name`, where a bare name belongs to the tenant `default`. The full form is the only one kept."""

from __future__ import annotations

import re
from collections.abc import Container

DEFAULT_TENANT = "default"
_PART = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
NAME_PATTERN = r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,99}/)?[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


def full(name: str, tenant: str = DEFAULT_TENANT) -> str:
    """`tenant/name` of a name as written; a bare one belongs to `tenant`."""
    return name if "/" in name else f"{tenant}/{name}"


def short(name: str) -> str:
    """The name as people of the default tenant write it."""
    return name.removeprefix(f"{DEFAULT_TENANT}/")


def resolve(name: str, tenant: str, known: Container[str]) -> str | None:
    """The full name that `name` means to `tenant`: its own, then that of the default tenant; None if neither is."""
    choice = [name] if "/" in name else [f"{tenant}/{name}", f"{DEFAULT_TENANT}/{name}"]
    return next((full for full in choice if full in known), None)


def tenant_of(name: str) -> str:
    """The tenant of a full name."""
    return name.split("/", 1)[0]


def fault(name: str) -> str | None:
    """What is wrong with a name as written, None if nothing is."""
    parts = name.split("/")
    if len(parts) > 2 or not all(_PART.match(part) for part in parts):
        return (
            "a name is `name` or `tenant/name`, each of letters, digits, `_`, `-` and `.`, "
            "beginning with a letter or digit, at most 100 characters"
        )
    return None


def tenant_fault(name: str) -> str | None:
    """What is wrong with a tenant's name, None if nothing is."""
    return None if _PART.match(name) else "a tenant's name is made of letters, digits, `_`, `-` and `.`"
