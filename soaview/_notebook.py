"""What a notebook shows: a table of the fields, with first values, above the drawing."""

from __future__ import annotations

from functools import reduce
from html import escape
from itertools import islice
from operator import getitem
from typing import TYPE_CHECKING, Any, NamedTuple

from ._blocks import Blocks, SoABlocks
from ._bound import BoundFields
from ._describe import cut, extents
from ._draw import MOST, drawn_of, svg_of, svg_of_blocks
from ._draw_soa import svg_of_soa
from ._fields import Column, Scalar, shown
from ._nested import leaves, plain
from ._spec import Value
from ._svg import cut_text

if TYPE_CHECKING:
    from ._layout import Layout
    from ._soa import SoA

EXAMPLE = 100
"""Rows for which a layout is drawn that has no count of its own."""

_STYLE = """<style>
div.soaview{overflow-x:auto}
.soaview table{border-collapse:collapse;margin:.4em 0}
.soaview th,.soaview td{padding:.1em .8em .1em 0;text-align:left;white-space:nowrap}
.soaview tr>:nth-child(4),.soaview tr>:nth-child(5){text-align:right;\
font-variant-numeric:tabular-nums}
</style>"""


class _Part(NamedTuple):
    """What a table shows of one layout: of a block, under its name; values of an SoA."""

    block: str
    layout: Layout | BoundFields
    rows: int
    soa: SoA | None
    most: int


def html_of_layout(layout: Layout) -> str:
    """`Layout._repr_html_`: it has no row count of its own."""
    said = f"Layout: {len(layout)} fields, alignment {layout.alignment}; drawn for {EXAMPLE} rows"
    part = _Part("", layout, EXAMPLE, None, MOST)
    return _html(said, [part], 0, svg_of(layout, EXAMPLE, None))


def html_of_soa(soa: SoA) -> str:
    """`SoA._repr_html_`."""
    said = f"SoA: {soa.rows} rows"
    if soa.rows != soa.capacity:
        said += f" ({soa.start}:{soa.start + soa.rows} of {soa.capacity}, which are drawn)"
    said += f", {soa.buffer.summary}{_where(soa)}"
    part = _Part("", soa.layout, soa.capacity, soa, MOST)
    return _html(said, [part], 0, svg_of_soa(soa, None))


def html_of_blocks(blocks: Blocks | SoABlocks) -> str:
    """`_repr_html_` of `Blocks` and `SoABlocks`."""
    if isinstance(blocks, SoABlocks):
        layouts, rows, soas = blocks.layout, plain(blocks.rows), blocks
        said = f"SoABlocks: {layouts.count} blocks, {layouts.nbytes(rows)} bytes{_where(blocks)}"
    else:
        layouts, rows, soas = blocks, _same(blocks), None
        said = (
            f"Blocks: {blocks.count} blocks, alignment {blocks.alignment}; drawn for {EXAMPLE} "
            f"rows of each"
        )
    found = [*leaves(layouts, rows)]
    parts = [
        _Part(leaf.name, leaf.layout, leaf.rows, _at(soas, leaf.path), most)
        for leaf, most in zip(found, drawn_of([leaf.layout for leaf in found]), strict=False)
    ]
    return _html(said, parts, len(found) - len(parts), svg_of_blocks(layouts, rows, None))


def _same(blocks: Blocks) -> dict[str, Any]:
    """The rows for which blocks are drawn that have no counts of their own."""
    return {n: _same(b) if isinstance(b, Blocks) else EXAMPLE for n, b in blocks.items()}


def _at(soas: SoABlocks | None, path: tuple[str, ...]) -> Any:
    """The SoA to which names lead."""
    return None if soas is None else reduce(getitem, path, soas)


def _where(soa: SoA | SoABlocks) -> str:
    """Where the memory is, for a caption."""
    readonly = ", read-only" if soa.readonly else ""
    pieces = "; drawn as one buffer, and lies in pieces" if _piecewise(soa) else ""
    return f" on {soa.device}{readonly}{pieces}"


def _piecewise(soa: SoA | SoABlocks) -> bool:
    if isinstance(soa, SoABlocks):
        return soa.piecewise
    return soa.buffer.piecewise and not isinstance(soa.layout, BoundFields)


def _html(said: str, parts: list[_Part], more: int, svg: str) -> str:
    """The caption, the table of fields, how many blocks are left out, and the drawing."""
    names = ["field", "dtype", "shape", *_PLACED[isinstance(parts[0].layout, BoundFields)]]
    if valued := any(part.soa is not None and part.soa.buffer.on_host for part in parts):
        names.append("first values")
    table = [_row("th", names)]
    for block, layout, rows, soa, most in parts:
        if block:
            table.append(_across(f"{cut_text(block, 32)}: {rows} rows"))
        drawn, others = cut(_placed(layout, rows), most)
        for field, shape, *numbers in drawn:
            cells = [cut_text(shown(field.name), 32), field.dtype, cut_text(shape, 32), *numbers]
            table.append(_row("td", [*cells, *([_values(soa, field)] if valued else [])]))
        if others:
            table.append(_across(f"... {len(others)} more fields"))
    if more:
        table.append(_across(f"... {more} more blocks"))
    return (
        f'<div class="soaview">{_STYLE}<div>{escape(said, quote=False)}</div>'
        f"<table>{''.join(table)}</table>{svg}</div>"
    )


_PLACED = ("offset", "pitch"), ("allocation", "offset", "strides")
"""What a table says of where fields lie: of a layout's, and of bound ones."""


def _placed(layout: Layout | BoundFields, rows: int) -> list[tuple[Any, ...]]:
    """Of each field its shape, and that."""
    if not isinstance(layout, BoundFields):
        return [(e.field, e.shape, str(e.offset), str(e.pitch)) for e in extents(layout, rows)]
    found = []
    for f, home in zip(layout.fields, layout.homes, strict=True):
        shape = str((rows, *f.shape)) if f.per_row else f"scalar {f.shape or ''}".rstrip()
        found.append((f, shape, str(home.allocation), str(home.offset), str(home.strides)))
    return found


def _row(tag: str, cells: list[str]) -> str:
    inner = "".join(f"<{tag}>{escape(cell, quote=False)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _across(said: str) -> str:
    return f'<tr><th colspan="7">{escape(said, quote=False)}</th></tr>'


def _values(soa: SoA | None, field: Column | Scalar) -> str:
    """The first three, of memory that the host reads."""
    if soa is None or not soa.buffer.on_host:
        return ""
    try:
        array = soa[field.name if field.per_row else Value(field.name)]
    except TypeError:  # a dtype that NumPy has not
        return ""
    found = [_value(value) for value in islice(array[:3].flat if array.ndim else array.flat, 3)]
    return ", ".join(found) + (", ..." if array.size > 3 else "")


def _value(value: Any) -> str:
    kind = value.dtype.kind
    if kind in "biu":
        return str(value)
    return f"{complex(value):.4g}" if kind == "c" else f"{float(value):.4g}"
