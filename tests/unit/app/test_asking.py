"""How a command finds the log: through the process that holds it, else by taking the lock."""

import threading

import pytest

from kadds.api.errors import ConfigurationError, LockedError
from kadds.app import App, Place, ask, find, load_configuration, serve
from kadds.log.lock import FolderLock
from tests.unit.app.shops import Shop


def test_a_command_asks_the_process_that_holds_the_log(shop: Shop) -> None:
    shop.add_orders(1, 4)
    app = App.for_running(load_configuration(shop.config))
    try:
        serve(app)
        app.start()
        app.wait_until_caught_up(threading.Event())
        plain = ask(Place(shop.log), "status")
        assert plain["running"] is True
        assert plain["subscriptions"][0]["rows"] == 3
        parts = ask(Place(shop.log), "log.tail")
        next(parts)
        shop.add_orders(4, 5)
        assert next(part for part in parts if part and part.rows is not None).rows.num_rows == 1
        parts.close()
        app.drain()
    finally:
        app.close()
    assert ask(Place(shop.log), "status")["running"] is False


def test_a_reader_under_way_when_the_process_ends_is_let_go(shop: Shop) -> None:
    app = App.for_running(load_configuration(shop.config))
    serve(app)
    app.start()
    parts = ask(Place(shop.log), "log.tail")
    next(parts)
    ended = threading.Thread(target=lambda: list(parts), daemon=True)
    ended.start()
    app.drain()
    app.close()
    ended.join(30)
    assert not ended.is_alive()


def test_a_holder_that_does_not_answer_is_named_when_patience_ends(shop: Shop) -> None:
    App.for_running(load_configuration(shop.config)).close()
    lock = FolderLock(shop.log)
    try:
        with pytest.raises(LockedError, match="held by process"):
            ask(Place(shop.log), "status", patience_seconds=0.2)
    finally:
        lock.release()


def test_a_holder_that_lets_go_in_time_is_waited_for(shop: Shop) -> None:
    App.for_running(load_configuration(shop.config)).close()
    lock = FolderLock(shop.log)
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    assert ask(Place(shop.log), "status")["running"] is False
    timer.join()


def test_two_processes_cannot_run_one_folder(shop: Shop) -> None:
    loaded = load_configuration(shop.config)
    app = App.for_running(loaded)
    try:
        with pytest.raises(LockedError, match="held by process"):
            App.for_running(loaded)
    finally:
        app.close()


def test_the_place_comes_from_the_option_the_variable_or_the_usual_file(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(shop.config, None, {}) == Place(shop.log, shop.config)
    assert find(None, None, {"KADDS_CONFIG": str(shop.config)}) == Place(shop.log, shop.config)
    assert find(None, shop.log, {}) == Place(shop.log)
    monkeypatch.chdir(shop.folder)
    assert find(None, None, {}).log == shop.log
    monkeypatch.chdir(shop.folder.parent)
    with pytest.raises(ConfigurationError, match="no such configuration file"):
        find(None, None, {})
    with pytest.raises(ConfigurationError, match="both say where the log is"):
        find(shop.config, shop.log, {})


def test_the_place_of_the_log_is_known_without_the_secrets_of_the_file(shop: Shop) -> None:
    shop.configure(sources=shop.source(url="${NOT_SET_HERE}"))
    assert find(shop.config, None, {}).log == shop.log
    shop.configure(log={"path": "${NOT_SET_HERE}"})
    with pytest.raises(ConfigurationError, match="NOT_SET_HERE is not set"):
        find(shop.config, None, {})
