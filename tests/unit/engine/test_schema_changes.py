"""Columns that change under a subscription: every change under every policy, decisions, restarts, marks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kadds.api.change import Control, ControlKind, Op
from kadds.api.connector import Mode, Promise, SchemaChange, SinkAbilities
from kadds.api.errors import ConfigurationError
from kadds.api.schema import Column
from kadds.engine.contract import TableContract
from kadds.engine.schema_change import Reaction, SchemaPolicy, changes_between, widens
from kadds.engine.supervisor import Engine
from kadds.log.log import Log
from kadds.testing.fake_sink import FakeSink, FakeStorage, abilities
from tests.unit.engine.house import (
    SINK,
    SUBSCRIPTION,
    Feed,
    caught_up,
    engine_on,
    log_in,
    rows_of,
    state_of,
    subscription,
    table,
    wait_for_state,
)

C, U, D, R = Op.CREATE, Op.UPDATE, Op.DELETE, Op.READ
LABEL = "default/shop/public.orders"
ADD, DROP, WIDEN, RETYPE, RENAME = SchemaChange
APPLY, HOLD, IGNORE = Reaction


def column(name: str, kind: pa.DataType, attribute: int | None, declared: str = "") -> Column:
    return Column(name, kind, declared, attribute=attribute)


ID = Column("id", pa.int64(), nullable=False, attribute=1)
NAME = column("name", pa.string(), 2)
SIZE = column("size", pa.int32(), 3)
BEFORE = (ID, NAME, SIZE)
CHANGES: dict[SchemaChange, tuple[Sequence[Column], tuple[Any, ...]]] = {
    ADD: ((*BEFORE, column("note", pa.string(), 4)), (2, "b", 20, "n")),
    DROP: ((ID, NAME), (2, "b")),
    WIDEN: ((ID, NAME, column("size", pa.int64(), 3)), (2, "b", 20)),
    RETYPE: ((ID, NAME, column("size", pa.string(), 3)), (2, "b", "20")),
    RENAME: ((ID, NAME, column("amount", pa.int32(), 3)), (2, "b", 20)),
}
OLD, ALL = table(columns=BEFORE), frozenset((change, mode) for change in SchemaChange for mode in Mode)


class Following(FakeSink):
    """A sink that follows every change: what it lacks it takes over from the target as it now is."""

    def claim(self, subscription: str) -> Any:
        session = super().claim(subscription)
        prepare = session.prepare

        def follow(target: Any) -> None:
            made = self.storage.state.tables.get(target.name)
            if made is not None:
                made.columns = target.table.columns
            prepare(target)

        session.prepare = follow  # type: ignore[method-assign]
        return session


def able(promise: Promise, changes: frozenset[tuple[SchemaChange, Mode]] = ALL) -> SinkAbilities:
    can = abilities(promise)
    return SinkAbilities(can.promise, can.cells, changes)


@contextmanager
def running(
    log: Log,
    storage: FakeStorage,
    policy: dict[SchemaChange, Reaction] | None = None,
    *,
    promise: Promise = Promise.EXACTLY_ONCE,
    mode: Mode = Mode.MERGE,
    changes: frozenset[tuple[SchemaChange, Mode]] = ALL,
    **more: Any,
) -> Iterator[Engine]:
    with engine_on(log) as engine:
        can = able(promise, changes)
        engine.add_sink(SINK, Following(storage, can), can)
        policy_of = SchemaPolicy.of(policy or {})
        engine.add_subscription(subscription(mode=mode, policy_of=lambda _: policy_of, **more))
        engine.start()
        yield engine


def schema_changes(engine: Engine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = engine.status()["subscriptions"][SUBSCRIPTION]["schema_changes"]
    return found


# ---------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("change", SchemaChange)
def test_each_change_is_known_by_its_kind(change: SchemaChange) -> None:
    (found,) = changes_between(BEFORE, CHANGES[change][0])
    assert found.kind is change
    assert ("size" in str(found)) is (change is not ADD)


def test_without_attribute_numbers_a_drop_and_an_add_at_once_may_be_a_rename() -> None:
    old = (Column("id", pa.int64()), Column("name", pa.string()))
    new = (Column("id", pa.int64()), Column("title", pa.string()))
    found = changes_between(old, new)
    assert [(one.kind, one.suspected) for one in found] == [(DROP, True), (ADD, True)]
    assert {SchemaPolicy().reaction(one) for one in found} == {HOLD}
    (sure,) = changes_between(old, new, [("name", "title")])
    assert sure.kind is RENAME


def test_with_attribute_numbers_a_drop_and_an_add_are_what_they_are() -> None:
    found = changes_between(BEFORE, (ID, NAME, column("weight", pa.int32(), 4)))
    assert [(one.kind, one.suspected) for one in found] == [(DROP, False), (ADD, False)]


def test_names_that_change_places_are_renames_and_a_column_made_again_is_another_one() -> None:
    a, b = column("a", pa.int32(), 2), column("b", pa.int32(), 3)
    swapped = (ID, column("b", pa.int32(), 2), column("a", pa.int32(), 3))
    assert sorted(str(one) for one in changes_between((ID, a, b), swapped)) == [
        "column a was renamed to b",
        "column b was renamed to a",
    ]
    (again,) = changes_between((ID, a), (ID, column("a", pa.int32(), 9)))
    assert (again.kind, str(again)) == (RETYPE, "column a was dropped and made again")
    over = changes_between((ID, a, b), (ID, column("b", pa.int32(), 2)))
    assert sorted(one.kind for one in over) == [DROP, RENAME]
    moved = changes_between((ID, a), (ID, column("b", pa.int32(), 2), column("a", pa.int32(), 4)))
    assert sorted(one.kind for one in moved) == [ADD, RENAME]


@pytest.mark.parametrize(
    ("old", "new", "wider"),
    [
        (pa.int16(), pa.int64(), True),
        (pa.int64(), pa.int32(), False),
        (pa.uint32(), pa.int64(), True),
        (pa.int32(), pa.uint64(), False),
        (pa.float32(), pa.float64(), True),
        (pa.int32(), pa.float64(), False),
        (pa.decimal128(12, 2), pa.decimal128(14, 2), True),
        (pa.decimal128(12, 2), pa.decimal128(14, 5), False),
        (pa.decimal128(38, 2), pa.decimal256(40, 4), True),
        ("character varying(10)", "character varying(20)", True),
        ("character varying(20)", "character varying(10)", False),
        ("character varying(20)", "text", True),
        ("character varying(20)", "character varying", True),
        ("text", "character varying(20)", False),
        ("text", "json", False),
        ("character(3)", "character(5)", False),
        ("timestamp(3) with time zone", "timestamp(6) with time zone", True),
        ("timestamp(3) with time zone", "timestamp(6) without time zone", False),
        ("numeric(100,5)", "numeric(102,8)", False),
    ],
)
def test_what_holds_every_value_as_it_was_is_wider(old: Any, new: Any, wider: bool) -> None:
    make = [column("x", one, None) if isinstance(one, pa.DataType) else column("x", pa.string(), None, one)
            for one in (old, new)]  # fmt: skip
    assert widens(make[0], make[1]) is wider
    (found,) = changes_between([make[0]], [make[1]])
    assert found.kind is (WIDEN if wider else RETYPE)


def test_between_tenants_a_new_column_waits_unless_somebody_says_otherwise() -> None:
    (added,) = changes_between(BEFORE, CHANGES[ADD][0])
    assert SchemaPolicy.of({}, other_tenant=True).reaction(added) is HOLD
    assert SchemaPolicy.of({ADD: APPLY}, other_tenant=True).reaction(added) is APPLY
    assert SchemaPolicy.of({}).reaction(added) is APPLY


# ------------------------------------------------------------------------------------------------- change and policy

APPLIED = {
    ADD: [(1, "a", 10, None), (2, "b", 20, "n")],
    DROP: [(1, "a"), (2, "b")],
    WIDEN: [(1, "a", 10), (2, "b", 20)],
    RETYPE: [(1, "a", 10), (2, "b", "20")],
    RENAME: [(1, "a", None), (2, "b", 20)],
}
IGNORED = {
    ADD: [(1, "a", 10), (2, "b", 20)],
    DROP: [(1, "a", 10), (2, "b", None)],
    WIDEN: [(1, "a", 10), (2, "b", 20)],
    RETYPE: [(1, "a", 10), (2, "b", 20)],
    RENAME: [(1, "a", 10), (2, "b", 20)],
}


@pytest.mark.parametrize("promise", [Promise.EXACTLY_ONCE, Promise.PLANNED])
@pytest.mark.parametrize("mode", [Mode.MERGE, Mode.APPEND])
@pytest.mark.parametrize("change", SchemaChange)
@pytest.mark.parametrize("reaction", [APPLY, IGNORE])
def test_a_change_is_applied_or_ignored(
    tmp_path: Path, promise: Promise, mode: Mode, change: SchemaChange, reaction: Reaction
) -> None:
    columns, row = CHANGES[change]
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (table(columns=columns), C, [row]))  # in one transaction
        with running(log, storage, {change: reaction}, promise=promise, mode=mode) as engine:
            assert caught_up(engine).exit_code == 0
            expected = (APPLIED if reaction is APPLY else IGNORED)[change]
            assert sorted(rows_of(storage)) == expected
        with running(log, storage, {change: HOLD}, promise=promise, mode=mode) as engine:  # it was decided already
            feed((table(columns=columns), C, [(3, *row[1:])]))
            assert caught_up(engine).exit_code == 0
            assert len(rows_of(storage)) == 3


@pytest.mark.parametrize("promise", [Promise.EXACTLY_ONCE, Promise.PLANNED])
@pytest.mark.parametrize("change", SchemaChange)
@pytest.mark.parametrize("decision", [APPLY, IGNORE])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_change_is_held_until_a_person_has_decided(
    tmp_path: Path, promise: Promise, change: SchemaChange, decision: Reaction, restarts: bool
) -> None:
    columns, row = CHANGES[change]
    storage, new, items = FakeStorage(), table(columns=columns), table("items")
    with log_in(tmp_path) as log:
        feed = Feed(log)
        with running(log, storage, {change: HOLD}, promise=promise) as engine:
            feed((OLD, C, [(1, "a", 10)]), (new, C, [row]), (items, C, [(7, "x")]))
            outcome = caught_up(engine)
            assert outcome.failed == (f"subscription:{SUBSCRIPTION} {LABEL}",)
            assert outcome.exit_code == 1
            assert state_of(engine, LABEL) == "held"
            assert rows_of(storage) == [(1, "a", 10)]  # all that stood before it, in the same transaction
            assert rows_of(storage, "public.items") == [(7, "x")]
            [(_, problem)] = outcome.problems
            assert str(changes_between(BEFORE, columns)[0]) in problem.message
            assert "kadds subscription schema shop-to-warehouse public.orders apply" in (problem.hint or "")
            engine.resume_subscription(SUBSCRIPTION)  # is no decision
            wait_for_state(engine, "held", LABEL)
            if not restarts:
                engine.decide_schema(SUBSCRIPTION, "public.orders", decision)
                assert caught_up(engine).exit_code == 0
        if restarts:
            with running(log, storage, {change: HOLD}, promise=promise) as engine:
                wait_for_state(engine, "held", LABEL)
                engine.decide_schema(SUBSCRIPTION, LABEL, decision)
            with running(log, storage, {change: HOLD}, promise=promise) as engine:
                assert caught_up(engine).exit_code == 0
        assert rows_of(storage) == (APPLIED if decision is APPLY else IGNORED)[change]


def test_a_transactional_subscription_holds_as_a_whole_before_the_transaction(tmp_path: Path) -> None:
    columns, row = CHANGES[RETYPE]
    storage, new, items = FakeStorage(), table(columns=columns), table("items")
    with log_in(tmp_path) as log:
        feed = Feed(log)
        with running(log, storage, mode=Mode.TRANSACTIONAL) as engine:
            feed((OLD, C, [(1, "a", 10)]), (items, C, [(1, "x")]))
            feed((items, C, [(2, "y")]), (OLD, C, [(5, "e", 50)]), (new, C, [row]))
            feed((items, C, [(3, "z")]))
            outcome = caught_up(engine)
            assert outcome.exit_code == 1
            assert state_of(engine, "") == "held"
            assert rows_of(storage) == [(1, "a", 10)]
            assert rows_of(storage, "public.items") == [(1, "x")]
            engine.decide_schema(SUBSCRIPTION, "public.orders", APPLY)
            assert caught_up(engine).exit_code == 0
            assert rows_of(storage) == [(1, "a", 10), (2, "b", "20"), (5, "e", 50)]
            assert len(rows_of(storage, "public.items")) == 3


def test_an_ignored_drop_leaves_the_targets_cells_alone_and_is_not_given_in_a_history(tmp_path: Path) -> None:
    merged, history = FakeStorage(), FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10), (2, "b", 20)]), (table(columns=(ID, NAME)), U, [(1, "A")]))
        feed((table(columns=(ID, NAME)), C, [(3, "c")]))
        for storage, mode in ((merged, Mode.MERGE), (history, Mode.APPEND)):
            with running(log, storage, {DROP: IGNORE}, mode=mode) as engine:
                assert caught_up(engine).exit_code == 0
    assert rows_of(merged) == [(1, "A", 10), (2, "b", 20), (3, "c", None)]
    with history.changed:
        told = [row["_kadds_not_given"] for row in history.state.tables["public.orders"].rows.values()]
    assert told == [None, None, ["size"], ["size"]]


def test_an_ignored_type_takes_no_value_that_is_not_the_same_in_it(tmp_path: Path) -> None:
    new, storage = table(columns=CHANGES[WIDEN][0]), FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (new, C, [(2, "b", 20)]))
        with running(log, storage, {WIDEN: IGNORE}) as engine:
            assert caught_up(engine).exit_code == 0
            feed((new, C, [(3, "c", 1 << 40)]))
            [(_, problem)] = caught_up(engine).problems
            assert (problem.kind, "column size is now int64" in problem.message) == ("DataError", True)
            assert rows_of(storage) == [(1, "a", 10), (2, "b", 20)]


def test_what_the_contract_leaves_out_concerns_nobody(tmp_path: Path) -> None:
    columns, row = CHANGES[RETYPE]
    storage = FakeStorage()
    contract = TableContract(exclude=("size",))
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (table(columns=columns), C, [row]))
        with running(log, storage, changes=frozenset(), contract_of=lambda _: contract) as engine:
            assert caught_up(engine).exit_code == 0
            assert rows_of(storage) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("change", SchemaChange)
def test_a_sink_that_cannot_follow_stops_the_table_before_the_change_until_a_person_has_mended_the_target(
    tmp_path: Path, change: SchemaChange
) -> None:
    columns, row = CHANGES[change]
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (table(columns=columns), C, [row]))
        with running(log, storage, {change: APPLY}, changes=frozenset()) as engine:
            [(_, problem)] = caught_up(engine).problems
            assert problem.kind == "SchemaMismatchError"
            assert f"({change})" in problem.message
            assert rows_of(storage) == [(1, "a", 10)]
            engine.resume_subscription(SUBSCRIPTION, "public.orders")
            assert caught_up(engine).exit_code == 0
            assert rows_of(storage) == APPLIED[change]


def test_a_decision_may_be_taken_back_where_the_sink_cannot_follow(tmp_path: Path) -> None:
    columns, row = CHANGES[RENAME]
    storage = FakeStorage()
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (table(columns=columns), C, [row]))
        with running(log, storage, changes=frozenset()) as engine:
            caught_up(engine)
            engine.decide_schema(SUBSCRIPTION, "public.orders", APPLY)
            [(_, problem)] = caught_up(engine).problems
            assert problem.kind == "SchemaMismatchError"
            assert "decide `ignore`" in (problem.hint or "")
            engine.decide_schema(SUBSCRIPTION, "public.orders", IGNORE)
            assert caught_up(engine).exit_code == 0
            assert rows_of(storage) == IGNORED[RENAME]


def test_several_changes_one_after_the_other_are_each_decided(tmp_path: Path) -> None:
    storage = FakeStorage()
    renamed = (ID, NAME, column("amount", pa.int32(), 3))
    later = (*renamed, column("note", pa.string(), 4))
    again = (ID, NAME, column("note", pa.string(), 4))
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]), (table(columns=renamed), C, [(2, "b", 20)]))
        feed((table(columns=later), C, [(3, "c", 30, "n")]), (table(columns=again), C, [(4, "d", "m")]))
        with running(log, storage, {RENAME: IGNORE, ADD: IGNORE, DROP: HOLD}) as engine:
            caught_up(engine)
            assert state_of(engine, LABEL) == "held"
            assert rows_of(storage) == [(1, "a", 10), (2, "b", 20), (3, "c", 30)]
            engine.decide_schema(SUBSCRIPTION, "public.orders", IGNORE)
            assert caught_up(engine).exit_code == 0
            assert rows_of(storage) == [(1, "a", 10), (2, "b", 20), (3, "c", 30), (4, "d", None)]


def test_a_decision_where_nothing_waits_is_refused(tmp_path: Path) -> None:
    with log_in(tmp_path) as log:
        Feed(log)((OLD, C, [(1, "a", 10)]))
        with running(log, FakeStorage()) as engine:
            caught_up(engine)
            with pytest.raises(ConfigurationError, match="no change of columns waits"):
                engine.decide_schema(SUBSCRIPTION, "public.orders", APPLY)
            with pytest.raises(ConfigurationError, match="has no table"):
                engine.decide_schema(SUBSCRIPTION, "public.nothing", APPLY)


# -------------------------------------------------------------------------------------------------------------- marks


@pytest.mark.parametrize("mode", [Mode.MERGE, Mode.APPEND])
def test_a_column_added_with_a_default_marks_the_table_until_a_person_or_a_snapshot_takes_it_away(
    tmp_path: Path, mode: Mode
) -> None:
    wider = table(columns=CHANGES[ADD][0])
    facts = {"added": ["note"], "with_default": ["note"]}
    words = "column note was added with a default; rows from before lack it"
    with log_in(tmp_path) as log:
        feed, storage = Feed(log), FakeStorage()
        feed((OLD, C, [(1, "a", 10)]))
        feed(controls=[Control(ControlKind.SCHEMA, 0, wider, facts)])
        for _ in range(2):
            with running(log, storage, mode=mode) as engine:
                feed((wider, C, [(2, "b", 20, "n")]))
                caught_up(engine)
                marks = [one["needs_resync"] for one in schema_changes(engine)]
                assert marks == ([] if mode is Mode.APPEND else [[words]])
        if mode is Mode.APPEND:
            return
        with running(log, FakeStorage()) as engine:
            engine.decide_schema(SUBSCRIPTION, "public.orders", None, clear_mark=True)
            assert schema_changes(engine) == []
            with pytest.raises(ConfigurationError, match="no mark"):
                engine.decide_schema(SUBSCRIPTION, "public.orders", None, clear_mark=True)
        with running(log, storage) as engine:
            caught_up(engine)
            assert schema_changes(engine) == []


def test_a_whole_snapshot_takes_marks_away(tmp_path: Path) -> None:
    wider = table(columns=CHANGES[ADD][0])
    begin, end = (Control(kind, 0, wider, {"generation": 2}) for kind in (
        ControlKind.SNAPSHOT_BEGIN, ControlKind.SNAPSHOT_END))  # fmt: skip
    with log_in(tmp_path) as log:
        feed = Feed(log)
        feed((OLD, C, [(1, "a", 10)]))
        feed(controls=[Control(ControlKind.SCHEMA, 0, wider, {"with_default": ["note"]})])
        with running(log, FakeStorage()) as engine:
            caught_up(engine)
            assert len(schema_changes(engine)) == 1
            feed((wider, R, [(1, "a", 10, "n")]), controls=[])
            caught_up(engine)
            assert len(schema_changes(engine)) == 1
            feed(controls=[begin])
            feed((wider, R, [(1, "a", 10, "n")]))
            feed(controls=[end])
            caught_up(engine)
            assert schema_changes(engine) == []


def test_a_suspected_rename_that_is_applied_marks_the_table(tmp_path: Path) -> None:
    old = (Column("id", pa.int64()), Column("name", pa.string()))
    new = (Column("id", pa.int64()), Column("title", pa.string()))
    with log_in(tmp_path) as log:
        feed, storage = Feed(log), FakeStorage()
        feed((table(columns=old), C, [(1, "a")]), (table(columns=new), C, [(2, "b")]))
        with running(log, storage) as engine:
            caught_up(engine)
            assert state_of(engine, LABEL) == "held"
            assert schema_changes(engine)[0]["held"] == [
                "column name was dropped (a rename?)",
                "column title was added (a rename?)",
            ]
            engine.decide_schema(SUBSCRIPTION, "public.orders", APPLY)
            caught_up(engine)
            assert rows_of(storage) == [(1, None), (2, "b")]
            [one] = schema_changes(engine)
            assert one["needs_resync"] == ["column title may be a renamed one; rows from before lack it"]
