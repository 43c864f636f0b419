"""`kadds validate` online: what the file gets wrong and what a server refuses, each with its place."""

import subprocess
import sys
from typing import Any

import pytest

from kadds.api.connector import Level
from kadds.app import Found, exit_code, load_configuration, validate_online
from tests.unit.app.shops import CONFIGURATION, Shop


def errors(shop: Shop) -> list[Found]:
    found = list(validate_online(load_configuration(shop.config)))
    return [one for one in found if one.level is Level.ERROR]


def test_a_configuration_that_fits_has_no_error_and_changes_nothing(shop: Shop) -> None:
    assert errors(shop) == []
    assert not (shop.folder / "warehouse.duckdb").exists()
    assert not shop.log.exists()


@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ({"columns": ["!colour"]}, "colour"),
        ({"mask": {"colour": "redact"}}, "colour"),
        ({"where": "colour = 'red'"}, "colour"),
        ({"where": "customer + 1 > 2"}, ""),
        ({"columns": ["!id"]}, "column of the key"),
        ({"mask": {"id": "redact"}}, "column of the key"),
    ],
    ids=["columns", "mask", "where", "where-type", "key", "key-mask"],
)
def test_a_contract_is_compared_with_the_real_columns(shop: Shop, contract: dict[str, Any], said: str) -> None:
    shop.configure(subscriptions=shop.subscription(tables={"*": {}, "orders": contract}))
    [one] = errors(shop)
    assert said in one.message
    assert one.in_file
    assert one.place is not None
    assert one.place.line > 1
    assert exit_code([one]) == 2


def test_a_table_that_is_not_there_is_named_with_its_place(shop: Shop) -> None:
    shop.configure(sources=shop.source(tables={"orders": {"incrementing": "id"}, "invoices": {"incrementing": "id"}}))
    [one] = errors(shop)
    assert (one.where, one.in_file) == ("invoices", False)
    assert "invoices" in shop.config.read_text().splitlines()[one.place.line - 1] if one.place else False
    assert exit_code([one]) == 1


def test_a_pattern_that_matches_nothing_is_a_warning(shop: Shop) -> None:
    shop.configure(sources=shop.source(tables={"*": {"incrementing": "id"}, "sales.*": {}}))
    found = list(validate_online(load_configuration(shop.config)))
    [one] = [one for one in found if one.where == "sales.*"]
    assert one.level is Level.WARNING
    assert exit_code(found) == 0


def test_a_server_that_refuses_is_the_servers_fault(shop: Shop) -> None:
    shop.configure(sources=shop.source(url="sqlite:///{folder}/nothing.db"))
    [one] = errors(shop)
    assert "nothing.db" in one.message
    assert exit_code([one]) == 1


def test_a_column_that_says_what_is_new_and_is_not_there_is_found(shop: Shop) -> None:
    shop.configure(sources=shop.source(tables={"orders": {"incrementing": "number"}}))
    assert ["number" in one.message for one in errors(shop)] == [True]


def test_a_table_without_a_key_cannot_be_merged(shop: Shop) -> None:
    shop.execute("CREATE TABLE notes (id INTEGER NOT NULL, text TEXT)")
    [one] = errors(shop)
    assert "notes" in one.where
    assert "key" in one.message


def test_two_tables_for_one_target_are_named(shop: Shop) -> None:
    shop.configure(subscriptions=shop.subscription(tables={"*": {}, "orders": {"target": "customers"}}))
    [one] = errors(shop)
    assert "would both go to customers" in one.message


def test_a_sink_that_holds_another_table_of_that_name_says_so(shop: Shop) -> None:
    import duckdb

    with duckdb.connect(str(shop.folder / "warehouse.duckdb")) as database:
        database.execute("CREATE TABLE orders (something INTEGER)")
    found = errors(shop)
    assert found
    assert all("orders" in one.where and not one.in_file for one in found)


def test_a_sink_that_is_held_by_its_owner_is_a_warning_since_a_run_would_wait(shop: Shop) -> None:
    script = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(shop.folder / "warehouse.duckdb")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        found = list(validate_online(load_configuration(shop.config)))
        owner.communicate("")
    assert [one.level for one in found if "warehouse" in one.message or "warehouse" in one.where] == [Level.WARNING]
    assert exit_code(found) == 0


def test_every_source_and_subscription_is_looked_at_although_one_fails(shop: Shop) -> None:
    broken = {**CONFIGURATION["sources"]["shop"], "url": "sqlite:///{folder}/nothing.db"}
    shop.configure(
        sources={"broken": broken, **shop.source()},
        subscriptions=shop.subscription(tables={"orders": {"columns": ["!colour"]}}),
    )
    assert [one.subject for one in errors(shop)] == ["source broken", "subscription shop-to-warehouse"]
