"""Following a stream's columns: what a subscription took of each version, and what waits for a decision.

Kept in the log (control state, kind `schemas`, one key a subscription and stream), so that a restart goes on as it was
decided. The log never changes, so everything is known by the offset at which it came: each version with its view, a
change that is held, a person's decision. What is met first is taken as it is. `settle` must have returned before a
cursor moves past what was met.

A **mark** says that rows from before a change lack something that no change will bring: a column added with a default,
a rename that was carried out as a drop and an add. A complete snapshot takes it away, or a person.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from kadds.api.connector import Mode, SchemaChange, SinkAbilities
from kadds.api.errors import ConfigurationError, SchemaMismatchError
from kadds.api.schema import Column, Table
from kadds.engine.schema_change import Change, HeldError, Reaction, SchemaPolicy, changes_between
from kadds.engine.view import View
from kadds.log.log import Log
from kadds.log.stream import Stream, qualified_name

SCHEMAS_KIND = "schemas"


@dataclass(frozen=True)
class Version:
    """The source's columns from `offset` on, and what the subscription takes of them."""

    offset: int
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    view: View

    def is_of(self, table: Table) -> bool:
        """Whether the table is this version."""
        return self.columns == table.columns and self.key == table.key

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        plain = {"offset": self.offset, "columns": [c.to_json() for c in self.columns], "key": list(self.key)}
        return plain if self.view.filled is None else {**plain, "view": self.view.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Version:
        """What `to_json` wrote."""
        columns = tuple(Column.from_json(column) for column in plain["columns"])
        return cls(plain["offset"], columns, tuple(plain["key"]), View.from_json(plain.get("view")))


@dataclass(eq=False)
class Followed:
    """All that is known of one stream; `held` is what waits, `decided` the offset of a change and what was said."""

    versions: list[Version] = field(default_factory=list)
    held: dict[str, Any] | None = None  # offset, changes in words
    decided: tuple[int, Reaction] | None = None
    marks: dict[str, int] = field(default_factory=dict)  # in words → offset

    def at(self, offset: int) -> Version | None:
        """The version in force at `offset`."""
        number = bisect_right(self.versions, offset, key=lambda one: one.offset)
        return self.versions[number - 1] if number else None

    def to_json(self) -> dict[str, Any]:
        """For the log."""
        return {
            "versions": [one.to_json() for one in self.versions],
            "held": self.held,
            "decided": self.decided and [self.decided[0], self.decided[1].value],
            "marks": self.marks,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Followed:
        """What `to_json` wrote."""
        decided = plain["decided"]
        return cls(
            [Version.from_json(one) for one in plain["versions"]],
            plain["held"],
            decided and (decided[0], Reaction(decided[1])),
            dict(plain["marks"]),
        )


def state_key(subscription: str, label: str) -> str:
    """The key of a stream of a subscription."""
    return f"{subscription}|{label}"


def followed_by(log: Log, subscription: str) -> dict[str, Followed]:
    """What the log keeps of the streams of a subscription, by the stream's label."""
    kept = log.state.items(subscription.split("/", 1)[0], SCHEMAS_KIND)
    prefix = state_key(subscription, "")
    return {
        key.removeprefix(prefix): Followed.from_json(plain)
        for key, plain in sorted(kept.items())
        if key.startswith(prefix)
    }


class Following:
    """The streams of one subscription. `meet` and `settle` are called by one thread at a time, the rest by any."""

    def __init__(
        self, log: Log, subscription: str, mode: Mode, sink: SinkAbilities, policy_of: Callable[[str], SchemaPolicy]
    ) -> None:
        self._log = log
        self._subscription = subscription
        self._tenant = subscription.split("/", 1)[0]
        self._mode = mode
        self._sink = sink
        self._policy_of = policy_of
        self._lock = threading.Lock()
        self._streams: dict[str, Followed] = {}
        self._unsaved: set[str] = set()
        self._snapshots: dict[str, int] = {}  # the offset at which the snapshot under way began

    def of(self, label: str) -> Followed:
        """What is known of a stream."""
        with self._lock:
            return self._of(label)

    def _of(self, label: str) -> Followed:
        known = self._streams.get(label)
        if known is None:
            plain = self._log.state.get(self._tenant, SCHEMAS_KIND, state_key(self._subscription, label))
            known = self._streams[label] = Followed() if plain is None else Followed.from_json(plain)
        return known

    def view_at(self, label: str, offset: int) -> View:
        """What is taken of a stream at `offset`, where it was met."""
        version = self.of(label).at(offset)
        return View() if version is None else version.view

    # ------------------------------------------------------------------------------------------- meeting versions

    def meet(
        self,
        stream: Stream,
        table: Table,
        offset: int,
        facts: Mapping[str, Any],
        selects: Callable[[str], bool],
        *,
        trusting: bool,
    ) -> None:
        """From `offset` on the stream has `table`; HeldError where a person decides, SchemaMismatchError as below.

        `selects` says which columns the contract takes: what happens to others concerns nobody. The sink is asked
        whether it can follow, unless a person has said that the target is as it should be (`trusting`).
        """
        with self._lock:
            followed = self._of(stream.label)
            before = followed.at(offset)
            if before is not None and before.is_of(table):
                return
            if before is None:
                followed.versions.insert(0, Version(0, table.columns, table.key, View()))
            else:
                version = self._next(followed, before, stream, table, offset, facts, selects, trusting=trusting)
                followed.versions.append(version)
                followed.versions.sort(key=lambda one: one.offset)
                followed.held, followed.decided = None, None
            self._unsaved.add(stream.label)

    def _next(
        self,
        followed: Followed,
        before: Version,
        stream: Stream,
        table: Table,
        offset: int,
        facts: Mapping[str, Any],
        selects: Callable[[str], bool],
        *,
        trusting: bool,
    ) -> Version:
        renamed = [(old, new) for old, new in facts.get("renamed", ())]
        found = changes_between(before.columns, table.columns, renamed)
        taken = [one for one in found if one.old is None or before.view.takes(one.old.name)]
        policy = self._policy_of(qualified_name(stream.name))
        decided: list[tuple[Change, Reaction]] = []
        waiting: list[Change] = []
        for one in taken:
            concerns = any(column is not None and selects(column.name) for column in (one.old, one.new))
            reaction = policy.reaction(one) if concerns else Reaction.APPLY
            if reaction is Reaction.HOLD and followed.decided is not None and followed.decided[0] == offset:
                reaction = followed.decided[1]
            if reaction is Reaction.HOLD:
                waiting.append(one)
            decided.append((one, reaction))
        if waiting:
            self._hold(followed, stream, offset, waiting)
        applied = [one for one, reaction in decided if reaction is Reaction.APPLY and any(map(selects, _names_of(one)))]
        if not trusting:
            self._check_sink(stream, applied)
        self._mark(followed, applied, offset, facts)
        return Version(offset, table.columns, table.key, before.view.after(before.columns, table, decided))

    def _hold(self, followed: Followed, stream: Stream, offset: int, waiting: Sequence[Change]) -> None:
        words = [str(one) for one in waiting]
        held = {"offset": offset, "changes": words}
        if followed.held != held:
            followed.held = held
            self._unsaved.add(stream.label)
        name, table = self._subscription.removeprefix("default/"), qualified_name(stream.name)
        raise HeldError(
            f"{', '.join(words)}, which waits for a decision; nothing behind it is delivered",
            where=stream.label,
            hint=f"`kadds subscription schema {name} {table} apply` follows, `… ignore` goes on with the columns as "
            "they were",
        )

    def _check_sink(self, stream: Stream, applied: Sequence[Change]) -> None:
        for one in applied:
            kind = one.kind
            able = {kind, SchemaChange.WIDEN} if kind is SchemaChange.RETYPE else {kind}
            able |= {SchemaChange.RETYPE} if kind is SchemaChange.WIDEN else set()
            if not any((each, self._mode) in self._sink.schema_changes for each in able):
                instead = "decide `ignore` with `kadds subscription schema`, or " if self._held_before(stream) else ""
                raise SchemaMismatchError(
                    f"{one} ({kind}), which this sink does not follow in mode {self._mode.value}",
                    where=stream.label,
                    hint=f"{instead}change the target by hand or give it another name, then resume the table",
                )

    def _held_before(self, stream: Stream) -> bool:
        return self._of(stream.label).held is not None

    def _mark(self, followed: Followed, applied: Sequence[Change], offset: int, facts: Mapping[str, Any]) -> None:
        """What rows from before lack; a history has them as they were."""
        if self._mode is Mode.APPEND:
            return
        with_default = frozenset(facts.get("with_default", ()))
        for one in applied:
            if one.kind is not SchemaChange.ADD or one.new is None:
                continue
            if one.new.name in with_default:
                followed.marks[f"column {one.new.name} was added with a default; rows from before lack it"] = offset
            elif one.suspected:
                followed.marks[f"column {one.new.name} may be a renamed one; rows from before lack it"] = offset

    def snapshot_began(self, stream: Stream, offset: int) -> None:
        """Rows that are read anew follow."""
        self._snapshots[stream.label] = offset

    def snapshot_ended(self, stream: Stream) -> None:
        """All rows have been read anew: marks from before the snapshot's beginning are gone."""
        began = self._snapshots.pop(stream.label, None)
        with self._lock:
            followed = self._of(stream.label)
            left = {words: offset for words, offset in followed.marks.items() if began is None or offset >= began}
            if left != followed.marks:
                followed.marks = left
                self._unsaved.add(stream.label)

    # ------------------------------------------------------------------------------------------- keeping

    def settle(self) -> None:
        """Return when all that was met is on disk; what the log refuses is put again the next time."""
        with self._lock:
            plain = {label: self._of(label).to_json() for label in self._unsaved}
        waiting = {label: self._put_soon(label, one) for label, one in plain.items()}
        for future in waiting.values():
            future.result()
        with self._lock:
            self._unsaved -= {label for label, one in plain.items() if self._of(label).to_json() == one}

    def _put_soon(self, label: str, plain: Mapping[str, Any]) -> Future[Any]:
        return self._log.state.put_soon(self._tenant, SCHEMAS_KIND, state_key(self._subscription, label), plain)

    def decide(self, label: str, reaction: Reaction) -> None:
        """A person's decision on what is held, kept when this returns; ConfigurationError where nothing is."""
        with self._lock:
            decide(self._of(label), label, reaction)
            self._unsaved.add(label)
        self.settle()

    def clear_marks(self, label: str) -> None:
        """A person says that the rows have been mended; kept when this returns."""
        with self._lock:
            clear_marks(self._of(label), label)
            self._unsaved.add(label)
        self.settle()


def shown(label: str, followed: Followed) -> dict[str, Any] | None:
    """What a person should know of a stream, as JSON; None where there is nothing."""
    if followed.held is None and not followed.marks:
        return None
    return {
        "stream": label,
        "held": list(followed.held["changes"]) if followed.held else [],
        "decided": followed.decided[1].value if followed.decided else None,
        "needs_resync": list(followed.marks),
    }


def _names_of(change: Change) -> list[str]:
    return [column.name for column in (change.old, change.new) if column is not None]


def decide(followed: Followed, label: str, reaction: Reaction) -> None:
    """Note a decision on what is held."""
    if followed.held is None:
        raise ConfigurationError(
            "no change of columns waits for a decision", where=label, hint="`kadds subscription show` tells what waits"
        )
    followed.decided = (followed.held["offset"], reaction)


def clear_marks(followed: Followed, label: str) -> None:
    """Take the marks away."""
    if not followed.marks:
        raise ConfigurationError("the table has no mark", where=label, hint="`kadds subscription show` tells the marks")
    followed.marks = {}
