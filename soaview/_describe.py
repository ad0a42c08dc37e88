"""A layout for people: its memory map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._draw import bar
from ._fields import shown

if TYPE_CHECKING:
    from ._layout import Layout


def memory_map(layout: Layout, rows: int) -> str:
    """`Layout.describe`."""
    table = [["field", "dtype", "shape", "offset", "pitch", "bytes", "padding"]]
    for f in layout.fields:
        pitch = layout.pitch(f.name, rows)
        used = f.components * f.itemsize * (rows if f.per_row else 1)
        total = pitch * f.components
        shape = str((rows, *f.shape)) if f.per_row else "scalar"
        if len(f.shape) == 2:
            shape += f" {f.order}"
        numbers = (layout.offset(f.name, rows), pitch, total, total - used)
        table.append([shown(f.name), f.dtype, shape, *map(str, numbers)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"{rows} rows, {layout.nbytes(rows)} bytes, alignment {layout.alignment}"]
    lines.append(bar(layout, rows))
    for row in table:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return "\n".join(lines)
