"""Shaping: the batches of an append as blocks, one a shape, rows sorted by stream and ordinal.

This is where a thousand tables of one shape become one block; nothing here is per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kadds.api.change import ChangeBatch
from kadds.log.block import Block, concatenate, runs
from kadds.log.dictionary import Dictionary


@dataclass(frozen=True)
class Built:
    """Blocks, and what they use."""

    blocks: list[Block]
    streams: list[npt.NDArray[np.int64]]
    layouts: frozenset[int]


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
