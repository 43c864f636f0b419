"""The checkpoint: producers and control state as of the end of the segments, written into each new one.

It is as of that end and no later. Were it ahead, a journal that lost its last bytes would open with producers that
claim to have what is gone, and their sources would never send it again.
"""

from __future__ import annotations

from typing import Any

from kadds.log.dictionary import Dictionary
from kadds.log.entry import Entry
from kadds.log.producer import Producers
from kadds.log.segment import Segment
from kadds.log.state import ControlState


def apply_commit(commit: Entry, producers: Producers, state: ControlState, dictionary: Dictionary) -> None:
    """Let producers and control state know of a durable commit; commits come in order."""
    producers.published(commit.head, commit.resume)
    if commit.head.get("state"):
        for block in commit.blocks:
            state.apply(block, lambda number: dictionary.stream(number).name)


class Checkpoint:
    """What the sealer carries from one segment to the next."""

    def __init__(self, last: Segment | None, dictionary: Dictionary) -> None:
        self._dictionary = dictionary
        self._producers = Producers()
        self._state = ControlState()
        if last is not None:
            restore(last, self._producers, self._state)

    def take(self, commit: Entry) -> None:
        """A commit is being sealed; the same again, from an earlier one on, does no harm."""
        apply_commit(commit, self._producers, self._state, self._dictionary)

    def to_json(self) -> dict[str, Any]:
        """What the segment keeps."""
        return {"producers": self._producers.checkpoint(), "state": self._state.checkpoint()}


def restore(last: Segment, producers: Producers, state: ControlState) -> None:
    """Begin with the checkpoint of the last segment."""
    plain = last.checkpoint()
    producers.restore(plain["producers"])
    state.restore(plain["state"])
