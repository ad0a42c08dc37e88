"""The memory as a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

from ._blocks import Blocks
from ._describe import Extent, cut, extents
from ._fields import shown
from ._nested import leaves
from ._resolve import numbers_of, resolved
from ._spec import Spec, columns_of
from ._svg import Box, Drawing, Place, cut_text
from ._views import check_spec
from ._why import why_copied, why_not

if TYPE_CHECKING:
    from ._bound import BoundFields
    from ._layout import Layout
    from ._resolve import Pattern

MOST = 40
"""Fields that are drawn one by one, and tensors."""


class Rows(NamedTuple):
    """Which rows tensors have, and whether each run lies apart."""

    capacity: int
    start: int
    rows: int
    piecewise: bool = False

    def __str__(self) -> str:
        if self.rows == self.capacity:
            return f"{self.rows} rows"
        part = f"{self.start}:{self.start + self.rows} of {self.capacity}, which are drawn"
        return f"{self.rows} rows ({part})"


def svg_of(layout: Layout, rows: int, spec: Spec | None) -> str:
    """`Layout.to_svg`."""
    return svg_of_rows(layout, Rows(rows, 0, rows), spec)


def svg_of_rows(layout: Layout, rows: Rows, spec: Spec | None) -> str:
    """The whole memory, and tensors of some rows."""
    drawing = Drawing(f"{layout!r} {rows} {spec!r}")
    said = f"{rows}, {layout.nbytes(rows.capacity)} bytes, alignment {layout.alignment}"
    drawing.text(cut_text(said, 100))
    _draw_layout(drawing, layout, rows, spec, MOST)
    return drawing.svg(said)


def svg_of_blocks(blocks: Blocks, rows: Mapping[str, Any], specs: Mapping[str, Any] | None) -> str:
    """`Blocks.to_svg`: the whole buffer, then each of the layouts in it."""
    by_path = dict(_specs_of(blocks, {} if specs is None else specs))
    drawing = Drawing(f"{blocks!r} {rows!r} {by_path!r}")
    said = f"{blocks.count} blocks, {blocks.nbytes(rows)} bytes, alignment {blocks.alignment}"
    drawing.text(cut_text(said, 100))
    found = [*leaves(blocks, rows)]
    boxes = []
    drawn = drawn_of([leaf.layout for leaf in found])
    for leaf, _ in zip(found, drawn, strict=False):
        title = f"{cut_text(leaf.name, 32)}: {leaf.rows} rows\n{_bytes(leaf.first, leaf.nbytes)}"
        boxes.append(Box(leaf.name, title, "c" if leaf.nbytes else "e", leaf.nbytes))
    if others := found[len(drawn) :]:
        boxes.append(others_of("blocks", [(leaf.first, leaf.nbytes) for leaf in others]))
    drawing.bar(boxes)
    for leaf, most in zip(found, drawn, strict=False):
        drawing.gap()
        at = f": from byte {leaf.first} on, {leaf.rows} rows, {leaf.nbytes} bytes"
        drawing.text(cut_text(leaf.name, 32), cut_text(at, 75))
        own = Rows(leaf.rows, 0, leaf.rows)
        _draw_layout(drawing, leaf.layout, own, by_path.get(leaf.path), most)
    if others:
        drawing.text("", f"... {len(others)} more blocks")
    return drawing.svg(said)


def _specs_of(
    blocks: Blocks, specs: Any, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Spec]]:
    """The specs that are given, each with the names that lead to its layout."""
    if isinstance(specs, Spec) or not isinstance(specs, Mapping):
        raise TypeError(
            f"spec must be a mapping from block to Spec, such as "
            f"{{{next(iter(blocks))!r:.80}: Spec(...)}}, got {type(specs).__name__}"
        )
    for name, spec in specs.items():
        if isinstance(block := blocks[name], Blocks):
            yield from _specs_of(block, spec, (*path, name))
        else:
            yield (*path, name), spec


def drawn_of(layouts: Sequence[Sized]) -> list[int]:
    """Of each block that is drawn, how many fields may be: `MOST` in all, a block counts as two.

    >>> from soaview import Column, Layout
    >>> drawn = drawn_of([Layout([Column("x", "int8")])] * 17)
    >>> len(drawn), drawn[-1]
    (14, 1)
    """
    found, left = [], MOST
    for layout in layouts:
        if left < 1:
            break
        found.append(left)
        left -= len(layout) + 2
    return found


def _draw_layout(
    drawing: Drawing, layout: Layout, rows: Rows, spec: Spec | None, most: int
) -> None:
    """A bar of at most so many fields, and a line for each tensor."""
    drawn, others = cut(extents(layout, rows.capacity), most)
    boxes = [_box(e) for e in drawn]
    if others:
        boxes.append(others_of("fields", [(e.offset, e.nbytes) for e in others]))
    places = drawing.bar(boxes)
    at = {e.field.name: place for e, place in zip(drawn, places, strict=False)}
    found = tensors_of(layout, spec, rows.piecewise)
    for pattern, columns in found[:MOST]:
        draw_tensor(drawing, layout, pattern, rows, [at.get(c, places[-1]) for c in columns])
    if len(found) > MOST:
        drawing.text("", f"... {len(found) - MOST} more tensors")


def tensors_of(
    layout: Layout | BoundFields, spec: Spec | None, piecewise: bool
) -> list[tuple[Pattern, tuple[str, ...]]]:
    """A spec's tensors, and the columns of each."""
    if spec is None:
        return []
    check_spec(spec)
    return [(resolved(layout, n, entry, piecewise), columns_of(entry)) for n, entry in spec.items()]


def draw_tensor(
    drawing: Drawing,
    layout: Layout | BoundFields,
    pattern: Pattern,
    rows: Rows,
    places: Sequence[Place],
) -> None:
    """A line for a tensor, and its tooltip, below its columns: the engine knows, and says why."""
    joined, columns = [*dict.fromkeys(places)], pattern.columns
    if columns:
        why = why_not(layout, columns, rows.capacity, rows.piecewise)
        said = f"gather of {len(columns)} column{'s' * (len(columns) > 1)}: {why}"
        out = why_copied(layout, columns, rows.capacity, rows.piecewise)
        drawing.tensor(pattern.name, said, cut_text(out, 600), "w", joined)
        return
    _, dtype, _, shape, strides, offset = numbers_of(layout, pattern, *rows[:3])
    said = f"{dtype}, shape {shape}, strides {strides}"
    title = f"{said}, offset {offset}; all but dtype and shape in elements"
    drawing.tensor(pattern.name, f"strided view: {said}", title, "v", joined)


def _box(e: Extent) -> Box:
    """A field's."""
    f = e.field
    title = (
        f"{cut_text(shown(f.name), 32)}: {f.dtype} {cut_text(e.shape, 32)}\n"
        f"{_bytes(e.offset, e.nbytes)}, pitch {e.pitch}, {e.padding} padding"
    )
    outer = 1 if f.interleaved or len(f.shape) < 2 else f.shape[f.order == "F"]
    kind = "e" if not e.nbytes else "c" if f.per_row else "s"
    return Box(shown(f.name), title, kind, e.nbytes, e.padding, (f.subcolumns, outer))


def others_of(what: str, places: list[tuple[int, int]]) -> Box:
    """All that is not drawn one by one."""
    said, nbytes = f"{len(places)} more {what}", sum(n for _, n in places)
    return Box(f"{len(places)} more", f"{said}\n{_bytes(places[0][0], nbytes)}", "m", nbytes)


def _bytes(offset: int, nbytes: int) -> str:
    return f"offset {offset}, {nbytes} bytes"
