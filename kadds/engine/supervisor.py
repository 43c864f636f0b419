"""The engine: starts, shows, pauses and stops everything that moves data. The way in.

    engine = Engine(log, memory_limit_bytes=…)
    engine.add_source(…); engine.add_sink(…); engine.add_subscription(…)      # before or after start
    engine.start()
    outcome = engine.wait_until_caught_up(stop)   or   engine.wait()
    outcome = engine.drain()

States and who may change them: `states`. What a failure becomes: `retry`. Sources, sinks and subscriptions come and go
while it runs; a pause is kept in the log and holds after a restart. The log belongs to the caller, who closes it after
`drain`. If the log itself fails (an fsync that did not succeed is never believed again), everything stops with that
error and the exit code is 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog

from kadds.api.connector import Mode, PollSource, Sink, SinkAbilities, SourceAbilities, StopSignal, StreamSource
from kadds.api.errors import ConfigurationError, KaddsError, RefusedError
from kadds.engine.alarms import Alarms
from kadds.engine.budget import Budget, MemorySplit, default_memory_limit_bytes
from kadds.engine.capture import Intake, SourceRunner
from kadds.engine.deliver import Machinery, SubscriptionRunner
from kadds.engine.dispatch import Dispatcher
from kadds.engine.heartbeat import Heart
from kadds.engine.polling import PollRunner
from kadds.engine.retry import GIVE_UP_SECONDS
from kadds.engine.runs import Run, RunHistory
from kadds.engine.schema_change import Reaction
from kadds.engine.spec import SinkSpec, SourceSpec, SubscriptionSpec
from kadds.engine.states import STUCK, Problem, State, StateBox, utc_now
from kadds.engine.streaming import StreamRunner
from kadds.engine.workers import Workers
from kadds.log.log import Log

DRAIN_SECONDS = 30.0
WORKERS = 8
_LOOK_SECONDS = 0.2  # a stop signal that is not ours cannot wake us
PAUSED_KIND = "paused"  # of control state: what a person has paused
_GIVING_UP = frozenset((State.RETRYING, State.NO_SPACE))

_logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How it ended. `failed`, `paused` and `unfinished` are names: `source:…`, `subscription:…`, with their tables."""

    exit_code: int
    failed: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    problems: tuple[tuple[str, Problem], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "exit_code": self.exit_code,
            "failed": list(self.failed),
            "paused": list(self.paused),
            "unfinished": list(self.unfinished),
            "problems": {name: problem.to_json() for name, problem in self.problems},
        }


