"""How far a table has been read, and which rows below that have been logged already.

A watermark alone is wrong twice: rows that share its value, and transactions that take a low value and commit late. So
each run reads again from a little below the watermark (the **overlap**) and tells rows that are in the log from late
ones by a digest of the whole row (key, watermark and all), which the log keeps in the producer's resume state.

The invariant: a row is read by the next run if any of its axes is at or above that axis' floor, and exactly those rows
have their digest in the state. So nothing inside the overlap is lost, and nothing is logged twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.connector import Resume
from kadds.api.errors import ConfigurationError, DataError, UnknownInputError
from kadds.api.schema import Column
from kadds_polling.types import Cells, text_of

NUMBER = pa.decimal128(38, 0)
_DIGEST_BYTES = 12  # 250,000 remembered rows against as many new ones: one in 10^18 is taken for another
_VERSION = 0

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Axis:
    """A column by which a table tells what is new. `overlap` is in numbers, or in microseconds for times.

    NULL is an error, except where the axis is `optional`: a time of change beside a rising number, NULL until the row
    changes.
    """

    column: Column
    time: bool
    overlap: int
    optional: bool = False

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column.name

    def measure(self, cells: Cells, where: str) -> pa.Array:
        """The values as comparable numbers (NUMBER, or int64 microseconds); DataError names one that has no place."""
        if cells.texts:
            raise self._misfit(where, next(iter(cells.texts.values())))
        if cells.values.null_count and not self.optional:
            raise self._misfit(where, "NULL")
        if self.time:
            return _micros(cells.values, self, where)
        try:
            return cells.values.cast(NUMBER)
        except pa.ArrowInvalid:
            raise self._misfit(where, "a number with a fraction or of more than 38 digits") from None

    def _misfit(self, where: str, text: str) -> DataError:
        return DataError(
            f"column {self.name} by which the table is polled holds {text}, which has no place in an order",
            where=where,
            hint="correct the row and make the column NOT NULL, or poll by another column",
        )

    def at_least(self, measured: pa.Array, bound: int | None) -> Mask:
        """Where a value is at or above `bound`; nowhere for NULL, everywhere else without a bound."""
        if bound is None:
            found = measured.is_valid()
        else:
            found = pc.fill_null(pc.greater_equal(measured, self._scalar(bound)), False)
        return np.asarray(found.to_numpy(zero_copy_only=False))

    def above(self, measured: pa.Array, mark: int | None) -> Mask:
        """Where a value is above `mark`; nowhere for NULL, everywhere else without a mark."""
        return self.at_least(measured, None if mark is None else mark + 1)

    def _scalar(self, bound: int) -> pa.Scalar:
        return pa.scalar(bound, pa.int64()) if self.time else pa.scalar(Decimal(bound), NUMBER)


def _micros(values: pa.Array, axis: Axis, where: str) -> pa.Array:
    if values.type == pa.string():  # times kept as text, where the product has no type for them
        texts = pc.utf8_rtrim(values, "Z")
        try:
            values = texts.cast(pa.timestamp("us"))
        except pa.ArrowInvalid as error:
            raise axis._misfit(where, str(error)) from None
    tz = getattr(values.type, "tz", None)
    return values.cast(pa.timestamp("us", tz)).cast(pa.int64())


@dataclass(frozen=True)
class State:
    """What the log keeps with a table's last run.

    `marks` are the highest values logged, `floors` the values from which on `logged` is complete: a digest for each row
    in the log, as often as the row was there.
    """

    run: int = 0
    marks: Mapping[str, int | None] = field(default_factory=dict)
    floors: Mapping[str, int | None] = field(default_factory=dict)
    logged: Counter[bytes] = field(default_factory=Counter)

    def to_bytes(self, axes: Sequence[Axis], incarnation: str) -> bytes:
        """JSON, from which `State.read` makes the same state."""
        plain = {
            "version": _VERSION,
            "run": self.run,
            "incarnation": incarnation,
            "by": _kinds(axes),
            "marks": dict(self.marks),
            "floors": dict(self.floors),
            "logged": base64.b64encode(b"".join(sorted(self.logged.elements()))).decode(),
        }
        return json.dumps(plain, separators=(",", ":")).encode()

    @classmethod
    def read(cls, resume: Resume | None, axes: Sequence[Axis], incarnation: str, where: str) -> State:
        """The state of a table's producer; the beginning where there is none, or where the table was made anew."""
        if resume is None:
            return cls()
        plain = json.loads(resume.state)
        if plain.get("version") != _VERSION:
            raise UnknownInputError(
                f"the log has a polling state of version {plain.get('version')}", where=where, hint="upgrade Kadds"
            )
        if plain["incarnation"] != incarnation:
            return cls(run=plain["run"])
        if plain["by"] != _kinds(axes):
            raise ConfigurationError(
                f"was polled by {', '.join(plain['by'])} until now and is to be polled by {', '.join(_kinds(axes))}; "
                "from one nobody can tell where the other stands",
                where=where,
                hint="set it back, or start the table anew with `kadds resync`",
            )
        digests = base64.b64decode(plain["logged"])
        pieces = range(0, len(digests), _DIGEST_BYTES)
        logged = Counter(digests[start : start + _DIGEST_BYTES] for start in pieces)
        return cls(plain["run"], plain["marks"], plain["floors"], logged)


