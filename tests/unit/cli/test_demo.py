"""`kadds demo` as a first visitor runs it, and every command that it suggests."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.unit.app.shops import KADDS, Shop, clean_environment


def demo(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KADDS, "demo", *arguments], cwd=folder, env=clean_environment(),
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip


def test_rows_arrive_within_seconds_the_copy_is_exact_and_what_is_suggested_works(tmp_path: Path) -> None:
    result = demo("--seconds", "2", "--folder", "it's a demo", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    first = re.search(r"first rows in the sink ([\d.]+) s after the process started", result.stderr)
    assert first is not None
    assert float(first[1]) < 10
    assert result.stdout.count(", the same") == 4
    assert "shop-to-warehouse" in result.stderr, "the table is shown"
    commands = [line.strip() for line in result.stdout.splitlines() if re.match(r"  [^# ]", line)]
    assert len(commands) == 5
    for command in commands:
        said = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env=clean_environment(),
        )  # fmt: skip
        assert said.returncode == 0, f"{command}\n{said.stdout}{said.stderr}"
        assert said.stdout or "--until-caught-up" in command


def test_a_folder_that_holds_something_is_left_alone(shop: Shop) -> None:
    before = sorted(shop.folder.rglob("*"))
    result = demo("--folder", str(shop.folder), folder=shop.folder)
    assert result.returncode == 2
    assert "not empty" in result.stderr
    assert sorted(shop.folder.rglob("*")) == before


def test_a_difference_between_shop_and_copy_would_be_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The comparison at the end of the demo is shown to be one: a changed cell, a lost row, a missing table."""
    import duckdb

    from kadds.cli.demo import _compare
    from kadds.cli.demo_shop import TABLES
    from kadds.cli.demo_shop import Shop as DemoShop

    demo_shop = DemoShop(tmp_path / "shop.db")
    with duckdb.connect(str(tmp_path / "w.duckdb")) as database:
        for table in TABLES:
            columns = ", ".join(f"{name} {kind}" for name, kind in table.columns.items())
            database.execute(f"CREATE TABLE {table.name} ({columns})")
            for row in demo_shop.rows(table):
                database.execute(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(row))})", row)
    assert _compare(demo_shop, tmp_path / "w.duckdb") == []
    with duckdb.connect(str(tmp_path / "w.duckdb")) as database:
        database.execute("UPDATE products SET price = price + 0.01 WHERE product_id = 7")
        database.execute("DELETE FROM customers WHERE customer_id = 7")
        database.execute("DROP TABLE orders")
    assert [text.split(":")[0] for text in _compare(demo_shop, tmp_path / "w.duckdb")] == ["customers", "products"]
    assert capsys.readouterr().out.count("NOT the same") == 2
