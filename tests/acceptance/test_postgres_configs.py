"""The examples for PostgreSQL run as they stand, with URLs of servers in the variables that they ask for."""

import hashlib
import hmac
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.house.source_tree import ROOT
from tests.support.kadds_process import Kadds
from tests.support.postgres_bed import plain_url
from tests.support.postgres_judges import differences
from tests.support.servers import DatabaseServer, PostgresServer
from tests.support.targets import Lake, duckdb_table, duckdb_table_names

pytestmark = pytest.mark.own_server("postgres")
MASK_KEY = "a key for masks, long enough to be one"
SHOP = """
CREATE TABLE customers (id bigint PRIMARY KEY, name text, email text, country text);
CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint, status text NOT NULL, total numeric(12,2), card text,
                     ordered_at timestamptz NOT NULL);
CREATE TABLE payments (order_id bigint, part integer, amount numeric(12,2), PRIMARY KEY (order_id, part));
CREATE TABLE audit_entries (id bigint PRIMARY KEY, what text);
ALTER TABLE orders REPLICA IDENTITY FULL;
INSERT INTO customers SELECT n, 'name ' || n, CASE WHEN n % 5 > 0 THEN 'c' || n || '@example.com' END, 'DE'
    FROM generate_series(1, 50) n;
INSERT INTO orders SELECT n, n % 50, CASE n % 4 WHEN 0 THEN 'draft' ELSE 'open' END, n / 7.0, '4111 ' || n,
    '2025-12-20Z'::timestamptz + n * interval '1 hour' FROM generate_series(1, 500) n;
INSERT INTO payments SELECT n, 1, n FROM generate_series(1, 100) n;
INSERT INTO audit_entries VALUES (1, 'nobody else may see this');
"""
CHANGES = """
UPDATE customers SET email = 'new' || id || '@example.com' WHERE id <= 10;
DELETE FROM customers WHERE id = 20;
UPDATE customers SET id = 1000 WHERE id = 21;
INSERT INTO orders VALUES (1001, 1, 'draft', 10, '4111', '2026-02-01Z'), (1002, 1, 'open', NULL, NULL, '2026-02-01Z');
UPDATE orders SET status = 'open' WHERE id % 8 = 0;
UPDATE orders SET status = 'draft' WHERE id % 9 = 1;
DELETE FROM orders WHERE id BETWEEN 300 AND 310;
UPDATE payments SET amount = amount + 1 WHERE order_id < 5;
DELETE FROM payments WHERE order_id = 7;
INSERT INTO payments VALUES (7, 2, 1.5);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"wal_level": "logical"}) as server:
        yield server


@pytest.fixture
def shop(server: PostgresServer) -> str:
    """The URL of the shop, as it is before anything is captured."""
    url = plain_url(server.create_database())
    run(url, SHOP)
    return url


@pytest.fixture
def another(postgres_server: DatabaseServer) -> str:
    """The URL of an empty database on another server."""
    return plain_url(postgres_server.create_database())


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., Kadds]:
    """An example by its file's name, unchanged, in a folder of its own."""

    def made(name: str, **variables: str) -> Kadds:
        shutil.copytree(ROOT / "configs", tmp_path / "configs")
        text = (tmp_path / "configs" / name).read_text(encoding="utf-8")
        return Kadds(tmp_path / "configs", text, {"KADDS_MASK_KEY": MASK_KEY, **variables})

    return made


