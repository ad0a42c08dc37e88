"""The memory as a drawing: SVG."""

from __future__ import annotations

import math
import textwrap
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ._blocks import Blocks
from ._describe import Extent, cut, extents, widths
from ._fields import shown
from ._nested import leaves
from ._resolve import numbers_of, resolved
from ._spec import Spec, columns_of
from ._views import check_spec
from ._why import why_copied, why_not

if TYPE_CHECKING:
    from ._layout import Layout
    from ._resolve import Pattern

MOST = 40
"""Fields that are drawn one by one, and tensors."""

_WIDTH, _HIGH = 720, 36
_BAR = 664  # what is left of the width beside the last name
_LEAST = 16  # of a field: names at a slant stand beside each other
_SEEN = 3  # of padding, and of a sub-column's values beside it
_CELL = 6.7  # of a character
_SLANT = 60
_SIN, _COS = math.sin(math.radians(_SLANT)), math.cos(math.radians(_SLANT))

_LEGEND = {
    "c": "column",
    "s": "scalar",
    "e": "no bytes",
    "p": "padding",
    "v": "strided view",
    "w": "gather",
}

_STYLE = """<style>
svg.soaview:root{color-scheme:light dark;color:CanvasText}
.soaview text{font:11px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;\
fill:currentColor;pointer-events:none}
.soaview .t{font-weight:bold}
.soaview .q{opacity:.75}
.soaview .c,.soaview .s,.soaview .e,.soaview .m{stroke:currentColor;stroke-opacity:.8}
.soaview .c{fill:#3b82f6;fill-opacity:.25}
.soaview .s{fill:#a855f7;fill-opacity:.35}
.soaview .e,.soaview .m{fill:#888;fill-opacity:.12;stroke-dasharray:4 3}
.soaview .i{stroke:currentColor;stroke-opacity:.4;pointer-events:none}
.soaview .g{stroke-dasharray:2 3}
.soaview .d{fill:currentColor;pointer-events:none}
.soaview .h,.soaview .p{pointer-events:none}
.soaview .h{stroke:currentColor;stroke-width:1.6;stroke-opacity:.75}
.soaview .v{fill:#0d9488;stroke:#0d9488}
.soaview .w{fill:#ea580c;stroke:#ea580c}
.soaview .j{stroke-width:2;fill:none}
.soaview .w .j{stroke-dasharray:4 3}
</style>"""


class _Box(NamedTuple):
    """What one piece of a bar is drawn from.

    Attributes:
        label: above it.
        title: its tooltip.
        kind: the class of its colours: of a column, a scalar, what is empty, the others.
        nbytes, padding: in bytes.
        parts: into how many equal parts it may be cut, the finest first.
    """

    label: str
    title: str
    kind: str
    nbytes: int
    padding: int = 0
    parts: tuple[int, ...] = (1,)


class _Place(NamedTuple):
    """Where a box is, in units of the drawing."""

    x: float
    width: float


