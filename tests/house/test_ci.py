"""In CI a skip or a run of none is red; at a desk it is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PASSES = "def test_passes():\n    pass\n"
SKIPS = "import pytest\n\ndef test_skips():\n    pytest.skip('no server')\n"
SKIPS_AS_MODULE = "import pytest\n\npytest.importorskip('a_library_that_is_not_there')\n"


def _run_pytest(folder: Path, ci: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    for name in [name for name in environment if name.startswith("PYTEST_XDIST")]:
        del environment[name]  # so that a worker of the outer run is not taken for one of this run
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.ci", "-p", "no:cacheprovider", *arguments, "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("skipping", "workers"),
    [
        pytest.param(SKIPS, "0", id="test"),
        pytest.param(SKIPS_AS_MODULE, "0", id="module"),
        pytest.param(SKIPS, "1", id="test-in-a-worker"),
    ],
)
def test_a_skip_fails_the_run_in_ci_only(tmp_path: Path, skipping: str, workers: str) -> None:
    (tmp_path / "test_one.py").write_text(PASSES)
    (tmp_path / "test_two.py").write_text(skipping)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    in_ci = _run_pytest(tmp_path, "true", "-n", workers)
    assert in_ci.returncode == 1, in_ci.stdout
    assert "a skipped test or a run of none is a failure" in in_ci.stdout
    assert "1 passed, 1 skipped" in in_ci.stdout.splitlines()[-1]

    at_a_desk = _run_pytest(tmp_path, "", "-n", workers)
    assert at_a_desk.returncode == 0, at_a_desk.stdout


def test_a_run_of_none_fails_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(PASSES)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    nothing_chosen = _run_pytest(tmp_path, "true", "-k", "nothing")
    assert nothing_chosen.returncode == 1, nothing_chosen.stdout
    assert "no test ran" in nothing_chosen.stdout


def test_a_run_that_tries_everything_is_green_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(PASSES)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    everything = _run_pytest(tmp_path, "true")
    assert everything.returncode == 0, everything.stdout
    assert "1 passed" in everything.stdout.splitlines()[-1]
