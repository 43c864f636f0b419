"""The sink: deliveries as files, finished as planned, complete when the manifest says so.

Invariant: a line of the manifest is written after every file it names is on disk under its name; it carries the
cursors. What is not in the manifest does not count, whatever files there are: a delivery that was cut short is written
again, over itself.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from kadds.api.connector import Delivery, Finding, Level, Plan, Session, SinkAbilities, Target, missing_abilities
from kadds.api.errors import ConfigurationError, KaddsError, UnknownInputError
from kadds_files import schema
from kadds_files.claim import Claim
from kadds_files.names import SUFFIXES, component, file_stem, suffix, target_folder
from kadds_files.rows import FileRows
from kadds_files.settings import FilesSettings
from kadds_files.tree import Folder, HashedFile, translated

MANIFESTS = "_manifest"


class FilesSink:
    """An opened sink over one folder."""

    def __init__(self, settings: FilesSettings, abilities: SinkAbilities) -> None:
        self.settings = settings
        self.abilities = abilities
        self._sessions: list[FilesSession] = []
        self._lock = threading.Lock()

    def check(self, targets: Sequence[Target]) -> Iterable[Finding]:
        """What would be refused; makes no folder."""
        found = [finding for target in targets for finding in missing_abilities(self.abilities, target, ())]
        for target in targets:
            where = f"{target.stream} -> {target.name}"
            try:
                problems = self._problems(target)
            except KaddsError as error:
                found.append(Finding(Level.ERROR, where, error.message, error.hint))
                continue
            hint = "give the target another name with `target:`, or leave the column out"
            found += [Finding(Level.ERROR, where, problem, hint) for problem in problems]
        return found

    def _problems(self, target: Target) -> list[str]:
        name = target_folder(target)
        with translated(self.settings.path):
            try:
                with Folder.root(self.settings.path, create=False) as root, root.folder(name, create=False) as folder:
                    return schema.problems(target, folder)
            except FileNotFoundError:
                return schema.problems(target, None)

    def claim(self, subscription: str) -> Session:
        """Become the only writer of `subscription`; LockedError if another process is."""
        with translated(self.settings.path), Folder.root(self.settings.path, create=True) as root:
            with root.folder(MANIFESTS, create=True) as manifests:
                folder = manifests.folder(component(subscription), create=True)
            claim, manifest = Claim.take(folder, subscription, _now())
        session = FilesSession(self, subscription, claim, manifest.epoch, dict(manifest.cursors))
        with self._lock:
            self._sessions.append(session)
        return session

    def forget(self, session: FilesSession) -> None:
        """The session was released."""
        with self._lock:
            if session in self._sessions:
                self._sessions.remove(session)

    def close(self) -> None:
        """Release every claim made here."""
        for session in list(self._sessions):
            session.release()


class FilesSession:
    """A claimed subscription; fenced by the next claim."""

    def __init__(
        self, sink: FilesSink, subscription: str, claim: Claim, epoch: int, cursors: Mapping[str, str]
    ) -> None:
        self._sink = sink
        self._settings = sink.settings
        self._subscription = subscription
        self._claim = claim
        self._epoch = epoch
        self._cursors = cursors

    @property
    def cursors(self) -> Mapping[str, str]:
        """The cursors found at the claim."""
        return self._cursors

    def prepare(self, target: Target) -> None:
        """Make the target's folder and its `_schema.json`, or match them."""
        for finding in missing_abilities(self._sink.abilities, target, ()):
            raise ConfigurationError(finding.message, where=finding.where, hint=finding.hint)
        name = target_folder(target)
        with translated(self._settings.path), self._claim.guard:
            self._claim.of_epoch(self._epoch, self._subscription)
            with Folder.root(self._settings.path, create=True) as root, root.folder(name, create=True) as folder:
                schema.keep(target, folder)

    def plan(self, target: Target, plan: Plan) -> Mapping[str, str]:
        """The path of the file, below the sink's folder, that a delivery to `target` under `plan` writes."""
        stem = file_stem(self._subscription, target, plan)
        return {_plan_key(target): f"{target_folder(target)}/{stem}{suffix(self._settings)}"}

    def deliver(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str], plan: Plan | None = None) -> None:
        """Write a file per target and the line that makes them count; nothing where the plan is complete already."""
        if plan is None:
            self._keep_cursors(deliveries, cursors)
            return
        planned = [(*self._place(rows.target, plan), rows) for rows in _gathered(deliveries)]
        todo = [
            _File(folder, name, rows, rows.writer(name[name.index(".") :], self._settings.compression))
            for folder, name, rows in planned
        ]
        with translated(self._settings.path), self._claim.guard, ExitStack() as opened:
            manifest = self._claim.of_epoch(self._epoch, self._subscription)
            manifest.expect_as_left()
            root = opened.enter_context(Folder.root(self._settings.path, create=False))
            names = {file.folder for file in todo}
            folders = {name: opened.enter_context(root.folder(name, create=False)) for name in names}
            if manifest.has_plan(plan.id, any(folders[file.folder].has(file.name) for file in todo)):
                return
            line = {"kind": "delivery", "epoch": self._epoch, "plan": plan.id, "first": plan.first, "end": plan.end}
            files = _write(todo, folders)
            manifest.append({**line, "at": _now(), "cursors": dict(cursors), "files": files})

    def _keep_cursors(self, deliveries: Sequence[Delivery], cursors: Mapping[str, str]) -> None:
        if _gathered(deliveries):
            raise ConfigurationError("files are delivered by plan only", hint="the engine plans what it delivers here")
        with translated(self._settings.path), self._claim.guard:
            manifest = self._claim.of_epoch(self._epoch, self._subscription)
            manifest.append({"kind": "cursors", "epoch": self._epoch, "at": _now(), "cursors": dict(cursors)})

    def release(self) -> None:
        """Let another process claim it."""
        self._claim.release(self._epoch)
        self._sink.forget(self)

    def _place(self, target: Target, plan: Plan) -> tuple[str, str]:
        """Folder and file as planned; a plan from before a change of the settings keeps the suffix recorded with it."""
        folder, stem = target_folder(target), file_stem(self._subscription, target, plan)
        path = plan.names.get(_plan_key(target), f"{folder}/{stem}{suffix(self._settings)}")
        name = path.removeprefix(f"{folder}/")
        if name not in {stem + known for known in SUFFIXES.values()}:
            raise UnknownInputError(f"plan {plan.id} names {path!r}, where this sink would write {folder}/{stem}")
        return folder, name


