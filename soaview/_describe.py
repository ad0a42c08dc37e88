"""Memory for people: where the fields lie, as a table; of a layout, as a bar of text, too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ._bound import BoundFields
from ._fields import Column, Scalar, listed, shown

if TYPE_CHECKING:
    from ._bound import Home
    from ._buffer import Buffer
    from ._layout import Layout
    from ._soa import SoA

_CELLS = 60
"""Characters of the bar."""

_DRAWN = 16
"""Fields in it, at most."""


Part = TypeVar("Part")


class Extent(NamedTuple):
    """A field's part of the memory, in bytes; `padding` is how many of `nbytes` hold no value."""

    field: Column | Scalar
    shape: str
    offset: int
    pitch: int
    nbytes: int
    padding: int


def extents(layout: Layout, rows: int) -> list[Extent]:
    """Where each field lies; together they are the whole buffer."""
    found = []
    for f in layout.fields:
        pitch = layout.pitch(f.name, rows)
        used = f.components * f.itemsize * (rows if f.per_row else 1)
        total = pitch * f.subcolumns
        shape = str((rows, *f.shape)) if f.per_row else f"scalar {f.shape or ''}".rstrip()
        if f.per_row and len(f.shape) == 2:
            shape += f" {f.order}"
        if f.per_row and f.interleaved:
            shape += " interleaved"
        found.append(Extent(f, shape, layout.offset(f.name, rows), pitch, total, total - used))
    return found


def memory_map(layout: Layout, rows: int) -> str:
    """`Layout.describe`."""
    table = [["field", "dtype", "shape", "offset", "pitch", "bytes", "padding"]]
    found = extents(layout, rows)
    for e in found:
        numbers = e.offset, e.pitch, e.nbytes, e.padding
        table.append([shown(e.field.name), e.field.dtype, e.shape, *map(str, numbers)])
    columns = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{rows} rows, {layout.nbytes(rows)} bytes, alignment {layout.alignment}"]
    for row in table:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, columns, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join([*lines, _bar(found)])


def widths(sizes: Sequence[int], width: float, least: float) -> list[float]:
    """Pieces of a length, to scale, but none less than `least` where there is room for that.

    >>> widths([1, 100, 300], 42, 2)
    [2, 10.0, 30.0]
    """
    left, total = width, sum(sizes)
    if not total:
        return [width / len(sizes)] * len(sizes)
    least = min(least, width / len(sizes))
    found = [least] * len(sizes)
    # The smallest first: what they take beyond their share is not there for the others.
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        share = sizes[i] / total * left if total else 0
        found[i] = max(least, share)
        left, total = left - found[i], total - sizes[i]
    return found


def cut(found: list[Part], most: int) -> tuple[list[Part], list[Part]]:
    """Those that are drawn, and the others, which are drawn as one piece."""
    return (found, []) if len(found) <= most else (found[:most], found[most:])


def _bar(found: list[Extent]) -> str:
    """The memory in one line of text."""
    drawn, others = cut(found, _DRAWN)
    sizes = [e.nbytes for e in drawn]
    if others:
        sizes.append(sum(e.nbytes for e in others))
    room = _CELLS - len(sizes) - 1
    ends = [round(end) for end in accumulate(widths(sizes, room, 2))]
    cells = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    pieces = [_piece(e, n) for e, n in zip(drawn, cells, strict=False)]
    legend = {"▓": "scalar", "░": "padding"}
    if others:
        pieces.append("·" * cells[-1])
        legend["·"] = f"{len(others)} more fields"
    bar = f"│{'│'.join(pieces)}│"
    said = ", ".join(f"{mark} {what}" for mark, what in legend.items() if mark in bar)
    return f"{bar} {said}".rstrip()


def _piece(e: Extent, cells: int) -> str:
    """A field in so many characters: each sub-column with its padding, where there is room."""
    if not e.nbytes:
        return " " * cells
    number = e.field.subcolumns if cells >= 2 * e.field.subcolumns else 1
    ends = [cells * (i + 1) // number for i in range(number)]
    piece = ""
    for begin, end in zip([0, *ends], ends, strict=False):
        n = end - begin
        empty = min(max(round(e.padding / e.nbytes * n), 1), n - 1) if e.padding else 0
        piece += ("█" if e.field.per_row else "▓") * (n - empty) + "░" * empty
    return piece


# Of bound memory


class Lying(NamedTuple):
    """A field of bound memory, in bytes.

    Attributes:
        field, home: which, and where.
        first, end: from which byte of its allocation to which it reaches.
        nbytes: of its values.
        reach: from the first byte of a row's to the last one's end.
    """

    field: Column | Scalar
    home: Home
    first: int
    end: int
    nbytes: int
    reach: int

    @property
    def strided(self) -> bool:
        """Whether other bytes lie between its own."""
        return self.end - self.first > self.nbytes


def by_allocation(layout: BoundFields, rows: int) -> dict[int, list[Lying]]:
    """What lies in each allocation, in memory order."""
    numbers = sorted({home.allocation for home in layout.homes})
    found: dict[int, list[Lying]] = {number: [] for number in numbers}
    for f, home in zip(layout.fields, layout.homes, strict=True):
        count = rows if f.per_row else 1
        inner = home.strides[f.per_row :]
        reach = sum([(n - 1) * s for n, s in zip(f.shape, inner, strict=True)]) + f.itemsize
        end = home.offset
        if count:
            end += reach + ((count - 1) * home.strides[0] if f.per_row else 0)
        nbytes = count * f.components * f.itemsize
        found[home.allocation].append(Lying(f, home, home.offset, end, nbytes, reach))
    for there in found.values():
        there.sort(key=lambda one: (one.first, one.end))
    return found


def soa_map(soa: SoA) -> str:
    """`SoA.describe`, below what `repr` says."""
    layout: Any = soa.layout
    lines = [layout.describe(soa.capacity)]
    if isinstance(layout, BoundFields):
        numbers = sorted({home.allocation for home in layout.homes})
        lines += [f"allocation {n}: {about(soa.buffer.piece(n))}" for n in numbers]
        lines += [f"neighbours, one tensor: {listed(group)}" for group in fused(layout)]
    return "\n".join(lines)


def about(piece: Buffer) -> str:
    """An allocation in words."""
    past = f", {piece.address % 64} bytes past a multiple of 64" if piece.address % 64 else ""
    return f"{piece.nbytes} bytes{past}{', read-only' if piece.readonly else ''}"


def fused(layout: BoundFields) -> list[list[str]]:
    """Neighbouring fields that make one strided tensor, in memory order: each as long as it can be.

    >>> import numpy as np
    >>> from soaview import bind
    >>> block = np.zeros((3, 4), "f4")
    >>> fused(bind({"x": block[0], "n": np.zeros(4, "i4"), "z": block[2], "y": block[1]}).layout)
    [['x', 'y', 'z']]
    """
    alike: dict[Any, dict[int, str]] = {}
    for f, home in zip(layout.fields, layout.homes, strict=True):
        if home.aligned:
            key = f.per_row, f.dtype, f.shape, home.allocation, home.strides
            alike.setdefault(key, {}).setdefault(home.offset, shown(f.name))
    found = []
    for fields in alike.values():
        groups: list[list[str]] = []
        known = 0  # the distance in the last group
        for here, there in pairwise(sorted(fields)):
            if there - here != known:
                groups.append([fields[here]])
                known = there - here
            groups[-1].append(fields[there])
        found += groups
    return found
