"""Loading a configuration from text, with the connectors of these tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kadds.config import ConfigurationProblems, Loaded, load
from tests.unit.config.fake_connectors import INSTALLED


class Files:
    """Writes files below one folder and loads the first of them, `kadds.yml`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    def load(self, text: str, environment: Mapping[str, str] | None = None, **options: Any) -> Loaded:
        options.setdefault("installed", INSTALLED)
        return load(self.write("kadds.yml", text), environment or {}, **options)

    def refused(self, text: str, environment: Mapping[str, str] | None = None, **options: Any) -> list[str]:
        """Each problem as `line:column: message | hint`, those of other files with the file's name first."""
        with pytest.raises(ConfigurationProblems) as caught:
            self.load(text, environment, **options)
        return [
            ("" if one.file.name == "kadds.yml" else f"{one.file.name}:")
            + f"{one.line}:{one.column}: {one.message}"
            + (f" | {one.hint}" if one.hint else "")
            for one in caught.value.problems
        ]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A folder for configuration files."""
    return Files(tmp_path)
