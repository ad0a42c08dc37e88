"""An SoA as a drawing: bound columns in their allocations, wherever these are."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ._bound import BoundFields
from ._describe import Lying, about, by_allocation, cut
from ._draw import MOST, Rows, draw_tensor, drawn_of, svg_of_rows, tensors_of
from ._fields import shown
from ._svg import Box, Drawing, cut_text
from ._why import why_copied_in

if TYPE_CHECKING:
    from ._buffer import Buffer
    from ._soa import SoA
    from ._spec import Spec


def svg_of_soa(soa: SoA, spec: Spec | None) -> str:
    """`SoA.to_svg`."""
    layout: Any = soa.layout
    rows = Rows(soa.capacity, soa.start, soa.rows, soa.buffer.piecewise)
    if not isinstance(layout, BoundFields):
        return svg_of_rows(layout, rows, spec)
    drawing = Drawing(f"{layout!r} {layout.homes} {rows} {spec!r}", "not bound")
    said = f"{rows}, {soa.buffer.summary} on {soa.device}"
    drawing.text(cut_text(said, 100))
    _draw_bound(drawing, soa, layout, rows, spec)
    drawing.gap()
    for note in notes(soa, layout):
        drawing.text("", cut_text(note, 100))
    return drawing.svg(said)


def notes(soa: SoA, layout: BoundFields) -> list[str]:
    """What is to be known of the memory: where it is read-only, and what XLA copies of it."""
    numbers = range(len({home.allocation for home in layout.homes}))
    locked = [str(n) for n in numbers if soa.buffer.piece(n).readonly]
    found = [f"read-only: allocation{'s' * (len(locked) > 1)} {', '.join(locked)}"] * bool(locked)
    if not soa.buffer.piece(0).on_host:
        return found
    at = soa.start, soa.rows
    copied = [f for f in layout.fields if why_copied_in(layout, soa.buffer, f.name, *at)]
    if not copied:
        return [*found, "XLA copies nothing on the way into jit"]
    nbytes = sum(f.itemsize * f.components * (soa.rows if f.per_row else 1) for f in copied)
    if layout.records is not None:  # which go in whole
        nbytes = soa.rows * layout.records.nbytes
    names = ", ".join(shown(f.name) for f in copied[:MOST])
    count = f"{len(copied)} of {len(layout)} columns"
    return [*found, f"XLA copies on the way into jit: {count}, {nbytes} bytes: {names}"]


def _draw_bound(
    drawing: Drawing, soa: SoA, layout: BoundFields, rows: Rows, spec: Spec | None
) -> None:
    """The allocations side by side; below, each that is more than one column; the tensors."""
    found = tensors_of(layout, spec, rows.piecewise)
    inside = by_allocation(layout, soa.capacity)
    pieces = {number: soa.buffer.piece(number) for number in inside}
    several = [n for n, there in inside.items() if not _is_whole(there, pieces[n])]
    most = dict(zip(several, drawn_of([inside[n] for n in several]), strict=False))
    strips: dict[int | None, list[tuple[Any, tuple[str, ...]]]] = {number: [] for number in most}
    if len(inside) > 1 or not several:
        strips = {None: [], **strips}
    for pattern, columns in found[:MOST]:
        allocations = {layout.home(name).allocation for name in columns}
        only = allocations.pop() if len(allocations) == 1 else None
        strips[only if only in most else None].append((pattern, columns))
    for number, tensors in strips.items():
        if number is None:
            boxes, names = _side_by_side(soa, inside, pieces)
            places = drawing.bar(boxes, apart=True)
        else:
            drawing.gap()
            said = f": {about(pieces[number])}{_repeated(inside[number])}"
            drawing.text(f"allocation {number}", said)
            boxes, names = _strip(soa, inside[number], pieces[number].nbytes, most[number])
            places = drawing.bar(boxes)
        at = {name: places[i] for name, i in names.items()}
        for pattern, columns in tensors:
            draw_tensor(drawing, layout, pattern, rows, [at.get(c, places[-1]) for c in columns])
    if len(several) > len(most):
        drawing.text("", f"... {len(several) - len(most)} more allocations of several columns")
    if len(found) > MOST:
        drawing.text("", f"... {len(found) - MOST} more tensors")


def _is_whole(there: list[Lying], piece: Buffer) -> bool:
    """Whether an allocation is one column, and no more."""
    return len(there) == 1 and there[0].nbytes == piece.nbytes


Boxes = tuple[list[Box], dict[str, int]]
"""Boxes, and in which of them each field is."""


def _side_by_side(soa: SoA, inside: dict[int, list[Lying]], pieces: dict[int, Buffer]) -> Boxes:
    """A box for each allocation."""
    boxes: list[Box] = []
    names: dict[str, int] = {}
    for number, there in [*inside.items()][:MOST]:
        first, piece = there[0], pieces[number]
        title = f"allocation {number}: {about(piece)}"
        under = (str(number), f"{piece.nbytes} bytes", *["read-only"] * piece.readonly)
        label = shown(first.field.name) if len(there) == 1 else f"{len(there)} columns"
        if _is_whole(there, piece):
            title = f"{_title(soa, first)}\n{title}"
            box = Box(label, title, _kind(first), piece.nbytes, 0, _parts(first), False, under)
        else:
            box = Box(label, title, "c" if piece.nbytes else "e", piece.nbytes, under=under)
        names |= {one.field.name: len(boxes) for one in there}
        boxes.append(box)
    if others := [pieces[number].nbytes for number in [*inside][MOST:]]:
        label = f"{len(others)} more"
        boxes.append(Box(label, f"{label} allocations: {sum(others)} bytes", "m", sum(others)))
    return boxes, names


def _strip(soa: SoA, there: list[Lying], nbytes: int, most: int) -> Boxes:
    """An allocation: its columns where they lie, those of rows of records as one row has them."""
    boxes: list[Box] = []
    names: dict[str, int] = {}
    groups = _groups(there)
    if (first := groups[0][0].first) > 0:
        boxes.append(Box("not bound", f"not bound\n{first} bytes", "m", first))
    ends = [*(group[0].first for group in groups[1:]), nbytes]
    for group, end in zip(groups, ends, strict=True):
        for one, size, used in _shares(group, soa.capacity, end):
            names[one.field.name] = len(boxes)
            label, parts = shown(one.field.name), _parts(one) if size == used else (1,)
            box = Box(label, _title(soa, one), _kind(one), size, size - used, parts, one.strided)
            boxes.append(box)
    if len(names) <= most:
        return boxes, names
    drawn, others = cut(boxes, most)
    size = sum(box.nbytes for box in others)
    drawn.append(Box(f"{len(others)} more", f"{len(others)} more columns", "m", size))
    return drawn, {name: i for name, i in names.items() if i < most}


def _repeated(there: list[Lying]) -> str:
    """What is said of rows of records, one of which is drawn."""
    steps = {one.home.strides[0] if one.field.per_row else 0 for one in there}
    within = all(one.reach <= min(steps) for one in there)
    of = f", rows of {min(steps)} bytes, of which one is drawn"
    return of if len(steps) == 1 and within and any(one.strided for one in there) else ""


def _groups(there: list[Lying]) -> list[list[Lying]]:
    """Columns that reach over each other's bytes, as those of records do, together."""
    groups: list[list[Lying]] = []
    end = 0
    for one in there:
        if not groups or one.first >= end:
            groups.append([])
        groups[-1].append(one)
        end = max(end, one.end)
    return groups


