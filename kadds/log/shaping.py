"""Shaping: the batches of an append as blocks, one a shape, rows sorted by stream and ordinal.

This is where a thousand tables of one shape become one block; nothing here is per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.change import ChangeBatch, Control
from kadds.api.errors import UnknownInputError
from kadds.log.block import Block, concatenate, runs
from kadds.log.dictionary import Dictionary

ENTRY_BYTES_MAX = 8 << 20


@dataclass(frozen=True)
class Built:
    """Blocks, and what they use."""

    blocks: list[Block]
    streams: list[npt.NDArray[np.int64]]
    layouts: frozenset[int]


@dataclass(frozen=True)
class Piece:
    """Rows of successive ordinals."""

    changes: list[ChangeBatch]
    controls: list[Control]
    rows: int


def pieces(
    changes: Sequence[ChangeBatch],
    controls: Sequence[Control],
    start: int,
    stop: int,
    ends: npt.NDArray[np.int64] | None = None,
) -> Iterator[Piece]:
    """The ordinals from `start` up to `stop` in pieces of about half an entry's limit.

    A piece ends where a transaction ends, if one of `ends` (the ordinals behind each) lies inside it.
    """
    size = sum(batch.nbytes for batch in changes)
    step = max(1, int((stop - start) * (ENTRY_BYTES_MAX // 2) / max(size, 1)))
    spans = [(batch.ordinals[0].as_py(), batch.ordinals[-1].as_py()) for batch in changes if len(batch)]
    changes = [batch for batch in changes if len(batch)]
    low = start
    while low < stop:
        high = min(low + step, stop)
        if ends is not None and (at := int(np.searchsorted(ends, high, "right"))) and ends[at - 1] > low:
            high = int(ends[at - 1])
        part = [
            piece
            for batch, (first, last) in zip(changes, spans, strict=True)
            if first < high and last >= low and len(piece := _between(batch, low, high))
        ]
        yield Piece(part, [control for control in controls if low <= control.ordinal < high], high - low)
        low = high


def _between(batch: ChangeBatch, low: int, high: int) -> ChangeBatch:
    start, stop = np.searchsorted(batch.ordinals.to_numpy(), [low, high]).tolist()
    return batch if stop - start == len(batch) else batch.slice(start, stop)


def check_ordinals(changes: Sequence[ChangeBatch], controls: Sequence[Control], rows: int) -> None:
    """UnknownInputError unless the ordinals rise in each batch and are 0 to `rows` - 1, each once, over all."""
    held = sum(map(len, changes)) + len(controls)
    seen = np.zeros(rows, np.bool_)
    fine = held == rows
    for batch in changes:
        ordinals = batch.ordinals.to_numpy()
        fine = fine and (not len(ordinals) or bool(ordinals[-1] < rows and (ordinals[1:] > ordinals[:-1]).all()))
        if fine:
            seen[ordinals] = True
    for control in controls:
        fine = fine and 0 <= control.ordinal < rows
        if fine:
            seen[control.ordinal] = True
    if not (fine and seen.all()):
        raise UnknownInputError(
            f"the ordinals of an append of {rows} rows must rise in each batch and be 0 to {rows - 1}, each once"
        )


def build_blocks(source: str, changes: Sequence[ChangeBatch], dictionary: Dictionary, shift: int) -> Built:
    """One block a shape, rows sorted by stream and ordinal; `shift` is added to the ordinals."""
    by_shape: dict[Any, list[Block]] = {}
    streams: list[npt.NDArray[np.int64]] = []
    layouts: set[int] = set()
    for batch in changes:
        if not len(batch):
            continue
        block = _block(source, batch, dictionary, shift)
        by_shape.setdefault(batch.tables.shape, []).append(block)
        streams.append(block.streams)
        layouts.update(layout.number for layout in block.layouts_used)
    return Built([_joined(blocks) for blocks in by_shape.values()], streams, frozenset(layouts))


def _block(source: str, batch: ChangeBatch, dictionary: Dictionary, shift: int) -> Block:
    resolved = dictionary.resolve(source, batch.tables)
    places = batch.ordinals
    if shift:
        places = pa.array((places.to_numpy().astype(np.int64) + shift).astype(np.uint32))
    if batch.table_numbers is None:
        rows = np.array([len(batch)], np.uint32)
        return Block(
            resolved.layouts,
            resolved.ids,
            resolved.layout_numbers,
            rows,
            places,
            batch.ops,
            batch.values,
            batch.before,
            batch.not_given,
            batch.as_text,
        )
    numbers = batch.table_numbers.to_numpy()
    ids, row_layouts = resolved.ids[numbers], resolved.layout_numbers[numbers]
    order = np.argsort(ids, kind="stable")
    extent_streams, extent_layouts, counts = runs(ids, row_layouts)
    unsorted = Block(
        resolved.layouts,
        extent_streams,
        extent_layouts,
        counts,
        places,
        batch.ops,
        batch.values,
        batch.before,
        batch.not_given,
        batch.as_text,
    )
    return unsorted.take(order)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    blocks.sort(key=lambda block: (int(block.streams[0]), block.places[0].as_py()))
    joined = concatenate(blocks)
    ids = np.repeat(joined.streams, joined.counts)
    places = joined.places.to_numpy()
    falls = (ids[1:] < ids[:-1]) | ((ids[1:] == ids[:-1]) & (places[1:] < places[:-1]))
    return joined.take(np.lexsort((places, ids))) if falls.any() else joined.merged_extents()
