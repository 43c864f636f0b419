"""Deliveries by plan: written down in the log, carried out, struck out; after a crash finished as they were decided.

A lane has at most one plan, and reads nothing new before that is finished. A plan whose cursor the sink already has was
carried out and only not struck out. A refusal of the first part (DataError) strikes it out: nothing has left, so what
was decided need not stand once the cause is cured, and a corrected contract may take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from kadds.api.connector import Delivery, Mode, Plan, Session
from kadds.api.errors import CorruptLogError, DataError
from kadds.api.position import Cursor
from kadds.engine.lane import Batch, Lane
from kadds.engine.plans import Plans, RecordedPart, RecordedPlan, mask_key_name, plan_id
from kadds.engine.spec import SubscriptionSpec
from kadds.log.log import Log

_logger = structlog.get_logger(__name__)


class PlannedDeliveries:
    """Those of one subscription. `wrote` is told the cursors that the sink has taken."""

    def __init__(self, spec: SubscriptionSpec, log: Log, wrote: Callable[[dict[str, str]], None]) -> None:
        self._spec = spec
        self._plans = Plans(log, spec.tenant)
        self._wrote = wrote
        self.unfinished: dict[str, Mapping[str, Any]] = {}  # label of the lane → the plan as recorded

    def load(self) -> None:
        """Read what the log has; at each claim, for whoever held it before may have left a plan."""
        self.unfinished = {plain["label"]: plain for plain in self._plans.unfinished(self._spec.name)}

    def deliver(self, session: Session, lane: Lane, batch: Batch) -> None:
        """Plan a batch, record the plan, carry it out, strike it out."""
        recorded = self._plan(session, lane, batch)
        self._plans.record(recorded)
        self.unfinished[lane.label] = recorded.to_json()
        steps = [(part.plan, batch.parts[number].delivery) for number, part in enumerate(recorded.parts)]
        self._carry_out(session, lane, recorded, steps)

    def _plan(self, session: Session, lane: Lane, batch: Batch) -> RecordedPlan:
        first, end = str(batch.first), str(batch.end)
        parts = []
        for number, part in enumerate(batch.parts):
            plan = Plan(plan_id(self._spec.name, lane.label, first, end, number), first, end)
            target = part.delivery.target
            parts.append(
                RecordedPart(
                    replace(plan, names=session.plan(target, plan)),
                    target.name,
                    part.stream_id,
                    part.source_table,
                    part.contract,
                    mask_key_name(part.contract, self._spec.mask_key),
                    part.view,
                )
            )
        return RecordedPlan(self._spec.name, lane.label, self._spec.mode, first, end, tuple(parts))

    def _carry_out(
        self, session: Session, lane: Lane, recorded: RecordedPlan, steps: Sequence[tuple[Plan, Delivery]]
    ) -> None:
        cursors = {lane.label: recorded.end}
        for number, (plan, delivery) in enumerate(steps):
            try:
                session.deliver([delivery], cursors if number == len(steps) - 1 else {}, plan)
            except DataError:
                if number == 0:
                    self._strike(lane, recorded)
                raise
        self._wrote(cursors)
        self._strike(lane, recorded)

    def _strike(self, lane: Lane, recorded: RecordedPlan) -> None:
        self._plans.finished(recorded.key)
        self.unfinished.pop(lane.label, None)

    def finish(self, session: Session, lane: Lane) -> None:
        """Carry out a lane's plan exactly as it was planned; the lane stands where the sink's cursor is."""
        recorded = RecordedPlan.from_json(self.unfinished[lane.label])
        end = Cursor.parse(recorded.end)
        if lane.reached >= end.offset():
            self._strike(lane, recorded)
            return
        steps = self._steps_again(session, lane, recorded, end)
        self._carry_out(session, lane, recorded, steps)
        lane.reset(end)
        lane.meter.add(sum(delivery.rows for _, delivery in steps))
        _logger.info("finished_plan", subscription=self._spec.name, stream=lane.label, parts=len(steps))

    def _steps_again(
        self, session: Session, lane: Lane, recorded: RecordedPlan, end: Cursor
    ) -> list[tuple[Plan, Delivery]]:
        steps, waiting = [], list(recorded.parts)
        for stream, rows in lane.between(Cursor.parse(recorded.first), end, recorded.mode):
            if not waiting or (waiting[0].stream_id, waiting[0].table) != (stream.id, rows.table):
                continue  # the contract let nothing of it through
            part = waiting.pop(0)
            part.check_mask_key(self._spec.mask_key)
            bound = lane.bound_to(stream, part.view.table(rows.table), part.contract, recorded.mode)
            session.prepare(bound.target)
            seen = part.view.apply(rows, history=recorded.mode is Mode.APPEND)
            steps.append((part.plan, Delivery(bound.target, lane.steps(bound, seen))))
        if waiting:
            raise CorruptLogError(
                f"the log no longer has all of what was planned to be delivered to {waiting[0].target}",
                where=f"{self._spec.name} {lane.label}",
                hint="run `kadds log verify`",
            )
        return steps
