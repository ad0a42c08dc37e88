"""Pictures of memory: SVG and HTML for notebooks, a bar for terminals.

Text and lines have the page's own colour, and fills are translucent, so that light and dark pages
both show them. There is no script and no style sheet.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import east_asian_width
from zlib import crc32

import numpy as np

from ._fields import Column, Scalar, shown
from ._resolve import numbers_of, resolved
from ._spec import Spec, columns_of
from ._views import spec_hint
from ._why import why_not

if TYPE_CHECKING:
    from ._layout import Layout
    from ._soa import SoA

WIDTH, LEAST, STRIP = 960, 18, 36
"""Of the picture, of a block at least, and how high the strip is: in pixels, as all below."""
SHOWN = 40
"""How many fields, and half as many tensors, a picture has; the others are counted."""
COLUMN, SCALAR, VIEW, GATHER = "#3b82f6", "#a855f7", "#3b82f6", "#f97316"
CHARACTER = 6.9
"""How wide one is, at most, in a monospaced font of 11 pixels."""


class Section(NamedTuple):
    """One layout's part of a buffer."""

    title: str
    layout: Layout
    rows: int
    first: int
    spec: Spec | None


class _Block(NamedTuple):
    """A field's place in the picture; of those that are left out there is one together."""

    names: tuple[str, ...]
    field: Column | Scalar | None
    x: float
    width: float
    first: int
    nbytes: int


def svg(sections: Sequence[Section]) -> str:
    """A picture of one buffer: a strip for each section, and under it a line for each tensor."""
    hatch = f"soaview-{crc32(repr(sections).encode()):08x}"  # pages hold more than one picture
    body, y = [], 0.0
    for section in sections:
        lines, height = _section(section, y, f"url(#{hatch})")
        body += lines
        y += height
    pattern = (
        f'<pattern id="{hatch}" width="4" height="4" patternUnits="userSpaceOnUse">'
        f'<path d="M-1 1l2-2M0 4l4-4M3 5l2-2" stroke="currentColor" stroke-opacity=".7"/></pattern>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" '
        f'role="img" aria-label="memory map" font-family="monospace" font-size="11" '
        f'fill="currentColor" style="max-width:100%;height:auto">{pattern}'
        f"{''.join(body)}</svg>"
    )


def _section(section: Section, y: float, hatch: str) -> tuple[list[str], float]:
    """What is drawn of one, from `y` on, and how high it is."""
    layout, rows = section.layout, section.rows
    nbytes, blocks = layout.nbytes(rows), _blocks(layout, rows)
    out = [_text(0, y + 12, section.title)]
    strip = y + 38
    ticks: list[str] = []
    for block in blocks:
        out.append(_block(block, section, strip, hatch))
        ticks += _ticks(block, strip)
        label = shown(block.names[0]) if block.field else f"+{len(block.names)}"
        if _width(label) + 4 <= block.width:
            out.append(_text(block.x + 2, strip - 5, label))
    edges = "".join(f"M{block.x:.1f} {strip - 3:g}v{STRIP + 6}" for block in blocks)
    out.append(f'<path d="{edges}M{WIDTH} {strip - 3:g}v{STRIP + 6}" stroke="currentColor"/>')
    if ticks:
        out.append(f'<path d="{"".join(ticks)}" stroke="currentColor" stroke-opacity=".35"/>')
    end = f"byte {section.first + nbytes:,}"
    out.append(_text(0, strip + STRIP + 13, f"byte {section.first:,}"))
    out.append(_text(WIDTH, strip + STRIP + 13, end, ' text-anchor="end"'))
    below = strip + STRIP + 24
    if section.spec is not None:
        for drawn, height in _tensors(section, blocks, below):
            out += drawn
            below += height
    return out, below - y + 6


def _blocks(layout: Layout, rows: int) -> list[_Block]:
    """To scale, but for a least width that each has."""
    fields = layout.fields
    drawn: list[tuple[Column | Scalar, ...]] = [(field,) for field in fields[:SHOWN]]
    if fields[SHOWN:]:
        drawn.append(fields[SHOWN:])
    starts = [layout.offset(group[0].name, rows) for group in drawn] + [layout.nbytes(rows)]
    least = min(LEAST, WIDTH / len(drawn)) if starts[-1] else WIDTH / len(drawn)
    scale = (WIDTH - least * len(drawn)) / (starts[-1] or 1)
    found, x = [], 0.0
    for group, first, end in zip(drawn, starts, starts[1:], strict=False):
        width = least + (end - first) * scale
        names = tuple(field.name for field in group)
        field = group[0] if len(drawn) <= SHOWN or group is not drawn[-1] else None
        found.append(_Block(names, field, x, width, first, end - first))
        x += width
    return found


