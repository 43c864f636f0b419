"""Sinks registered by command: what is kept, what is refused, and that a subscription can use them after a restart."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from kadds.api.errors import ConfigurationError
from kadds.app import App, Place, ask, load_configuration
from kadds.log.log import Log
from tests.unit.app.shops import Shop


def register(shop: Shop, name: str = "copy", connector: str = "duckdb", **settings: Any) -> Any:
    arguments = {"name": name, "connector": connector, "settings": settings, "folder": str(shop.folder)}
    return ask(Place(shop.log, None), "sink.register", arguments)


def alone(shop: Shop, verb: str, **arguments: Any) -> Any:
    return ask(Place(shop.log, None), verb, arguments)


def use_copy(shop: Shop) -> None:
    shop.configure(sinks=None, subscriptions=shop.subscription(sink="copy"))


def test_a_registered_sink_is_there_after_a_restart_and_a_subscription_of_the_file_uses_it(shop: Shop) -> None:
    registered = register(shop, path="copy.duckdb", idle_close_seconds="0")
    assert (registered["name"], registered["registered"]) == ("default/copy", True)
    assert registered["settings"]["path"] == str(shop.folder / "copy.duckdb")
    use_copy(shop)
    shop.add_orders(1, 4)
    for expected in (3, 5):
        app = App.for_running(load_configuration(shop.config))
        try:
            app.start()
            assert app.wait_until_caught_up(threading.Event()).exit_code == 0
            app.drain()
        finally:
            app.close()
        assert len(shop.delivered(file="copy.duckdb")) == expected
        shop.add_orders(4, 6) if expected == 3 else None
    [one] = alone(shop, "sink.list")
    assert one["subscriptions"] == ["default/shop-to-warehouse"]
    with pytest.raises(ConfigurationError, match="used by shop-to-warehouse"):
        alone(shop, "sink.remove", name="copy")


def test_references_are_kept_as_written_and_resolved_where_the_sink_is_opened(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COPY_PATH", str(shop.folder / "elsewhere.duckdb"))
    register(shop, path="${COPY_PATH}")
    assert alone(shop, "sink.show", name="copy")["settings"]["path"] == "${COPY_PATH}"
    assert alone(shop, "sink.test", name="copy") == []
    monkeypatch.delenv("COPY_PATH")
    with pytest.raises(ConfigurationError, match="COPY_PATH is not set"):
        alone(shop, "sink.test", name="copy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"connector": "duckdbb", "path": "x"}, "duckdbb"),
        ({}, "path"),
        ({"path": "x", "colour": "red"}, "colour"),
        ({"name": "a/b/c", "path": "x"}, "a name is"),
        ({"name": "warehouse", "path": "x", "threads": "many"}, "threads"),
    ],
)
def test_what_the_connector_would_refuse_is_refused_at_once(shop: Shop, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        register(shop, **arguments)
    assert alone(shop, "sink.list") == []


def test_a_name_in_the_file_cannot_be_registered_and_one_in_both_is_refused_by_name(shop: Shop) -> None:
    place = Place(shop.log, shop.config)
    arguments = {"name": "warehouse", "connector": "duckdb", "settings": {"path": "w"}, "folder": str(shop.folder)}
    with pytest.raises(ConfigurationError, match="the file has a sink warehouse already"):
        ask(place, "sink.register", arguments)
    ask(Place(shop.log), "sink.register", arguments)  # nobody said which file belongs to this log
    with pytest.raises(ConfigurationError, match="both have a sink called warehouse"):
        App.for_running(load_configuration(shop.config))
    alone(shop, "sink.remove", name="warehouse")
    App.for_running(load_configuration(shop.config)).close()


def test_a_sink_that_nobody_uses_is_replaced_or_removed(shop: Shop) -> None:
    register(shop, path="one.duckdb")
    register(shop, path="two.duckdb")
    assert alone(shop, "sink.show", name="copy")["settings"]["path"].endswith("two.duckdb")
    assert alone(shop, "sink.remove", name="copy") == {"removed": "default/copy"}
    with pytest.raises(ConfigurationError, match="there is no sink 'copy'"):
        alone(shop, "sink.show", name="copy")


def test_a_registered_sink_outlives_sealing(shop: Shop) -> None:
    register(shop, path="copy.duckdb")
    with Log.open(shop.log) as log:
        log.seal()
    assert [one["name"] for one in alone(shop, "sink.list")] == ["default/copy"]


def test_no_secret_enters_the_log(shop: Shop, secret_sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary-4711")
    with pytest.raises(ConfigurationError, match="plain text"):
        register(shop, connector=secret_sink, token="canary-4711")
    register(shop, connector=secret_sink, token="${SECRET}")
    assert alone(shop, "sink.show", name="copy")["settings"] == {"token": "${SECRET}"}
    assert alone(shop, "sink.test", name="copy") == []
    files = [path for path in shop.log.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"canary-4711" in path.read_bytes()]
    assert "canary-4711" not in json.dumps(alone(shop, "status"))


@pytest.fixture
def secret_sink(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A connector with a secret, installed for the time of a test."""
    from types import MappingProxyType

    from kadds import plugins
    from kadds.api.connector import Connector, SinkSide
    from kadds.api.settings import Secret, Settings
    from kadds.plugins import Installed, installed

    class SecretSettings(Settings):
        token: Secret

    class Opened:
        def __init__(self, settings: SecretSettings) -> None:
            assert settings.token.reveal() == "canary-4711"

        def check(self, targets: Any) -> list[Any]:
            return []

        def close(self) -> None: ...

    abilities = installed("duckdb").connector.sink
    assert abilities is not None
    side = SinkSide(SecretSettings, abilities.abilities, Opened)  # type: ignore[arg-type]
    found = {**plugins.connectors(), "vault": Installed("vault", Connector("vault", "", sink=side), "test", "1")}
    monkeypatch.setattr(plugins, "_installed", lambda: MappingProxyType(found))
    return "vault"
