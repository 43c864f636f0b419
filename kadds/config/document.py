"""A YAML file as a tree of nodes, each with its place and with what was written there beside what it means.

Only plain YAML gets through: no tags, no duplicate keys, no more bytes, depth or aliases than a person would write.
Messages never quote the file's text beyond names of keys, because any value may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode

from kadds.config.problems import Place, Problems
from kadds.config.references import Literal, Part, Reference, UnresolvedError, parts, resolve

MAX_BYTES = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 1_000_000
MAX_ALIASES = 10_000

_TAG = "tag:yaml.org,2002:"
_UNQUOTED_TAG = re.compile(r"[\[{,\s]![^\s\[\]{},]")


@dataclass(frozen=True, eq=False)
class Node:
    """A value of the file. `value` is a dict of nodes, a list of nodes, or a scalar with its references replaced.

    `place` is where the value begins, `key_place` where the key that leads to it does. `parts` are set where the text
    holds references; `secret` says that one of them was a file. A `broken` value had a reference without a value.
    """

    value: Any = field(repr=False)
    place: Place
    key_place: Place
    parts: tuple[Part, ...] = field(default=(), repr=False)
    secret: bool = False
    broken: bool = False

    @property
    def children(self) -> Mapping[str | int, Node]:
        """The nodes below by key or index; empty for a scalar."""
        if isinstance(self.value, dict):
            return self.value
        return dict(enumerate(self.value)) if isinstance(self.value, list) else {}

    def plain(self) -> Any:
        """The value as plain Python."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value

    def written(self) -> Any:
        """The value as plain Python, with references as they stand in the file."""
        if isinstance(self.value, dict):
            return {key: node.written() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.written() for node in self.value]
        if not self.parts:
            return self.value.replace("$", "$$") if isinstance(self.value, str) and "$" in self.value else self.value
        return "".join(p.written() if isinstance(p, Reference) else p.text.replace("$", "$$") for p in self.parts)

    def at(self, path: Sequence[str | int]) -> Node:
        """The node at `path`, or the nearest one above it."""
        node = self
        for step in path:
            child = node.children.get(step)
            if child is None:
                break
            node = child
        return node

    def walk(self) -> Iterator[Node]:
        """This node and all below."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def any_broken(self) -> bool:
        """Whether a value here or below is missing, so that what follows from it says nothing."""
        return any(node.broken for node in self.walk())


class _Bounded(Composer):
    """Composes nodes, but not from a file made to exhaust memory or the stack."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.nodes += 1
        try:
            if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
                limit = f"{MAX_DEPTH} levels" if self.depth > MAX_DEPTH else f"{MAX_NODES} values"
                mark = self.parser.peek_event().start_mark
                raise MarkedYAMLError(problem=f"more than {limit} in one file", problem_mark=mark)
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class Reader:
    """Reads files into nodes; what is wrong goes to `problems`."""

    def __init__(self, environment: Mapping[str, str], problems: Problems) -> None:
        self._environment = environment
        self._problems = problems

    def read(self, path: Path) -> Node | None:
        """The root of the file, a mapping; None where it could not be read at all."""
        start = Place(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._problems.add(start, f"the file cannot be read: {error.strerror}", "check the path and its rights")
            return None
        if len(data) > MAX_BYTES:
            self._problems.add(start, f"the file is over {MAX_BYTES} bytes", "split it with `include:`")
            return None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            self._problems.add(Place(path, line), "the file is not UTF-8 text", "save it as UTF-8")
            return None
        root = self._compose(text, path)
        if root is None:
            return None
        if not isinstance(root, MappingNode):
            self._problems.add(start, "the file is not a map of settings", "begin with a key such as `sources:`")
            return None
        return _Build(path, self._environment, self._problems).node(root, _place(path, root))

    def _compose(self, text: str, path: Path) -> YamlNode | None:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        yaml.Composer = _Bounded
        try:
            root: YamlNode | None = yaml.compose(text)
        except MarkedYAMLError as error:
            self._refuse(error, text, path)
            return None
        except YAMLError as error:
            character = getattr(error, "character", None)
            line = text[: getattr(error, "position", 0)].count("\n") + 1
            character = ord(character) if isinstance(character, str) else character
            found = f"U+{character:04X}" if isinstance(character, int) else "a character"
            self._problems.add(Place(path, line), f"{found} is not allowed in YAML", "remove it, or write it as \\x…")
            return None
        except RecursionError:
            self._problems.add(Place(path), f"more than {MAX_DEPTH} levels in one file", "write it flatter")
            return None
        if root is None:
            self._problems.add(Place(path), "the file is empty", "`kadds init` writes a starter")
        return root

    def _refuse(self, error: MarkedYAMLError, text: str, path: Path) -> None:
        mark = error.problem_mark or error.context_mark
        place = Place(path, mark.line + 1, mark.column + 1) if mark else Place(path)
        message, hint = str(error.problem or "this is not YAML").removeprefix("but "), None
        lines = text.splitlines()
        line = lines[mark.line] if mark and mark.line < len(lines) else ""
        reference = line.rfind("${", 0, (mark.column if mark else 0) + 1)
        quoted = any(line[: max(reference, 0)].count(quote) % 2 for quote in "\"'")
        if reference >= 0 and not quoted and error.context and "flow" in error.context:
            place = Place(path, place.line, reference + 1)
            message = "inside braces or brackets an unquoted ${…} is not YAML"
            hint = 'quote it: "${…}"'
        elif "mapping values are not allowed" in message and "${" in line:
            hint = 'quote a value that holds a colon and a space: "${…}"'
        elif error.context and "flow" in error.context and _UNQUOTED_TAG.search(_between(lines, error)):
            message, hint = "an unquoted ! is a YAML tag", 'quote a pattern that excludes: "!public.audit_*"'
        elif "undefined alias" in message or "while scanning an alias" in (error.context or ""):
            message, hint = "an unquoted * is a YAML alias, and no such anchor is there", 'quote a pattern: "*.orders"'
        elif "\\t" in message:
            message, hint = "a tab indents this line", "indent with spaces"
        elif "unexpected end of stream" in message:
            hint = "a quote or bracket is not closed"
            place = (
                Place(path, error.context_mark.line + 1, error.context_mark.column + 1) if error.context_mark else place
            )
        self._problems.add(place, f"this is not YAML: {message}" if hint is None else message, hint)


def _between(lines: Sequence[str], error: MarkedYAMLError) -> str:
    """The lines of the list or map in which `error` was found."""
    first = error.context_mark.line if error.context_mark else 0
    return "\n".join(lines[first : error.problem_mark.line + 1 if error.problem_mark else None])


def from_plain(plain: Any, place: Place, environment: Mapping[str, str], problems: Problems, *, folder: Path) -> Node:
    """A tree out of plain data that came from no file; file references in it are relative to `folder`."""
    build = _Build(folder / place.file.name, environment, problems)

    def node(value: Any) -> Node:
        if isinstance(value, Mapping):
            return Node({str(key): node(child) for key, child in value.items()}, place, place)
        if isinstance(value, list | tuple):
            return Node([node(child) for child in value], place, place)
        return build.text(value, place, place) if isinstance(value, str) else Node(value, place, place)

    return node(plain)


def _place(path: Path, node: YamlNode) -> Place:
    return Place(path, node.start_mark.line + 1, node.start_mark.column + 1)


def _whole_number(text: str) -> int:
    text = text.replace("_", "")
    return int(text, 0 if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else 10)


def _number(text: str) -> float:
    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


#: How YAML 1.2 writes what is not text.
_READ: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() in ("true", "yes", "on"),
    "int": _whole_number,
    "float": lambda text: _number(text.lower()),
}


