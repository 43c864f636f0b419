"""Which tables, and with which settings: glob patterns over `schema.table`, and how they add up.

A table is meant if a pattern matches it and no `!pattern` does; an exclusion always wins. All entries that match apply
from least to most specific, field by field: a pattern with more literal characters is more specific, an exact name
comes last, and of equals the later one wins. A field that is itself a map (`mask`) is put together key by key, so that
a narrower entry never drops a mask by not naming it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError

from kadds.api.errors import ConfigurationError
from kadds.api.settings import Settings
from kadds.config.checking import complaints
from kadds.config.problems import Place

Model = TypeVar("Model", bound=Settings)
_WILD = re.compile(r"\[[^\]]+\]|[*?]")


@dataclass(frozen=True)
class Given:
    """A field as one entry gives it: its value, as it is printed, as the log keeps it, and where it stands."""

    value: Any = field(repr=False)
    printed: Any
    kept: Any = field(repr=False)
    place: Place


@dataclass(frozen=True)
class Entry:
    """One pattern, without its `!`, and the fields that it gives."""

    pattern: str
    excludes: bool
    place: Place
    given: Mapping[str, Given] = field(default_factory=dict)

    @property
    def written(self) -> str:
        """The pattern as written."""
        return f"!{self.pattern}" if self.excludes else self.pattern

    @property
    def exact(self) -> bool:
        """Whether it names one table."""
        return not any(sign in self.pattern for sign in "*?[")

    @property
    def specificity(self) -> tuple[bool, int]:
        """Exact last; then by the number of literal characters."""
        return self.exact, len(_WILD.sub("", self.pattern))

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(translate(self.pattern))

    def matches(self, qualified_name: str) -> bool:
        """Whether the pattern matches; upper and lower case differ, and `*` crosses dots."""
        return self._compiled.match(qualified_name) is not None


class _Lookup:
    """Entries that match a name, least specific first; thousands of exact names cost no more than one."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        ordered = sorted(entries, key=lambda entry: entry.specificity)  # keeps the order of equals
        self._globs = [entry for entry in ordered if not entry.exact]
        self._exact: dict[str, list[Entry]] = {}
        for entry in ordered:
            if entry.exact:
                self._exact.setdefault(entry.pattern, []).append(entry)

    def matching(self, qualified_name: str) -> Iterator[Entry]:
        yield from (entry for entry in self._globs if entry.matches(qualified_name))
        yield from self._exact.get(qualified_name, ())


@dataclass(frozen=True)
class Explained:
    """A field of a table's settings as it came out: printable value, and the place that decided."""

    field: str
    value: Any
    place: Place

    def __iter__(self) -> Iterator[Any]:
        return iter((self.field, self.value, self.place))