class _Changes:
    """Counts changes; whoever waits for one holds no lock while looking at what has changed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count = 0

    def __call__(self) -> None:
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    @property
    def count(self) -> int:
        return self._count

    def wait(self, since: int, timeout_seconds: float) -> None:
        with self._condition:
            self._condition.wait_for(lambda: self._count != since, timeout_seconds)


class Engine:
    """See the module. All methods may be called by any thread; `start`, `drain` and the waits by one each."""

    def __init__(
        self,
        log: Log,
        *,
        memory_limit_bytes: int | None = None,
        workers: int = WORKERS,
        give_up_seconds: float = GIVE_UP_SECONDS,
    ) -> None:
        self._log = log
        self._give_up_seconds = give_up_seconds
        self.memory = MemorySplit.of(memory_limit_bytes or default_memory_limit_bytes())
        self.changed = _Changes()
        self._lock = threading.RLock()
        self._draining = threading.Event()
        self._ending = threading.Event()  # somebody asked for it, or the log has failed
        self._started = False
        self._started_at = utc_now()
        self._fatal: BaseException | None = None
        self._alarms = Alarms()
        # One sink holds at most all threads but two, so that the others are served however long it blocks.
        self._workers = Workers("kadds-deliver", workers, per_group=max(1, workers - 2))
        self._runs = RunHistory(log)
        self._machinery = Machinery(
            log,
            self._workers,
            self._alarms,
            Budget(self.memory.delivery_bytes),
            self.memory.delivery_bytes // workers,
            self._draining,
            self.changed,
            self._run_ended,
        )
        self._intake = Intake(log, self._alarms, self._draining, self.changed, self._run_ended)
        self._dispatcher = Dispatcher(log, self._log_failed, self.changed)
        self._sources: dict[str, SourceRunner] = {}
        self._hearts: dict[str, Heart] = {}
        self._sinks: dict[str, SinkSpec] = {}
        self._subscriptions: dict[str, SubscriptionRunner] = {}

    # ------------------------------------------------------------------------------------------- what there is

    def add_source(self, spec: SourceSpec) -> None:
        """A source; captured at once if the engine runs. ConfigurationError for a name that is taken."""
        runner = _source_runner(spec, self._intake)
        with self._lock:
            _refuse_taken("source", spec.name, self._sources)
            self._sources[spec.name] = runner
            self._restore_pause("source", runner)
            self._runs.interrupted(f"source:{spec.name}")
            if spec.heartbeat_seconds is not None:
                self._hearts[spec.name] = Heart(
                    self._log, spec.name, spec.heartbeat_seconds, self._alarms, self._workers
                )
            if self._started:
                self._start_source(runner)
        self.changed()

    def add_sink(self, name: str, sink: Sink, abilities: SinkAbilities) -> None:
        """An opened sink, under `tenant/name`."""
        with self._lock:
            _refuse_taken("sink", name, self._sinks)
            self._sinks[name] = SinkSpec(name, sink, abilities)
        self.changed()

    def add_subscription(self, spec: SubscriptionSpec) -> None:
        """A subscription whose sink has been added; delivered at once if the engine runs.

        ConfigurationError for a taken name, an unknown sink, or a mode that the sink does not have.
        """
        with self._lock:
            _refuse_taken("subscription", spec.name, self._subscriptions)
            sink = self._sinks.get(spec.sink)
            if sink is None:
                raise ConfigurationError(
                    f"there is no sink {spec.sink}", where=spec.name, hint=f"there are: {', '.join(self._sinks)}"
                )
            _check_mode(spec, sink)
            runner = SubscriptionRunner(spec, sink, lambda: self._abilities_of(spec.source), self._machinery)
            self._subscriptions[spec.name] = runner
            self._restore_pause("subscription", runner)
            self._runs.interrupted(f"subscription:{spec.name}")
            if self._started:
                self._dispatcher.add(runner)
        self.changed()

    def remove_source(self, name: str, *, timeout_seconds: float = DRAIN_SECONDS) -> bool:
        """Stop and close a source; its streams stay in the log. Whether it came to rest in time."""
        with self._lock:
            runner = self._source(name)
            del self._sources[name]
            heart = self._hearts.pop(name, None)
        if heart is not None:
            heart.stop()
        clean = runner.stop(time.monotonic() + timeout_seconds)
        self.changed()
        return clean

    def remove_subscription(self, name: str, *, timeout_seconds: float = DRAIN_SECONDS) -> bool:
        """Stop a subscription; its cursors stay in the sink. Whether it came to rest in time."""
        with self._lock:
            runner = self._subscription(name)
            del self._subscriptions[name]
        self._dispatcher.remove(runner)
        clean = runner.stop(time.monotonic() + timeout_seconds)
        self.changed()
        return clean

    def remove_sink(self, name: str) -> None:
        """Close a sink that no subscription uses; ConfigurationError names those that do."""
        with self._lock:
            if name not in self._sinks:
                raise ConfigurationError(f"there is no sink {name}", hint=f"there are: {', '.join(self._sinks)}")
            if users := [other for other, runner in self._subscriptions.items() if runner.sink.name == name]:
                raise ConfigurationError(
                    f"sink {name} is used by {', '.join(users)}", hint="remove those subscriptions first"
                )
            sink = self._sinks.pop(name)
        sink.sink.close()
        self.changed()

    def _abilities_of(self, source: str) -> SourceAbilities | None:
        runner = self._sources.get(source)
        return None if runner is None else runner.spec.abilities

    def _source(self, name: str) -> SourceRunner:
        if name not in self._sources:
            raise ConfigurationError(f"there is no source {name}", hint=f"there are: {', '.join(self._sources)}")
        return self._sources[name]

    def _subscription(self, name: str) -> SubscriptionRunner:
        if name not in self._subscriptions:
            raise ConfigurationError(
                f"there is no subscription {name}", hint=f"there are: {', '.join(self._subscriptions)}"
            )
        return self._subscriptions[name]

    # ------------------------------------------------------------------------------------------- running

    def start(self) -> None:
        """Begin to move data; returns at once."""
        with self._lock:
            self._started = True
            self._started_at = utc_now()
            self._dispatcher.start()
            for subscription in self._subscriptions.values():
                self._dispatcher.add(subscription)
            for source in self._sources.values():
                self._start_source(source)
        _logger.info("started", sources=len(self._sources), subscriptions=len(self._subscriptions))

    def _start_source(self, source: SourceRunner) -> None:
        source.start()
        if (heart := self._hearts.get(source.spec.name)) is not None:
            heart.start()

    def request_stop(self) -> None:
        """Let `wait` and `wait_until_caught_up` return; may be called by a signal handler's thread."""
        self._ending.set()
        self.changed()

    def wait(self, stop: StopSignal | None = None) -> None:
        """Until `request_stop`, `stop`, or the failure of the log."""
        while not self._ended(stop):
            self._ending.wait(_LOOK_SECONDS if stop is not None else None)

    def _ended(self, stop: StopSignal | None) -> bool:
        return self._ending.is_set() or (stop is not None and stop.is_set())

    @property
    def fatal(self) -> BaseException | None:
        """What has ended everything, None while all is well."""
        return self._fatal

    def _log_failed(self, error: BaseException) -> None:
        _logger.error("log_failed", error=type(error).__name__, message=str(error))
        self._fatal = error
        self._ending.set()
        self.changed()

    def drain(self, timeout_seconds: float = DRAIN_SECONDS) -> Outcome:
        """Stop receiving, let open appends reach the disk and open sink transactions end, let go of everything.

        What has not ended in time is cut off by closing its source or sink and named in `unfinished`; nothing is lost
        by that, for cursors and watermarks move only with what they cover. Exit code 1 if anything had failed.
        """
        deadline = time.monotonic() + timeout_seconds
        self._ending.set()
        self._draining.set()
        with self._lock:
            sources, subscriptions = dict(self._sources), dict(self._subscriptions)
            sinks = list(self._sinks.values())
            for heart in self._hearts.values():
                heart.stop()
        before = self._outcome()
        unfinished = _all_at_once(
            {f"source:{name}": runner.stop for name, runner in sources.items()}, deadline, _SHARE_FOR_SOURCES
        )
        self._dispatcher.stop()
        self._workers.stop()
        unfinished += _all_at_once(
            {f"subscription:{name}": runner.stop for name, runner in subscriptions.items()}, deadline
        )
        self._alarms.stop()
        for sink in sinks:
            try:
                sink.sink.close()
            except KaddsError as error:
                _logger.warning("sink_not_closed", sink=sink.name, message=error.message)
        self.changed()
        failed = bool(before.failed or unfinished or self._fatal is not None)
        _logger.info("drained", failed=list(before.failed), unfinished=unfinished)
        return Outcome(int(failed), before.failed, before.paused, tuple(unfinished), before.problems)

    # ------------------------------------------------------------------------------------------- pausing

    def pause_source(self, name: str, table: str | None = None) -> None:
        """Stop capturing a source, or one table (`schema.table`) of a polled one; kept over restarts."""
        self._pause("source", self._source(name), table)

    def resume_source(self, name: str, table: str | None = None) -> None:
        """Go on with a source, its failed tables too, or with one table."""
        self._resume("source", self._source(name), table)

    def pause_subscription(self, name: str, table: str | None = None) -> None:
        """Stop delivering a subscription, or one table of it; kept over restarts."""
        self._pause("subscription", self._subscription(name), table)

    def resume_subscription(self, name: str, table: str | None = None) -> None:
        """Go on with a subscription, its failed tables too, or with one table."""
        self._resume("subscription", self._subscription(name), table)

    def decide_schema(self, name: str, table: str, reaction: Reaction | None, *, clear_mark: bool = False) -> None:
        """Decide on a change of columns that a subscription holds, or take a mark away; kept over restarts."""
        if not self._subscription(name).decide_schema(table, reaction, clear_mark=clear_mark):
            raise _no_table("subscription", name, table)

    def _pause(self, kind: str, runner: SourceRunner | SubscriptionRunner, table: str | None) -> None:
        if not runner.pause(table):
            raise _no_table(kind, runner.spec.name, table)
        self._keep_pause(kind, runner, lambda paused: paused | {table or ""})

    def _resume(self, kind: str, runner: SourceRunner | SubscriptionRunner, table: str | None) -> None:
        if not runner.resume(table):
            raise _no_table(kind, runner.spec.name, table)
        self._keep_pause(kind, runner, lambda paused: paused - {table or ""})

    def _keep_pause(
        self, kind: str, runner: SourceRunner | SubscriptionRunner, change: Callable[[set[str]], set[str]]
    ) -> None:
        key = f"{kind}:{runner.spec.name}"
        paused = change(set(self._log.state.get(runner.spec.tenant, PAUSED_KIND, key) or []))
        runner.paused_tables = frozenset(paused - {""})
        self._log.state.put(runner.spec.tenant, PAUSED_KIND, key, sorted(paused) or None)

    def _restore_pause(self, kind: str, runner: SourceRunner | SubscriptionRunner) -> None:
        """Before it begins, so that nothing of what was paused moves."""
        spec = runner.spec
        paused = set(self._log.state.get(spec.tenant, PAUSED_KIND, f"{kind}:{spec.name}") or [])
        if "" in paused:
            runner.box.command(State.PAUSED)
        runner.paused_tables = frozenset(paused - {""})

    # ------------------------------------------------------------------------------------------- runs

    def run_source_now(self, name: str, *, trigger: str = "manual") -> Run:
        """Capture what the source has now; the run, whose `ended` is set when its outcome is in the log."""
        return self._run_now(f"source:{name}", trigger, self._source(name).run_now)

    def run_subscription_now(self, name: str, *, trigger: str = "manual") -> Run:
        """Deliver everything that the log has now; see `run_source_now`."""
        self._dispatcher.look()
        return self._run_now(f"subscription:{name}", trigger, self._subscription(name).start_run)

    def _run_now(self, job: str, trigger: str, start: Callable[[Run], None]) -> Run:
        run = Run(job, trigger)
        self._runs.began(run)
        start(run)
        return run

    def _run_ended(self, run: Run, outcome: str) -> None:
        try:
            self._runs.ended(run, outcome)
        except KaddsError as error:
            _logger.warning("run_not_kept", job=run.job, outcome=outcome, message=error.message)
        _logger.info("run_ended", job=run.job, trigger=run.trigger, outcome=outcome, rows=run.rows)
        self.changed()

    def runs(self) -> dict[str, list[dict[str, Any]]]:
        """The last runs of every job, oldest first."""
        return self._runs.all(self._log.state.tenants("runs"))

    # ------------------------------------------------------------------------------------------- caught up

    def wait_until_caught_up(self, stop: StopSignal | None = None) -> Outcome:
        """Until all that is in the sources now is in the sinks; what is scheduled runs once, now.

        What is paused is listed, what has failed is left behind and named, with exit code 1; so is what has been
        retrying for longer than `give_up_seconds`. What waits (a file that its owner has open) is waited for.
        """
        with self._lock:
            sources, subscriptions = dict(self._sources), dict(self._subscriptions)
        expected = {name: self._expectation(name, runner) for name, runner in sources.items()}
        self._until(lambda: all(self._done(sources[name], reached) for name, reached in expected.items()), stop)
        cut = self._log.end().offset()
        runs = {
            name: self.run_subscription_now(name, trigger="until-caught-up")
            for name, subscription in subscriptions.items()
            if subscription.spec.scheduled and not subscription.box.at_rest
        }
        self._until(
            lambda: (
                self._dispatcher.scanned >= cut
                and all(self._delivered(runner, cut, runs.get(name)) for name, runner in subscriptions.items())
            ),
            stop,
        )
        return self._outcome(
            unfinished=[
                *(f"source:{name}" for name, reached in expected.items() if not _safely(reached)),
                *(f"subscription:{name}" for name, runner in subscriptions.items() if not runner.caught_up(cut)),
            ]
        )

    def _expectation(self, name: str, runner: SourceRunner) -> Callable[[], bool]:
        if runner.spec.interval_seconds is None and not runner.box.at_rest:
            run = self.run_source_now(name, trigger="until-caught-up")
            return run.ended.is_set
        return runner.expect()

    def _until(self, reached: Callable[[], bool], stop: StopSignal | None) -> None:
        while not self._ended(stop):
            count = self.changed.count
            if reached():
                return
            self.changed.wait(count, _LOOK_SECONDS)

    def _done(self, runner: SourceRunner, reached: Callable[[], bool]) -> bool:
        if runner.box.at_rest or self._given_up(runner):
            return True
        try:
            return reached()
        except KaddsError as error:
            runner.box.become(State.FAILED, Problem.of(error))
            return True

    def _delivered(self, runner: SubscriptionRunner, cut: int, run: Run | None) -> bool:
        if self._given_up(runner):
            return True
        return runner.caught_up(cut) and (run is None or run.ended.is_set())

    def _given_up(self, runner: SourceRunner | SubscriptionRunner) -> bool:
        """Whether what is left has been retrying for so long that it counts as failed."""
        boxes = runner.boxes()
        own = boxes.pop(runner.spec.name)
        if self._hopeless(own) and (isinstance(runner, SubscriptionRunner) or not boxes):
            return True
        moving = [box for box in boxes.values() if not box.at_rest and box.state is not State.IDLE]
        return bool(moving) and all(self._hopeless(box) for box in moving)

    def _hopeless(self, box: StateBox) -> bool:
        problem = box.problem
        if box.state not in _GIVING_UP or problem is None:
            return False
        return (utc_now() - problem.since).total_seconds() >= self._give_up_seconds

    def _outcome(self, unfinished: Iterable[str] = ()) -> Outcome:
        with self._lock:
            runners: list[tuple[str, SourceRunner | SubscriptionRunner]] = [
                *((f"source:{name}", runner) for name, runner in self._sources.items()),
                *((f"subscription:{name}", runner) for name, runner in self._subscriptions.items()),
            ]
        problems: dict[str, Problem] = {}
        paused: list[str] = []
        for prefix, runner in runners:
            for name, box in runner.boxes().items():
                label = prefix if name == runner.spec.name else f"{prefix} {name}"
                if box.state is State.PAUSED:
                    paused.append(label)
                if box.state in STUCK or self._hopeless(box):
                    problems[label] = box.problem or Problem("KaddsError", "it has failed")
            if isinstance(runner, SubscriptionRunner):
                problems.update({f"{prefix} {name}": problem for name, problem in runner.lost().items()})
        if self._fatal is not None:
            problems["log"] = Problem.of(self._fatal)
        left = tuple(unfinished)
        failed = tuple(sorted(problems))
        return Outcome(int(bool(failed or left)), failed, tuple(sorted(paused)), left, tuple(sorted(problems.items())))

    # ------------------------------------------------------------------------------------------- status

    def status(self) -> dict[str, Any]:
        """Everything that can be shown, as plain JSON values."""
        with self._lock:
            sources, subscriptions, sinks = dict(self._sources), dict(self._subscriptions), dict(self._sinks)
        state = State.STOPPED if self._draining.is_set() else State.RUNNING if self._started else State.STARTING
        return {
            "state": str(State.FAILED if self._fatal is not None else state),
            "problem": Problem.of(self._fatal).to_json() if self._fatal is not None else None,
            "started_at": self._started_at.isoformat(),
            "log": dict(self._log.status()),
            "sources": {name: runner.to_json() for name, runner in sorted(sources.items())},
            "sinks": {
                name: {
                    "promise": spec.abilities.promise.name.lower(),
                    "modes": sorted(str(mode) for mode in spec.abilities.modes),
                    "subscriptions": sorted(n for n, runner in subscriptions.items() if runner.sink.name == name),
                }
                for name, spec in sorted(sinks.items())
            },
            "subscriptions": {
                name: {**runner.to_json(), "heartbeat_lag_seconds": self._heartbeat_lag_seconds(runner)}
                for name, runner in sorted(subscriptions.items())
            },
            "runs": self.runs(),
        }

    def _heartbeat_lag_seconds(self, runner: SubscriptionRunner) -> float | None:
        """See `heartbeat`; None where the source has none."""
        heart = self._hearts.get(runner.spec.source)
        if heart is None:
            return None
        return heart.lag_seconds(
            lambda end: not runner.box.at_rest and self._dispatcher.scanned >= end and runner.caught_up(end)
        )