class _Drawing:
    """Lines of text, bars and tensors, one under another."""

    def __init__(self, about: str) -> None:
        self._drawn: list[str] = []
        self._legend: set[str] = set()
        self._y = 0.0
        # A page may hide one drawing, and with it what others find under the same name.
        self._hatch = f"soaview-{zlib.crc32(about.encode(errors='replace')):08x}"

    def text(self, text: str, more: str = "") -> None:
        """One line; what is in `text` is bold."""
        self._y += 16
        bold = f'<tspan class="t">{escape(text, quote=False)}</tspan>' if text else ""
        line = f"{bold}{escape(more, quote=False)}"
        self._drawn.append(f'<text x="0" y="{_n(self._y - 4)}"{_length(text + more)}>{line}</text>')

    def gap(self) -> None:
        """Before something else."""
        self._y += 10

    def bar(self, boxes: Sequence[_Box]) -> list[_Place]:
        """The memory, from left to right; where its boxes are."""
        found = widths([box.nbytes for box in boxes], _BAR, _LEAST)
        ends = accumulate(found, initial=0.0)
        places = [_Place(x, width) for x, width in zip(ends, found, strict=False)]
        labels = [cut_text(box.label, 16) for box in boxes]
        self._y += max(_above(label, width) for label, width in zip(labels, found, strict=True))
        self._names(labels, places)
        for box, (x, width) in zip(boxes, places, strict=True):
            self._drawn.append(
                f'<path class="{box.kind}" d="{_rect(x, self._y, width, _HIGH)}">'
                f"<title>{escape(box.title, quote=False)}</title></path>"
            )
        self._inside(boxes, places)
        self._y += _HIGH + 14
        total = cut_text(str(sum(box.nbytes for box in boxes)), 80)
        self._drawn.append(
            f'<text class="q" x="0" y="{_n(self._y - 2)}">0</text><text class="q" x="{_BAR}" '
            f'y="{_n(self._y - 2)}" text-anchor="end">{total} bytes</text>'
        )
        self._legend |= {box.kind for box in boxes}
        return places

    def _names(self, labels: list[str], places: list[_Place]) -> None:
        """Each above its box: lying, or at a slant; the page is turned for all of those at once."""
        lying, slanted = "", ""
        for label, (x, width) in zip(labels, places, strict=True):
            text = f"{_length(label)}>{escape(label, quote=False)}</text>"
            middle = x + width / 2
            if _lies(label, width):
                lying += f'<text x="{_n(middle)}" y="{_n(self._y - 5)}"{text}'
            else:
                along, y = middle + 3, self._y - 4
                turned = along * _COS - y * _SIN, along * _SIN + y * _COS
                slanted += f'<text x="{_n(turned[0])}" y="{_n(turned[1])}"{text}'
        if lying:
            self._drawn.append(f'<g text-anchor="middle">{lying}</g>')
        if slanted:
            self._drawn.append(f'<g transform="rotate(-{_SLANT})">{slanted}</g>')

    def _inside(self, boxes: Sequence[_Box], places: list[_Place]) -> None:
        """What is seen in the boxes: sub-columns, padding, what marks a scalar."""
        ticks: list[str] = []
        coarse: list[str] = []  # where not every sub-column has one
        padding: list[str] = []
        marks: list[str] = []
        for box, (x, width) in zip(boxes, places, strict=True):
            number = next((n for n in box.parts if width / n >= 2 * _SEEN), 1)
            part = width / number
            lines = [f"M{_n(x + i * part)} {_n(self._y)}v{_HIGH}" for i in range(1, number)]
            (ticks if number == box.parts[0] else coarse).extend(lines)
            if box.padding:
                empty = min(max(box.padding / box.nbytes * part, _SEEN), part - _SEEN)
                firsts = [x + i * part - empty for i in range(1, number + 1)]
                padding += [_rect(first, self._y, empty, _HIGH) for first in firsts]
                self._legend.add("p")
            if box.kind == "s":
                marks.append(f"M{_n(x + width / 2)} {_n(self._y + _HIGH / 2 - 4)}l4 4-4 4-4-4z")
        hatched = f'p" fill="url(#{self._hatch})'
        for kind, lines in ((hatched, padding), ("i", ticks), ("i g", coarse), ("d", marks)):
            if lines:
                self._drawn.append(f'<path class="{kind}" d="{"".join(lines)}"/>')

    def tensor(self, name: str, said: str, title: str, kind: str, places: list[_Place]) -> None:
        """One tensor under the bar that has just been drawn, its columns joined."""
        self._legend.add(kind)
        name = cut_text(shown(name), 32)
        indent = " " * (_cells(name) + 1)
        first, *lines = _wrapped(said, indent)
        self._y += 4
        self.text(name, first[len(indent) - 1 :])
        for line in lines:
            self.text("", line)
        begin, end = min(p.x for p in places), max(p.x + p.width for p in places)
        joined = ""
        if len(places) > 1:
            joined = f'<path class="j" d="M{_n(begin)} {_n(self._y + 5)}H{_n(end)}"/>'
        pieces = "".join(_rect(x + 1, self._y + 1, width - 2, 8) for x, width in places)
        self._drawn.append(
            f'<g class="{kind}"><title>{escape(title, quote=False)}</title>{joined}'
            f'<path d="{pieces}"/></g>'
        )
        self._y += 14

    def svg(self, said: str) -> str:
        """All of it; `said` is what it shows, for who does not see it."""
        x, self._y = 0.0, self._y + 24
        y = self._y - 12
        for kind, what in _LEGEND.items():
            if kind not in self._legend:
                continue
            shape = _rect(x, y, 14, 10)
            mark = {
                "s": f'<path class="d" d="M{_n(x + 7)} {_n(y + 1)}l4 4-4 4-4-4z"/>',
                "p": f'<path class="p" fill="url(#{self._hatch})" d="{shape}"/>',
            }
            self._drawn.append(
                f'<path class="{"c" if kind == "p" else kind}" d="{shape}"/>{mark.get(kind, "")}'
                f'<text x="{_n(x + 20)}" y="{_n(y + 9)}">{what}</text>'
            )
            x += 20 + len(what) * _CELL + 20
        high = math.ceil(self._y + 4)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="soaview" role="img" '
            f'aria-label="{escape(said)}" width="{_WIDTH}" height="{high}" '
            f'viewBox="-1 0 {_WIDTH} {high}" style="max-width:100%;height:auto">{_STYLE}'
            f'<pattern id="{self._hatch}" width="4" height="4" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><path class="h" d="M2 0v4"/></pattern>'
            f"{''.join(self._drawn)}</svg>"
        )


