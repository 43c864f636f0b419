"""A sink registered by command is checked as one in the file, and is kept without a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from kadds.config import ConfigurationProblems, read_registration
from tests.unit.config.fake_connectors import INSTALLED

CANARY = "canary-0123456789"


def test_a_sink_is_kept_as_written_with_its_paths_absolute(tmp_path: Path) -> None:
    given = {"connector": "put", "path": "w.db", "key": "${KEY}", "label": "a$$b"}
    found = read_registration("wh", given, {"KEY": CANARY}, folder=tmp_path, installed=INSTALLED)
    assert found.name == "default/wh"
    assert found.entry.settings.path == tmp_path / "w.db"  # type: ignore[attr-defined]
    assert found.entry.settings.key.reveal() == CANARY  # type: ignore[attr-defined]
    assert found.entry.settings.label == "a$b"  # type: ignore[attr-defined]
    assert found.written == {**given, "path": str(tmp_path / "w.db")}
    assert CANARY not in repr(found)
    again = read_registration("default/wh", found.written, {"KEY": CANARY}, folder=Path("/"), installed=INSTALLED)
    assert again == found


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("wh", {"connector": "put", "path": "w", "key": CANARY}, "`sinks.wh.key` holds a secret in plain text"),
        ("wh", {"connector": "put", "path": "w", "key": "${GONE}"}, "the environment variable GONE is not set"),
        ("wh", {"connector": "put", "pth": "w"}, "did you mean `path`?"),
        ("wh", {"connector": "pt", "path": "w"}, "did you mean `put`?"),
        ("wh", {"connector": "pull", "path": "w"}, "pull cannot be a sink"),
        ("wh", {"path": "w"}, "`sinks.wh` needs the setting `connector`"),
        ("a/b/c", {"connector": "put", "path": "w"}, "cannot be used as a name"),
    ],
)
def test_a_fault_is_named_and_no_secret_with_it(name: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationProblems) as caught:
        read_registration(name, given, {}, installed=INSTALLED)
    assert message in str(caught.value)
    assert CANARY not in str(caught.value)
