"""Runs: neighbouring fields of one dtype, the pieces that an SoA falls into."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

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


@lru_cache(maxsize=1024)
def runs(layout: Layout, rows: int) -> tuple[Run, ...]:
    """The layout's memory as few matrices, each dense; together they are all of it.

    >>> from soaview import Column, Layout, Scalar
    >>> layout = Layout([Column("x", "int32", (3,)), Column("y", "int32"), Scalar("n", "int32")])
    >>> [(run.names, run.offset, run.shape) for run in runs(layout, rows=33)]
    [(('x', 'y'), 0, (4, 64)), (('n',), 1024, (1, 32))]
    """
    found = []
    for (dtype, _), group in groupby(layout.fields, lambda f: (f.dtype, f.per_row)):
        fields = tuple(group)
        names = tuple(f.name for f in fields)
        components = sum(f.components for f in fields)
        width = layout.pitch(names[0], rows) // fields[0].itemsize
        found.append(Run(names, dtype, layout.offset(names[0], rows), (components, width)))
    return tuple(found)


def run_numbers(layout: Layout) -> dict[str, int]:
    """In which run each field is."""
    found: dict[str, int] | None = layout.plans.get("runs")
    if found is None:
        found = {name: i for i, run in enumerate(runs(layout, 0)) for name in run.names}
        layout.plans["runs"] = found
    return found
