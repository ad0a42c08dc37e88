"""Why columns cannot be viewed without a copy, and what to do about it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ._bound import BoundFields, why_not_bound
from ._resolve import common_distance, in_pieces, same_strides
from ._spec import repeated

if TYPE_CHECKING:
    from ._buffer import Buffer
    from ._layout import Layout

_SHOWN = 30


def why_copied(
    layout: Layout | BoundFields, names: tuple[str, ...], capacity: int, piecewise: bool
) -> str:
    """Why a tensor's columns cannot be viewed without a copy, and the ways out."""
    if isinstance(layout, BoundFields):
        return (
            f"{why_not_bound(layout, names)}; let copy=None of an adapter gather them, or take "
            f"them from soa.pack()"
        )
    why = why_not(layout, names, capacity, piecewise)
    if piecewise and in_pieces(layout, names):
        return f"{why}; let copy=None of an adapter gather them"
    return f"{why}; {_way_out(layout, names)}"


def why_copied_in(layout: BoundFields, memory: Buffer, name: str, start: int, rows: int) -> str:
    """Why XLA copies a bound column in each call that is given it; empty where it does not.

    It takes memory as it is where that is contiguous, from a multiple of 64 bytes on, or of 16 on a
    GPU: https://github.com/openxla/xla/blob/main/xla/service/gpu/gpu_constants.h. Records that were
    bound whole go in whole.
    """
    field, home = layout[name], layout.home(name)
    if layout.records is not None:
        home = layout.first_record()
        memory, item = memory.piece(home.allocation), layout.records.nbytes
        if not rows:
            return ""
        if rows > 1 and home.strides[0] != item:
            return "is of records that do not follow each other"
        past = (memory.address + home.offset + start * home.strides[0]) % 64
        return f"is of records that start {past} bytes past a multiple of 64" if past else ""
    piece = memory.piece(home.allocation)
    shape = (rows, *field.shape) if field.per_row else field.shape
    if 0 in shape:
        return ""
    step, multiple = field.itemsize, 16 if piece.device.startswith(("cuda", "rocm")) else 64
    for length, stride in zip(reversed(shape), reversed(home.strides), strict=True):
        if length > 1 and stride != step:
            return "is strided"
        step *= length
    first = start * home.strides[0] if field.per_row else 0
    past = (piece.address + home.offset + first) % multiple
    return f"starts {past} bytes past a multiple of {multiple}" if past else ""


def why_not(
    layout: Layout | BoundFields, names: tuple[str, ...], capacity: int, piecewise: bool
) -> str:
    """Why no single strided view covers these columns."""
    if isinstance(layout, BoundFields):
        return why_not_bound(layout, names)
    if piecewise and in_pieces(layout, names):
        return "its columns are in memory apart, for each run of equal fields has its own"
    columns = [layout[name] for name in names]
    if (twice := repeated(names)) is not None:
        return f"column {twice!r} is repeated, so that its columns have no common distance"
    if not same_strides(layout, columns):
        what = "matrices of order 'F' and 'C'"
        if len({c.per_row for c in columns}) > 1:
            what = "columns and scalars"
        elif len({c.interleaved for c in columns}) > 1:
            what = "interleaved and component-wise columns"
        return f"{what} are mixed, so that one stride cannot lead through them"
    starts = [layout.offset(name, capacity) for name in names[: _SHOWN + 2]]
    steps = [
        f"{a!r} to {b!r} {there - here}"
        for (a, here), (b, there) in pairwise(zip(names, starts, strict=False))
    ]
    order = {f.name: i for i, f in enumerate(layout.fields)}
    positions = [order[name] for name in names]
    if positions == sorted(positions, reverse=True):
        kind = "its columns are in reversed order, and strides must be positive"
    else:
        kind = "its columns are at an uneven distance"
    more = ", ..." if len(steps) > _SHOWN else ""
    return f"{kind} ({', '.join(steps[:_SHOWN])}{more} bytes at {capacity} rows)"


def _way_out(layout: Layout, names: tuple[str, ...]) -> str:
    copy = "let copy=None of an adapter gather them"
    columns = [layout[name] for name in names]
    if len(set(names)) < len(names) or not same_strides(layout, columns):
        return f"make them tensors of their own, or {copy}"
    order = {f.name: i for i, f in enumerate(layout.fields)}
    in_memory = sorted(names, key=order.__getitem__)
    if common_distance(layout, [layout[name] for name in in_memory]) is not None:
        return (
            f"{copy}; or, if it does not matter which comes first, list them in memory order, "
            f"{_shortened(in_memory)}"
        )
    at = order[in_memory[0]]
    fields = [f.name for f in layout.fields]
    chosen = set(names)
    even = [*fields[:at], *names, *(name for name in fields[at:] if name not in chosen)]
    return (
        f"{copy}, or have the fields declared, and the memory written, in the order "
        f"{_shortened(even)}"
    )


def _shortened(names: list[str]) -> str:
    return repr(names) if len(names) <= _SHOWN else f"{names[:_SHOWN]!r:.1000} ..."
