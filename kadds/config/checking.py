"""Checks pieces of a configuration against their models and puts every complaint at its place in the file.

What a model says is shown without the values it looked at: texts that may be secret are taken out of every message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import quote, unquote

from pydantic import ValidationError

from kadds.api.settings import SecretUrl, Settings
from kadds.config.document import Node
from kadds.config.planned import HINT, MESSAGE, PLANNED
from kadds.config.problems import Problems, scrub, suggestion
from kadds.plugins import holds_secret

Model = TypeVar("Model", bound=Settings)


@dataclass(frozen=True)
class Complaint:
    """What a model says: the path inside the piece, the kind, and text without secrets."""

    path: tuple[str | int, ...]
    kind: str
    message: str
    hint: str | None = None


def complaints(error: ValidationError, secrets: Iterable[str]) -> list[Complaint]:
    """The complaints of a failed validation, in our words."""
    hidden = list(secrets)
    found = []
    for one in error.errors(include_input=False, include_url=False, include_context=False):
        message, _, hint = str(one["msg"]).removeprefix("Value error, ").partition("\n")
        kind = str(one["type"])
        if kind != "value_error":
            message = message[:1].lower() + message[1:]
        found.append(Complaint(tuple(one["loc"]), kind, scrub(message, hidden), scrub(hint, hidden) or None))
    return found


def secret_texts(node: Node, model: type[Settings]) -> list[str]:
    """Every text under `node` that must not be shown: fields that the model calls secret, and what came from files."""
    found = [one.value for one in node.walk() if one.secret and isinstance(one.value, str)]
    for name, child in _named_children(node):
        declared = model.model_fields.get(name)
        if declared is not None and holds_secret(declared.annotation):
            found += [form for one in child.walk() if isinstance(one.value, str) for form in _forms(one.value)]
        elif declared is None:
            # A misspelt secret is a secret too.
            found += [one.value for one in child.walk() if isinstance(one.value, str)]
        else:
            for inner in _inner_models(declared.annotation):
                found += secret_texts(child, inner)
    return found


def _forms(text: str) -> list[str]:
    forms = [text, unquote(text), quote(text, safe="")]
    if "://" in text:
        try:
            forms += SecretUrl(text).secrets()
        except ValueError:
            forms.append(text.partition("://")[2])
    return forms


def _named_children(node: Node) -> list[tuple[str, Node]]:
    return [(str(name), child) for name, child in node.children.items()]


def _inner_models(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in _inner_models(part)]


@dataclass(frozen=True)
class Checker:
    """Checks nodes against models; `problems` gets what is wrong."""

    problems: Problems

    def check(self, model: type[Model], node: Node, *, label: str, kind: str = "") -> Model | None:
        """The model made from a map; None where that failed and `problems` says why.

        `label` is the dotted path for messages, `kind` the list of PLANNED in which names are looked up.
        """
        if not self.is_map(node, label):
            return None
        unknown = self.refuse_unknown(node, model.model_fields, label=label, kind=kind)
        given = {name: child.plain() for name, child in node.value.items() if name not in unknown}
        try:
            return model.model_validate(with_absolute_paths(model, given, node))
        except ValidationError as error:
            self.report(complaints(error, secret_texts(node, model)), node, model, label=label)
        return None

    def is_map(self, node: Node, label: str) -> bool:
        """Whether the node is a map; complains if not."""
        if isinstance(node.value, dict):
            return True
        if not node.broken:
            self.problems.add(node.place, f"`{label}` must be a map of settings", "write `name: value` lines below it")
        return False

    def refuse_unknown(self, node: Node, known: Iterable[str], *, label: str, kind: str = "") -> frozenset[str]:
        """The keys of the node that are not `known`, each refused with the name that was probably meant."""
        known = frozenset(known)
        unknown = [name for name in node.value if name not in known]
        for name in unknown:
            place = node.value[name].key_place
            if name in PLANNED.get(kind, ()):
                self.problems.add(place, f"`{_dotted(label, name)}` {MESSAGE}", HINT)
            else:
                self.problems.add(place, f"`{_dotted(label, name)}` is not a setting", suggestion(name, known))
        return frozenset(unknown)

    def report(
        self, found: Sequence[Complaint], node: Node, model: type[Settings], *, label: str, partial: bool = False
    ) -> None:
        """Put complaints at their places; with `partial`, missing fields may still come from elsewhere."""
        broken = node.any_broken()
        for one in found:
            at = node.at(one.path)
            if at.broken or (not one.path and (broken or partial)) or (partial and one.kind == "missing"):
                continue
            name = _dotted(label, *_shown_path(node, one))
            if one.kind == "missing":
                self.problems.add(
                    at.key_place, f"`{_dotted(label, *one.path[:-1])}` needs the setting `{one.path[-1]}`"
                )
            elif one.kind == "extra_forbidden":
                known = _known_at(model, one.path[:-1])
                self.problems.add(at.key_place, f"`{name}` is not a setting", suggestion(str(one.path[-1]), known))
            else:
                self.problems.add(at.place, f"`{name}` {_sentence(one.message)}", one.hint or _hint(one, at))


def _known_at(model: type[Settings], path: Sequence[str | int]) -> set[str]:
    """The settings that a model has at `path`."""
    models = [model]
    for step in path:
        below = [inner.model_fields[str(step)] for inner in models if str(step) in inner.model_fields]
        models = [inner for declared in below for inner in _inner_models(declared.annotation)] or models
    return {name for inner in models for name in inner.model_fields}


def with_absolute_paths(model: type[Settings], given: Mapping[str, Any], base: Node | Path) -> dict[str, Any]:
    """`given`, with each path that the model declares made absolute.

    A path is relative to `base`: a folder, or the folder of the file in which the node of that path stands.
    """
    found = dict(given)
    for name, value in given.items():
        declared = model.model_fields.get(name)
        if declared is not None and isinstance(value, str) and value and _holds_path(declared.annotation):
            folder = base if isinstance(base, Path) else base.children[name].place.file.parent
            found[name] = str((folder / Path(value).expanduser()).absolute())
    return found


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(_holds_path(part) for part in get_args(annotation))


def _dotted(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part != "")


def _shown_path(node: Node, one: Complaint) -> list[str | int]:
    """The part of the path that stands in the file; what a model adds for its own choices is left out."""
    shown: list[str | int] = []
    for step in one.path:
        child = node.children.get(step)
        if child is None:
            break
        shown.append(step)
        node = child
    return shown or list(one.path[:1])


def _sentence(message: str) -> str:
    """A model's message so that it can follow the name of the setting."""
    for begin, instead in (("input should be", "must be"), ("input should have", "must have")):
        if message.startswith(begin):
            return instead + message.removeprefix(begin)
    return message


def _hint(one: Complaint, at: Node) -> str | None:
    is_text = one.kind == "string_type" or one.message.endswith("must be text")
    if is_text and isinstance(at.value, bool | int | float):
        return "quote it, so that YAML reads text"
    return None
