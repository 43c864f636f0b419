"""Connectors are found by entry point, described without a driver, and opened with an error that helps."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from kadds import plugins
from kadds.api.errors import ConfigurationError
from kadds.api.settings import Settings
from kadds.plugins import Installed, connectors, describe, open_sink, open_source
from tests.unit.config.fake_connectors import INSTALLED, PULL, PUT

MODULE = """\
    import sys
    from kadds.api.connector import *
    from kadds.api.settings import Settings

    class OpenSettings(Settings):
        module: str = "json"

    def _open(settings, settings_of=None):
        __import__(settings.module)
        return settings

    connector = Connector(
        "NAME", "made for a test", extra="heavy",
        source=SourceSide(OpenSettings, SourceAbilities(Capture.POLL, frozenset()), _open),
        sink=SinkSide(OpenSettings, SinkAbilities(Promise.PLANNED, frozenset()), _open),
    )
"""


@pytest.fixture
def installed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes distributions in a folder that is importable, as pip would; gives their entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(distribution: str, name: str, source: str = MODULE, value: str | None = None) -> EntryPoint:
        module = f"{distribution.replace('-', '_')}_module"
        (tmp_path / f"{module}.py").write_text(dedent(source).replace("NAME", name))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
            "Requires-Dist: some-driver[fast]>=1; extra == 'all'\n"
            "Requires-Dist: other; extra == 'all'\n"
            "Requires-Dist: some-driver[fast]>=1; extra == 'driver'\n"
        )
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{name} = {value or module + ':connector'}\n")
        (entry,) = Distribution.at(info).entry_points
        return entry

    yield make
    for module in [name for name in sys.modules if name.endswith("_module")]:
        sys.modules.pop(module)


def test_a_connector_is_found_with_the_distribution_that_ships_it(installed_in: Any) -> None:
    found = connectors([installed_in("kadds-one", "one"), installed_in("kadds-two", "two")])
    assert {name: (one.distribution, one.version) for name, one in found.items()} == {
        "one": ("kadds-one", "1.2"),
        "two": ("kadds-two", "1.2"),
    }
    assert found["one"].connector.summary == "made for a test"


def test_two_distributions_with_one_name_are_refused_and_both_named(installed_in: Any) -> None:
    entries = [installed_in("kadds-one", "same"), installed_in("kadds-two", "same")]
    for order in (entries, entries[::-1]):
        with pytest.raises(ConfigurationError) as caught:
            connectors(order)
        assert "called 'same': kadds-one (kadds_one_module:connector) and kadds-two" in str(caught.value)


def test_one_distribution_found_twice_is_one(installed_in: Any) -> None:
    entry = installed_in("kadds-one", "one")
    assert list(connectors([entry, entry])) == ["one"]


@pytest.mark.parametrize(
    ("source", "value", "message"),
    [
        ("import no_such_module_at_all", None, "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise RuntimeError('it broke')", None, "RuntimeError: it broke"),
        ("x = 1", None, "AttributeError"),
        ("connector = 5", None, "not a Connector called 'one'"),
        (MODULE.replace("NAME", "other"), None, "is a connector called 'other', not a Connector called 'one'"),
    ],
)
def test_a_connector_that_cannot_be_imported_is_named(
    installed_in: Any, source: str, value: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        connectors([installed_in("kadds-one", "one", source, value)])
    assert "connector one of kadds-one" in str(caught.value)
    assert message in str(caught.value)


def test_the_connectors_of_this_environment_are_looked_up_once() -> None:
    assert connectors() is connectors()


def test_opening_gives_what_the_connector_opens(installed_in: Any) -> None:
    among = connectors([installed_in("kadds-one", "one")])
    settings = among["one"].connector.sink.settings()  # type: ignore[union-attr]
    assert open_sink("one", settings, among=among) is settings
    assert open_source("one", settings, lambda name: None, among=among) is settings


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("some_driver", "pip install 'kadds-one[driver]'"),
        ("some_driver.below", "pip install 'kadds-one[driver]'"),
        ("unheard_of", "pip install 'kadds-one[heavy]'"),
    ],
)
def test_a_missing_driver_names_the_extra_that_installs_it(installed_in: Any, module: str, hint: str) -> None:
    among = connectors([installed_in("kadds-one", "one")])
    settings = among["one"].connector.sink.settings(module=module)  # type: ignore[union-attr]
    for opening in (
        lambda: open_sink("one", settings, among=among),
        lambda: open_source("one", settings, lambda name: None, among=among),
    ):
        with pytest.raises(ConfigurationError) as caught:
            opening()
        assert f"needs the Python module {module.split('.', maxsplit=1)[0]}" in str(caught.value)
        assert caught.value.hint == hint


@pytest.mark.parametrize("module", ["kadds.no_such_part", "kadds_one_module.no_such_part"])
def test_a_fault_of_the_code_itself_is_no_missing_driver(installed_in: Any, module: str) -> None:
    among = connectors([installed_in("kadds-one", "one")])
    settings = among["one"].connector.sink.settings(module=module)  # type: ignore[union-attr]
    with pytest.raises(ModuleNotFoundError):
        open_sink("one", settings, among=among)


def test_a_name_that_is_not_installed_lists_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match="no connector called 'puut'") as caught:
        open_sink("puut", Settings(), among=INSTALLED)
    assert "pull, put, stream" in (caught.value.hint or "")


def test_a_source_is_no_sink_and_the_other_way_round() -> None:
    with pytest.raises(ConfigurationError, match="pull cannot be a sink"):
        open_sink("pull", Settings(), among=INSTALLED)
    with pytest.raises(ConfigurationError, match="put cannot be a source"):
        open_source("put", Settings(), lambda name: None, among=INSTALLED)


def test_a_description_has_abilities_and_settings_from_the_one_declaration() -> None:
    pull = describe("pull", among=INSTALLED)
    assert (pull.name, pull.summary, pull.distribution, pull.version) == ("pull", PULL.summary, "kadds-fake", "1.0")
    assert pull.sink is None
    assert pull.source is not None
    assert pull.source.abilities == {
        "capture": "poll", "events": ["create", "update"], "before_images": False, "transactions": False,
        "schema_changes": [],
    }  # fmt: skip
    described = {one.name: one for one in pull.source.settings}
    url, rows, retries = described["url"], described["fetch_rows"], described["retries"]
    assert (url.type, url.required, url.secret, url.description) == ("URL", True, True, "where it is")
    assert (rows.type, rows.required, rows.default, rows.secret) == ("whole number", False, 100, False)
    assert (described["password"].type, described["password"].default) == ("secret text", None)
    assert (retries.type, retries.default) == ("map", {"attempts": 3, "token": None})
    assert [one.name for one in pull.source.table_settings] == ["column", "overlap", "labels", "token"]
    put = describe("put", among=INSTALLED)
    assert put.sink is not None
    assert put.sink.abilities["cells"]["merge"]["delete"] == ["single", "composite", "none"]
    assert sorted(put.sink.abilities["cells"]) == ["append", "merge"]
    assert put.sink.abilities["promise"].startswith("exactly once")
    assert put.to_json()["sink"]["settings"][0]["type"] == "path"


def test_a_secret_default_is_not_described() -> None:
    from kadds.api.settings import Secret

    class Careless(Settings):
        token: Secret = Secret("canary")

    (one,) = plugins.describe_settings(Careless)
    assert one.default == "***"


def test_finding_and_describing_every_connector_imports_no_driver() -> None:
    code = """
        import sys
        from kadds import plugins
        names = list(plugins.connectors())
        assert names, "no connector is installed: run `make dev`"
        for name in names:
            plugins.describe(name).to_json()
        drivers = {"sqlalchemy", "psycopg", "pymysql", "oracledb"} & set(sys.modules)
        assert not drivers, drivers
    """
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=60)


def test_installed_says_what_it_is() -> None:
    assert Installed("put", PUT, "d", "1").modules == {}