def _block(block: _Block, section: Section, y: float, hatch: str) -> str:
    """One block with its padding; numbers are in its tooltip."""
    layout, rows, first = section.layout, section.rows, section.first + block.first
    where = f"bytes {first:,} to {first + block.nbytes:,}"
    if block.field is None:
        title = f"{len(block.names):,} more fields: {where}"
        return _rect(block.x, y, block.width, STRIP, "currentColor", 0.12, title)
    field, pitch = block.field, layout.pitch(block.names[0], rows)
    used = field.itemsize * (rows if field.per_row else 1)
    kind = f"{(rows, *field.shape)}" if field.per_row else "scalar"
    title = (
        f"{shown(field.name)}: {field.dtype} {kind}, {where}, pitch {pitch:,}, padding "
        f"{pitch - used:,} of each {pitch:,}"
    )
    color = COLUMN if field.per_row else SCALAR
    out = _rect(block.x, y, block.width, STRIP, color, 0.35, title)
    if pitch > used:
        parts = field.components if block.width / field.components >= 12 else 1
        step = block.width / parts
        width = max(3.0, step * (pitch - used) / pitch)
        for part in range(parts):
            at = block.x + (part + 1) * step - width
            out += f'<path d="M{at:.1f} {y:g}h{width:.1f}v{STRIP}h-{width:.1f}z" fill="{hatch}"/>'
    if not field.per_row:
        middle = block.x + block.width / 2
        out += f'<circle cx="{middle:.1f}" cy="{y + STRIP / 2:g}" r="4"/>'
    return out


def _ticks(block: _Block, y: float) -> Iterable[str]:
    """Between a block's components, where these are wide enough to be told apart."""
    parts = block.field.components if block.field else 1
    if block.width / parts >= 4:
        for part in range(1, parts):
            yield f"M{block.x + part * block.width / parts:.1f} {y:g}v{STRIP}"