def _shares(group: list[Lying], rows: int, end: int) -> list[tuple[Lying, int, int]]:
    """Of each column the bytes that its box stands for, and how many of them hold its values.

    A box reaches to the next one; those of records are as in one row, which all of them repeat.
    """
    first = group[0].first
    room, whole = end - first, end - first
    if not (len(group) == 1 and not group[0].strided):
        step = group[0].home.strides[0] if group[0].field.per_row else 0
        alike = all(one.field.per_row and one.home.strides[0] == step for one in group)
        if alike and all(one.first - first + one.reach <= step for one in group):
            whole = min(rows * step, room)
            starts = [whole * (one.first - first) // step for one in group]
            used = [whole * one.reach // step for one in group]
        else:  # through each other in some other way
            total, starts = sum(one.nbytes for one in group), [0]
            for one in group:
                starts.append(starts[-1] + room * one.nbytes // total)
            used = [b - a for a, b in pairwise(starts)]
            starts.pop()
    else:
        starts, used = [0], [group[0].nbytes]
    sizes = [b - a for a, b in pairwise([*starts, room])]
    both = zip(group, sizes, used, strict=True)
    return [(one, size, min(size, values)) for one, size, values in both]


def _title(soa: SoA, one: Lying) -> str:
    """A column's tooltip."""
    layout: Any = soa.layout
    f = one.field
    shape = (soa.capacity, *f.shape) if f.per_row else f.shape
    why = why_copied_in(layout, soa.buffer, f.name, soa.start, soa.rows)
    return (
        f"{cut_text(shown(f.name), 32)}: {f.dtype} {cut_text(str(shape), 32)}\n"
        f"offset {one.first}, {one.nbytes} bytes, strides {one.home.strides}"
        f"{'' if one.home.aligned else ', not aligned'}"
        f"{f'; XLA copies it: it {why}' if why else ''}"
    )


def _kind(one: Lying) -> str:
    return "e" if not one.nbytes else "c" if one.field.per_row else "s"


def _parts(one: Lying) -> tuple[int, ...]:
    """Into how many components a column may be cut, where these follow each other."""
    by_rows = one.home.strides[:1] != (one.field.itemsize,) or not one.field.per_row
    return (1,) if by_rows else (one.field.components, 1)
