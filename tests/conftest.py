"""Fixtures and rules for every test; each concern has its own file in `tests/support`."""

pytest_plugins = ["tests.support.ci", "tests.support.properties", "tests.support.servers"]
