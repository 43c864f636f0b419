"""A small shop in SQLite and configurations that carry it to DuckDB, for tests of app, jobs and command line."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

KADDS = [sys.executable, "-m", "kadds"]
ORDERS = """
    CREATE TABLE orders (id INTEGER NOT NULL PRIMARY KEY, customer TEXT, total DECIMAL(10,2));
    CREATE TABLE customers (id INTEGER NOT NULL PRIMARY KEY, name TEXT);
"""
CONFIGURATION: dict[str, Any] = {
    "log": {"path": "log"},
    "sources": {
        "shop": {
            "connector": "polling",
            "url": "sqlite:///{folder}/shop.db",
            "poll_interval_seconds": 0.1,
            "tables": {"*": {"incrementing": "id", "overlap": 10}},
        }
    },
    "sinks": {"warehouse": {"connector": "duckdb", "path": "warehouse.duckdb", "idle_close_seconds": 0}},
    "subscriptions": {
        "shop-to-warehouse": {"source": "shop", "sink": "warehouse", "mode": "merge", "tables": {"*": {}}},
    },
}


class Shop:
    """A folder with a shop, its configuration, and where its rows go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "kadds.yml"
        self.log = folder / "log"
        self.execute(ORDERS)
        self.configure()

    def execute(self, script: str) -> None:
        """Run SQL in the shop."""
        with closing(sqlite3.connect(self.folder / "shop.db", timeout=30)) as database:
            database.executescript(script)

    def add_orders(self, first: int, end: int, customer: str = "somebody") -> None:
        """Orders with the ids [first, end)."""
        rows = ", ".join(f"({number}, '{customer} {number}', {number}.5)" for number in range(first, end))
        self.execute(f"INSERT INTO orders VALUES {rows}")

    def configure(self, **changes: Any) -> Path:
        """Write the configuration; `changes` replace whole sections, None takes one away."""
        plain = {key: value for key, value in {**CONFIGURATION, **changes}.items() if value is not None}
        text = json.dumps(plain, indent=2).replace("{folder}", str(self.folder))  # JSON is YAML
        self.config.write_text(text, encoding="utf-8")
        return self.config

    def subscription(self, **changes: Any) -> dict[str, Any]:
        """The section of subscriptions with the one subscription changed."""
        one = {**CONFIGURATION["subscriptions"]["shop-to-warehouse"], **changes}
        return {"shop-to-warehouse": one}

    def source(self, **changes: Any) -> dict[str, Any]:
        """The section of sources with the one source changed; None takes a setting away."""
        one = {**CONFIGURATION["sources"]["shop"], **changes}
        return {"shop": {key: value for key, value in one.items() if value is not None}}

    def delivered(self, table: str = "orders", file: str = "warehouse.duckdb") -> list[tuple[Any, ...]]:
        """The rows in the sink by their first column; none where there is no such table yet."""
        if not (self.folder / file).exists():
            return []
        try:
            with duckdb.connect(str(self.folder / file), read_only=True) as database:
                return database.execute(f"FROM {table} ORDER BY 1").fetchall()
        except duckdb.Error:  # not made yet, or in use by the sink just now
            return []

    def kadds(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in the folder."""
        return subprocess.run(
            [*KADDS, *arguments], cwd=self.folder, env=clean_environment(environment),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [*KADDS, *arguments], cwd=self.folder, env=clean_environment(environment),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change Kadds' mind."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KADDS_")}
    return {**kept, **(more or {})}


def json_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects in a text, one a line."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def failures(results: Sequence[subprocess.CompletedProcess[str]]) -> list[str]:
    """What commands that should have succeeded said."""
    return [result.stderr for result in results if result.returncode]
