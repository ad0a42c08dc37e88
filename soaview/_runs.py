"""Runs: neighbouring fields of one dtype, the pieces that an SoA falls into."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from ._dtypes import check_rows

if TYPE_CHECKING:
    from ._fields import Column, Scalar
    from ._layout import Layout


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring fields of one dtype, all columns or all scalars, as a matrix of components.

    An interleaved column, and a scalar that is an array, is one of its own.

    Attributes:
        names: of the fields.
        dtype: of all of them.
        offset: of the first one, in bytes.
        shape: components, and elements from one to the next (padded rows; of scalars, the room
            that each one takes). Of what is interleaved: rows, and components; an array has one
            row.
        interleaved: which of the two it is.
        per_row: whether there are rows, and not scalars.
    """

    names: tuple[str, ...]
    dtype: str
    offset: int
    shape: tuple[int, int]
    interleaved: bool
    per_row: bool

    def stretches(self) -> tuple[int, int, int]:
        """How many stretches of elements it is, their length, and elements from row to row."""
        first, last = self.shape
        return (1, first * last, last) if self.interleaved else (first, last, 1)


def runs(layout: Layout, rows: int) -> tuple[Run, ...]:
    """The layout's memory as few matrices, each dense; together they are all of it but padding.

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
    for group in _grouped(layout):
        first = group.fields[0]
        if group.interleaved:
            shape = rows if first.per_row else 1, group.components
        else:
            width = layout.pitch(first.name, rows) // first.itemsize
            shape = group.components, width
        at = layout.offset(first.name, rows)
        found.append(Run(group.names, first.dtype, at, shape, group.interleaved, first.per_row))
    made = tuple(found)
    layout.plans["runs"] = rows, made
    return made


class _Group(NamedTuple):
    """The fields of a run, and how many components they have."""

    fields: tuple[Column | Scalar, ...]
    names: tuple[str, ...]
    components: int
    interleaved: bool


def _grouped(layout: Layout) -> list[_Group]:
    known: list[_Group] | None = layout.plans.get("grouped")
    if known is not None:
        return known
    found = []
    for (_, _, alone), members in groupby(layout.fields, lambda f: _kind(f, layout.apart)):
        fields = tuple(members)
        names, components = tuple(f.name for f in fields), sum(f.components for f in fields)
        found.append(_Group(fields, names, components, bool(alone)))
    layout.plans["grouped"] = found
    return found


def _kind(field: Column | Scalar, apart: bool) -> tuple[str, bool, str]:
    """What neighbours have in common; the last is the name of a field that stands alone."""
    alone = apart or (field.interleaved and field.shape != ())
    return field.dtype, field.per_row, field.name * alone


def run_numbers(layout: Layout) -> dict[str, int]:
    """In which run each field is."""
    found: dict[str, int] | None = layout.plans.get("run numbers")
    if found is None:
        found = {name: i for i, group in enumerate(_grouped(layout)) for name in group.names}
        layout.plans["run numbers"] = found
    return found
