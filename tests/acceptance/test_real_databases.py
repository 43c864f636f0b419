"""Real databases end to end: fifty tables of mixed types in PostgreSQL and in MariaDB, changed by concurrent writers.

One `kadds run` polls both on a schedule and delivers them to DuckDB (merge) and Parquet (append). Afterwards each table
in DuckDB equals its source, and each history holds what happened, once, and replays to the same.
"""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.support.kadds_process import Kadds
from tests.support.oracle import happened_once, is_same, replayed
from tests.support.servers import PostgresServer
from tests.support.targets import Lake, as_duckdb_holds, duckdb_tables
from tests.support.typed_tables import Mariadb, Postgres, Product, TypedTable, Way
from tests.support.writers import Writers

TABLES = 50
THREADS = 3
TRANSACTIONS = 250
PACE_SECONDS = 0.03
SEED = 20260131
POLLS = 3  # runs of each source that must have seen the writers at work


@pytest.fixture
def products(postgres_database: str, mariadb_database: str) -> list[Product]:
    """Empty databases."""
    return [Postgres(postgres_database), Mariadb(mariadb_database)]


def make_tables(product: Product, count: int) -> list[TypedTable]:
    tables = product.tables(count)
    create(product, tables)
    return tables


def create(product: Product, tables: list[TypedTable]) -> None:
    with closing(product.connect()) as connection, connection.cursor() as cursor:
        for table in tables:
            for statement in product.create(table):
                cursor.execute(statement)
        connection.commit()


def source_of(product: Product, tables: list[TypedTable], **more: Any) -> dict[str, Any]:
    settings = {f"{product.schema}.{table.name}": table.settings(table.record) for table in tables}
    url = product.url.render_as_string(hide_password=False)
    return {"connector": "polling", "url": url, "tables": settings, **more}


def configuration_of(products: list[Product], tables: dict[str, list[TypedTable]], **more: Any) -> dict[str, Any]:
    return {
        "sources": {one.name: source_of(one, tables[one.name], **more) for one in products},
        "sinks": {
            "warehouse": {"connector": "duckdb", "path": "warehouse.duckdb", "idle_close_seconds": 0.2},
            "lake": {"connector": "files", "path": "lake"},
        },
        "subscriptions": {
            f"{one.name}-to-{sink}": {"source": one.name, "sink": sink, "mode": mode, "tables": ["*"]}
            for one in products
            for sink, mode in (("warehouse", "merge"), ("lake", "append"))
        },
    }


def faults_of(folder: Path, product: Product, tables: list[TypedTable]) -> dict[str, list[str]]:
    """What is wrong with the tables of one product in either sink."""
    lake = Lake(folder / "lake")
    found: dict[str, list[str]] = {}
    with closing(product.connect()) as connection:
        states = duckdb_tables(folder / "warehouse.duckdb", *((product.schema, table.name) for table in tables))
        for table, state in zip(tables, states, strict=True):
            source, record = product.read(connection, table), product.read_record(connection, table)
            name = f"{product.name} {table.name} (by {table.way.value})"
            found[f"duckdb {name}"] = is_same(as_duckdb_holds(source), state)
            history = lake.history(f"{product.schema}.{table.name}", source.schema)
            found[f"lake {name}"] = happened_once(
                history,
                record,
                key=table.key,
                order="sequence",
                every=not table.timed,
                ops=not table.timed,
            ) or is_same(source, replayed(history, key=table.key))
    return {where: faults for where, faults in found.items() if faults}


def polls(status: Any) -> dict[str, int]:
    """Source → how many of its runs have ended well."""
    return {
        job["job"].split("/")[1]: sum(run["outcome"] == "done" for run in job["runs"])
        for job in status["jobs"]
        if job["job"].startswith("source:")
    }


def test_fifty_tables_of_each_product_arrive_exactly(tmp_path: Path, products: list[Product]) -> None:
    tables = {product.name: make_tables(product, TABLES) for product in products}
    kadds = Kadds(tmp_path, configuration_of(products, tables, schedule={"interval_seconds": 1}))
    with kadds.start() as running:
        with ExitStack() as writing:
            for product in products:
                options = {"threads": THREADS, "transactions": TRANSACTIONS, "pace_seconds": PACE_SECONDS}
                writing.enter_context(Writers(product, tables[product.name], seed=SEED, **options))
            kadds.wait_for_status(
                lambda status: all(polls(status).get(product.name, 0) >= POLLS for product in products),
                waiting_for=f"{POLLS} runs of each source",
            )
        running.terminate().check()

    kadds.catch_up().check()

    for product in products:
        assert faults_of(tmp_path, product, tables[product.name]) == {}
    assert Lake(tmp_path / "lake").faults() == []
    status = kadds.status()
    outcomes = {run["outcome"] for job in status["jobs"] for run in job["runs"]}
    assert outcomes <= {"done", "stopped"}, "a run may have been under way when it was told to stop"
    assert all(one["state"] == "not-running" for one in status["subscriptions"])


