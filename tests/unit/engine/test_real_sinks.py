"""The engine over the sinks that ship: DuckDB in merge and append, files in append, from the real log."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from kadds.api.change import Op
from kadds.api.connector import Mode
from kadds.engine.contract import TableContract
from kadds.engine.mask import Mask
from kadds.engine.supervisor import Engine
from tests.unit.engine.house import Feed, caught_up, engine_on, log_in, subscription, table

ORDERS = table("orders")
C, U, D = Op.CREATE, Op.UPDATE, Op.DELETE


def add_duckdb(engine: Engine, path: Path) -> None:
    from kadds_duckdb import connector

    assert connector.sink is not None
    settings = connector.sink.settings.model_validate({"path": str(path), "idle_close_seconds": 0})
    engine.add_sink("default/duck", connector.sink.open(settings), connector.sink.abilities)


def add_files(engine: Engine, path: Path) -> None:
    from kadds_files import connector

    assert connector.sink is not None
    settings = connector.sink.settings.model_validate({"path": str(path), "format": "parquet"})
    engine.add_sink("default/files", connector.sink.open(settings), connector.sink.abilities)


def in_duckdb(path: Path, name: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()


def in_files(path: Path) -> list[tuple[int, str, str]]:
    """(id, name, op) of every row of history, by offset."""
    rows = [row for file in path.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    rows.sort(key=lambda row: row["_kadds_offset"])
    return [(row["id"], row["name"], row["_kadds_op"]) for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_duckdb_has_the_state_and_files_have_the_history_over_restarts(tmp_path: Path, seed: int) -> None:
    chance, state, told = random.Random(seed), {}, []
    for _ in range(4):
        with log_in(tmp_path) as log, engine_on(log) as engine:
            feed = Feed(log)
            add_duckdb(engine, tmp_path / "w.duckdb")
            add_files(engine, tmp_path / "files")
            engine.add_subscription(subscription("default/m", sink="default/duck"))
            engine.add_subscription(subscription("default/h", Mode.APPEND, sink="default/files"))
            engine.start()
            for count in range(30):
                number = chance.randrange(8)
                if number not in state:
                    op, name = C, f"n{count}"
                    state[number] = name
                elif chance.random() < 0.3:
                    op, name = D, state.pop(number)
                else:
                    op, name = U, f"n{count}"
                    state[number] = name
                feed((ORDERS, op, [(number, name)]))
                told.append((number, name, op.letter))
            assert caught_up(engine, 60).exit_code == 0
    assert in_duckdb(tmp_path / "w.duckdb", "public.orders") == sorted(state.items())
    assert in_files(tmp_path / "files") == told


def test_a_contract_hides_filters_and_renames_on_the_way_to_duckdb(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_duckdb(engine, tmp_path / "w.duckdb")
        contract = TableContract(where="id < 10", masks={"name": Mask.REDACT}, target="sales.orders")
        engine.add_subscription(subscription("default/m", sink="default/duck", contract_of=lambda _: contract))
        engine.start()
        feed((ORDERS, C, [(1, "a"), (20, "b"), (3, "c")]), (ORDERS, D, [(3, None)]))
        assert caught_up(engine).exit_code == 0
    assert in_duckdb(tmp_path / "w.duckdb", "sales.orders") == [(1, None)]


def test_rows_reach_two_sinks_of_one_file_without_waiting_for_each_other(tmp_path: Path) -> None:
    with log_in(tmp_path) as log, engine_on(log) as engine:
        feed = Feed(log)
        add_duckdb(engine, tmp_path / "w.duckdb")
        for name in ("one", "two"):
            contract = TableContract(target=f"{name}.orders")
            engine.add_subscription(
                subscription(f"default/{name}", sink="default/duck", contract_of=lambda _, one=contract: one)
            )
        engine.start()
        for number in range(50):
            feed((ORDERS, C, [(number, "a")]))
        assert caught_up(engine, 60).exit_code == 0
    assert len(in_duckdb(tmp_path / "w.duckdb", "one.orders")) == 50
    assert len(in_duckdb(tmp_path / "w.duckdb", "two.orders")) == 50
