"""Every command, every option and every setting is documented, and no heading documents a command that is gone.

How the pages are read:

- `docs/CLI.md`: a heading that names a command in backticks (``## `kadds sink register NAME` ``) begins its section;
  one heading may name several. The command's options stand in its section or in that of a group above it, so that
  what every command takes (`--config`, say) is said once, under `kadds` or `kadds sink`.
- `docs/CONFIGURATION.md`: a setting is named in code, inline or in a block. A connector's own settings stand under a
  heading that names the connector in backticks.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import click
import pytest
from pydantic import BaseModel

from tests.house.source_tree import ROOT

CLI_PAGE = ROOT / "docs" / "CLI.md"
CONFIGURATION_PAGE = ROOT / "docs" / "CONFIGURATION.md"


@dataclasses.dataclass
class Section:
    """A heading and the text below it, up to the next heading of any level."""

    level: int
    heading: str
    text: str


def _sections(page: str) -> list[Section]:
    sections = [Section(0, "", "")]
    fence = ""
    for line in page.splitlines():
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        heading = None if fence else re.match(r"(#+)\s+(.*)", line)
        if heading:
            sections.append(Section(len(heading[1]), heading[2], ""))
        else:
            sections[-1].text += line + "\n"
    return sections


def _spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def _code(text: str) -> str:
    """What stands in code blocks and in backticks."""
    blocks = re.findall(r"^\s*(```+|~~~+)[^\n]*\n(.*?)^\s*\1\s*$", text, re.DOTALL | re.MULTILINE)
    without_blocks = re.sub(r"^\s*(```+|~~~+)[^\n]*\n.*?^\s*\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join([*(block for _, block in blocks), *_spans(without_blocks)])


def _says(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


# ------------------------------------------------------------------------------------------------------------ commands


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, f"{' '.join(path)} lists {name} and does not have it"
            if not below.hidden:
                yield from _commands(below, (*path, name))


def _all_commands() -> dict[tuple[str, ...], click.Command]:
    from kadds.cli.main import main

    return dict(_commands(main, ("kadds",)))


def _command_texts(page: str, known: Mapping[tuple[str, ...], click.Command]) -> dict[tuple[str, ...], str]:
    """The text of each command's sections; a heading with a command that does not exist fails."""
    texts: dict[tuple[str, ...], str] = {}
    current: list[tuple[str, ...]] = []
    for section in _sections(page):
        named = [tuple(span.split()) for span in _spans(section.heading) if span.split()[0] == "kadds"]
        if named:
            current = []
            for words in named:
                path = max((path for path in known if words[: len(path)] == path), key=len)
                following = words[len(path)] if len(words) > len(path) else ""
                is_group = isinstance(known[path], click.Group)
                assert not (is_group and re.match(r"[a-z]", following)), f"there is no command `{' '.join(words)}`"
                current.append(path)
        elif section.level <= 1:
            current = []
        for path in current:
            texts[path] = texts.get(path, "") + section.heading + "\n" + section.text
    return texts


def _undocumented_commands(page: str, known: Mapping[tuple[str, ...], click.Command]) -> list[str]:
    texts = _command_texts(page, known)
    missing = []
    for path, command in known.items():
        if path not in texts:
            missing.append(" ".join(path))
            continue
        readable = "\n".join(texts.get(path[:length], "") for length in range(1, len(path) + 1))
        for parameter in command.params:
            if not isinstance(parameter, click.Option) or parameter.hidden:
                continue
            names = [name for name in [*parameter.opts, *parameter.secondary_opts] if name.startswith("--")]
            missing += [f"{' '.join(path)} {name}" for name in names if not _says(_code(readable), name)]
    return missing


def test_every_command_and_option_is_documented() -> None:
    assert _undocumented_commands(CLI_PAGE.read_text(encoding="utf-8"), _all_commands()) == []


# ------------------------------------------------------------------------------------------------------------ settings


def _setting_names(schema: object) -> Iterator[str]:
    """Every property of every object in a JSON Schema, definitions included."""
    if isinstance(schema, list):
        for part in schema:
            yield from _setting_names(part)
    elif isinstance(schema, dict):
        properties = schema.get("properties", {})
        yield from properties
        for part in properties.values():
            yield from _setting_names(part)
        for key, part in schema.items():
            if key in ("$defs", "definitions", "patternProperties"):
                for definition in part.values():
                    yield from _setting_names(definition)
            elif key not in ("properties", "default", "examples", "const", "enum"):
                yield from _setting_names(part)


