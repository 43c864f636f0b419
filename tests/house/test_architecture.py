"""Who may import whom. The table is the architecture: a new arrow is a decision, made here and in docs/ARCHITECTURE.md.

The table governs Kadds' own parts. Libraries go where they are used, except that `api` stays light enough for anybody's
connector.
"""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source_tree import ROOT, Import, imports, python_files

MAY_IMPORT = {
    "api": set(),
    "plugins": {"api"},
    "log": {"api"},
    "quality": {"api"},
    "config": {"api", "plugins"},
    "engine": {"api", "log", "quality"},
    "app": {"config", "plugins", "log", "quality", "engine", "api"},
    "jobs": {"app", "api"},
    "web": {"app", "api"},
    "cli": {"app", "jobs", "web", "api"},
    "testing": {"api", "log"},
    "__main__": {"cli"},
}
LIBRARIES_OF_THE_API = {"numpy", "pyarrow", "pydantic", "pydantic_core"}
MADE_LATER = {"quality", "web"}  # a folder appears with its first content


def _wrong_in_kadds(path: Path, root: Path) -> Iterator[str]:
    part = path.relative_to(root / "kadds").with_suffix("").parts[0]
    if part != "__init__" and part not in MAY_IMPORT:
        yield f"{path}: `{part}` is no part of kadds; the table of parts has {', '.join(sorted(MAY_IMPORT))}"
        return
    allowed = {part, *MAY_IMPORT.get(part, ())}
    for found in imports(path, root):
        names = found.module.split(".")
        if names[0] == "kadds":
            target = names[1] if len(names) > 1 else "*"
            if target in MAY_IMPORT and target not in allowed:
                yield f"{found.where}: {part} may not import {target} ({found.module})"
            elif target == "*":
                yield f"{found.where}: takes everything from kadds"
        elif names[0].startswith("kadds_"):
            yield f"{found.where}: kadds knows no connector by name ({found.module}); entry points find them"
        elif part == "api" and names[0] not in LIBRARIES_OF_THE_API | sys.stdlib_module_names:
            yield f"{found.where}: api may import the standard library and {LIBRARIES_OF_THE_API}, not {names[0]}"


def _wrong_in_connector(path: Path, source_root: Path) -> Iterator[str]:
    own = path.relative_to(source_root).parts[0]
    for found in imports(path, source_root):
        names = found.module.split(".")
        if names[0] == "kadds" and names[1:2] != ["api"]:
            yield f"{found.where}: a connector may import kadds.api, not {found.module}"
        elif names[0].startswith("kadds_") and names[0] != own:
            yield f"{found.where}: {own} may not import another connector ({found.module})"


def _of_the_source_root(found: Import) -> bool:
    return found.module.split(".")[0] == "connectors"


def _declared_connectors() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(project["entry-points"]["kadds.connectors"])


def test_parts_of_kadds_import_only_what_the_table_allows() -> None:
    assert [wrong for path in python_files("kadds") for wrong in _wrong_in_kadds(path, ROOT)] == []


def test_connectors_import_only_the_interface_and_themselves() -> None:
    root = ROOT / "connectors"
    assert [wrong for path in python_files("connectors") for wrong in _wrong_in_connector(path, root)] == []


def test_nobody_imports_the_source_root_of_the_connectors() -> None:
    """It happens to work from a checkout, as a namespace package, and gives a second copy of every module."""
    found = [
        (found.where, found.module)
        for folder in ("kadds", "connectors", "tests", "benchmarks")
        for path in python_files(folder)
        for found in imports(path, ROOT / "connectors" if folder == "connectors" else ROOT)
        if _of_the_source_root(found)
    ]
    assert found == []


def test_every_connector_folder_is_declared_and_tested() -> None:
    assert not (ROOT / "connectors" / "__init__.py").exists(), "connectors/ is a source root, not a package"
    folders = {path.relative_to(ROOT / "connectors").parts[0] for path in python_files("connectors")}
    declared = _declared_connectors()
    assert declared == {name.removeprefix("kadds_"): f"{name}:connector" for name in folders}
    for name in declared:
        assert list((ROOT / "tests" / "connectors").glob(f"test_{name}*.py")), f"no tests/connectors/test_{name}.py"


def test_the_installed_entry_points_are_those_declared() -> None:
    installed = importlib.metadata.distribution("kadds").entry_points.select(group="kadds.connectors")
    assert {entry.name: entry.value for entry in installed} == _declared_connectors(), "run `make dev`"


def test_every_part_of_the_table_exists() -> None:
    there = {path.relative_to(ROOT / "kadds").with_suffix("").parts[0] for path in python_files("kadds")}
    assert set(MAY_IMPORT) - there - MADE_LATER == set()


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("kadds/api/change.py", "import duckdb", "not duckdb"),
        ("kadds/api/change.py", "def late():\n    from kadds.log import log", "api may not import log"),
        ("kadds/log/log.py", "from kadds import engine", "log may not import engine"),
        ("kadds/log/log.py", "from ..engine import retry", "log may not import engine"),
        ("kadds/log/log.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import kadds.app", "import app"),
        ("kadds/log/log.py", "import importlib\nimportlib.import_module('kadds.cli.main')", "may not import cli"),
        ("kadds/engine/deliver.py", "import kadds_duckdb", "knows no connector"),
        ("kadds/strange/new.py", "", "no part of kadds"),
        ("kadds/__init__.py", "from kadds.api import errors", "may not import api"),
        ("connectors/kadds_a/sink.py", "from kadds.log import log", "not kadds.log"),
        ("connectors/kadds_a/sink.py", "from kadds import config", "not kadds.config"),
        ("connectors/kadds_a/sink.py", "import kadds", "not kadds"),
        ("connectors/kadds_a/sink.py", "from kadds_b.values import cast", "another connector"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, file: str, source: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    if file.startswith("kadds/"):
        wrong = list(_wrong_in_kadds(path, tmp_path))
    else:
        wrong = list(_wrong_in_connector(path, tmp_path / "connectors"))
    assert len(wrong) == 1
    assert complaint in wrong[0]


def test_a_right_import_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "kadds" / "engine" / "capture.py"
    path.parent.mkdir(parents=True)
    path.write_text("import duckdb\nfrom kadds import __version__\nfrom kadds.log import log\nfrom . import retry\n")
    assert ast.parse(path.read_text())
    assert list(_wrong_in_kadds(path, tmp_path)) == []
    path = tmp_path / "connectors" / "kadds_a" / "sink.py"
    path.parent.mkdir(parents=True)
    path.write_text("import kadds.api\nfrom kadds.api.errors import DataError\nfrom kadds_a.values import cast\n")
    assert list(_wrong_in_connector(path, tmp_path / "connectors")) == []
