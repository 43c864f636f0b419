"""Commands that end by themselves: what they print for people and machines, and how they end badly."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kadds.cli import failures
from kadds.cli.main import main
from kadds.cli.sink import given
from tests.unit.app.shops import Shop, json_lines

CANARY = "canary-4711"


def kadds(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


# ------------------------------------------------------------------------------------------------- connectors, schema


def test_connectors_lists_name_distribution_and_abilities() -> None:
    found = {one["name"]: one for one in json_lines(kadds("connectors", "--json").stdout)}
    assert {"duckdb", "files", "polling"} <= set(found)
    assert found["polling"]["distribution"] == "kadds"
    assert found["polling"]["source"]["capture"] == "poll"
    assert "merge" in found["duckdb"]["sink"]["cells"]
    assert "exactly once" in kadds("connectors").stdout


def test_describe_prints_every_setting_from_the_declaration_that_checks_it() -> None:
    [plain] = json_lines(kadds("connectors", "describe", "polling", "--json").stdout)
    names = [one["name"] for one in plain["source"]["settings"]]
    assert "url" in names
    assert [one["secret"] for one in plain["source"]["settings"] if one["name"] == "url"] == [True]
    text = kadds("connectors", "describe", "polling").stdout
    assert all(name in text for name in [*names, "incrementing", "change_table"])


def test_describing_what_is_not_installed_ends_with_code_2_and_says_what_is() -> None:
    result = kadds("connectors", "describe", "orakel")
    assert result.exit_code == 2
    assert "no connector called 'orakel'" in result.stderr
    assert "duckdb" in result.stderr


def test_schema_is_the_schema_of_the_file() -> None:
    schema = json.loads(kadds("schema").stdout)
    assert {"log", "sources", "sinks", "subscriptions", "metrics"} <= set(schema["properties"])


# --------------------------------------------------------------------------------------------------------------- init


def test_init_writes_a_file_that_validates_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "kadds.yml"
    assert kadds("init", str(path)).exit_code == 0
    assert path.read_text().startswith("# yaml-language-server: $schema=kadds.schema.json\n")
    assert json.loads((tmp_path / "kadds.schema.json").read_text())
    result = kadds("validate", "--offline", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    path.write_text("mine")
    again = kadds("init", str(path))
    assert again.exit_code == 2
    assert "there already" in again.stderr
    assert path.read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------- validate


def test_validate_reports_every_problem_of_the_file_at_once_with_its_place(shop: Shop) -> None:
    shop.configure(
        colour="red",
        sinks={"warehouse": {"connector": "duckdb", "paht": "x"}},
        sources=shop.source(url="${NOT_SET_ANYWHERE}"),
    )
    result = kadds("validate", str(shop.config), "--json")
    assert result.exit_code == 2
    *found, summary = json_lines(result.stdout)
    assert summary == {"type": "summary", "errors": len(found), "warnings": 0, "notes": 0}
    messages = " ".join(one["message"] for one in found)
    assert "`colour` is not a setting" in messages
    assert "`sinks.warehouse.paht` is not a setting" in messages
    assert "NOT_SET_ANYWHERE is not set" in messages
    assert all(one["place"].startswith(f"{shop.config}:") for one in found)
    people = kadds("validate", str(shop.config))
    assert people.exit_code == 2
    assert "nothing was connected to" in people.stderr
    assert f"{shop.config}:" in people.stdout


def test_validate_connects_and_ends_with_1_where_a_server_refuses(shop: Shop) -> None:
    assert kadds("validate", str(shop.config)).exit_code == 0
    shop.configure(sources=shop.source(url="sqlite:///{folder}/nothing.db"))
    assert kadds("validate", "--offline", str(shop.config)).exit_code == 0
    result = kadds("validate", str(shop.config))
    assert result.exit_code == 1
    assert "nothing.db" in result.stdout


def test_validate_ends_with_2_where_a_contract_names_a_column_that_is_not_there(shop: Shop) -> None:
    shop.configure(subscriptions=shop.subscription(tables={"orders": {"columns": ["!colour"]}}))
    result = kadds("validate", str(shop.config))
    assert result.exit_code == 2
    assert "colour" in result.stdout


def test_validate_explains_a_table_and_shows_the_whole_file_without_secrets(shop: Shop) -> None:
    text = kadds("validate", str(shop.config), "--explain", "orders").stdout
    assert 'selected by "*"' in text
    shop.configure(tenants={"default": {"mask_key": f"{CANARY}-long-enough"}})
    shown = kadds("validate", "--show", "--config", str(shop.config))
    assert "warehouse.duckdb" in shown.stdout
    assert CANARY not in shown.output
    warned = kadds("validate", "--offline", str(shop.config))
    assert "holds a secret in plain text" in warned.stdout
    assert CANARY not in warned.output


def test_the_file_is_named_once(shop: Shop) -> None:
    result = kadds("validate", str(shop.config), "--config", str(shop.config))
    assert result.exit_code == 2
    assert "give one of the two" in result.stderr


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    for command in ("validate", "run"):
        result = kadds(command, str(tmp_path / "nothing.yml"))
        assert result.exit_code == 2
        assert "kadds init" in result.stderr


# -------------------------------------------------------------------------------------------------------------- sinks


def test_settings_on_the_command_line_are_text_or_json() -> None:
    settings = ("path=a=b", "list=[1, 2]", "inner.deep=x", "inner.other=${VAR}", "empty=")
    expected: dict[str, Any] = {
        "path": "a=b", "list": [1, 2], "inner": {"deep": "x", "other": "${VAR}"}, "empty": "",
    }  # fmt: skip
    assert given(settings) == expected


@pytest.mark.parametrize("text", ["path", "=x", "a.=x", "list=[1", "a=1"])
def test_a_setting_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    arguments = ["sink", "register", "copy", "--connector", "duckdb", "--log", str(tmp_path / "log"), "--set", text]
    result = kadds(*arguments)
    assert result.exit_code == 2


def test_a_sink_is_registered_tried_listed_and_removed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.folder)
    place = ("--config", str(shop.config))
    registered = kadds("sink", "register", "copy", "--connector", "duckdb", "--set", "path=copy.duckdb", *place)
    assert registered.exit_code == 0, registered.output
    assert "next: kadds sink test copy" in registered.stdout
    assert kadds("sink", "test", "copy", *place).stdout == "sink copy answers\n"
    [copy, warehouse] = json_lines(kadds("sink", "list", "--json", *place).stdout)
    assert (copy["name"], copy["registered"]) == ("default/copy", True)
    assert (warehouse["name"], warehouse["registered"]) == ("default/warehouse", False)
    assert str(shop.folder / "copy.duckdb") in kadds("sink", "show", "copy", *place).stdout
    assert "removed sink copy" in kadds("sink", "remove", "copy", *place).stdout
    assert "copy" not in kadds("sink", "list", *place).stdout


# ---------------------------------------------------------------------------------------------------- status, log, …


def test_status_of_a_log_that_has_not_run_says_so(shop: Shop) -> None:
    result = kadds("status", "--config", str(shop.config))
    assert result.exit_code == 2
    assert "no log in this folder yet" in result.stderr
    assert not shop.log.exists()


def test_after_a_run_every_reading_command_answers(shop: Shop) -> None:
    shop.add_orders(1, 4)
    ran = shop.kadds("run", "kadds.yml", "--until-caught-up")
    assert ran.returncode == 0, ran.stderr
    place = ("--log", str(shop.log))
    for command in (
        ("status",), ("source", "list"), ("source", "show", "shop"), ("subscription", "list"),
        ("subscription", "show", "shop-to-warehouse"), ("sink", "list"), ("sink", "show", "warehouse"),
        ("jobs", "list"), ("log", "streams"), ("log", "read", "--stream", "orders"),
    ):  # fmt: skip
        for form in ((), ("--json",)):
            result = kadds(*command, *place, *form)
            assert result.exit_code == 0, result.output
            assert not form or command[0] == "jobs" or json_lines(result.stdout)
    assert "not running" in kadds("status", *place).stdout
    [status] = json_lines(kadds("status", "--json", *place).stdout)
    assert set(status) == {
        "kadds", "running", "state", "problem", "pid", "started_at", "config", "log", "sources", "sinks",
        "subscriptions", "jobs", "warnings",
    }  # fmt: skip
    *changes, end = json_lines(kadds("log", "read", "--stream", "orders", "--json", *place).stdout)
    assert [one["values"]["id"] for one in changes if one["type"] == "change"] == [1, 2, 3]
    assert [one["values"]["total"] for one in changes if one["type"] == "change"] == ["1.50", "2.50", "3.50"]
    assert end["type"] == "end"
    rest = json_lines(kadds("log", "read", "--from", end["cursor"], "--stream", "orders", "--json", *place).stdout)
    assert rest == [{"type": "end", "cursor": end["cursor"]}]


# ------------------------------------------------------------------------------------------------------------- errors


def test_an_error_is_told_once_with_place_and_hint_and_without_traceback(shop: Shop) -> None:
    shop.add_orders(1, 2)
    assert shop.kadds("run", "kadds.yml", "--until-caught-up").returncode == 0
    result = kadds("log", "read", "--stream", "nothing", "--log", str(shop.log))
    assert result.exit_code == 2
    assert result.stderr.count("no stream 'nothing'") == 1
    assert "hint: `kadds log streams` lists them" in result.stderr
    assert "Traceback" not in result.output


def test_a_defect_is_told_as_one_and_shows_its_traceback_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("never")

    monkeypatch.setattr("kadds.cli.schema.json_schema", broken)
    result = kadds("schema")
    assert result.exit_code == 1
    assert "a defect in Kadds: ZeroDivisionError" in result.stderr
    monkeypatch.setenv("KADDS_DEBUG", "1")
    assert failures.debugging()
    assert isinstance(kadds("schema").exception, ZeroDivisionError)


def test_usage_errors_end_with_2() -> None:
    assert kadds("nothing").exit_code == 2
    assert kadds("log", "read", "--limit", "0").exit_code == 2
