"""Style that a reader relies on, as tests: what a linter does not know."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.source_tree import ROOT, imports, parsed, python_files, repository_files

CODE = ("kadds", "connectors", "tests", "benchmarks")
NAMES_THAT_SAY_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc"}
SERIALISERS_THAT_RUN_CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
THE_ONE_THAT_WAITS = ROOT / "tests" / "support" / "waiting.py"

# Each pattern has a bracket so that this file does not match itself.
TRACES_OF_A_MACHINE = {
    "a path of somebody's machine": re.compile(r"(?<![\w.}$-])/(?:wor[k]|roo[t]|hom[e]/[a-z]\w*)/"),
    "a host of packages": re.compile(r"pypi\.or[g]|pythonhoste[d]\.org|deb\.debia[n]\.org|(?:extra-)?index-ur[l]"),
}


def _here(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _sleeps(tree: ast.Module) -> Iterator[int]:
    """Lines that pause by the clock: any `sleep`, and waiting for an event that nobody can set."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="sleep", value=ast.Name()):
                yield node.lineno
            case ast.ImportFrom(names=names) if any(alias.name == "sleep" for alias in names):
                yield node.lineno
            case ast.Attribute(
                attr="wait", value=ast.Call(func=ast.Attribute(attr="Event") | ast.Name(id="Event"), args=[])
            ):
                yield node.lineno


def test_every_module_says_what_it_is_for() -> None:
    silent = [_here(path) for path in python_files(*CODE) if not ast.get_docstring(parsed(path))]
    assert silent == []


def test_nothing_sleeps() -> None:
    """Code waits for an event or a condition, tests with `wait_until`: a fixed pause is too long or too short."""
    found = [
        f"{_here(path)}:{line}"
        for path in python_files("kadds", "connectors", "tests")
        if path != THE_ONE_THAT_WAITS
        for line in _sleeps(parsed(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["import time\ntime.sleep(1)", "from time import sleep", "asyncio.sleep(0.1)", "threading.Event().wait(3)"],
)
def test_a_sleep_is_seen(source: str) -> None:
    assert list(_sleeps(ast.parse(source)))


def test_waiting_for_something_is_no_sleep() -> None:
    source = "stopping.wait(1)\nqueue.get(timeout=1)\nself.changed.wait_for(ready, 3)\nprocess.wait(5)"
    assert not list(_sleeps(ast.parse(source)))


def test_files_are_named_for_what_they_hold() -> None:
    nameless = [
        _here(path)
        for path in python_files(*CODE)
        if NAMES_THAT_SAY_NOTHING & {*path.relative_to(ROOT).parts[:-1], path.stem.lstrip("_")}
    ]
    assert nameless == []


def test_no_trace_of_the_machine_it_was_built_on() -> None:
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a golden file, say
        for number, line in enumerate(text.splitlines(), 1):
            found += [
                f"{_here(path)}:{number}: {what}" for what, seen in TRACES_OF_A_MACHINE.items() if seen.search(line)
            ]
    assert found == []


def test_nothing_is_stored_in_a_form_that_runs_code_when_read() -> None:
    found = [
        f"{found.path}:{found.line}: {found.module}"
        for path in python_files(*CODE)
        for found in imports(path, ROOT)
        if found.module.split(".")[0] in SERIALISERS_THAT_RUN_CODE
    ]
    allowed = [
        f"{_here(path)}:{node.value.lineno}: allow_pickle"
        for path in python_files(*CODE)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert found + allowed == []
