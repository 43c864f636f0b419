"""`tables:` of sources and subscriptions: a list of patterns, or a map from pattern to settings."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from kadds.api.settings import Settings
from kadds.config.checking import Checker, complaints, secret_texts, with_absolute_paths
from kadds.config.document import Node
from kadds.config.patterns import Entry, Given, TablePatterns
from kadds.config.printing import kept, printed
from kadds.config.problems import Place

Model = TypeVar("Model", bound=Settings)


def read_tables(
    checker: Checker, node: Node, model: type[Model] | None, *, label: str, kind: str
) -> TablePatterns[Model]:
    """The selection written in `node`; what is wrong goes to the checker's problems.

    `model` holds the settings that a table may have. `kind` is the list of planned settings.
    """
    entries: list[Entry] = []
    faults = len(checker.problems)
    if isinstance(node.value, list):
        entries = [entry for item in node.value for entry in _listed(checker, item, label)]
    elif isinstance(node.value, dict):
        for pattern, child in node.value.items():
            entries += _mapped(checker, pattern, child, model, label=label, kind=kind)
    elif not node.broken:
        checker.problems.add(
            node.place,
            f"`{label}` must be a list of patterns or a map",
            'write tables: ["public.*", "!public.audit_*"]',
        )
        return TablePatterns((), model)
    found = TablePatterns(tuple(entries), model)
    if len(checker.problems) > faults:
        return found  # what the entries give together says nothing yet
    _check_together(checker, entries, node, label)
    if model is not None:
        _check_exact(checker, found, node, model, label=label)
    return found


def _listed(checker: Checker, item: Node, label: str) -> list[Entry]:
    if item.broken:
        return []
    if item.secret:
        checker.problems.add(
            item.place, f"`{label}` has a pattern out of a file, which is a secret", "write the pattern, or use ${VAR}"
        )
        return []
    if not isinstance(item.value, str):
        checker.problems.add(
            item.place,
            f"`{label}` holds something that is no pattern",
            "use a map to give tables settings of their own",
        )
        return []
    return _entry(checker, item.value, item, label)


def _entry(
    checker: Checker, pattern: str, node: Node, label: str, given: dict[str, Given] | None = None
) -> list[Entry]:
    name = pattern.removeprefix("!").strip()
    if not name or name != pattern.removeprefix("!"):
        checker.problems.add(node.key_place, f"`{label}` holds an empty pattern or one with spaces around it", None)
        return []
    return [Entry(name, pattern.startswith("!"), node.key_place, given or {})]


def _mapped(
    checker: Checker, pattern: str, node: Node, model: type[Settings] | None, *, label: str, kind: str
) -> list[Entry]:
    label = f"{label}.{pattern}"
    if node.value is None and not node.broken:
        return _entry(checker, pattern, node, label)
    if not checker.is_map(node, label):
        return []
    if pattern.startswith("!") and node.value:
        checker.problems.add(node.place, f"`{label}` excludes tables and has settings", 'write "!pattern": {}')
        return []
    fields = model.model_fields if model else {}
    unknown = checker.refuse_unknown(node, fields, label=label, kind=kind)
    known = {name: child for name, child in node.value.items() if name not in unknown}
    plain: dict[str, Any] = {name: child.plain() for name, child in known.items()}
    if model is not None:
        plain = with_absolute_paths(model, plain, node)
        try:
            model.model_validate(plain)
        except ValidationError as error:
            found = complaints(error, secret_texts(node, model))
            checker.report(found, node, model, label=label, partial=True)
            if any(one.kind != "missing" and one.path for one in found):
                return _entry(checker, pattern, node, label)
    given = {
        name: Given(plain[name], printed(child, fields[name].annotation), kept(child, fields[name].annotation),
                    child.key_place)
        for name, child in known.items()
        if not child.any_broken()
    }  # fmt: skip
    return _entry(checker, pattern, node, label, given)


def _check_together(checker: Checker, entries: list[Entry], node: Node, label: str) -> None:
    first: dict[str, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.written, entry)
        if other is not entry:
            checker.problems.add(
                entry.place, f"`{label}` has the pattern {entry.written!r} twice", f"it is already at {other.place}"
            )
    if not any(not entry.excludes for entry in entries) and not node.any_broken() and (entries or not node.value):
        checker.problems.add(node.place, f"`{label}` selects no table", 'add a pattern such as "public.*"')


def _check_exact(checker: Checker, found: TablePatterns[Any], node: Node, model: type[Settings], *, label: str) -> None:
    """Check tables that are named: all that they get is known here, while a pattern's tables are known online."""
    if node.any_broken():
        return
    included = [entry for entry in found.entries if not entry.excludes]
    if included and not any(entry.given or entry.exact for entry in included):
        _check_settings(checker, found, "", node, model, label=label)
    for entry in (entry for entry in included if entry.exact):
        _check_settings(checker, found, entry.pattern, node, model, label=f"{label}.{entry.pattern}", place=entry.place)


def _check_settings(
    checker: Checker,
    found: TablePatterns[Any],
    table: str,
    node: Node,
    model: type[Settings],
    *,
    label: str,
    place: Place | None = None,
) -> None:
    try:
        model.model_validate(found.given(table))
    except ValidationError as error:
        for one in complaints(error, secret_texts(node, model)):
            if one.kind == "missing":
                message = f"`{label}` needs the setting `{one.path[-1]}`"
            elif not one.path:
                message = f"`{label}` {one.message}"
            else:
                continue  # said where the field stands
            checker.problems.add(place or node.place, message, one.hint)