@dataclass(frozen=True)
class TablePatterns(Generic[Model]):
    """A selection of tables; `model` holds the settings that a table may have, None where it may have none."""

    entries: tuple[Entry, ...]
    model: type[Model] | None = None
    _merged: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, *patterns: str, model: type[Model] | None = None) -> TablePatterns[Model]:
        """Patterns without settings, as a list in a file gives them."""
        nowhere = Place.nowhere()
        return cls(tuple(Entry(p.removeprefix("!"), p.startswith("!"), nowhere) for p in patterns), model)

    @cached_property
    def _included(self) -> _Lookup:
        return _Lookup(entry for entry in self.entries if not entry.excludes)

    @cached_property
    def _excluded(self) -> _Lookup:
        return _Lookup(entry for entry in self.entries if entry.excludes)

    def matches(self, qualified_name: str) -> bool:
        """Whether the table is meant."""
        return self.excluded_by(qualified_name) is None and bool(self.entries_of(qualified_name))

    def entries_of(self, qualified_name: str) -> tuple[Entry, ...]:
        """The entries that match, least specific first, whether or not the table is excluded."""
        return tuple(self._included.matching(qualified_name))

    def excluded_by(self, qualified_name: str) -> Entry | None:
        """The exclusion that keeps the table out, if one does."""
        return next(self._excluded.matching(qualified_name), None)

    def given(self, qualified_name: str) -> dict[str, Any]:
        """What the matching entries give together, unchecked."""
        merged: dict[str, Any] = {}
        for entry in self.entries_of(qualified_name):
            for name, given in entry.given.items():
                merged[name] = _put_together(merged.get(name), given.value)
        return merged

    def kept(self, qualified_name: str) -> dict[str, Any]:
        """As `given`, in the form that the log keeps, without secrets."""
        merged: dict[str, Any] = {}
        for entry in self.entries_of(qualified_name):
            for name, given in entry.given.items():
                merged[name] = _put_together(merged.get(name), given.kept)
        return merged

    def settings(self, qualified_name: str) -> Model:
        """The settings of a table, from all entries that match it.

        Raises ConfigurationError with the place of the most specific entry where they do not hold together.
        """
        if qualified_name not in self._merged:
            self._merged[qualified_name] = self._settle(qualified_name)
        return self._merged[qualified_name]

    def _settle(self, qualified_name: str) -> Model:
        # A selection without settings of its own gives the empty model.
        model = cast("type[Model]", Settings) if self.model is None else self.model
        try:
            return model.model_validate(self.given(qualified_name))
        except ValidationError as error:
            entries = self.entries_of(qualified_name)
            # What is kept otherwise than it is was masked.
            secrets = [str(g.value) for entry in entries for g in entry.given.values() if g.kept != g.value]
            first = complaints(error, secrets)[0]
            name = f"`{'.'.join(map(str, first.path))}` " if first.path else ""
            raise ConfigurationError(
                f"{name}is needed" if first.kind == "missing" else f"{name}{first.message}",
                where=f"{entries[-1].place}: table {qualified_name}" if entries else f"table {qualified_name}",
                hint=f"`kadds validate --explain {qualified_name}` shows which entries give what",
            ) from None

    def explain(self, qualified_name: str) -> list[Explained]:
        """Each field that an entry gives, with the value that won and the place that gave it, in order of fields."""
        won: dict[str, Explained] = {}
        for entry in self.entries_of(qualified_name):
            for name, given in entry.given.items():
                if isinstance(given.printed, Mapping):
                    for key, value in given.printed.items():
                        won[f"{name}.{key}"] = Explained(f"{name}.{key}", value, given.place)
                else:
                    won[name] = Explained(name, given.printed, given.place)
        return [won[name] for name in sorted(won)]

    def described(self) -> list[dict[str, Any]]:
        """The entries as JSON, without places and secrets: what the log keeps to compare at the next start."""
        return [
            {
                "pattern": entry.written,
                **({"given": {k: g.kept for k, g in sorted(entry.given.items())}} if entry.given else {}),
            }
            for entry in self.entries
        ]

    @classmethod
    def from_described(cls, described: Sequence[Mapping[str, Any]]) -> TablePatterns[Settings]:
        """What `described` wrote, without places and without a model; its values are the kept ones."""
        nowhere = Place.nowhere()
        return TablePatterns[Settings](
            tuple(
                Entry(
                    pattern=one["pattern"].removeprefix("!"),
                    excludes=one["pattern"].startswith("!"),
                    place=nowhere,
                    given={name: Given(value, value, value, nowhere) for name, value in one.get("given", {}).items()},
                )
                for one in described
            )
        )


def _put_together(wider: Any, narrower: Any) -> Any:
    if isinstance(wider, Mapping) and isinstance(narrower, Mapping):
        return {**wider, **narrower}
    return narrower


def sample(pattern: str) -> str:
    """A table's name that `pattern` matches and that no other pattern is likely to name."""
    return _WILD.sub(lambda wild: {"*": "\0" * 7, "?": "\0"}.get(wild[0], wild[0][1:2]), pattern)
