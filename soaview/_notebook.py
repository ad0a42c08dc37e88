"""What a notebook shows: a table of the fields, with first values, above the drawing."""

from __future__ import annotations

from functools import reduce
from html import escape
from itertools import islice
from operator import getitem
from typing import TYPE_CHECKING, Any, NamedTuple

from ._blocks import Blocks, SoABlocks
from ._bound import Allocations
from ._describe import cut, extents
from ._draw import MOST, cut_text, drawn_of, svg_of, svg_of_blocks
from ._fields import Column, Scalar, shown
from ._nested import leaves, plain
from ._spec import Value

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
    layout: Layout
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
    if isinstance(soa.buffer, Allocations):  # of which no layout says where it lies
        lines = soa.describe().splitlines()
        more = [f"... {len(lines) - MOST} more fields"] if len(lines) > MOST + 2 else []
        text = "\n".join([*lines[: MOST + 2], *more])
        return f"<pre>{escape(text, quote=False)}</pre>"
    said = f"SoA: {soa.rows} rows"
    if soa.rows != soa.capacity:
        said += f" ({soa.start}:{soa.start + soa.rows} of {soa.capacity}, which are drawn)"
    said += f", {soa.buffer.nbytes} bytes{_where(soa)}"
    part = _Part("", soa.layout, soa.capacity, soa, MOST)
    return _html(said, [part], 0, svg_of(soa.layout, soa.capacity, None))


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
    return soa.piecewise if isinstance(soa, SoABlocks) else soa.buffer.piecewise


def _html(said: str, parts: list[_Part], more: int, svg: str) -> str:
    """The caption, the table of fields, how many blocks are left out, and the drawing."""
    names = ["field", "dtype", "shape", "offset", "pitch"]
    if valued := any(part.soa is not None and part.soa.buffer.on_host for part in parts):
        names.append("first values")
    table = [_row("th", names)]
    for block, layout, rows, soa, most in parts:
        if block:
            table.append(_across(f"{cut_text(block, 32)}: {rows} rows"))
        drawn, others = cut(extents(layout, rows), most)
        for e in drawn:
            cells = [cut_text(shown(e.field.name), 32), e.field.dtype, cut_text(e.shape, 32)]
            values = [_values(soa, e.field)] if valued else []
            table.append(_row("td", [*cells, str(e.offset), str(e.pitch), *values]))
        if others:
            table.append(_across(f"... {len(others)} more fields"))
    if more:
        table.append(_across(f"... {more} more blocks"))
    return (
        f'<div class="soaview">{_STYLE}<div>{escape(said, quote=False)}</div>'
        f"<table>{''.join(table)}</table>{svg}</div>"
    )


def _row(tag: str, cells: list[str]) -> str:
    inner = "".join(f"<{tag}>{escape(cell, quote=False)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _across(said: str) -> str:
    return f'<tr><th colspan="6">{escape(said, quote=False)}</th></tr>'


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
