"""Options that many commands share: which log is meant, and whether a machine reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kadds.app import Place, find

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


def with_json(command: Command) -> Command:
    """Give the command `as_json`, from `--json`."""
    option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for machines.")
    return option(command)


__all__ = ["FILE", "FOLDER", "Place", "with_json", "with_place"]
