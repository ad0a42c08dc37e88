"""Runs: neighbouring fields of one dtype, the pieces that an SoA falls into."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ._dtypes import check_rows

if TYPE_CHECKING:
    from ._layout import Layout


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring fields of one dtype, all columns or all scalars, as a matrix of components.

    Attributes:
        names: of the fields.
        dtype: of all of them.
        offset: of the first one, in bytes.
        shape: components, and elements from one to the next (padded rows; of scalars, the room
            that each one takes).
    """

    names: tuple[str, ...]
    dtype: str
    offset: int
    shape: tuple[int, int]


def runs(layout: Layout, rows: int) -> tuple[Run, ...]:
    """The layout's memory as few matrices, each dense; together they are all of it.

    >>> from soaview import Column, Layout, Scalar
    >>> layout = Layout([Column("x", "int32", (3,)), Column("y", "int32"), Scalar("n", "int32")])
    >>> [(run.names, run.offset, run.shape) for run in runs(layout, rows=33)]
    [(('x', 'y'), 0, (4, 64)), (('n',), 1024, (1, 32))]
    """
    if type(rows) is not int:  # which would be found under an equal one
        rows = check_rows(rows)
    last: tuple[int, tuple[Run, ...]] | None = layout.plans.get("runs")
    if last is not None and last[0] == rows:
        return last[1]
    found = []
    for names, dtype, components, itemsize in _grouped(layout):
        width = layout.pitch(names[0], rows) // itemsize
        found.append(Run(names, dtype, layout.offset(names[0], rows), (components, width)))
    made = tuple(found)
    layout.plans["runs"] = rows, made
    return made


def _grouped(layout: Layout) -> list[tuple[tuple[str, ...], str, int, int]]:
    """Of each run the names, the dtype, how many components, and bytes of an item."""
    known: list[tuple[tuple[str, ...], str, int, int]] | None = layout.plans.get("grouped")
    if known is not None:
        return known
    found = []
    for (dtype, _), group in groupby(layout.fields, lambda f: (f.dtype, f.per_row)):
        fields = tuple(group)
        components = sum(f.components for f in fields)
        found.append((tuple(f.name for f in fields), dtype, components, fields[0].itemsize))
    layout.plans["grouped"] = found
    return found


def run_numbers(layout: Layout) -> dict[str, int]:
    """In which run each field is."""
    found: dict[str, int] | None = layout.plans.get("run numbers")
    if found is None:
        found = {name: i for i, group in enumerate(_grouped(layout)) for name in group[0]}
        layout.plans["run numbers"] = found
    return found
