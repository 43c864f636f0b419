"""How configuration is shown: references as they stand in the file, secrets masked, whoever wrote them where.

`printed` is for people. `kept` is for the log, which compares it at the next start: values instead of references, so
that a changed variable is seen; a secret is masked there too, and what came from a file stays a reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any, get_args, get_origin

from ruamel.yaml import YAML

from kadds.api.settings import MASK, SecretUrl, Settings
from kadds.config import names
from kadds.config.document import Node
from kadds.config.model import (
    LogSettings,
    MetricsSettings,
    SinkOptions,
    SourceOptions,
    SubscriptionOptions,
    SubscriptionTable,
    TenantSettings,
)
from kadds.config.problems import Problems
from kadds.config.references import Literal, Reference
from kadds.plugins import Installed, holds_secret


def printed(node: Node, annotation: Any = None) -> Any:
    """The node as plain Python for people; `annotation` is the model or type that its field declares."""
    return _walk(node, annotation, lambda leaf: leaf.written())


def kept(node: Node, annotation: Any = None) -> Any:
    """The node as JSON for the log."""
    return _walk(node, annotation, lambda leaf: leaf.written() if leaf.secret else leaf.value)


def referred(node: Node, annotation: Any = None) -> Any:
    """The node as JSON that can be read again: as it stands in the file, a secret in plain text masked."""
    if isinstance(node.value, dict):
        same = annotation is not None and holds_secret(annotation)
        return {
            name: referred(child, annotation if same else _below(annotation, name))
            for name, child in node.value.items()
        }
    if isinstance(node.value, list):
        return [referred(child, annotation) for child in node.value]
    if annotation is None or not holds_secret(annotation) or not isinstance(node.value, str):
        return node.written()
    text, tokens = _tokenised(node)
    try:
        url = _holds_url(annotation) and text not in tokens
        secrets = SecretUrl(text).secrets() if url else [text]
    except ValueError:
        return MASK
    if any(not re.fullmatch("|".join(tokens) or "(?!)", secret) for secret in secrets):
        return MASK  # a part of it at least stands in the file
    shown = (p.written(mask=MASK) if isinstance(p, Reference) else p.text.replace("$", "$$") for p in node.parts)
    return "".join(shown) if node.parts else node.written()


def _walk(node: Node, annotation: Any, shown: Callable[[Node], Any]) -> Any:
    if annotation is not None and holds_secret(annotation):
        return _masked(node, annotation)
    if isinstance(node.value, dict):
        return {name: _walk(child, _below(annotation, name), shown) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_walk(child, annotation, shown) for child in node.value]
    return shown(node)


def _below(annotation: Any, name: str) -> Any:
    """The type of the value at `name` in a map of type `annotation`; None where nothing is declared."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) in (dict, Mapping):
            return get_args(part)[1]
    return _field(_models(annotation), name)


