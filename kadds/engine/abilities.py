"""What a sink must be able to do for a table, asked before anything moves, and again of each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow.compute as pc

from kadds.api.change import Op
from kadds.api.connector import (
    Append,
    Delete,
    Event,
    KeyKind,
    Mode,
    Rekey,
    SinkAbilities,
    SourceAbilities,
    Step,
    Target,
    Truncate,
    Upsert,
    missing_abilities,
)
from kadds.api.errors import ConfigurationError, DataError

_EVENT_OF = {
    Op.CREATE: Event.CREATE,
    Op.UPDATE: Event.UPDATE,
    Op.DELETE: Event.DELETE,
    Op.READ: Event.READ,
    Op.TRUNCATE: Event.TRUNCATE,
}


def check_target(source: SourceAbilities | None, sink: SinkAbilities, target: Target) -> None:
    """ConfigurationError, by name, where the sink cannot do what the source's changes may ask of it.

    A key change is not asked for here: without that ability it is sent as delete and insert where the row is whole.
    Where the source is no longer configured nothing is known of its events, and each step is asked for as it comes.
    """
    if target.mode is Mode.SNAPSHOT:
        raise ConfigurationError(
            "mode snapshot is not executed by this version",
            where=f"{target.stream} -> {target.name}",
            hint="use merge or append",
        )
    events = frozenset() if source is None else source.events - {Event.KEY_CHANGE}
    findings = missing_abilities(sink, target, events)
    if findings:
        first = findings[0]
        raise ConfigurationError("; ".join(finding.message for finding in findings), where=first.where, hint=first.hint)


def can(sink: SinkAbilities, event: Event, target: Target) -> bool:
    """Whether the sink can do `event` to the target."""
    return (event, target.mode, KeyKind.of(target.table)) in sink.cells


def check_steps(sink: SinkAbilities, target: Target, steps: Iterable[Step], ops: Iterable[int]) -> None:
    """DataError for what the sink cannot do to the target; `ops` are the operations that the steps come from."""
    for event in sorted({*_events(steps), *(_EVENT_OF[Op(op)] for op in ops if target.mode is Mode.APPEND)}):
        if not can(sink, event, target):
            raise DataError(
                f"the sink has no {event.value} in mode {target.mode.value}, and such a change has come",
                where=f"{target.stream} -> {target.name}",
                hint="leave the table out, or choose another sink or mode",
            )


def _events(steps: Iterable[Step]) -> Iterator[Event]:
    for step in steps:
        match step:
            case Truncate():
                yield Event.TRUNCATE
            case Delete():
                yield Event.DELETE
            case Rekey():
                yield Event.KEY_CHANGE
            case Upsert(not_given=not_given, as_text=as_text):
                if not_given is not None:
                    yield Event.NOT_GIVEN
                if as_text is not None:
                    yield Event.AS_TEXT
            case Append(rows=rows, as_text=as_text):
                changed = pc.filter(rows.column("_kadds_not_given"), pc.not_equal(rows.column("_kadds_op"), "t"))
                if changed.null_count < len(changed):  # a truncate is a row of its own kind
                    yield Event.NOT_GIVEN
                if as_text is not None:
                    yield Event.AS_TEXT