def svg_of(layout: Layout, rows: int, spec: Spec | None) -> str:
    """`Layout.to_svg`."""
    drawing = _Drawing(f"{layout!r} {rows} {spec!r}")
    said = f"{rows} rows, {layout.nbytes(rows)} bytes, alignment {layout.alignment}"
    drawing.text(cut_text(said, 100))
    _draw_layout(drawing, layout, rows, spec, MOST)
    return drawing.svg(said)


def svg_of_blocks(blocks: Blocks, rows: Mapping[str, Any], specs: Mapping[str, Any] | None) -> str:
    """`Blocks.to_svg`: the whole buffer, then each of the layouts in it."""
    by_path = dict(_specs_of(blocks, {} if specs is None else specs))
    drawing = _Drawing(f"{blocks!r} {rows!r} {by_path!r}")
    said = f"{blocks.count} blocks, {blocks.nbytes(rows)} bytes, alignment {blocks.alignment}"
    drawing.text(cut_text(said, 100))
    found = [*leaves(blocks, rows)]
    boxes = []
    drawn = drawn_of([leaf.layout for leaf in found])
    for leaf, _ in zip(found, drawn, strict=False):
        title = f"{cut_text(leaf.name, 32)}: {leaf.rows} rows\n{_bytes(leaf.first, leaf.nbytes)}"
        boxes.append(_Box(leaf.name, title, "c" if leaf.nbytes else "e", leaf.nbytes))
    if others := found[len(drawn) :]:
        boxes.append(_others("blocks", [(leaf.first, leaf.nbytes) for leaf in others]))
    drawing.bar(boxes)
    for leaf, most in zip(found, drawn, strict=False):
        drawing.gap()
        at = f": from byte {leaf.first} on, {leaf.rows} rows, {leaf.nbytes} bytes"
        drawing.text(cut_text(leaf.name, 32), cut_text(at, 75))
        _draw_layout(drawing, leaf.layout, leaf.rows, by_path.get(leaf.path), most)
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


