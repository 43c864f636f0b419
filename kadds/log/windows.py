"""Windows: the rows of a segment, which stand by stream, cut into ranges of offsets that are read one after the other.

Each row is looked at a constant number of times, however many windows there are, and nothing is sorted that stands in
order already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from kadds.log.slice import LoggedBlock

Offsets = npt.NDArray[np.int64]

_BINS_PER_WINDOW = 16  # how finely it is known where the rows of a window end


def window_ends(blocks: Iterable[LoggedBlock], starts: Offsets, first: int, end: int, rows_max: int) -> list[int]:
    """Where each window ends: behind about `rows_max` of the blocks' rows, at the end of a transaction.

    The rows stand in [`first`, `end`), where the last window ends. `starts` are the first offsets of the transactions;
    one that alone is larger than the limit is cut.
    """
    width = max(1, rows_max // _BINS_PER_WINDOW)
    rows = np.zeros(-(-(end - first) // width), np.int64)
    for logged in blocks:
        rows += np.bincount((logged.offsets - first) // width, minlength=len(rows))
    behind = np.cumsum(rows)  # how many rows stand before the end of each bin
    ends: list[int] = []
    at = first
    while at < end:
        here = (at - first) // width
        before = int(behind[here - 1]) if here else 0
        full = int(np.searchsorted(behind, before + rows_max, "right"))
        stop = end if full >= len(behind) else max(at + 1, first + max(full, here + 1) * width)
        if stop < end:
            start = int(np.searchsorted(starts, stop, "right")) - 1
            boundary = int(starts[start]) if start >= 0 else first
            stop = boundary if boundary > at else stop
        ends.append(min(stop, end))
        at = ends[-1]
    return ends


def split(logged: LoggedBlock, ends: Offsets) -> Iterator[tuple[int, LoggedBlock]]:
    """The rows of a block by the number of the window in which they stand; within one, by stream and offset."""
    numbers = np.searchsorted(ends, logged.offsets, "right")
    if numbers[0] == numbers[-1] and (numbers == numbers[0]).all():
        yield int(numbers[0]), logged
        return
    if (numbers[1:] < numbers[:-1]).any():
        kind = np.uint16 if len(ends) < 1 << 16 else np.int64  # 16 bits are sorted without comparing
        order = np.argsort(numbers.astype(kind), kind="stable")
        logged = LoggedBlock(logged.block.take(order), logged.offsets[order])
        numbers = numbers[order]
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for start, stop in pairwise(cuts):
        piece = logged.block.rows_between(start, stop)
        yield int(numbers[start]), LoggedBlock(piece, logged.offsets[start:stop])