def _source_runner(spec: SourceSpec, intake: Intake) -> SourceRunner:
    if isinstance(spec.source, StreamSource):
        return StreamRunner(spec, spec.source, intake)
    if isinstance(spec.source, PollSource):
        return PollRunner(spec, spec.source, intake)
    raise RefusedError(
        "the engine does not run this kind of source",
        where=spec.name,
        hint="a source polls (`poll`) or streams (`stream`); one that is pushed to takes a producer",
    )


_SHARE_FOR_SOURCES = 0.5  # of a drain's time; a sink's transaction may take the rest


def _all_at_once(stops: dict[str, Callable[[float], bool]], deadline: float, share: float = 1.0) -> list[str]:
    """Stop many things side by side; the names of those that did not end in time."""
    deadline = time.monotonic() + share * max(0.0, deadline - time.monotonic())
    ended: dict[str, bool] = {}

    def stop(name: str, call: Callable[[float], bool]) -> None:
        try:
            ended[name] = call(deadline)
        except KaddsError as error:
            _logger.warning("not_stopped", name=name, message=error.message)
            ended[name] = False

    threads = [
        threading.Thread(target=stop, args=(name, call), name=f"kadds-stop-{name}", daemon=True)
        for name, call in stops.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) + 1.0)
    return [name for name in stops if not ended.get(name, False)]


def _safely(reached: Callable[[], bool]) -> bool:
    try:
        return reached()
    except KaddsError:
        return False


def _refuse_taken(kind: str, name: str, known: Iterable[str]) -> None:
    if name in known:
        raise ConfigurationError(f"there is a {kind} {name} already", hint="give one of them another name")


def _check_mode(spec: SubscriptionSpec, sink: SinkSpec) -> None:
    if spec.mode is Mode.SNAPSHOT or spec.mode not in sink.abilities.modes:
        possible = ", ".join(sorted(str(mode) for mode in sink.abilities.modes - {Mode.SNAPSHOT}))
        raise ConfigurationError(
            f"sink {sink.name} has no mode {spec.mode.value} in this version",
            where=spec.name,
            hint=f"it has: {possible or 'nothing'}",
        )


def _no_table(kind: str, name: str, table: str | None) -> ConfigurationError:
    if table is None:
        return ConfigurationError(f"{kind} {name} has stopped", hint="start it again")
    return ConfigurationError(
        f"{kind} {name} has no table {table}", hint=f"`kadds {kind} show {name}` lists its tables"
    )
