"""Which log and which configuration a command means.

The log's folder is read from the file without the rest of it: a person who asks for the status need not have the
secrets that the file refers to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kadds.api.errors import ConfigurationError
from kadds.config.checking import Checker
from kadds.config.document import Reader
from kadds.config.model import LogSettings
from kadds.config.problems import Problems
from kadds.config.sections import Sections

DEFAULT_FILE = "kadds.yml"
VARIABLE = "KADDS_CONFIG"


@dataclass(frozen=True)
class Place:
    """The log's folder, and the configuration file where there is one."""

    log: Path
    config: Path | None = None


def find_config(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The file given, else `$KADDS_CONFIG`, else `./kadds.yml`; ConfigurationError where that does not exist."""
    path = given or Path(environment.get(VARIABLE) or DEFAULT_FILE)
    if not path.is_file():
        raise ConfigurationError(
            "there is no such configuration file",
            where=str(path),
            hint=f"name one (or set {VARIABLE}), name a log with --log DIR, or let `kadds init` write a first one",
        )
    return path


def find(config: Path | None, log: Path | None, environment: Mapping[str, str] = os.environ) -> Place:
    """The place that the options `--config` and `--log` mean."""
    if log is not None:
        if config is not None:
            raise ConfigurationError("--config and --log both say where the log is", hint="give one of the two")
        return Place(log.absolute())
    path = find_config(config, environment)
    return Place(log_folder(path, environment), path)


def log_folder(config: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """`log.path` of a configuration file, absolute; whatever else is wrong with the file is not looked at."""
    reading, own = Problems(), Problems()
    sections = Sections(config, Reader(environment, reading), reading)
    node = sections.whole("log")
    settings = Checker(own).check(LogSettings, node, label="log", kind="log")
    if node.any_broken() or not sections.complete:
        reading.raise_any()
    own.raise_any()
    path = (settings or LogSettings()).path
    return path if path.is_absolute() else (config.parent / path).absolute()