def run(url: str, statements: str) -> None:
    """Each statement as a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in filter(None, map(str.strip, statements.split(";\n"))):
            connection.execute(statement)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def masked(text: str | None) -> str | None:
    return None if text is None else hmac.new(MASK_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def test_postgres_to_postgres(example: Callable[..., Kadds], shop: str, another: str) -> None:
    kadds = example("postgres-to-postgres.yml", SHOP_URL=shop, WAREHOUSE_URL=another)
    kadds("validate", str(kadds.path)).check()
    kadds.catch_up().check()
    run(shop, CHANGES)
    kadds.catch_up().check()

    expected = rows(shop, "SELECT id, name, email, country FROM customers ORDER BY id")
    assert rows(another, "SELECT id, name, email, country FROM customers ORDER BY id") == [
        (key, name, masked(email), country) for key, name, email, country in expected
    ]
    kept = "id, customer_id, status, total, ordered_at"
    assert rows(another, f"SELECT {kept} FROM sales.orders ORDER BY id") == rows(
        shop, f"SELECT {kept} FROM orders WHERE status <> 'draft' ORDER BY id"
    )
    assert rows(another, "SELECT count(*) FROM pg_attribute WHERE attname = 'card' AND NOT attisdropped") == [(0,)]
    assert differences(shop, another, "payments") == []
    assert rows(another, "SELECT to_regclass('audit_entries') IS NULL") == [(True,)]


def test_postgres_to_files(example: Callable[..., Kadds], shop: str) -> None:
    kadds = example("postgres-to-files.yml", SHOP_URL=shop)
    kadds("validate", str(kadds.path)).check()
    kadds.catch_up().check()
    run(shop, CHANGES)
    kadds.catch_up().check()
    lake = Lake(kadds.folder / "data/history/files")
    assert lake.faults() == []
    own = pa.schema(
        [("order_id", pa.int64()), ("part", pa.int32()), ("amount", pa.decimal128(12, 2))],
    )
    payments = lake.history("public.payments", own)
    assert sorted(zip(*(payments[name].to_pylist() for name in ("_kadds_op", "_kadds_image")), strict=True)) == sorted(
        [("r", "after")] * 100 + [("u", "after")] * 4 + [("d", "before"), ("c", "after")]
    )
    assert pc.sum(payments["amount"].filter(pc.equal(payments["_kadds_op"], "u"))).as_py() == 2 + 3 + 4 + 5
    assert len(set(payments["_kadds_offset"].to_pylist())) == len(payments)
    assert {entry["target"] for entry in lake.entries()} == {
        f"public.{name}" for name in ("customers", "orders", "payments", "audit_entries")
    }


def test_fan_out(example: Callable[..., Kadds], shop: str, another: str) -> None:
    kadds = example("fan-out.yml", SHOP_URL=shop, PARTNER_URL=another)
    kadds("validate", str(kadds.path)).check()
    kadds.catch_up().check()
    run(shop, CHANGES)
    kadds.catch_up().check()

    expected = rows(shop, "SELECT id, email, country FROM customers ORDER BY id")
    assert rows(another, "SELECT * FROM customers ORDER BY id") == [
        (key, masked(email), country) for key, email, country in expected
    ]
    chosen = ["id", "customer_id", "status", "total", "ordered_at"]
    assert differences(shop, another, "orders", columns=chosen) == []
    assert rows(another, "SELECT count(*) FROM information_schema.columns WHERE table_name = 'orders'") == [(5,)]
    assert rows(another, "SELECT to_regclass('payments') IS NULL") == [(True,)]

    analysis = kadds.folder / "data/fan-out/analysis.duckdb"
    assert duckdb_table_names(analysis) == {"public.orders"}
    orders = duckdb_table(analysis, "orders", "public")
    assert orders.column_names == chosen
    assert sorted(orders["id"].to_pylist()) == [
        key for (key,) in rows(
            shop, "SELECT id FROM orders WHERE status <> 'draft' AND ordered_at >= '2026-01-01Z' ORDER BY id"
        )
    ]  # fmt: skip

    audit = Lake(kadds.folder / "data/fan-out/audit")
    assert audit.faults() == []
    assert {entry["target"] for entry in audit.entries()} == {"public.orders", "public.payments"}
    cards = audit.history("public.orders", pa.schema([("id", pa.int64()), ("card", pa.string())]))
    images = zip(cards["_kadds_op"].to_pylist(), cards["_kadds_image"].to_pylist(), strict=True)
    deleted = [image for op, image in images if op == "d"]
    assert deleted == ["before"] * 11
