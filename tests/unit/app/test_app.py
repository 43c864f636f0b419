"""The composition root with the real log, SQLite and DuckDB: starting, remembering, refusing, catching up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import pytest

from kadds.api.errors import ConfigurationError, RefusedError
from kadds.app import App, Effect, Place, ask, load_configuration
from kadds.app.verbs import VERBS, answer
from tests.support.waiting import wait_until
from tests.unit.app.shops import Shop


@contextmanager
def running(shop: Shop) -> Iterator[App]:
    app = App.for_running(load_configuration(shop.config))
    try:
        app.start()
        yield app
        app.drain()
    finally:
        app.close()


def catch_up(shop: Shop) -> int:
    with running(shop) as app:
        return app.wait_until_caught_up(threading.Event()).exit_code


def alone(shop: Shop, verb: str, **arguments: Any) -> Any:
    """Ask while nothing runs."""
    return ask(Place(shop.log, shop.config), verb, arguments)


def test_rows_reach_the_sink_and_a_second_run_delivers_only_what_is_new(shop: Shop) -> None:
    shop.add_orders(1, 4)
    assert catch_up(shop) == 0
    assert shop.delivered() == [(n, f"somebody {n}", Decimal(f"{n}.50")) for n in (1, 2, 3)]
    shop.add_orders(4, 6)
    with running(shop) as app:
        app.wait_until_caught_up(threading.Event())
        [subscription] = answer(app, "subscription.list", {})
        assert subscription["rows"] == 2
    assert [row[0] for row in shop.delivered()] == [1, 2, 3, 4, 5]


def test_the_first_start_names_no_difference_and_the_next_one_every_difference(shop: Shop) -> None:
    with running(shop) as app:
        assert list(app.differences) == []
    shop.configure(
        sources=shop.source(poll_interval_seconds=0.2, tables={"*": {"incrementing": "id"}, "!customers": {}}),
        sinks={
            "warehouse": {"connector": "duckdb", "path": "warehouse.duckdb", "idle_close_seconds": 0},
            "copy": {"connector": "duckdb", "path": "copy.duckdb"},
        },
    )
    app = App.for_running(load_configuration(shop.config))
    try:
        told = {(one.effect, one.field or one.table or one.subject) for one in app.differences}
    finally:
        app.close()
    assert (Effect.APPLIED, "poll_interval_seconds") in told
    assert (Effect.KEPT, "customers") in told
    assert (Effect.ADDED, "default/copy") in told


@pytest.mark.parametrize(
    "change",
    [
        {"tables": {"*": {}, "orders": {"columns": ["!customer"]}}},
        {"tables": {"orders": {}}},
        {"mode": "append"},
    ],
    ids=["columns", "tables", "mode"],
)
def test_a_contract_that_no_longer_fits_is_refused_by_name_before_anything_moves(
    shop: Shop, change: dict[str, Any]
) -> None:
    shop.add_orders(1, 3)
    assert catch_up(shop) == 0
    shop.add_orders(3, 5)
    shop.configure(subscriptions=shop.subscription(**change))
    with pytest.raises(ConfigurationError, match="shop-to-warehouse") as found:
        App.for_running(load_configuration(shop.config))
    assert "not in this version" in (found.value.hint or "")
    assert [row[0] for row in shop.delivered()] == [1, 2]
    shop.configure()
    assert catch_up(shop) == 0
    assert [row[0] for row in shop.delivered()] == [1, 2, 3, 4]


def test_what_is_no_longer_in_the_file_is_warned_of_at_every_start_until_it_is_removed(shop: Shop) -> None:
    assert catch_up(shop) == 0
    with pytest.raises(ConfigurationError, match="subscription shop-to-warehouse is in the file"):
        alone(shop, "subscription.remove", name="shop-to-warehouse")
    shop.configure(subscriptions=None, sources=None)
    for _ in range(2):
        with running(shop) as app:
            warnings = answer(app, "status", {})["warnings"]
            assert [warning.split(":")[0] for warning in warnings] == ["source shop", "subscription shop-to-warehouse"]
            assert "kadds subscription remove shop-to-warehouse" in warnings[1]
    with pytest.raises(ConfigurationError, match="source shop is used by shop-to-warehouse"):
        alone(shop, "source.remove", name="shop")
    assert alone(shop, "subscription.remove", name="shop-to-warehouse") == {"removed": "default/shop-to-warehouse"}
    with running(shop) as app:
        assert answer(app, "source.remove", {"name": "shop"}) == {"removed": "default/shop", "said": []}
        assert answer(app, "status", {})["warnings"] == []
    assert alone(shop, "log.streams"), "what was captured stays"


def test_a_source_that_cannot_be_opened_ends_the_start_and_gives_the_folder_back(shop: Shop) -> None:
    shop.configure(sources=shop.source(url="oracle-or-so://nowhere/x"))
    app = App.for_running(load_configuration(shop.config))
    with pytest.raises(ConfigurationError):
        app.start()
    app.close()
    shop.configure()
    assert catch_up(shop) == 0


def test_a_pause_holds_while_nothing_runs_and_over_a_start(shop: Shop) -> None:
    assert catch_up(shop) == 0
    alone(shop, "subscription.pause", name="shop-to-warehouse")
    shop.add_orders(1, 3)
    with running(shop) as app:
        outcome = app.wait_until_caught_up(threading.Event())
        assert (outcome.exit_code, outcome.paused) == (0, ("subscription:default/shop-to-warehouse",))
    assert shop.delivered() == []
    alone(shop, "subscription.resume", name="shop-to-warehouse")
    assert catch_up(shop) == 0
    assert [row[0] for row in shop.delivered()] == [1, 2]


def test_paused_in_the_file_pauses_and_taking_it_back_resumes(shop: Shop) -> None:
    shop.add_orders(1, 3)
    shop.configure(subscriptions=shop.subscription(paused=True))
    assert catch_up(shop) == 0
    assert shop.delivered() == []
    shop.configure(subscriptions=shop.subscription(paused=False))
    with running(shop) as app:
        wait_until(lambda: answer(app, "subscription.list", {})[0]["rows"] == 2, waiting_for="the rows")
    assert [row[0] for row in shop.delivered()] == [1, 2]


def test_pausing_a_sink_pauses_every_subscription_of_it(shop: Shop) -> None:
    with running(shop) as app:
        assert answer(app, "sink.pause", {"name": "warehouse"}) == ["default/shop-to-warehouse"]
        assert answer(app, "subscription.show", {"name": "shop-to-warehouse"})["state"] == "paused"
        assert answer(app, "sink.resume", {"name": "warehouse"}) == ["default/shop-to-warehouse"]
        wait_until(lambda: answer(app, "subscription.show", {"name": "shop-to-warehouse"})["state"] != "paused")


def test_a_table_can_be_paused_alone(shop: Shop) -> None:
    shop.add_orders(1, 3)
    shop.execute("INSERT INTO customers VALUES (1, 'Ada')")
    with running(shop) as app:
        app.wait_until_caught_up(threading.Event())
        answer(app, "subscription.pause", {"name": "shop-to-warehouse", "table": "orders"})
        shop.add_orders(3, 5)
        shop.execute("INSERT INTO customers VALUES (2, 'Grace')")
        app.wait_until_caught_up(threading.Event())
        with pytest.raises(ConfigurationError, match="has no table nothing"):
            answer(app, "subscription.pause", {"name": "shop-to-warehouse", "table": "nothing"})
    assert len(shop.delivered("customers")) == 2
    assert [row[0] for row in shop.delivered()] == [1, 2]


# --------------------------------------------------------------------------------------------------------------- verbs


def test_a_verb_that_there_is_not_and_arguments_that_do_not_fit_are_refused_by_name(shop: Shop) -> None:
    with running(shop) as app:
        with pytest.raises(ConfigurationError, match=r"no verb .log\.burn."):
            answer(app, "log.burn", {})
        with pytest.raises(ConfigurationError, match=r"verb sink.show.*colour"):
            answer(app, "sink.show", {"name": "warehouse", "colour": "red"})
        for kind in ("source", "sink", "subscription"):
            with pytest.raises(ConfigurationError, match=f"there is no {kind} 'nothing'"):
                answer(app, f"{kind}.show", {"name": "nothing"})


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if not verb.writes and "list" in name])
def test_reading_verbs_answer_alike_in_the_process_and_beside_it(shop: Shop, verb: str) -> None:
    assert catch_up(shop) == 0
    beside = alone(shop, verb)
    with running(shop) as app:
        assert [one.keys() for one in answer(app, verb, {})] == [one.keys() for one in beside]


@pytest.mark.parametrize("verb", ["status", "sink.pause", "source.remove"])
def test_only_registering_makes_a_log_where_there_is_none(shop: Shop, verb: str) -> None:
    with pytest.raises(ConfigurationError, match="no log in this folder yet"):
        alone(shop, verb, **({} if verb == "status" else {"name": "shop"}))
    assert not shop.log.exists()


def test_following_the_log_of_nobody_is_refused(shop: Shop) -> None:
    assert catch_up(shop) == 0
    with pytest.raises(RefusedError, match="nothing runs"):
        alone(shop, "log.tail")
    with pytest.raises(RefusedError, match="nothing runs"):
        alone(shop, "jobs.run", name="source:shop")


def test_a_held_change_of_columns_is_shown_and_decided_where_nothing_runs(shop: Shop) -> None:
    shop.add_orders(1, 2)
    assert catch_up(shop) == 0
    shop.execute("ALTER TABLE orders RENAME COLUMN customer TO client")
    shop.add_orders(2, 3)
    assert catch_up(shop) == 1
    assert [row[0] for row in shop.delivered()] == [1]
    [shown] = alone(shop, "subscription.show", name="shop-to-warehouse")["schema_changes"]
    assert shown["held"] == ["column customer was dropped (a rename?)", "column client was added (a rename?)"]
    with pytest.raises(ConfigurationError, match="has no table nothing"):
        alone(shop, "subscription.schema", name="shop-to-warehouse", table="nothing", decision="apply")
    said = shop.kadds("subscription", "schema", "shop-to-warehouse", "orders", "ignore")
    assert (said.returncode, said.stdout) == (0, "subscription shop-to-warehouse orders: ignore\n")
    assert "decided: ignore" in shop.kadds("status").stdout
    assert catch_up(shop) == 0
    assert shop.delivered() == [(1, "somebody 1", Decimal("1.50")), (2, None, Decimal("2.50"))]
    assert alone(shop, "subscription.show", name="shop-to-warehouse")["schema_changes"] == []


def test_a_setting_of_a_table_goes_before_the_subscriptions_and_is_no_other_contract(shop: Shop) -> None:
    assert catch_up(shop) == 0
    tables = {"*": {}, "orders": {"on_schema_change": {"rename": "ignore"}}}
    shop.configure(subscriptions=shop.subscription(on_schema_change={"rename": "hold"}, tables=tables))
    shop.execute("ALTER TABLE orders RENAME COLUMN customer TO client")
    shop.add_orders(2, 3)
    assert catch_up(shop) == 0
    assert shop.delivered() == [(2, None, Decimal("2.50"))]