def _kinds(axes: Sequence[Axis]) -> dict[str, str]:
    return {axis.name: "time" if axis.time else "number" for axis in axes}


class Window:
    """One run over one table: from where to where it reads, and which of the rows it meets are new.

    `uppers` are the highest values in the table at the start of the run; `most_rows` bounds the rows remembered.
    `latest_wins` (tables of changes): a late change of a key of which a later one is logged already is followed by that
    later one once more, so that applying the stream in its order stays right.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        state: State,
        uppers: Mapping[str, int | None],
        *,
        most_rows: int,
        latest_wins: bool = False,
    ) -> None:
        self.axes = tuple(axes)
        self.uppers = dict(uppers)
        self.state = state
        self.marks = {axis.name: _highest(state.marks.get(axis.name), uppers[axis.name]) for axis in axes}
        self.lowers = {
            axis.name: _highest(_below(state.marks.get(axis.name), axis.overlap), state.floors.get(axis.name))
            for axis in axes
        }
        # Never below what this run reads: a wider overlap in the settings grows into effect, it does not log twice.
        self.floors = {
            axis.name: _highest(_below(self.marks[axis.name], axis.overlap), self.lowers[axis.name]) for axis in axes
        }
        self._remaining = Counter(state.logged)
        self._next: Counter[bytes] = Counter()
        self._seen = dict(self.marks)  # where times are text, the highest text need not be the latest time
        self._remembered = 0
        self._most_rows = most_rows
        self._latest_wins = latest_wins
        self._late_keys: set[bytes] = set()

    @property
    def first(self) -> bool:
        """Whether nothing is in the log yet, so that everything is read."""
        return all(mark is None for mark in self.lowers.values())

    @property
    def moved(self) -> bool:
        """Whether the watermark rises in this run."""
        return any(self.marks[axis.name] != self.state.marks.get(axis.name) for axis in self.axes)

    def after(self) -> State:
        """The state once all rows that were sifted are in the log."""
        return State(self.state.run + 1, self._seen, self.floors, self._next)

    def sift(
        self,
        measured: Sequence[pa.Array],
        columns: Sequence[pa.Array],
        key: Sequence[pa.Array],
        as_text: pa.Array | None,
        where: str,
    ) -> Mask:
        """Which rows are new. `measured` are the axes' values, `columns` all that tells one row from another."""
        pairs = list(zip(self.axes, measured, strict=True))
        for axis, values in pairs:
            highest = pc.max(values).as_py()
            self._seen[axis.name] = _highest(self._seen[axis.name], None if highest is None else int(highest))
        above = [axis.above(values, self.state.marks.get(axis.name)) for axis, values in pairs]
        near = np.logical_or.reduce([axis.at_least(values, self.floors[axis.name]) for axis, values in pairs])
        below = np.zeros(len(near), np.bool_) if self.first else ~np.logical_or.reduce(above)
        keep = self._asked_for(pairs)
        places = np.flatnonzero((near | below) & keep)
        if not len(places):
            return keep
        taken = pa.array(places)
        digests = row_digests([column.take(taken) for column in columns], as_text and as_text.take(taken))
        self._remember(near, places, digests, where)
        for place, digest in zip(places, digests, strict=True):
            if self._remaining[digest]:
                self._remaining[digest] -= 1
                keep[place] = False
        if self._latest_wins and key:
            self._repeat_later(keep, places[below[places]], key)
        return keep

    def _asked_for(self, pairs: Sequence[tuple[Axis, pa.Array]]) -> Mask:
        """Rows at or above a lower bound; where times are text, the database's own comparison lets more through."""
        asked = np.full(len(pairs[0][1]), self.first)
        for axis, values in pairs:
            asked |= axis.at_least(values, self.lowers[axis.name])
        return asked

    def _remember(self, near: Mask, places: np.ndarray[Any, Any], digests: Sequence[bytes], where: str) -> None:
        kept = _chosen(digests, near[places])
        self._remembered += len(kept)
        if self._remembered > self._most_rows:
            raise DataError(
                f"more than {self._most_rows:,} rows lie inside the overlap below the watermark",
                where=where,
                hint="lower `overlap` or `overlap_seconds`, or raise `max_overlap_rows` (16 bytes a row in every run)",
            )
        self._next.update(kept)

    def _repeat_later(self, keep: Mask, below: np.ndarray[Any, Any], key: Sequence[pa.Array]) -> None:
        """Rows come in their sequence, so a late change stands before the later ones of its key."""
        if not len(below) or not (self._late_keys or keep[below].any()):
            return
        taken = pa.array(below)
        for place, digest in zip(below, row_digests([column.take(taken) for column in key]), strict=True):
            if keep[place]:
                self._late_keys.add(digest)
            elif digest in self._late_keys:
                keep[place] = True


