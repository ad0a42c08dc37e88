"""Copies and pickles of an SoA or blocks: layout, rows, and bytes."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import numpy as np

from ._buffer import too_small
from ._dtypes import ITEMSIZE
from ._runs import runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._layout import Layout


def copy_rows(layout: Layout, capacity: int, rows: range, source: Any, target: Any) -> None:
    """Copy some rows of memory that has `capacity` to memory that has no others.

    Both are flat arrays of bytes, of NumPy or of one device's framework.

    Raises:
        ValueError: rows that are not there, or not next to each other; too little memory. Nothing
            has been copied.
    """
    if rows.step != 1 or not 0 <= rows.start <= rows.stop <= capacity:
        raise ValueError(f"rows must be a range with step 1 inside of {capacity} rows, got {rows}")
    for memory, count in ((source, capacity), (target, len(rows))):
        if len(memory) < layout.nbytes(count):
            raise too_small(len(memory), layout.nbytes(count))
    both = zip(runs(layout, capacity), runs(layout, len(rows)), strict=True)
    for run, own in both:
        size, (count, length, step) = ITEMSIZE[run.dtype], run.stretches()
        first, last = rows.start * step * size, rows.stop * step * size
        if not run.per_row:
            first, last = 0, length * size
        to = target[own.offset :][: count * own.stretches()[1] * size].reshape(count, -1)
        of = source[run.offset :][: count * length * size].reshape(count, -1)
        to[:, : last - first] = of[:, first:last]


def reduce_soa(
    kind: type, layout: Any, rows: Any, memory: NDArray[np.uint8], protocol: int
) -> tuple[Any, ...]:
    """What a pickle holds of an SoA or blocks: names that are public, and plain state.

    Protocol 5 hands the memory over, for the pickle to hold or to send out of band.
    """
    bytes_of = (
        {"memory": PickleBuffer(memory.data)} if protocol >= 5 else {"bytes": memory.tobytes()}
    )
    new = copyreg.__newobj__  # type: ignore[attr-defined]  # as `object.__reduce_ex__` gives it
    return new, (kind,), {"layout": layout, "rows": rows, **bytes_of}


def rebuild_soa(state: Mapping[str, Any]) -> Any:
    """What was pickled, over the memory that came with it, of whatever kind.

    Bytes of a protocol that has but them, and memory that came to lie misaligned, are copied.
    """
    layout, rows = state["layout"], state["rows"]
    memory = state.get("memory")
    if memory is not None:
        try:
            return layout.wrap(memory, rows)
        except BufferError:
            if not memoryview(memory).c_contiguous:
                raise
    soa = layout.allocate(rows)
    root, given = soa.buffer.root, np.frombuffer(state.get("bytes", memory), np.uint8)
    if given.size < root.size:
        raise too_small(given.size, root.size)
    root[...] = given[: root.size]
    return soa
