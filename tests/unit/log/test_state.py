"""Control state: durable keys and values, kept as system streams that no pattern matches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kadds.log.log import Log
from tests.unit.log.making import SOURCE, opened, put
from tests.unit.log.reading import found


def _put_all(log: Log) -> None:
    log.state.put("default", "sinks", "warehouse", {"url": "x", "n": [1, None, "é"]})
    log.state.put("default", "sinks", "lake", {"first": True})
    log.state.put("default", "sinks", "lake", {"second": [True]})
    log.state.put("default", "sinks", "gone", 1)
    log.state.put("default", "sinks", "gone", None)
    log.state.put("default", "runs.nightly/1%", "a b/c.d", "text")
    log.state.put("other", "sinks", "warehouse", False)
    log.state.put("empty", "sinks", "x", 0)
    log.state.put("empty", "sinks", "x", None)


def _holds_all(log: Log) -> None:
    state = log.state
    assert state.items("default", "sinks") == {
        "warehouse": {"url": "x", "n": [1, None, "é"]},
        "lake": {"second": [True]},
    }
    assert state.get("default", "sinks", "gone") is None
    assert state.get("default", "nothing", "gone") is None
    assert state.get("default", "runs.nightly/1%", "a b/c.d") == "text"
    assert state.get("other", "sinks", "warehouse") is False
    assert state.tenants("sinks") == ["default", "other"]
    assert state.tenants("runs.nightly/1%") == ["default"]
    assert state.tenants("nothing") == []


@pytest.mark.parametrize("between", ["nothing", "reopen", "seal", "seal, reopen", "crash", "seal, crash", "twice"])
def test_state_survives(between: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = opened(folder)
    _put_all(log)
    if "seal" in between or between == "twice":
        log.seal()
    if "crash" in between:
        shutil.copytree(folder, tmp_path / "copy")
        log.close()
        log = opened(tmp_path / "copy")
    elif "reopen" in between or between == "twice":
        log.close()
        log = opened(folder)
    if between == "twice":
        log.state.put("default", "sinks", "late", 1)
        log.seal()
        log.state.put("default", "sinks", "late", None)
        log.close()
        log = opened(folder)
    _holds_all(log)
    log.close()


def test_what_a_caller_does_to_a_value_it_got_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        given = {"list": [1]}
        log.state.put("default", "sinks", "a", given)
        given["list"].append(2)
        log.state.get("default", "sinks", "a")["list"].append(3)  # type: ignore[index]
        log.state.items("default", "sinks")["a"]["list"].append(4)
        assert log.state.get("default", "sinks", "a") == {"list": [1]}


def test_a_put_is_done_when_it_is_durable_and_seen_by_then(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        futures = [log.state.put_soon("default", "runs", str(key), key) for key in range(100)]
        assert [future.result().end_offset for future in futures] == list(range(1, 101))
        assert log.state.items("default", "runs") == {str(key): key for key in range(100)}


def test_system_streams_are_listed_and_read_only_where_they_are_asked_for(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.state.put("default", "runs", "a", 1)
        put(log.producer(SOURCE, "stream"), 1).result()
        for _ in range(2):
            assert all("_kadds" not in stream.name for stream in log.streams())
            assert all("_kadds" not in stream.name for stream in log.streams(SOURCE))
            assert all("_kadds" not in one.stream for one in found(log, source=SOURCE))
            assert [stream.name for stream in log.streams("default/_kadds")] == ["default/_kadds/runs"]
            (one,) = found(log, source="default/_kadds")
            assert dict(one.values) == {"key": "a", "value": "1"}
            log.seal()
        log.close()
    with opened(tmp_path / "log") as log:
        assert all("_kadds" not in stream.name for stream in log.streams())