class _Build:
    """Turns YAML's nodes into ours. Each use of an alias counts, because each is written out."""

    def __init__(self, path: Path, environment: Mapping[str, str], problems: Problems) -> None:
        self._path = path
        self._environment = environment
        self._problems = problems
        self._open: list[YamlNode] = []
        self._seen: set[int] = set()
        self._nodes = 0
        self._aliases = 0
        self._gave_up = False

    def node(self, yaml: YamlNode, key_place: Place) -> Node:
        """Our node of a node of YAML's."""
        place = _place(self._path, yaml)
        if not self._count(yaml, place):
            return Node(None, place, key_place, broken=True)
        if isinstance(yaml, ScalarNode):
            return self._scalar(yaml, place, key_place)
        if yaml.tag not in (_TAG + "map", _TAG + "seq"):
            return self._refuse_tag(yaml, place, key_place)
        self._open.append(yaml)
        try:
            value = self._mapping(yaml) if isinstance(yaml, MappingNode) else self._sequence(yaml)  # type: ignore[arg-type]
        finally:
            self._open.pop()
        return Node(value, place, key_place)

    def _count(self, yaml: YamlNode, place: Place) -> bool:
        if any(yaml is above for above in self._open):
            self._problems.add(place, "an alias stands inside its own anchor", "write the values out")
            return False
        self._nodes += 1
        self._aliases += id(yaml) in self._seen
        self._seen.add(id(yaml))
        if self._nodes > MAX_NODES or self._aliases > MAX_ALIASES:
            if not self._gave_up:
                self._problems.add(place, f"aliases write out more than {MAX_ALIASES} values", "write the values out")
            self._gave_up = True
        return not self._gave_up

    def _sequence(self, yaml: SequenceNode) -> list[Node]:
        return [self.node(item, _place(self._path, item)) for item in yaml.value]

    def _mapping(self, yaml: MappingNode) -> dict[str, Node]:
        found: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in yaml.value:
            place = _place(self._path, key)
            if not isinstance(key, ScalarNode) or (key.tag or "").startswith("!"):
                self._problems.add(place, "a key is plain text", 'quote a key that begins with a sign: "!public.x": {}')
            elif key.tag == _TAG + "merge" or (key.value == "<<" and key.style is None):
                merged = self._merged(value) | merged
            elif key.value in found:
                first = found[key.value].key_place
                self._problems.add(place, f"`{key.value}` is given twice", f"it is already at {first}")
            elif "${" in key.value:
                self._problems.add(place, "a reference ${…} stands in a key", "references are replaced in values only")
            else:
                found[key.value] = self.node(value, place)
        return merged | found

    def _merged(self, yaml: YamlNode) -> dict[str, Node]:
        """The values that `<<:` brings; keys written beside it win."""
        node = self.node(yaml, _place(self._path, yaml))
        maps = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(one.value, dict) for one in maps):
            self._problems.add(node.place, "`<<` takes a map or a list of maps", None)
            return {}
        found: dict[str, Node] = {}
        for one in maps:
            found = one.value | found
        return found

    def _refuse_tag(self, yaml: YamlNode, place: Place, key_place: Place) -> Node:
        if (yaml.tag or "").startswith("!"):
            message, hint = "an unquoted ! is a YAML tag", 'quote a pattern that excludes: "!public.audit_*"'
        else:
            message, hint = "YAML tags are not allowed", "write a plain value"
        self._problems.add(place, message, hint)
        return Node(None, place, key_place, broken=True)

    def _scalar(self, yaml: ScalarNode, place: Place, key_place: Place) -> Node:
        kind = (yaml.tag or "").removeprefix(_TAG)
        if kind in ("str", "timestamp", "merge", "value"):
            return self.text(yaml.value, place, key_place)
        if kind not in _READ:
            return self._refuse_tag(yaml, place, key_place)
        try:
            return Node(_READ[kind](yaml.value), place, key_place)
        except ValueError:
            self._problems.add(place, f"this is not of the kind {kind}", "quote it where text is meant")
            return Node(None, place, key_place, broken=True)

    def text(self, text: str, place: Place, key_place: Place) -> Node:
        """A text with its references replaced."""
        if "$" not in text:
            return Node(text, place, key_place)
        try:
            found = parts(text)
            value = "".join(resolve(part, self._environment, self._path.parent) for part in found)
        except UnresolvedError as fault:
            self._problems.add(place, fault.message, fault.hint)
            return Node("", place, key_place, broken=True)
        secret = any(isinstance(part, Reference) and part.is_file for part in found)
        if secret:
            self._problems.hide(value)
        return Node(value, place, key_place, found if _refers(found) else (), secret)


def _refers(found: tuple[Part, ...]) -> bool:
    return not all(isinstance(part, Literal) for part in found)