@dataclass(frozen=True, eq=False)
class _File:
    """A file to be written."""

    folder: str
    name: str
    rows: FileRows
    fill: Callable[[HashedFile], object]


def _write(todo: Sequence[_File], folders: Mapping[str, Folder]) -> list[dict[str, Any]]:
    """Write the files, or none: one that cannot be written takes the others with it, for their plan may be given up."""
    done: list[_File] = []
    entries = []
    try:
        for file in todo:
            done.append(file)
            entries.append(_entry(file, folders[file.folder].write(file.name, file.fill)))
    except Exception:
        for file in done:
            folders[file.folder].remove(file.name)
        raise
    return entries


def _plan_key(target: Target) -> str:
    return f"{target.name}@{target.version}"


def _gathered(deliveries: Sequence[Delivery]) -> list[FileRows]:
    """One file per target and version, in the order of the steps; targets without rows have none."""
    steps: dict[str, tuple[Target, list[object]]] = {}
    for delivery in deliveries:
        steps.setdefault(_plan_key(delivery.target), (delivery.target, []))[1].extend(delivery.steps)
    gathered = [FileRows.of(target, of_target) for target, of_target in steps.values()]
    return [rows for rows in gathered if rows.rows]


def _entry(file: _File, written: HashedFile) -> dict[str, Any]:
    """What the manifest says of a file."""
    ends = [pc.min_max(step.rows.column("_kadds_offset")).as_py() for step in file.rows.steps]
    return {
        "path": f"{file.folder}/{file.name}",
        "target": file.rows.target.name,
        "stream": file.rows.target.stream,
        "version": file.rows.target.version,
        "rows": file.rows.rows,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "first_offset": min((end["min"] for end in ends if end["min"] is not None), default=None),
        "last_offset": max((end["max"] for end in ends if end["max"] is not None), default=None),
    }


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
