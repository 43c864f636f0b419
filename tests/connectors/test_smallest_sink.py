"""The sink of docs/CONNECTORS.md, built from its code blocks as a distribution of its own, installed, found and run.

It runs in processes of their own, so that what it installs is seen by nothing else.
"""

import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _blocks() -> dict[str, str]:
    """File name → content, of the code blocks that say which file they are."""
    page = (REPOSITORY / "docs" / "CONNECTORS.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))


def _pip() -> list[str]:
    """pip for this environment, which may have none of its own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    outside = getattr(sys, "_base_executable", sys.executable)
    return [outside, "-m", "pip", "--python", sys.executable]


def _run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the distribution was installed, by pip out of its own folder; its test lies there too."""
    blocks, source = _blocks(), tmp_path_factory.mktemp("distribution")
    assert set(blocks) == {"pyproject.toml", "kadds_history/__init__.py", "kadds_history/sink.py", "test_history.py"}
    test = blocks.pop("test_history.py")
    for name, content in blocks.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content, encoding="utf-8")
    target = tmp_path_factory.mktemp("installed")
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    options = ["--disable-pip-version-check", "--quiet", "--no-deps", *here, "--target", str(target)]
    _run(*_pip(), "install", *options, str(source), folder=source)
    (target / "test_history.py").write_text(test, encoding="utf-8")
    return target


def test_it_is_found_under_its_name_with_its_distribution_and_needs_no_import_of_its_sink(installed: Path) -> None:
    script = (
        "import json, sys; from kadds import plugins; found = plugins.connectors()['history']; "
        "loaded = 'kadds_history.sink' in sys.modules; "
        "print(json.dumps([found.connector.name, found.distribution, found.version, loaded]))"
    )
    found = _run(sys.executable, "-c", script, folder=installed, PYTHONPATH=str(installed))
    assert json.loads(found) == ["history", "kadds-history", "1.0", False]


def test_it_passes_the_shipped_suite(installed: Path) -> None:
    (installed / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_history.py"]
    report = _run(*command, folder=installed, PYTHONPATH=str(installed), CI="", PYTEST_ADDOPTS="")
    assert re.search(r"\b1[0-9]{2} passed", report), report
    assert "skipped" not in report


def test_a_run_delivers_through_it_each_change_once(installed: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop.db"
    with closing(sqlite3.connect(shop)) as connection, connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total NUMERIC(12,2))")
        connection.executemany("INSERT INTO orders VALUES (?, ?)", [(1, 10), (2, 20)])
    configuration = {
        "log": {"path": "log"},
        "sources": {
            "shop": {"connector": "polling", "url": f"sqlite:///{shop}", "tables": {"orders": {"incrementing": "id"}}}
        },
        "sinks": {"there": {"connector": "history", "path": "there.sqlite"}},
        "subscriptions": {"s": {"source": "shop", "sink": "there", "mode": "append", "tables": ["*"]}},
    }
    (tmp_path / "kadds.yml").write_text(json.dumps(configuration))
    run = [sys.executable, "-m", "kadds", "run", "kadds.yml", "--until-caught-up"]
    _run(*run, folder=tmp_path, PYTHONPATH=str(installed))
    with closing(sqlite3.connect(shop)) as connection, connection:
        connection.execute("INSERT INTO orders VALUES (3, 30)")
    _run(*run, folder=tmp_path, PYTHONPATH=str(installed))
    with closing(sqlite3.connect(tmp_path / "there.sqlite")) as connection:
        found = connection.execute("SELECT arrow FROM batches WHERE target = 'orders'").fetchall()
    rows = pa.concat_tables(pa.ipc.open_stream(arrow).read_all() for (arrow,) in found)
    assert rows.column("id").to_pylist() == [1, 2, 3]
    assert rows.column("_kadds_op").to_pylist() == ["c", "c", "c"]
