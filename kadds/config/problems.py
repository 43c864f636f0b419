"""What is wrong with a configuration: all of it at once, each with the place where a person can change it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kadds.api.errors import ConfigurationError
from kadds.api.settings import MASK


@dataclass(frozen=True, order=True)
class Place:
    """A place in a file; line and column count from 1."""

    file: Path
    line: int = 1
    column: int = 1

    @classmethod
    def nowhere(cls) -> Place:
        """The place of what came from no file: a command, the log."""
        return cls(Path("-"))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    file: Path
    line: int
    column: int
    message: str
    hint: str | None = None

    @property
    def place(self) -> Place:
        """Where it is."""
        return Place(self.file, self.line, self.column)

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class ConfigurationProblems(ConfigurationError):  # noqa: N818 - it is several
    """Everything that is wrong with a configuration, in the order of files and lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        first = self.problems[0]
        super().__init__(first.message, where=str(first.place), hint=first.hint)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


_SHORTEST_SECRET = 3


def scrub(text: str, secrets: Iterable[str]) -> str:
    """`text` without any of `secrets`, the longest first."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return text


class Problems:
    """Collects problems while a configuration is read, so that one look shows them all, without what is hidden."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}
        self._hidden: set[str] = set()

    def hide(self, secret: str) -> None:
        """Take `secret` out of every message."""
        self._hidden.add(secret)

    def add(self, place: Place, message: str, hint: str | None = None) -> None:
        """Keep a problem; the same one twice counts once."""
        self._found[Problem(place.file, place.line, place.column, message, hint)] = None

    def __len__(self) -> int:
        return len(self._found)

    def listed(self) -> list[Problem]:
        """All of them, in the order in which their files were read, then by line and column."""
        order: dict[Path, int] = {}
        found = [self._scrubbed(problem) for problem in self._found] if self._hidden else list(self._found)
        for problem in found:
            order.setdefault(problem.file, len(order))
        return sorted(found, key=lambda problem: (order[problem.file], problem.line, problem.column))

    def _scrubbed(self, problem: Problem) -> Problem:
        hint = problem.hint and scrub(problem.hint, self._hidden)
        return replace(problem, message=scrub(problem.message, self._hidden), hint=hint)

    def raise_any(self) -> None:
        """Raise ConfigurationProblems if there are any."""
        if self._found:
            raise ConfigurationProblems(self.listed())


def suggestion(name: str, known: Iterable[str]) -> str | None:
    """A hint for a name that does not exist: the one that was probably meant, else the whole choice."""
    choice = sorted(known)
    if close := difflib.get_close_matches(name, choice, n=1, cutoff=0.6):
        return f"did you mean `{close[0]}`?"
    return f"there are: {', '.join(choice)}" if choice else None
