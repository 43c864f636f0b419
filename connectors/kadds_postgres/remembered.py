"""What the log remembers of a capture (`resume`), and the two producers that tell it more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from kadds.api.change import Control, ControlKind, Transactions
from kadds.api.connector import Appended, Inlet, Producer
from kadds_postgres.position import NOWHERE, lsn_text, sequence, sort_key
from kadds_postgres.resume import Captured, Phase, StreamState, TablesState

_NOTHING = StreamState(Phase.NOTHING, 0, "", "", "")


class Remembered:
    """`state` and `tables` are what the log has, or what the next append brings it; every append is a future."""

    state: StreamState
    tables: TablesState

    def __init__(self, inlet: Inlet) -> None:
        self.stream: Producer = inlet.producer("stream")
        self._notes: Producer = inlet.producer("tables")
        self.load()

    def load(self) -> None:
        """Where the log stands; FencedError where a newer session has taken over."""
        resume = self.stream.resume()
        self.state = _NOTHING if resume is None else StreamState.decode(resume.state)
        kept = self._notes.resume()
        tables = TablesState(0) if kept is None else TablesState.decode(kept.state)
        self.tables = tables.with_changes(self.state)

    def say(self, number: int, controls: Sequence[Control]) -> Future[Appended]:
        """Append the state before the stream of its generation begins; `number` rises within the generation."""
        transaction = self._nowhere(sequence(self.state.generation, number), controls)
        return self.stream.append(transaction, self.state.encode())

    def note_tables(
        self, tables: Mapping[int, Captured], gaps: Sequence[Control] = (), *, uncopied: bool = False
    ) -> Future[Appended]:
        """Append which tables are captured now; `uncopied`: from here on some of them were never copied."""
        number = self.tables.number + 1
        self.tables = TablesState(self.state.generation, number, tables, uncopied or self.tables.uncopied)
        noted = Control(ControlKind.PROGRESS, 0, None, {"tables": len(tables)})
        controls = [replace(control, ordinal=ordinal) for ordinal, control in enumerate([noted, *gaps])]
        return self._notes.append(self._nowhere(sequence(0, number), controls), self.tables.encode())

    def append_progress(self, lsn: int, facts: Mapping[str, Any], state: StreamState) -> Future[Appended]:
        """Append that everything up to `lsn` has been read, with the state that goes with it."""
        transaction = Transactions.one(
            sequence(state.generation, lsn),
            (),
            [Control(ControlKind.PROGRESS, 0, None, facts)],
            lineage=state.lineage,
            sort_key=sort_key(lsn),
            token=lsn_text(lsn),
        )
        return self.stream.append(transaction, state.at(lsn))

    def _nowhere(self, number: bytes, controls: Sequence[Control]) -> Transactions:
        """A transaction of controls that stands at no place of the server's log."""
        return Transactions.one(number, (), controls, lineage=self.state.lineage, sort_key=NOWHERE, token=lsn_text(0))
