"""A shop, the Kadds that follows it into DuckDB, Parquet and JSON lines, and the verdict over all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.kadds_process import Kadds
from tests.support.oracle import happened_once, is_same, replayed
from tests.support.shop import TABLES, Shop, ShopTable
from tests.support.targets import Lake, duckdb_table

SINKS: dict[str, dict[str, Any]] = {
    "warehouse": {"connector": "duckdb", "path": "warehouse.duckdb", "idle_close_seconds": 0.2, "threads": 1},
    "lake": {"connector": "files", "path": "lake"},
    "feed": {"connector": "files", "path": "feed", "format": "jsonl"},
}
SUBSCRIPTIONS: dict[str, dict[str, Any]] = {
    "state": {"source": "shop", "sink": "warehouse", "mode": "merge", "tables": ["*"]},
    "history": {"source": "shop", "sink": "lake", "mode": "append", "tables": ["*"]},
    "feed": {"source": "shop", "sink": "feed", "mode": "append", "tables": ["*"]},
}


class JudgedShop:
    """Everything in one folder. `kadds` is not running; start it as the test needs."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        tables: tuple[ShopTable, ...] = TABLES,
        subscriptions: Mapping[str, Mapping[str, Any]] = SUBSCRIPTIONS,
        sinks: Mapping[str, Mapping[str, Any]] = SINKS,
        source: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.folder = folder
        self.shop = Shop(folder / "shop.db", seed=seed, tables=tables)
        self.configuration: dict[str, Any] = {
            "sources": {"shop": self.shop.source(**(source or {}))},
            "sinks": {name: dict(sink) for name, sink in sinks.items()},
            "subscriptions": {name: dict(one) for name, one in subscriptions.items()},
            **more,
        }
        self.kadds = Kadds(folder, self.configuration, environment)
        self.warehouse = folder / "warehouse.duckdb"

    def reconfigure(self, **sections: Any) -> None:
        """Write the configuration anew, with these sections instead of those it had."""
        self.configuration = {**self.configuration, **sections}
        self.kadds.configure(self.configuration)

    def faults(self) -> dict[str, list[str]]:
        """What is wrong, by sink and table, after catching up; empty where everything is as it must be."""
        found: dict[str, list[str]] = {}
        sinks = {one["sink"] for one in self.configuration["subscriptions"].values()}
        for name in sinks & {"lake", "feed"}:
            found[name] = Lake(self.folder / name).faults()
        for table in self.shop.tables:
            if "warehouse" in sinks:
                found[f"warehouse {table.name}"] = self.faults_of_state(table)
            for name in sinks & {"lake", "feed"}:
                found[f"{name} {table.name}"] = self.faults_of_history(table, name)
        return {where: faults for where, faults in found.items() if faults}

    def faults_of_state(self, table: ShopTable) -> list[str]:
        """Whether the table in DuckDB is the table in the shop."""
        return is_same(self.shop.read(table), duckdb_table(self.warehouse, table.name))

    def faults_of_history(self, table: ShopTable, name: str) -> list[str]:
        """Whether the files of a sink tell what happened to the table, and replay to it."""
        history = Lake(self.folder / name).history(table.name, table.schema)
        told = happened_once(
            history,
            self.shop.read_record(table),
            key=table.key,
            order="sequence",
            every="timestamp" not in table.polled,
            ops="timestamp" not in table.polled,
        )
        return told or is_same(self.shop.read(table), replayed(history, key=table.key))
