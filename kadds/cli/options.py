"""Options that many commands share: which log is meant, and whether a machine reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kadds.app import Place, find, find_config

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


def with_place(command: Command) -> Command:
    """Give the command `place`, from `--config FILE` or `--log DIR`."""

    @click.option("--config", type=FILE, help="Configuration file; without it $KADDS_CONFIG, then ./kadds.yml.")
    @click.option("--log", type=FOLDER, help="Folder of the log, instead of a configuration file.")
    @functools.wraps(command)
    def with_options(*arguments: Any, config: Path | None, log: Path | None, **options: Any) -> Any:
        return command(*arguments, place=find(config, log), **options)

    return with_options  # type: ignore[return-value]


def with_config(command: Command) -> Command:
    """Give the command `config`, the file that was named as an argument or by `--config`."""

    @click.argument("config", type=FILE, required=False)
    @click.option("--config", "option", type=FILE, help="The same as CONFIG.")
    @functools.wraps(command)
    def with_either(*arguments: Any, config: Path | None, option: Path | None, **options: Any) -> Any:
        if config is not None and option is not None:
            raise click.UsageError("CONFIG and --config are the same thing: give one of the two")
        return command(*arguments, config=find_config(config or option), **options)

    return with_either  # type: ignore[return-value]


def with_json(command: Command) -> Command:
    """Give the command `as_json`, from `--json`."""
    option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for machines.")
    return option(command)


__all__ = ["FILE", "FOLDER", "Place", "with_config", "with_json", "with_place"]
