"""Fixtures of tests that need a shop."""

from pathlib import Path

import pytest

from tests.unit.app.shops import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """An empty shop whose tables are polled into a DuckDB file."""
    return Shop(tmp_path)
