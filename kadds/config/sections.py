"""Reads a file and all that it includes into one tree, in which every name is full and given once."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from kadds.config import names
from kadds.config.checking import Checker
from kadds.config.document import Node, Reader
from kadds.config.problems import Place, Problems

NAMED = ("sources", "sinks", "subscriptions")
SETTINGS = ("log", "metrics", "tenants", *NAMED)
MAX_FILES = 1_000


class Sections:
    """The top level of a configuration; `files` are those that were read, in order."""

    def __init__(self, path: Path, reader: Reader, problems: Problems) -> None:
        self._reader = reader
        self._problems = problems
        self._checker = Checker(problems)
        self._read: set[Path] = set()
        self.files: list[Path] = []
        self.complete = True  # False where a file could not be read, so that a missing name says nothing
        self.top: dict[str, Node] = {}
        self.start = Place(path)
        self._add(path)

    def named(self, section: str) -> dict[str, Node]:
        """The entries of a section by full name; empty if there are none."""
        node = self.top.get(section)
        return node.value if node is not None else {}

    def whole(self, section: str) -> Node:
        """A section as one map; empty where it is not given."""
        return self.top.get(section) or Node({}, self.start, self.start)

    def _add(self, path: Path) -> None:
        if path.resolve() in self._read:
            return
        self._read.add(path.resolve())
        if len(self._read) > MAX_FILES:
            self._problems.add(
                Place(path), f"more than {MAX_FILES} files are included", "check the patterns of `include:`"
            )
            return
        self.files.append(path)
        root = self._reader.read(path)
        if root is None:
            self.complete = False
            return
        known = {*SETTINGS, "memory_limit", "include"}
        unknown = self._checker.refuse_unknown(root, known, label="", kind="configuration")
        for name, node in root.value.items():
            if name in SETTINGS:
                self._add_section(name, node)
            elif name not in unknown and name != "include":
                self._once(self.top, name, node, name)
        if "include" in root.value:
            for included in self._included(root.value["include"], path):
                self._add(included)

    def _included(self, node: Node, path: Path) -> Iterator[Path]:
        if not isinstance(node.value, list) or not all(isinstance(item.value, str) for item in node.value):
            if not node.any_broken():
                self._problems.add(node.place, "`include` must be a list of paths", 'write include: ["tables/*.yml"]')
            return
        for item in node.value:
            if item.broken:
                continue
            found = sorted(glob.glob(item.value, root_dir=path.parent, recursive=True))
            if not found and not glob.has_magic(item.value):
                self.complete = False
                self._problems.add(item.place, f"there is no file {item.value}", f"paths are relative to {path.parent}")
            yield from (path.parent / name for name in found if not (path.parent / name).is_dir())

    def _add_section(self, section: str, node: Node) -> None:
        if node.value is None or not self._checker.is_map(node, section):
            return
        whole = self.top.setdefault(section, Node({}, node.place, node.key_place))
        for written, child in node.value.items():
            name = self._full(section, written, child)
            if name is not None:
                self._once(whole.value, name, child, f"{section}.{written}")

    def _full(self, section: str, written: str, child: Node) -> str | None:
        if section not in NAMED and section != "tenants":
            return written
        fault = names.tenant_fault(written) if section == "tenants" else names.fault(written)
        if fault:
            self._problems.add(child.key_place, f"`{section}.{written}` has a name that cannot be used", fault)
            return None
        if section == "tenants":
            return written
        tenant = names.DEFAULT_TENANT
        if section == "subscriptions":  # it belongs to its sink's tenant
            sink = child.children.get("sink")
            if sink is not None and isinstance(sink.value, str) and "/" in sink.value:
                tenant = names.tenant_of(sink.value)
        return names.full(written, tenant)

    def _once(self, into: dict[str, Node], name: str, node: Node, label: str) -> None:
        first = into.setdefault(name, node)
        if first is not node:
            self._problems.add(node.key_place, f"`{label}` is given twice", f"it is already at {first.key_place}")
