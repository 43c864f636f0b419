"""Contracts: which rows and columns of a stream one subscription may have, under which masks, in which target.

A `TableContract` is what was configured for one table; it has a JSON form, kept in the log with each plan, and a
version that changes with its content. Bound to a stream's table and a mode it becomes a `BoundContract`, which says
where the changes go (`target`) and transforms them (`apply`): row filter first, on raw values, then columns and masks.

What the filter does until the log has images (last image of each key):

* merge and transactional: a row image that matches is delivered. An update, or a row read by a snapshot, that does not
  match becomes a delete of its key (and of its old key, where the key changed), for nobody knows whether it matched
  before. A create that does not match sends nothing: it says itself that the key was not there. A delete and a
  truncate are always sent.
* append: needs full before images from the source; each image is judged by itself, so that a row which leaves the
  filter ends with its before image and one which enters begins with its after image. A truncate is always sent.
* a cell that the filter reads and that is not given, or given as text, stops the table by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kadds.api.change import Op
from kadds.api.connector import Mode, Target
from kadds.api.errors import ConfigurationError, DataError
from kadds.api.position import canonical_json
from kadds.api.schema import Table
from kadds.engine.cells import Bools, Integers, Texts
from kadds.engine.mask import Mask, key_fingerprint, masked_column, masked_texts, masked_values
from kadds.engine.rows import Rows
from kadds.engine.where import Where
from kadds.log.stream import Stream, qualified_name


@dataclass(frozen=True)
class TableContract:
    """What was configured for one table of a subscription.

    `include` names the columns to deliver, None meaning all, also those that come later; `exclude` takes away from
    them. `target` is the target's name, None meaning the source's own.
    """

    where: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict)
    target: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same contract."""
        return {
            "where": self.where,
            "include": None if self.include is None else list(self.include),
            "exclude": list(self.exclude),
            "masks": {name: str(mask) for name, mask in sorted(self.masks.items())},
            "target": self.target,
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> TableContract:
        """What `to_json` wrote."""
        return cls(
            where=plain["where"],
            include=None if plain["include"] is None else tuple(plain["include"]),
            exclude=tuple(plain["exclude"]),
            masks={name: Mask(mask) for name, mask in plain["masks"].items()},
            target=plain["target"],
        )

    @property
    def version(self) -> str:
        """Equal contracts have equal versions (16 hex digits)."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:16]

    def selects(self, column: str) -> bool:
        """Whether a column of that name is delivered."""
        return column not in self.exclude and (self.include is None or column in self.include)

    def needs_mask_key(self) -> bool:
        """Whether it can only be bound with a mask key."""
        return Mask.HASH in self.masks.values()


class BoundContract:
    """A contract for one version of one stream's table, in one mode.

    Raises ConfigurationError, by name, for whatever cannot be: an unknown column, a key column taken away or redacted
    in merge, a table without a key in merge, `hash` without a mask key, a filter that cannot run.
    """

    def __init__(
        self,
        contract: TableContract,
        stream: Stream,
        table: Table,
        mode: Mode,
        *,
        mask_key: bytes | None = None,
        before_images: bool = False,
    ) -> None:
        self.contract = contract
        self.mode = mode
        self.source_table = table
        self._mask_key = mask_key
        self._where_text = f"{stream.name}"
        self._check_names(table)
        chosen = self._chosen(table)
        self._check_key(table, chosen)
        self._indexes = tuple(number for number, column in enumerate(table.columns) if column.name in chosen)
        self._masks = {
            number: contract.masks[table.columns[index].name]
            for number, index in enumerate(self._indexes)
            if table.columns[index].name in contract.masks
        }
        if contract.needs_mask_key() and not mask_key:
            raise self._refused(
                "a mask `hash` needs the tenant's mask_key",
                hint='set tenants.<tenant>.mask_key: "${KADDS_MASK_KEY}" and keep the key for as long as the target',
            )
        self._filter = self._bind_filter(table, before_images)
        self._table = self._target_table(table)
        self._whole = not self._masks and len(self._indexes) == len(table.columns)
        self.target = Target(
            stream=stream.label,
            name=contract.target or qualified_name(stream.name),
            table=self._table,
            mode=mode,
            version=self._version(),
        )

    def apply(self, rows: Rows) -> Rows:
        """The rows that the contract lets through, with the target's columns; DataError as the module says."""
        if self._filter is not None and len(rows):
            rows = self._filtered_history(rows) if self.mode is Mode.APPEND else self._filtered_merge(rows)
        return replace(rows, table=self._table) if self._whole else self._projected(rows)

    # ------------------------------------------------------------------------------------------- binding

    def _check_names(self, table: Table) -> None:
        known = {column.name for column in table.columns}
        named = {
            "columns": [*(self.contract.include or ()), *self.contract.exclude],
            "mask": list(self.contract.masks),
        }
        for setting, names in named.items():
            if unknown := [name for name in names if name not in known]:
                raise self._refused(
                    f"`{setting}` names {', '.join(map(repr, unknown))}, which the table does not have",
                    hint=f"it has {', '.join(column.name for column in table.columns)}",
                )

    def _chosen(self, table: Table) -> frozenset[str]:
        names = self.contract.include or tuple(column.name for column in table.columns)
        chosen = frozenset(names) - frozenset(self.contract.exclude)
        if not chosen:
            raise self._refused("`columns` leaves no column", hint="name at least one column")
        return chosen

    def _check_key(self, table: Table, chosen: frozenset[str]) -> None:
        if self.mode is Mode.APPEND:
            return
        if not table.key:
            raise self._refused(
                f"the table has no key, and {self.mode} applies changes by key",
                hint="give it a key at the source, name one in the source's `tables`, or use mode: append",
            )
        for name in table.key:
            if name not in chosen:
                raise self._refused(
                    f"`columns` takes away {name!r}, a column of the key, which {self.mode} needs",
                    hint="keep it, masked with `hash` if it must not be seen",
                )
            if self.contract.masks.get(name) is Mask.REDACT:
                raise self._refused(
                    f"`mask` redacts {name!r}, a column of the key: all rows would become one",
                    hint="mask it with `hash`",
                )

    def _bind_filter(self, table: Table, before_images: bool) -> Where | None:
        if self.contract.where is None:
            return None
        if self.mode is Mode.APPEND and not before_images:
            raise self._refused(
                "`where` in append mode needs full before images, which this source does not give",
                hint="use mode: merge, or take the filter away",
            )
        return Where(self.contract.where, table)

    def _target_table(self, table: Table) -> Table:
        columns = [table.columns[index] for index in self._indexes]
        for number, mask in self._masks.items():
            columns[number] = masked_column(columns[number], mask)
        kept = {column.name for column in columns}
        key = table.key if all(name in kept for name in table.key) else ()
        return replace(table, columns=tuple(columns), key=key)

    def _version(self) -> int:
        fingerprint = key_fingerprint(self._mask_key) if self._mask_key and self.contract.needs_mask_key() else ""
        text = canonical_json([self._table.to_json(), self.contract.version, fingerprint])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _refused(self, message: str, *, hint: str) -> ConfigurationError:
        return ConfigurationError(message, where=self._where_text, hint=hint)

    # ------------------------------------------------------------------------------------------- rows

    def _filtered_merge(self, rows: Rows) -> Rows:
        judged = ~rows.before & (rows.ops != Op.DELETE) & (rows.ops != Op.TRUNCATE)
        refused = np.zeros(len(rows), np.bool_)
        refused[judged] = ~self._matches(rows, np.flatnonzero(judged))
        if not refused.any():
            return rows
        gone = refused & (rows.ops != Op.CREATE)
        # the before image of an update that leaves carries the key under which the row is known downstream
        gone[:-1] |= gone[1:] & (rows.ops[1:] == Op.UPDATE) & rows.before[:-1] & (rows.ops[:-1] == Op.UPDATE)
        gone &= ~self._without_key(rows)
        ops, before = rows.ops.copy(), rows.before.copy()
        ops[gone], before[gone] = Op.DELETE, True
        return replace(rows, ops=ops, before=before).take(np.flatnonzero(~refused | gone))

    def _without_key(self, rows: Rows) -> Bools:
        """Before images of updates that do not give the key: the key did not change."""
        if rows.missing is None:
            return np.zeros(len(rows), np.bool_)
        no_key = np.any(rows.missing[:, list(rows.table.key_indexes)], axis=1)
        return np.asarray(no_key & rows.before & (rows.ops == Op.UPDATE))

    def _filtered_history(self, rows: Rows) -> Rows:
        judged = rows.ops != Op.TRUNCATE
        kept = ~judged
        kept[judged] = self._matches(rows, np.flatnonzero(judged))
        return rows.take(np.flatnonzero(kept))

    def _matches(self, rows: Rows, judged: Integers) -> Bools:
        assert self._filter is not None  # noqa: S101 - the callers have asked
        self._check_readable(rows, judged)
        values = rows.values if len(judged) == len(rows) else rows.values.take(pa.array(judged))
        return self._filter.matches(values)

    def _check_readable(self, rows: Rows, judged: Integers) -> None:
        assert self._filter is not None  # noqa: S101
        for number in self._filter.columns:
            name = self.source_table.columns[number].name
            if rows.missing is not None and rows.missing[judged, number].any():
                raise self._unreadable(name, "the source does not give that cell in every change")
            if rows.texts is not None and np.isin(rows.texts.rows[rows.texts.columns == number], judged).any():
                raise self._unreadable(name, "the source has a value there that the column's type cannot hold")

    def _unreadable(self, column: str, why: str) -> DataError:
        return DataError(
            f"`where` reads column {column!r}, and {why}",
            where=self._where_text,
            hint="let the source log whole rows (PostgreSQL: REPLICA IDENTITY FULL), or filter by another column",
        )

    def _projected(self, rows: Rows) -> Rows:
        arrays = [rows.values.column(index) for index in self._indexes]
        missing = None if rows.missing is None else rows.missing[:, list(self._indexes)]
        texts = self._chosen_texts(rows.texts)
        for number, mask in self._masks.items():
            arrays[number] = masked_values(arrays[number], mask, self._mask_key)
            if mask is Mask.REDACT and missing is not None:
                missing[:, number] = False  # NULL is known, whatever the value is
        if texts is not None and self._masks:
            texts = self._mask_texts(texts, arrays)
        values = pa.RecordBatch.from_arrays(arrays, schema=self._table.arrow_schema)
        return replace(rows, table=self._table, values=values, missing=missing, texts=texts)

    def _chosen_texts(self, texts: Texts | None) -> Texts | None:
        if texts is None:
            return None
        numbers = np.full(len(self.source_table.columns), -1, np.int64)
        numbers[list(self._indexes)] = np.arange(len(self._indexes))
        moved = numbers[texts.columns]
        return Texts(texts.rows, moved, texts.texts).keep(moved >= 0)

    def _mask_texts(self, texts: Texts, arrays: list[pa.Array]) -> Texts | None:
        """Texts behind a mask: a hash takes the cell itself, for its column is text now; the rest stays."""
        for number, mask in self._masks.items():
            chosen = texts.columns == number
            found = texts.keep(chosen)
            if found is not None and mask is Mask.HASH:
                places = np.zeros(len(arrays[number]), np.bool_)
                places[found.rows] = True
                hashes = masked_texts(found.texts, self._mask_key)
                arrays[number] = pc.replace_with_mask(arrays[number], pa.array(places), hashes)
        return texts.keep(~np.isin(texts.columns, list(self._masks)))


def column_choice(entries: Sequence[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """What `columns: [...]` means: (include or None, exclude); an entry that begins with `!` excludes."""
    exclude = tuple(entry[1:] for entry in entries if entry.startswith("!"))
    include = tuple(entry for entry in entries if not entry.startswith("!"))
    return (include or None), exclude
