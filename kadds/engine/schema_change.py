"""What has happened to a table's columns between two versions, and what a subscription does about each change.

Columns are matched by their attribute number where both versions have them all, else by name. A drop and an add at once
without attribute numbers may be a rename: it is a **suspected** rename, decided as a rename and carried out as what
the names say, a drop and an add.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import pyarrow as pa

from kadds.api.connector import SchemaChange
from kadds.api.errors import DataError
from kadds.api.schema import Column, type_text


class Reaction(StrEnum):
    """What a subscription does about a change of columns."""

    APPLY = "apply"  # go on with the new columns
    HOLD = "hold"  # stop before the first change under them, until a person has decided
    IGNORE = "ignore"  # go on with the columns as they were


DEFAULTS: Mapping[SchemaChange, Reaction] = {
    SchemaChange.ADD: Reaction.APPLY,
    SchemaChange.DROP: Reaction.APPLY,
    SchemaChange.WIDEN: Reaction.APPLY,
    SchemaChange.RETYPE: Reaction.HOLD,
    SchemaChange.RENAME: Reaction.HOLD,
}


@dataclass(frozen=True)
class SchemaPolicy:
    """A reaction for each kind of change."""

    reactions: Mapping[SchemaChange, Reaction] = field(default_factory=lambda: DEFAULTS)

    @classmethod
    def of(cls, given: Mapping[SchemaChange, Reaction], *, other_tenant: bool = False) -> SchemaPolicy:
        """What was given, and the defaults; between tenants a new column waits for the one who receives it."""
        own = {SchemaChange.ADD: Reaction.HOLD} if other_tenant else {}
        return cls({**DEFAULTS, **own, **given})

    def reaction(self, change: Change) -> Reaction:
        """What to do about `change`."""
        return self.reactions[SchemaChange.RENAME if change.suspected else change.kind]


class HeldError(DataError):
    """A change of columns waits for a person's decision."""


@dataclass(frozen=True)
class Change:
    """One change of one column: `old` is None for an added column, `new` for a dropped one."""

    kind: SchemaChange
    old: Column | None
    new: Column | None
    suspected: bool = False  # part of what may be a rename

    def __str__(self) -> str:
        match self.kind, self.old, self.new:
            case SchemaChange.ADD, _, Column(name=name):
                return f"column {name} was added" + (" (a rename?)" if self.suspected else "")
            case SchemaChange.DROP, Column(name=name), _:
                return f"column {name} was dropped" + (" (a rename?)" if self.suspected else "")
            case SchemaChange.RENAME, Column(name=old), Column(name=new):
                return f"column {old} was renamed to {new}"
            case _, Column() as old, Column() as new:
                if _type(old) == _type(new):
                    return f"column {old.name} was dropped and made again"
                how = "widened" if self.kind is SchemaChange.WIDEN else "retyped"
                return f"column {old.name} was {how} from {_type(old)} to {_type(new)}"
            case _:
                raise AssertionError(self)


def _type(column: Column) -> str:
    return column.declared or type_text(column.type)


def changes_between(
    old: Sequence[Column], new: Sequence[Column], renamed: Iterable[tuple[str, str]] = ()
) -> tuple[Change, ...]:
    """Every change from `old` to `new`; `renamed` are pairs of names of which the source is sure.

    Order, nullability and keys are no changes of columns. A renamed column may have been retyped as well.
    """
    before, after = {column.name: column for column in old}, {column.name: column for column in new}
    numbered = all(column.attribute is not None for column in (*old, *new))
    pairs = [(before[one], after[two]) for one, two in renamed if one in before and two in after]
    if numbered:
        by_number = {column.attribute: column for column in new}
        found = ((column, by_number.get(column.attribute)) for column in old)
        pairs += [(one, two) for one, two in found if two is not None and one.name != two.name]
    pairs = list(dict.fromkeys(pairs))
    lost = before.keys() - after.keys() - {one.name for one, _ in pairs}
    gained = after.keys() - before.keys() - {two.name for _, two in pairs}
    suspected = bool(lost and gained) and not numbered
    taken = {one.name for one, _ in pairs} | {two.name for _, two in pairs}
    return (
        *(Change(SchemaChange.RENAME, one, two) for one, two in pairs),
        *(Change(SchemaChange.DROP, before[name], None, suspected) for name in before if name in lost),
        *(Change(SchemaChange.ADD, None, after[name], suspected) for name in after if name in gained),
        *(
            Change(kind, one, two)
            for one, two in (*pairs, *((before[name], after[name]) for name in before if name in after.keys() - taken))
            if (kind := _retyped(one, two)) is not None
        ),
        *_swapped(before, after, taken, {one.name for one, _ in pairs}, {two.name for _, two in pairs}),
    )


def _swapped(
    before: Mapping[str, Column], after: Mapping[str, Column], taken: set[str], left: set[str], came: set[str]
) -> Iterable[Change]:
    """Names on one side of a rename that the other version has too, for another column."""
    for name in before:
        if name in taken and name not in left and name in came:
            yield Change(SchemaChange.DROP, before[name], None)
    for name in after:
        if name in taken and name not in came and name in left:
            yield Change(SchemaChange.ADD, None, after[name])


def _retyped(old: Column, new: Column) -> SchemaChange | None:
    if None not in (old.attribute, new.attribute) and old.attribute != new.attribute:
        return SchemaChange.RETYPE  # another column under the old one's name
    if old.type == new.type and (not (old.declared and new.declared) or old.declared == new.declared):
        return None
    return SchemaChange.WIDEN if widens(old, new) else SchemaChange.RETYPE


def widens(old: Column, new: Column) -> bool:
    """Whether every value of `old` is the same value in `new`."""
    if old.type != new.type:
        return _type_widens(old.type, new.type)
    return _declaration_widens(old.declared, new.declared)


def _type_widens(old: pa.DataType, new: pa.DataType) -> bool:
    kinds = pa.types
    if kinds.is_integer(old) and kinds.is_integer(new):
        if kinds.is_signed_integer(old) and kinds.is_unsigned_integer(new):
            return False
        return bool(new.bit_width > old.bit_width)
    if kinds.is_floating(old) and kinds.is_floating(new):
        return bool(new.bit_width > old.bit_width)
    if kinds.is_decimal(old) and kinds.is_decimal(new):
        return bool(new.scale >= old.scale and new.precision - new.scale >= old.precision - old.scale)
    return False


_DECLARED = re.compile(r"^([^(]*?)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)(.*)$")
_TEXT = frozenset({"text", "varchar", "character varying"})
_PADDED = frozenset({"character", "char", "bpchar", "bit"})  # a longer one has other values


def _declaration_widens(old: str, new: str) -> bool:
    """For one Arrow type: a larger limit, or none any more."""
    (old_base, old_limits), (new_base, new_limits) = _limits(old), _limits(new)
    if old_base in _TEXT and new_base in _TEXT and new_limits is None:
        return True
    if old_base != new_base or old_base in _PADDED or old_limits is None:
        return False
    if new_limits is None:
        return True
    (old_length, old_scale), (new_length, new_scale) = old_limits, new_limits
    return new_scale >= old_scale and new_length - new_scale >= old_length - old_scale


def _limits(declared: str) -> tuple[str, tuple[int, int] | None]:
    match = _DECLARED.match(declared.lower())
    if match is None:
        return declared.lower(), None
    base, length, scale, rest = match.groups()
    return f"{base}{rest}", (int(length), int(scale or 0))
