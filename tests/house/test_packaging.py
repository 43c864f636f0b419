"""What is imported is declared, what is declared is pinned as tested, and the test servers say when they are ready."""

import importlib.metadata
import re
import sys
import tomllib
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from tests.house.source_tree import ROOT, imports, python_files


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements} - {"kadds"}


def _undeclared(folder: str, declared: set[str]) -> list[str]:
    """Imports of libraries that only happen to be there because another distribution needs them."""
    distributions = importlib.metadata.packages_distributions()
    own = {"kadds", *(path.name for path in (ROOT / "connectors").glob("kadds_*"))}
    accepted_with = {"pydantic-core": "pydantic"}  # one library in two distributions
    undeclared = []
    source_root = ROOT / "connectors" if folder == "connectors" else ROOT
    for path in python_files(folder):
        for found in imports(path, source_root):
            name = found.module.split(".")[0]
            if name in own or name in sys.stdlib_module_names:
                continue
            origins = {canonicalize_name(origin) for origin in distributions.get(name, [])}
            if not declared & {accepted_with.get(origin, origin) for origin in origins}:
                undeclared.append(f"{found.where}: {name}")
    return undeclared


def test_kadds_imports_only_what_its_dependencies_bring() -> None:
    """Drivers are for connectors: without any extra `kadds` itself imports. Its suites for others need `testing`."""
    project = _project()
    dependencies = _names(project["dependencies"])
    suites = dependencies | _names(project["optional-dependencies"]["testing"])
    outside = [found for found in _undeclared("kadds", dependencies) if "/kadds/testing/" not in found]
    assert outside == []
    assert _undeclared("kadds/testing", suites) == []


def test_connectors_import_only_what_an_extra_brings() -> None:
    project = _project()
    extras = [text for name, extra in project["optional-dependencies"].items() if name != "dev" for text in extra]
    assert _undeclared("connectors", _names(project["dependencies"] + extras)) == []


def test_constraints_pin_every_dependency_and_hold_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line), line
    project = _project()
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    declared = _names(project["dependencies"] + extras)
    pinned = {canonicalize_name(line.partition("==")[0]) for line in pins}
    assert declared - pinned == set()


def test_the_extra_for_everything_has_every_driver() -> None:
    extras = _project()["optional-dependencies"]
    [everything] = [Requirement(text) for text in extras["all"]]
    assert everything.extras == set(extras) - {"all", "testing", "test", "bench", "dev"}


def test_each_test_server_has_a_profile_of_its_own_and_says_when_it_is_ready() -> None:
    compose = YAML(typ="safe").load(ROOT / "docker-compose.test.yml")
    for name, service in compose["services"].items():
        assert service["profiles"] == [name]
        assert service["healthcheck"]["test"]