def drawn_of(layouts: Sequence[Layout]) -> list[int]:
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
    drawing: _Drawing, layout: Layout, rows: int, spec: Spec | None, most: int
) -> None:
    """A bar of at most so many fields, and a line for each tensor."""
    drawn, others = cut(extents(layout, rows), most)
    boxes = [_box(e) for e in drawn]
    if others:
        boxes.append(_others("fields", [(e.offset, e.nbytes) for e in others]))
    places = drawing.bar(boxes)
    if spec is None:
        return
    check_spec(spec)
    at = {e.field.name: place for e, place in zip(drawn, places, strict=False)}
    patterns = [resolved(layout, name, entry, False) for name, entry in spec.items()]
    for pattern, entry in zip(patterns[:MOST], spec.values(), strict=False):
        said, title = _said(layout, pattern, rows)
        joined = {at.get(name, places[-1]): None for name in columns_of(entry)}
        drawing.tensor(pattern.name, said, title, "w" if pattern.columns else "v", [*joined])
    if len(patterns) > MOST:
        drawing.text("", f"... {len(patterns) - MOST} more tensors")


def _box(e: Extent) -> _Box:
    """A field's."""
    f = e.field
    title = (
        f"{cut_text(shown(f.name), 32)}: {f.dtype} {cut_text(e.shape, 32)}\n"
        f"{_bytes(e.offset, e.nbytes)}, pitch {e.pitch}, {e.padding} padding"
    )
    outer = 1 if f.interleaved or len(f.shape) < 2 else f.shape[f.order == "F"]
    kind = "e" if not e.nbytes else "c" if f.per_row else "s"
    return _Box(shown(f.name), title, kind, e.nbytes, e.padding, (f.subcolumns, outer))


def _others(what: str, places: list[tuple[int, int]]) -> _Box:
    """All that is not drawn one by one."""
    said, nbytes = f"{len(places)} more {what}", sum(n for _, n in places)
    return _Box(f"{len(places)} more", f"{said}\n{_bytes(places[0][0], nbytes)}", "m", nbytes)


def _bytes(offset: int, nbytes: int) -> str:
    return f"offset {offset}, {nbytes} bytes"


def _said(layout: Layout, pattern: Pattern, rows: int) -> tuple[str, str]:
    """What stands beside a tensor, and its tooltip; the engine knows, and says why."""
    if pattern.columns:
        why = why_not(layout, pattern.columns, rows, False)
        out = why_copied(layout, pattern.columns, rows, False)
        return f"gather of {len(pattern.columns)} columns: {why}", cut_text(out, 600)
    _, dtype, _, shape, strides, offset = numbers_of(layout, pattern, rows, 0, rows)
    said = f"{dtype}, shape {shape}, strides {strides}"
    return f"strided view: {said}", f"{said}, offset {offset}; all but dtype and shape in elements"


def _n(number: float) -> str:
    """A number of the drawing, short."""
    return f"{round(number, 1):.12g}"


def _rect(x: float, y: float, width: float, height: float) -> str:
    """A path's text."""
    return f"M{_n(x)} {_n(y)}h{_n(width)}v{_n(height)}h-{_n(width)}z"


def _lies(label: str, width: float) -> bool:
    """Whether a name has room above its box; else it stands at a slant."""
    return _cells(label) * _CELL + 6 <= width


def _above(label: str, width: float) -> float:
    """How much room a name takes above its box."""
    slanted = 10 + _cells(label) * _CELL * _SIN
    return 16 if _lies(label, width) else max(16, slanted)


def _cells(text: str) -> int:
    """How many characters of the usual width a text takes."""
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def cut_text(text: str, most: int) -> str:
    """A text that takes at most so many cells."""
    if _cells(text) <= most:
        return text
    ends = accumulate(map(_cells, text))
    return text[: sum(end < most for end in ends)] + "…"


def _length(text: str) -> str:
    """What makes a text as wide as was thought: of scripts beside Latin fonts differ."""
    return "" if text.isascii() else f' textLength="{_n(max(_cells(text), 1) * _CELL)}"'


def _wrapped(text: str, indent: str) -> list[str]:
    """At most three lines."""
    most = int(_WIDTH / _CELL) // (1 if text.isascii() else 2)
    return textwrap.wrap(text, most, initial_indent=indent, max_lines=3, placeholder=" …")