def _chosen(digests: Sequence[bytes], mask: Mask) -> list[bytes]:
    return [digest for digest, wanted in zip(digests, mask, strict=True) if wanted]


def _highest(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _below(mark: int | None, overlap: int) -> int | None:
    return None if mark is None else mark - overlap


def row_digests(columns: Sequence[pa.Array], as_text: pa.Array | None = None) -> list[bytes]:
    """A digest of each row: different rows differ, also where only NULL, a length or a given text differs."""
    parts = [_as_binary(column) for column in columns]
    if as_text is not None:
        parts.append(pa.array([json.dumps(v).encode() if v else None for v in as_text.to_pylist()], pa.binary()))
    # Lengths first: they say where each part ends, whatever the parts contain.
    lengths = [pc.fill_null(pc.binary_length(part).cast(pa.string()), "-").cast(pa.binary()) for part in parts]
    filled = [pc.fill_null(part, b"") for part in parts]
    joined = pc.binary_join_element_wise(*lengths, *filled, b"|")
    return [hashlib.blake2b(row, digest_size=_DIGEST_BYTES).digest() for row in joined.to_pylist()]


def _as_binary(column: pa.Array) -> pa.Array:
    return column if column.type == pa.binary() else column.cast(pa.string()).cast(pa.binary())


def describe(axis: Axis, mark: int | None) -> str:
    """A watermark as a person writes it: `id=17`, `changed_at=2026-01-31 12:00:00`."""
    if mark is None or not axis.time:
        return f"{axis.name}={'nothing' if mark is None else mark}"
    return f"{axis.name}={text_of(pa.scalar(mark, pa.timestamp('us')).cast(pa.string()).as_py())}"