def _undocumented_settings(code: str, schema: object) -> list[str]:
    return sorted(name for name in set(_setting_names(schema)) if not _says(code, name))


def _connector_text(page: str, connector: str) -> str:
    """The sections under every heading that names the connector, down to the next heading of that level."""
    kept, level = [], 0
    for section in _sections(page):
        if connector in _spans(section.heading):
            level = section.level
        elif level and section.level <= level:
            level = 0
        if level:
            kept.append(section.heading + "\n" + section.text)
    return "\n".join(kept)


def _settings_models(connector: Any) -> list[type[BaseModel]]:
    """The settings of both sides of a connector, those per table included, by whatever name a side holds them."""
    sides = [side for side in (connector.source, connector.sink) if side is not None]
    values = [getattr(side, field.name) for side in sides for field in dataclasses.fields(side)]
    return [value for value in values if isinstance(value, type) and issubclass(value, BaseModel)]


def test_every_setting_of_the_file_is_documented() -> None:
    from kadds import config

    schema = config.json_schema()
    assert set(_setting_names(schema)), "the schema has no settings"
    assert _undocumented_settings(_code(CONFIGURATION_PAGE.read_text(encoding="utf-8")), schema) == []


def test_every_setting_of_every_connector_is_documented() -> None:
    from kadds import plugins

    page = CONFIGURATION_PAGE.read_text(encoding="utf-8")
    own = {name: found for name, found in plugins.connectors().items() if found.distribution == "kadds"}
    assert own, "no connector is installed: run `make dev`"
    missing = []
    for name, installed in own.items():
        models = _settings_models(installed.connector)
        assert models, f"{name} declares no settings"
        code = _code(_connector_text(page, name))
        for model in models:
            missing += [f"{name}: {setting}" for setting in _undocumented_settings(code, model.model_json_schema())]
    assert missing == []


# ---------------------------------------------------------------------------------------- the reader of pages is tested


@click.group()
@click.option("--config")
def _example(config: str) -> None: ...


@_example.group("sink")
def _example_sink() -> None: ...


@_example_sink.command("register")
@click.option("--json/--no-json")
def _example_register(json: bool) -> None: ...


EXAMPLE_PAGE = """# Commands

## `kadds`

    Everywhere: `--config FILE`.

### `kadds sink`

#### `kadds sink register NAME`

| option | |
|---|---|
| `--json` | for machines |
| `--no-json` | for people |
"""


@pytest.mark.parametrize(
    ("old", "new", "missing"),
    [
        ("", "", []),
        ("`--json`", "json", ["kadds sink register --json"]),
        ("`--json`", "`--json-lines`", ["kadds sink register --json"]),
        ("--config", "", ["kadds --config"]),
        ("### `kadds sink`\n", "", ["kadds sink"]),
    ],
)
def test_a_missing_command_or_option_is_seen(old: str, new: str, missing: list[str]) -> None:
    known = dict(_commands(_example, ("kadds",)))
    assert _undocumented_commands(EXAMPLE_PAGE.replace(old, new) if old else EXAMPLE_PAGE, known) == missing


def test_a_documented_command_that_is_gone_is_seen() -> None:
    known = dict(_commands(_example, ("kadds",)))
    with pytest.raises(AssertionError, match="no command `kadds sink forget`"):
        _undocumented_commands(EXAMPLE_PAGE + "\n#### `kadds sink forget`\n", known)


def test_settings_are_found_at_any_depth_and_only_in_code() -> None:
    class Inner(BaseModel):
        pause_seconds: float = 1

    class Outer(BaseModel):
        tables: dict[str, Inner | None] = {}
        name: str = "title"

    schema = Outer.model_json_schema()
    assert set(_setting_names(schema)) == {"tables", "name", "pause_seconds"}
    page = "# Settings\n\nThe name of it.\n\n```yaml\ntables:\n  one: {pause_seconds: 3}\n```\n"
    assert _undocumented_settings(_code(page), schema) == ["name"]
    assert _undocumented_settings(_code(page + "\nand `name`"), schema) == []


def test_a_connectors_settings_are_looked_for_under_its_own_heading() -> None:
    page = "# C\n\n## `files`\n\n`folder`\n\n### Formats\n\n`format`\n\n## `duckdb`\n\n`path`\n"
    assert _code(_connector_text(page, "files")).split() == ["files", "folder", "format"]
    assert _code(_connector_text(page, "duckdb")).split() == ["duckdb", "path"]