def _tensors(section: Section, blocks: list[_Block], y: float) -> Iterable[tuple[list[str], float]]:
    """For each tensor what is drawn, from where the last one ends, and how high it is."""
    layout, rows, spec = section.layout, section.rows, section.spec
    assert spec is not None
    place = {name: block for block in blocks for name in block.names}
    for name, entry in list(spec.items())[: SHOWN // 2]:
        pattern, columns = resolved(layout, name, entry, False), columns_of(entry)
        said = f"{shown(name)}: {pattern.dtype} "
        if pattern.columns:
            why = why_not(layout, columns, rows, False)
            color, said = GATHER, f"{said}{(rows, *pattern.shape)}, gathered, for {why}"
        else:
            _, _, _, shape, strides, _ = numbers_of(layout, pattern, rows, 0, rows)
            color, said = VIEW, f"{said}{shape}, a view with strides {strides}"
        lines = textwrap.wrap(said, int((WIDTH - 14) / CHARACTER))[:4]
        out = [f'<rect y="{y + 2:g}" width="9" height="9" fill="{color}"/>']
        out += [_text(14, y + 11 + 14 * number, line) for number, line in enumerate(lines)]
        bar = y + 14 * len(lines) + 6
        places = [place[column] for column in columns]
        middles = [block.x + block.width / 2 for block in places]
        if len(places) > 1:
            span = f"M{min(middles):.1f} {bar + 3:g}H{max(middles):.1f}"
            out.append(f'<path d="{span}" stroke="{color}" stroke-width="2"/>')
        for block in dict.fromkeys(places):
            out.append(
                f'<rect x="{block.x + 1:.1f}" y="{bar:g}" width="{block.width - 2:.1f}" height="6" '
                f'fill="{color}"/>'
            )
        yield out, bar + 16 - y
        y = bar + 16
    if (left := len(spec) - SHOWN // 2) > 0:
        yield [_text(14, y + 11, f"and {left:,} more tensors")], 18


def _rect(
    x: float, y: float, width: float, height: float, fill: str, opacity: float, title: str
) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{fill}" '
        f'fill-opacity="{opacity}"><title>{escape(title)}</title></rect>'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:g}"{more}>{escape(text)}</text>'


def _width(text: str) -> float:
    return CHARACTER * sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def title_of(layout: Layout, rows: int, what: str) -> str:
    """The line above a strip."""
    return (
        f"{shown(what)}: {rows:,} rows, {layout.nbytes(rows):,} bytes, alignment {layout.alignment}"
    )


def drawn(layout: Layout, rows: int, spec: Spec | None) -> str:
    """`Layout.to_svg`."""
    if spec is not None and not isinstance(spec, Spec):
        raise TypeError(f"spec must be a Spec, got {type(spec).__name__}{spec_hint(spec)}")
    return svg([Section(title_of(layout, rows, "layout"), layout, rows, 0, spec)])


def html_of_layout(layout: Layout, what: str = "layout") -> str:
    """Of a layout alone, which has no row count: as of a thousand rows."""
    title = title_of(layout, 1000, f"{shown(what)}, drawn for")
    return html([(Section(title, layout, 1000, 0, None), None)])


def section_of(soa: SoA, what: str = "SoA", first: int = 0) -> tuple[Section, SoA]:
    """An SoA's whole memory, from a byte on; of a slice it says which rows these are."""
    if soa.rows != soa.capacity:
        what = f"{what}, rows {soa.start:,} to {soa.start + soa.rows:,} of those below"
    title = title_of(soa.layout, soa.capacity, f"{what} on {soa.device}")
    return Section(title, soa.layout, soa.capacity, first, None), soa


def html(parts: Iterable[tuple[Section, SoA | None]]) -> str:
    """Of each section a table of its fields, with first values of an SoA on the host, and a map."""
    out = []
    for section, soa in parts:
        layout, rows = section.layout, section.rows
        heads = ["field", "dtype", "shape", "offset", "pitch", *(["first values"] if soa else [])]
        lines = [heads]
        for field in layout.fields[:SHOWN]:
            shape = f"{(rows, *field.shape)}" if field.per_row else "scalar"
            numbers = (
                section.first + layout.offset(field.name, rows),
                layout.pitch(field.name, rows),
            )
            cells = [shown(field.name), field.dtype, shape, *(f"{n:,}" for n in numbers)]
            lines.append([*cells, *([_first_values(soa, field.name)] if soa else [])])
        left = len(layout.fields) - SHOWN
        more = f"<div>and {left:,} more fields</div>" if left > 0 else ""
        rows_of_it = "".join(
            f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in line)}</tr>"
            for kind, line in zip(["th", *["td"] * SHOWN], lines, strict=False)
        )
        out.append(f"<table>{rows_of_it}</table>{more}{svg([section])}")
    return f"<div>{''.join(out)}</div>"


def _first_values(soa: SoA, name: str) -> str:
    """Of a column three, of vectors and matrices the first; where NumPy has them at hand."""
    if not soa.buffer.on_host or soa.buffer.piecewise:
        return f"on {soa.device}"
    field = soa.layout[name]
    try:
        values: np.ndarray[Any, Any] = soa[name]
    except TypeError:  # a dtype that NumPy does not have here
        return ""
    some = values[:1] if field.shape or not field.per_row else values[:3]
    more = " ..." * (len(values) > len(some)) if field.per_row else ""
    text = np.array2string(some.reshape(-1), precision=4, threshold=6, edgeitems=2)
    return f"{text}{more}"[:80]


def bar(layout: Layout, rows: int, cells: int = 72) -> str:
    """The memory in one line: each field's share, by turns dark and light, `░` its padding."""
    blocks = layout.fields
    if len(blocks) > cells // 2:
        blocks = blocks[: cells // 2]
    spare, total = cells - 2 * len(blocks), layout.nbytes(rows) or 1
    out = []
    for number, field in enumerate(blocks):
        pitch = layout.pitch(field.name, rows)
        used = field.itemsize * (rows if field.per_row else 1)
        width = 2 + spare * pitch * field.components // total
        padding = max(1, width * (pitch - used) // pitch) if pitch > used else 0
        mark = "█▓"[number % 2] if field.per_row else "•"
        out.append(mark * (width - padding) + "░" * padding)
    return "".join(out) + "…" * (len(layout.fields) > len(blocks))
