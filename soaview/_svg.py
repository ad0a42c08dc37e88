"""Drawings as SVG: bars of boxes, and lines for what is made of them."""

from __future__ import annotations

import math
import textwrap
import unicodedata
import zlib
from collections.abc import Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

from ._describe import widths
from ._fields import shown

_WIDTH, _HIGH = 720, 36
_BAR = 664  # what is left of the width beside the last name
_LEAST = 16  # of a field: names at a slant stand beside each other
_GAP = 4  # between what lies apart
_SEEN = 3  # of padding, and of a sub-column's values beside it
_CELL = 6.7  # of a character
_SLANT = 60
_SIN, _COS = math.sin(math.radians(_SLANT)), math.cos(math.radians(_SLANT))

_LEGEND = {
    "c": "column",
    "s": "scalar",
    "r": "strided",
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
.soaview .h,.soaview .p,.soaview .r{pointer-events:none}
.soaview .h{stroke:currentColor;stroke-width:1.6;stroke-opacity:.75}
.soaview .v{fill:#0d9488;stroke:#0d9488}
.soaview .w{fill:#ea580c;stroke:#ea580c}
.soaview .j{stroke-width:2;fill:none}
.soaview .w .j{stroke-dasharray:4 3}
</style>"""


class Box(NamedTuple):
    """What one piece of a bar is drawn from.

    Attributes:
        label: above it.
        title: its tooltip.
        kind: the class of its colours: of a column, a scalar, what is empty, the others.
        nbytes, padding: in bytes.
        parts: into how many equal parts it may be cut, the finest first.
        strided: whether its values are a part of each row, between others.
        under: what may stand below it, a line for each.
    """

    label: str
    title: str
    kind: str
    nbytes: int
    padding: int = 0
    parts: tuple[int, ...] = (1,)
    strided: bool = False
    under: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a box is, in units of the drawing."""

    x: float
    width: float


class Drawing:
    """Lines of text, bars and tensors, one under another."""

    def __init__(self, about: str, hatched: str = "padding") -> None:
        """Of `about` its names are made; `hatched` is what the hatching means."""
        self._drawn: list[str] = []
        self._legends = _LEGEND | {"p": hatched}
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

    def bar(self, boxes: Sequence[Box], apart: bool = False) -> list[Place]:
        """The memory, from left to right; where its boxes are. What lies apart has gaps."""
        gap = _GAP if apart else 0
        room = _BAR - gap * (len(boxes) - 1)
        found = widths([box.nbytes for box in boxes], room, _LEAST)
        ends = accumulate([width + gap for width in found], initial=0.0)
        places = [Place(x, width) for x, width in zip(ends, found, strict=False)]
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
        if apart:
            self._under(boxes, places)
        else:
            total = cut_text(str(sum(box.nbytes for box in boxes)), 80)
            self._drawn.append(
                f'<text class="q" x="0" y="{_n(self._y - 2)}">0</text><text class="q" x="{_BAR}" '
                f'y="{_n(self._y - 2)}" text-anchor="end">{total} bytes</text>'
            )
        self._legend |= {box.kind for box in boxes}
        return places

    def _under(self, boxes: Sequence[Box], places: list[Place]) -> None:
        """Below each box what it has room for."""
        drawn, lines = "", 0
        for box, (x, width) in zip(boxes, places, strict=True):
            for i, line in enumerate(box.under):
                if _cells(line) * _CELL > width + _GAP - 2:
                    break
                at = f'x="{_n(x + width / 2)}" y="{_n(self._y - 2 + 13 * i)}"'
                drawn += f"<text {at}{_length(line)}>{escape(line, quote=False)}</text>"
                lines = max(lines, i)
        self._y += 13 * lines
        if drawn:
            self._drawn.append(f'<g class="q" text-anchor="middle">{drawn}</g>')

    def _names(self, labels: list[str], places: list[Place]) -> None:
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

    def _inside(self, boxes: Sequence[Box], places: list[Place]) -> None:
        """What is seen in the boxes: sub-columns, padding, what marks a scalar."""
        ticks: list[str] = []
        coarse: list[str] = []  # where not every sub-column has one
        padding: list[str] = []
        strided: list[str] = []
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
            if box.strided:
                strided.append(_rect(x, self._y, width, _HIGH))
                self._legend.add("r")
            if box.kind == "s":
                marks.append(f"M{_n(x + width / 2)} {_n(self._y + _HIGH / 2 - 4)}l4 4-4 4-4-4z")
        found = {
            f'p" fill="url(#{self._hatch})': padding,
            f'r" fill="url(#{self._hatch}-r)': strided,
            "i": ticks,
            "i g": coarse,
            "d": marks,
        }
        for kind, lines in found.items():
            if lines:
                self._drawn.append(f'<path class="{kind}" d="{"".join(lines)}"/>')

    def tensor(self, name: str, said: str, title: str, kind: str, places: list[Place]) -> None:
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
        for kind, what in self._legends.items():
            if kind not in self._legend:
                continue
            shape = _rect(x, y, 14, 10)
            mark = {
                "s": f'<path class="d" d="M{_n(x + 7)} {_n(y + 1)}l4 4-4 4-4-4z"/>',
                "p": f'<path class="p" fill="url(#{self._hatch})" d="{shape}"/>',
                "r": f'<path class="r" fill="url(#{self._hatch}-r)" d="{shape}"/>',
            }
            self._drawn.append(
                f'<path class="{"c" if kind in "pr" else kind}" d="{shape}"/>{mark.get(kind, "")}'
                f'<text x="{_n(x + 20)}" y="{_n(y + 9)}">{what}</text>'
            )
            x += 20 + len(what) * _CELL + 20
        high = math.ceil(self._y + 4)
        stripes = ""
        if "r" in self._legend:
            stripes = (
                f'<pattern id="{self._hatch}-r" width="4" height="4" patternUnits="userSpaceOnUse">'
                f'<path class="i" d="M2 0v4"/></pattern>'
            )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="soaview" role="img" '
            f'aria-label="{escape(said)}" width="{_WIDTH}" height="{high}" '
            f'viewBox="-1 0 {_WIDTH} {high}" style="max-width:100%;height:auto">{_STYLE}'
            f'<pattern id="{self._hatch}" width="4" height="4" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><path class="h" d="M2 0v4"/></pattern>{stripes}'
            f"{''.join(self._drawn)}</svg>"
        )


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
