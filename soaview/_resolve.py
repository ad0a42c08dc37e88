"""Where an entry's elements lie over a layout, whatever the row count: the stride engine.

Names, dtypes and distances are resolved once. What is left are integers that depend on the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from ._bound import BoundFields
from ._dtypes import ITEMSIZE
from ._fields import listed
from ._runs import run_numbers
from ._spec import Entry, Value, columns_of

if TYPE_CHECKING:
    from ._fields import Column, Scalar
    from ._layout import Layout
    from ._strided import Numbers

Form = tuple[int, ...]
"""Elements: a constant, and a coefficient for each of `layout.sizes`.

The coefficients multiply the aligned units that one sub-column of that width takes.
"""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A spec entry over a layout, for every row count.

    Attributes:
        name: of the tensor.
        dtype: of its elements.
        rows: stride of the row axis, in elements; None where there is none.
        shape: of one row.
        strides: one for each entry of `shape`.
        offset: of the first element.
        columns: of a tensor without a single strided view; else empty.
        interleaved: whether it has no padded rows.
        allocation: in which of a bound SoA's it is.
    """

    name: str
    dtype: str
    rows: int | None
    shape: tuple[int, ...]
    strides: tuple[Form, ...]
    offset: Form
    columns: tuple[str, ...]
    interleaved: bool = False
    allocation: int = 0


def pattern_of(layout: Layout | BoundFields, entry: Entry, piecewise: bool) -> Pattern:
    """One entry without a tensor's name, resolved once."""
    key = entry, piecewise
    found: Pattern | None = layout.plans.get(key)
    if found is None:
        name = listed(columns_of(entry))
        found = replace(resolved(layout, "", entry, piecewise), name=name)
        layout.plans[key] = found
    return found