@pytest.fixture(params=["postgres", "mariadb"])
def product(request: pytest.FixtureRequest) -> Product:
    """Each of the two, with an empty database."""
    kind = {"postgres": Postgres, "mariadb": Mariadb}[request.param]
    found: Product = kind(request.getfixturevalue(f"{request.param}_database"))
    return found


@pytest.fixture
def late(tmp_path: Path, product: Product) -> tuple[Kadds, list[TypedTable]]:
    """One table for each way of polling, empty, and a Kadds that polls them all the time."""
    ways = {table.way: table for table in reversed(product.tables(5))}
    tables = list(ways.values())
    assert set(ways) == set(Way)
    create(product, tables)
    configuration = configuration_of([product], {product.name: tables}, poll_interval_seconds=0.2)
    return Kadds(tmp_path, configuration), tables


def insert(product: Product, connection: Any, table: TypedTable, number: int) -> None:
    """Row `number`, whose other columns are NULL; it takes its rising number and time now."""
    values = {} if table.numbered else dict(zip(table.key, table.key_of(number), strict=True))
    values["version"] = number
    names = [*map(product.quoted, values), *(["changed_at"] if table.timed else [])]
    places = [*["%s"] * len(values), *([product.clock] if table.timed else [])]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {product.quoted(table.name)} ({', '.join(names)}) VALUES ({', '.join(places)})",
            list(values.values()),
        )


def versions_in(table: pa.Table) -> list[int]:
    return sorted(table["version"].to_pylist())


def test_a_late_commit_inside_the_overlap_is_delivered_once(
    tmp_path: Path, product: Product, late: tuple[Kadds, list[TypedTable]]
) -> None:
    kadds, tables = late
    with closing(product.connect()) as slow, closing(product.connect()) as quick, kadds.start() as running:
        for table in tables:
            insert(product, slow, table, 1)  # takes the lower number and time, and commits last
        for table in tables:
            insert(product, quick, table, 2)
        quick.commit()
        delivered = len(tables)
        kadds.wait_for_status(
            lambda status: rows_of(status, f"{product.name}-to-warehouse") >= delivered, waiting_for="the quick rows"
        )
        slow.commit()
        kadds.wait_for_status(
            lambda status: rows_of(status, f"{product.name}-to-warehouse") >= 2 * delivered, waiting_for="the late rows"
        )
        running.terminate().check()
    kadds.catch_up().check()

    assert faults_of(tmp_path, product, tables) == {}
    with closing(product.connect()) as connection:
        sources = {table.name: product.read(connection, table) for table in tables}
    for table in tables:
        assert versions_in(sources[table.name]) == [1, 2], table.way
        history = Lake(tmp_path / "lake").history(f"{product.schema}.{table.name}", sources[table.name].schema)
        assert versions_in(history) == [1, 2], table.way


def rows_of(status: Any, subscription: str) -> int:
    """How many rows a subscription has delivered since it was started."""
    found = [one for one in status["subscriptions"] if one["name"] == f"default/{subscription}"]
    return sum(one["rows"] or 0 for one in found)


@pytest.mark.own_server("postgres")
def test_a_server_that_dies_is_waited_for_and_nothing_is_missed(tmp_path: Path) -> None:
    with PostgresServer() as server:
        product = Postgres(server.create_database())
        ways = {table.way: table for table in reversed(product.tables(5))}
        tables = list(ways.values())
        create(product, tables)
        kadds = Kadds(tmp_path, configuration_of([product], {product.name: tables}, poll_interval_seconds=0.2))
        with kadds.start() as running:
            for round_ in range(1, 4):
                write(product, tables, round_)
                wanted = round_ * len(tables)
                kadds.wait_for_status(
                    lambda status, wanted=wanted: rows_of(status, "postgres-to-warehouse") >= wanted,
                    waiting_for="what has been written",
                )
                if round_ < 3:
                    write(product, tables, 100 + round_, commit=False)
                    server.kill()
                    kadds.wait_for_status(
                        lambda status: any(one["problem"] for one in status["sources"]),
                        waiting_for="the outage to be shown",
                    )
                    server.start()
            running.terminate().check()
        kadds.catch_up().check()
        assert faults_of(tmp_path, product, tables) == {}


def write(product: Product, tables: list[TypedTable], number: int, *, commit: bool = True) -> None:
    """A row in each table."""
    with closing(product.connect()) as connection:
        for table in tables:
            insert(product, connection, table, number)
        if commit:
            connection.commit()