def _models(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _field(models: list[type[Settings]], name: str) -> Any:
    return next((model.model_fields[name].annotation for model in models if name in model.model_fields), None)


def _masked(node: Node, annotation: Any) -> Any:
    if isinstance(node.value, dict):
        return {name: _masked(child, annotation) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [_masked(child, annotation) for child in node.value]
    if not isinstance(node.value, str):
        return node.value if node.value is None else MASK
    if _holds_url(annotation):
        return _masked_url(node)
    if node.parts:
        return "".join(MASK if isinstance(part, Literal) else part.written(mask=MASK) for part in node.parts)
    return MASK


def _holds_url(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, SecretUrl):
        return True
    return any(_holds_url(part) for part in get_args(annotation))


def _masked_url(node: Node) -> str:
    """A URL with its password masked; references stay, except inside what is masked."""
    text, tokens = _tokenised(node)
    if text in tokens:
        return tokens[text].written(mask=MASK)
    try:
        text = str(SecretUrl._validate(text))
    except ValueError:
        return MASK
    for token, part in tokens.items():
        text = text.replace(token, part.written(mask=MASK))
    return text


def _tokenised(node: Node) -> tuple[str, dict[str, Reference]]:
    """A text with a token of letters and digits for each reference, and what each token stands for."""
    tokens: dict[str, Reference] = {}
    text = ""
    for part in node.parts or (Literal(node.value),):
        if isinstance(part, Reference):
            tokens[token := f"kaddsreference{len(tokens)}x"] = part
            text += token
        else:
            text += part.text
    return text, tokens


def whole(
    root: Node, installed: Mapping[str, Installed], *, shown: Callable[[Node, Any], Any] = printed
) -> dict[str, Any]:
    """The whole configuration as plain data in the order of the file, names short; `shown` is as `printed`."""
    plain: dict[str, Any] = {}
    for section, node in root.value.items():
        if section == "memory_limit":
            plain[section] = shown(node, None)
        elif section in ("log", "metrics"):
            plain[section] = shown(node, LogSettings if section == "log" else MetricsSettings)
        else:
            plain[section] = {
                names.short(name): {
                    key: shown(child, annotation) for key, child, annotation in fields(section, entry, installed)
                }
                for name, entry in node.value.items()
            }
    return plain


def fields(section: str, entry: Node, installed: Mapping[str, Installed]) -> list[tuple[str, Node, Any]]:
    """Key, node and declared type of each field of an entry of a named section."""
    if section == "tenants":
        models: list[type[Settings]] = [TenantSettings]
    elif section == "subscriptions":
        models = [SubscriptionOptions]
    else:
        models = [SourceOptions if section == "sources" else SinkOptions]
    tables: type[Settings] | None = SubscriptionTable if section == "subscriptions" else None
    found = installed.get(str(entry.at(["connector"]).value))
    if section == "sources" and found and found.connector.source:
        models.append(found.connector.source.settings)
        tables = found.connector.source.table_settings
    elif section == "sinks" and found and found.connector.sink:
        models.append(found.connector.sink.settings)
    declared = []
    for key, child in _named(entry):
        annotation = _field(models, key)
        if key == "tables" and isinstance(child.value, dict):
            annotation = Mapping[str, tables] if tables else None  # type: ignore[valid-type]
        declared.append((key, child, annotation))
    return declared


def _named(node: Node) -> list[tuple[str, Node]]:
    return [(str(key), child) for key, child in node.children.items()]


def find_literal_secrets(root: Node, installed: Mapping[str, Installed], problems: Problems) -> None:
    """Name every secret that is written into a file instead of being referred to."""
    for section in ("tenants", "sources", "sinks"):
        node = root.value.get(section)
        for name, entry in _named(node) if node else ():
            for key, child, annotation in fields(section, entry, installed):
                for leaf, declared in _secret_leaves(child, annotation):
                    if _is_literal_secret(leaf, declared):
                        problems.add(
                            leaf.place,
                            f"`{section}.{names.short(name)}.{key}` holds a secret in plain text",
                            "refer to it: ${VAR} or ${file:/path}",
                        )


def _secret_leaves(node: Node, annotation: Any) -> list[tuple[Node, Any]]:
    """The texts under `node` that are declared secret, each with what is declared."""
    if annotation is None:
        return []
    if holds_secret(annotation):
        return [(leaf, annotation) for leaf in node.walk() if isinstance(leaf.value, str)]
    below = {name: _below(annotation, name) if isinstance(node.value, dict) else annotation for name, _ in _named(node)}
    return [leaf for name, child in _named(node) for leaf in _secret_leaves(child, below[name])]


def _is_literal_secret(leaf: Node, annotation: Any) -> bool:
    if not _holds_url(annotation):
        return bool(leaf.value) and not leaf.parts
    text, tokens = _tokenised(leaf)
    try:
        secrets = SecretUrl(text).secrets() if text not in tokens else []
    except ValueError:
        return False
    return any(not any(token in secret for token in tokens) for secret in secrets)


def as_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as YAML in the order given."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    text = StringIO()
    yaml.dump(dict(plain), text)
    return text.getvalue()