def numbers_of(
    layout: Layout | BoundFields, pattern: Pattern, capacity: int, start: int, rows: int
) -> Numbers:
    """One pattern's numbers, as a plan's function gives them, without compiling any."""
    units = (1, *(-(-capacity * size // layout.alignment) for size in layout.sizes))

    def total(form: Form) -> int:
        return sum([n * unit for n, unit in zip(form, units, strict=True)])

    shape, offset = pattern.shape, total(pattern.offset)
    strides = tuple([total(form) for form in pattern.strides])
    if pattern.rows is not None:
        shape, strides = (rows, *shape), (pattern.rows, *strides)
        offset += pattern.rows * start
    return pattern.name, pattern.dtype, ITEMSIZE[pattern.dtype], shape, strides, offset


def resolved(layout: Layout | BoundFields, name: str, entry: Entry, piecewise: bool) -> Pattern:
    """One entry of a tensor, or of an array that has no name."""
    if isinstance(layout, BoundFields):
        return _resolved_bound(layout, name, entry)
    if isinstance(entry, Value):
        column = _field(layout, name, entry.name)
        _check_scalar(name, column)
        strides = _inner(layout, column)
        return Pattern(name, column.dtype, None, column.shape, strides, _start(layout, column), ())
    columns = [_field(layout, name, c) for c in ((entry,) if isinstance(entry, str) else entry)]
    first = columns[0]
    for other in columns[1:]:
        _check_alike(name, first, other)
    row = first.width // first.itemsize if first.per_row else 0
    adjacent = layout.apart or any(c.per_row and c.interleaved for c in columns)
    shape, strides = first.shape, _inner(layout, first)
    start = _start(layout, first)
    if isinstance(entry, str):
        return Pattern(name, first.dtype, row, shape, strides, start, (), adjacent)
    shape = (len(columns), *shape)
    distance = common_distance(layout, columns)
    if distance is None or (piecewise and in_pieces(layout, entry)):
        return Pattern(name, first.dtype, row, shape, (), (), tuple(entry), adjacent)
    return Pattern(name, first.dtype, row, shape, (distance, *strides), start, (), adjacent)


def _resolved_bound(layout: BoundFields, name: str, entry: Entry) -> Pattern:
    """The same of columns that lie anywhere: within one allocation, at one positive distance."""
    names, listed = columns_of(entry), isinstance(entry, tuple)
    columns = [_field(layout, name, column) for column in names]
    first, homes = columns[0], [layout.home(column) for column in names]
    for other in columns[1:]:
        _check_alike(name, first, other)
    if isinstance(entry, Value):
        _check_scalar(name, first)
    home, size = homes[0], first.itemsize
    row = None if isinstance(entry, Value) else home.strides[0] // size if first.per_row else 0
    inner = home.strides[first.per_row :]
    steps = {there.offset - here.offset for here, there in pairwise(homes)} or {size}
    same = len({(h.allocation, h.strides) for h in homes}) == len(steps) == 1
    step = min(steps)
    if all(h.empty for h in homes) and len(set(names)) == len(names):
        same, step = True, size  # of nothing there is a view, wherever it is
    shape = (len(columns), *first.shape) if listed else first.shape
    if not (all(h.aligned for h in homes) and same and step > 0):
        return Pattern(name, first.dtype, row, shape, (), (), names, True, home.allocation)
    strides = [(n // size,) for n in ((step, *inner) if listed else inner)]
    at = tuple(strides), (home.offset // size,)
    return Pattern(name, first.dtype, row, shape, *at, (), True, home.allocation)


def _field(layout: Layout | BoundFields, tensor: str, name: str) -> Column | Scalar:
    try:
        return layout[name]
    except KeyError as error:
        raise KeyError(f"{_at(tensor)}{error.args[0]}") from None


def _check_scalar(tensor: str, field: Column | Scalar) -> None:
    if field.per_row:
        raise ValueError(
            f"{_at(tensor)}Value takes a Scalar, but {field.name!r} is a Column; "
            f"write {field.name!r}"
        )


def _at(tensor: str) -> str:
    """How a message about a tensor begins; an array that has no name needs none."""
    return f"tensor {tensor!r}: " if tensor else ""


def is_mixed(layout: Layout | BoundFields, tensor: str, entry: Entry, dtype: str) -> bool:
    """Whether a tensor of this floating dtype has to be made of columns that have another.

    Raises:
        KeyError: no such column.
        ValueError: columns of several shapes, or with an imaginary part.
    """
    columns = [_field(layout, tensor, name) for name in columns_of(entry)]
    for column in columns:
        _check_shape(tensor, columns[0], column)
        if column.dtype.startswith("complex"):
            raise ValueError(
                f"{_at(tensor)}{column.name!r} is {column.dtype}, and dtype= is {dtype}, which "
                f"would drop the imaginary part; take it as a tensor of its own, and let dtype= "
                f"name the others, as in dtype={{'x': {dtype!r}}}"
            )
    return any(column.dtype != dtype for column in columns)


def has_padded_rows(layout: Layout | BoundFields, tensor: str, entry: Entry) -> bool:
    """Whether columns of several dtypes have padded rows, and as many.

    Raises:
        ValueError: not as many.
    """
    columns = [layout[name] for name in columns_of(entry)]
    if any(column.per_row and column.interleaved for column in columns):
        return False
    for column in columns:
        if column.itemsize != columns[0].itemsize:
            raise ValueError(
                f"{_at(tensor)}padded=True: {columns[0].name!r} has {columns[0].dtype} and "
                f"{column.name!r} has {column.dtype}, and other padded rows; take the valid rows, "
                f"without padded="
            )
    return True


def _check_alike(tensor: str, one: Column | Scalar, other: Column | Scalar) -> None:
    if one.dtype != other.dtype:
        gather, real = "", not (one.dtype + other.dtype).count("complex")
        if tensor and real and one.shape == other.shape:
            gather = "let copy=None of an adapter gather them with dtype='float32', say; or "
        raise ValueError(
            f"{_at(tensor)}its columns need one dtype, but {one.name!r} has {one.dtype} and "
            f"{other.name!r} has {other.dtype}; {gather}{_apart(one, other)}, after a cast that "
            f"you choose, {_JOINING}"
        )
    _check_shape(tensor, one, other)


def _check_shape(tensor: str, one: Column | Scalar, other: Column | Scalar) -> None:
    if one.shape != other.shape:
        raise ValueError(
            f"{_at(tensor)}its columns need one shape, but {one.name!r} has {one.shape} and "
            f"{other.name!r} has {other.shape}; {_apart(one, other)}, {_JOINING}"
        )


_JOINING = "by torch.cat, np.concatenate or jax.numpy.concatenate"


def _apart(one: Column | Scalar, other: Column | Scalar) -> str:
    return (
        f"take them apart, {_alone(one)} and {_alone(other)}, and join what they give along axis 1"
    )


def _alone(column: Column | Scalar) -> str:
    """The entry that gives it with a column axis."""
    return repr(column.name) if column.shape else f"[{column.name!r}]"


def _start(layout: Layout, column: Column | Scalar) -> Form:
    """Of a field's first element."""
    unit = layout.alignment // column.itemsize
    return tuple(unit * n for n in layout.starts[column.name])


def _constant(layout: Layout, number: int) -> Form:
    return (number, *(0 for _ in layout.sizes))


def _pitches(layout: Layout, column: Column | Scalar, number: int) -> Form:
    """Of so many pitches of a column."""
    unit = layout.alignment // column.itemsize
    return (0, *(number * unit if size == column.width else 0 for size in layout.sizes))


def _inner(layout: Layout, column: Column | Scalar) -> tuple[Form, ...]:
    """Strides of the axes within one row."""
    numbers: tuple[int, ...] = (1,) * len(column.shape)
    if len(column.shape) == 2:
        r, c = column.shape
        numbers = (1, r) if column.order == "F" else (c, 1)
    if column.interleaved:
        return tuple(_constant(layout, number) for number in numbers)
    return tuple(_pitches(layout, column, number) for number in numbers)


def common_distance(layout: Layout, columns: Sequence[Column | Scalar]) -> Form | None:
    """From each column to the next; None where it differs, whatever the row count."""
    first = columns[0]
    if len(columns) == 1:
        # Nobody takes this step: a scalar's is its own size, a column's the room that it takes.
        if not first.per_row:
            return _constant(layout, first.components)
        return _pitches(layout, first, first.subcolumns)
    if not same_strides(layout, columns):
        return None
    starts = [_start(layout, c) for c in columns]
    steps = {
        tuple(b - a for a, b in zip(one, other, strict=True)) for one, other in pairwise(starts)
    }
    (step, *others) = steps
    return None if others or max(step) <= 0 else step


def same_strides(layout: Layout, columns: Sequence[Column | Scalar]) -> bool:
    """Whether the columns agree in every stride but their distance."""
    return len({(c.per_row, c.interleaved, _inner(layout, c)) for c in columns}) == 1


def in_pieces(layout: Layout, names: tuple[str, ...]) -> bool:
    """Whether the fields lie in more than one run."""
    return len({run_numbers(layout)[name] for name in names}) > 1
