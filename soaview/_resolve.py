"""Where a spec's tensors lie over a layout: the stride engine.

Names, dtypes and distances are resolved once for a layout and a spec. What is left are integers
that depend on the rows, and one function that is made of them: the only generated code.
"""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

from ._dtypes import ITEMSIZE
from ._runs import run_numbers
from ._spec import Entry, Spec, Value, columns_of, listed

if TYPE_CHECKING:
    from ._fields import Column, Scalar
    from ._layout import Layout
    from ._strided import Numbers

Form = tuple[int, ...]
"""Elements: a constant, and a coefficient for each of `layout.sizes`.

The coefficients multiply the aligned units that one component of that item size takes.
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
    """

    name: str
    dtype: str
    rows: int | None
    shape: tuple[int, ...]
    strides: tuple[Form, ...]
    offset: Form
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Plan:
    """A spec compiled for a layout.

    Attributes:
        numbers: the tensors' `Strided`s as plain tuples, from capacity, start and rows; of a plan
            with gathers none.
        gathers: the tensors that have no single strided view, with their places in the spec.
    """

    numbers: Callable[[int, int, int], list[Numbers]]
    gathers: tuple[tuple[int, Pattern], ...]


def plan_of(layout: Layout, spec: Spec, padded: bool, piecewise: bool) -> Plan:
    """The spec, compiled for the layout: once.

    Args:
        layout: the fields.
        spec: the tensors.
        padded: whether they have the padded rows.
        piecewise: whether each run lies in memory of its own.

    Raises:
        KeyError: no such column.
        ValueError: columns of one tensor that differ in dtype or shape.
    """
    key = spec.key, padded, piecewise
    plan: Plan | None = layout.plans.get(key)
    if plan is None:
        patterns = [_pattern(layout, name, entry, piecewise) for name, entry in spec.items()]
        gathers = tuple((i, p) for i, p in enumerate(patterns) if p.columns)
        # Beside gathers the others are planned on their own, where they are wanted.
        plan = Plan(_none, gathers) if gathers else _compiled(layout, patterns, padded)
        layout.plans[key] = plan
    return plan


def pattern_of(layout: Layout, entry: Entry, piecewise: bool) -> Pattern:
    """One entry without a tensor's name, resolved once."""
    key = entry, piecewise
    found: Pattern | None = layout.plans.get(key)
    if found is None:
        name = listed(columns_of(entry))
        found = replace(_pattern(layout, "", entry, piecewise), name=name)
        layout.plans[key] = found
    return found


def numbers_of(layout: Layout, pattern: Pattern, capacity: int, start: int, rows: int) -> Numbers:
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


def _none(capacity: int, start: int, rows: int) -> list[Numbers]:
    return []


Make = Callable[..., "list[Any] | None"]
"""What `compile_views` gives."""


def compile_views(layout: Layout, spec: Spec) -> tuple[tuple[str, ...], Make] | None:
    """What makes a spec's tensors over new memory in one step, for an event loop.

    It is one expression, of integers that are worked out beforehand, and it holds the gate: every
    element is proved to lie inside the memory before any tensor is made.

    Args:
        layout: the fields.
        spec: the tensors.

    Returns:
        None where a tensor has no single strided view. Else the dtypes of the tensors, each once,
        and a function of `(rows, nbytes, view, *memories)`: the rows, at least one, of an SoA that
        is no slice; what makes a tensor of `(memory, shape, strides, offset)`, in elements, and
        without an offset where it is 0; and the memory as items of each of these dtypes, in order.
        The function gives the tensors in spec order, or None where one would reach past `nbytes`.

    Raises:
        KeyError, ValueError: as `views`.

    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("pt", "float32"), Column("eta", "float32")])
    >>> dtypes, make = compile_views(layout, Spec(x=["pt", "eta"], eta="eta"))
    >>> dtypes, make(100, 1024, lambda *numbers: numbers, "memory")
    (('float32',), [('memory', (100, 2), (1, 128)), ('memory', (100,), (1,), 128)])
    >>> make(100, 911, lambda *numbers: numbers, "memory") is None  # the last one ends at 912
    True
    """
    key = "compiled", spec.key
    found: tuple[tuple[str, ...], Make] | None = layout.plans.get(key)
    if found is None and key not in layout.plans:
        patterns = [_pattern(layout, name, entry, False) for name, entry in spec.items()]
        if not any(pattern.columns for pattern in patterns):
            found = _make_of(layout, patterns)
        layout.plans[key] = found
    return found


def _make_of(layout: Layout, patterns: list[Pattern]) -> tuple[tuple[str, ...], Make]:
    dtypes = tuple(dict.fromkeys(pattern.dtype for pattern in patterns))
    memories = "".join(f", {dtype}" for dtype in dtypes)
    numbers: dict[str, str] = {}

    def number(form: Form) -> str:
        """A name for a number that is worked out once; a plain one as it is."""
        source = _total(form, [f"u{size}" for size in layout.sizes])
        return source if source.isdigit() else numbers.setdefault(source, f"n{len(numbers)}")

    inside, calls = [], []
    for pattern in patterns:
        offset = number(pattern.offset)
        shape = [str(n) for n in pattern.shape]
        strides = [number(form) for form in pattern.strides]
        steps = [f"{n - 1} * {s}" for n, s in zip(pattern.shape, strides, strict=True) if n > 1]
        last = " + ".join([offset, "rows" if pattern.rows else "1", *steps])
        inside.append(f"({last}) * {ITEMSIZE[pattern.dtype]} <= nbytes")
        if pattern.rows is not None:
            shape, strides = ["rows", *shape], [str(pattern.rows), *strides]
        at = [pattern.dtype, _as_tuple(shape), _as_tuple(strides)]
        calls.append(f"view({', '.join(at if offset == '0' else [*at, offset])})")
    lines = [
        f"lambda rows, nbytes, view{memories}: (",
        *(f"  (u{size} := -(-rows * {size} // {layout.alignment}))," for size in layout.sizes),
        *(f"  ({name} := {source})," for source, name in numbers.items()),
        f"  [{', '.join(calls)}]",
        f"  if {' and '.join(inside) or 'True'}",
        "  else None",
        ")[-1]",
    ]
    return dtypes, _evaluated(lines, {})


def _compiled(layout: Layout, patterns: list[Pattern], padded: bool) -> Plan:
    # One expression instead of a loop over forms, for an event loop meets a new row count in
    # every call, and this is several times faster. Names reach it as `n0`, ...: it is made of
    # integers alone.
    units = [f"u{size}" for size in layout.sizes]
    names: dict[str, Any] = {}
    items = []
    for i, p in enumerate(patterns):
        names[f"n{i}"], names[f"d{i}"] = p.name, p.dtype
        size = ITEMSIZE[p.dtype]
        rows = f"{layout.alignment // size} * u{size}" if padded else "rows"
        items.append(f"    (n{i}, d{i}, {size}, {_source(p, rows, units)}),")
    lines = [
        "lambda capacity, start, rows: (",
        *(f"  (u{size} := -(-capacity * {size} // {layout.alignment}))," for size in layout.sizes),
        "  [",
        *items,
        "  ],",
        ")[-1]",
    ]
    return Plan(_evaluated(lines, names), ())


_made = count()


def _evaluated(lines: list[str], names: dict[str, Any]) -> Any:
    """What these lines are, with names in them; a traceback and a debugger show the line."""
    source, filename = "\n".join(lines), f"<soaview plan {next(_made)}>"
    made = eval(compile(source, filename, "eval"), names)
    linecache.cache[filename] = len(source), None, source.splitlines(keepends=True), filename
    weakref.finalize(made, linecache.cache.pop, filename, None).atexit = False
    return made


def _source(pattern: Pattern, rows: str, units: list[str]) -> str:
    """Shape, strides and offset as source text over `rows`, `start` and the units."""
    shape = [str(n) for n in pattern.shape]
    strides = [_total(form, units) for form in pattern.strides]
    offset = _total(pattern.offset, units)
    if pattern.rows is not None:
        shape, strides = [rows, *shape], [str(pattern.rows), *strides]
    if pattern.rows:
        offset += " + start"
    return f"{_as_tuple(shape)}, {_as_tuple(strides)}, {offset}"


def _total(form: Form, units: list[str]) -> str:
    """A form as source text."""
    constant, *more = form
    terms = [f"{n} * {unit}" for n, unit in zip(more, units, strict=True) if n]
    return " + ".join([*([str(constant)] if constant or not terms else []), *terms])


def _as_tuple(items: list[str]) -> str:
    return f"({', '.join(items)},)" if items else "()"


def _pattern(layout: Layout, name: str, entry: Entry, piecewise: bool) -> Pattern:
    if isinstance(entry, Value):
        column = _field(layout, name, entry.name)
        if column.per_row:
            raise ValueError(
                f"{_at(name)}Value takes a Scalar, but {entry.name!r} is a Column; "
                f"write {entry.name!r}"
            )
        return Pattern(name, column.dtype, None, (), (), _start(layout, column), ())
    columns = [_field(layout, name, c) for c in ((entry,) if isinstance(entry, str) else entry)]
    first = columns[0]
    for other in columns[1:]:
        _check_alike(name, first, other)
    row = int(first.per_row)
    shape, strides = first.shape, _inner(layout, first)
    start = _start(layout, first)
    if isinstance(entry, str):
        return Pattern(name, first.dtype, row, shape, strides, start, ())
    shape = (len(columns), *shape)
    distance = common_distance(layout, columns)
    if distance is None or (piecewise and in_pieces(layout, entry)):
        return Pattern(name, first.dtype, row, shape, (), (), tuple(entry))
    return Pattern(name, first.dtype, row, shape, (distance, *strides), start, ())


def _field(layout: Layout, tensor: str, name: str) -> Column | Scalar:
    try:
        return layout[name]
    except KeyError as error:
        raise KeyError(f"{_at(tensor)}{error.args[0]}") from None


def _at(tensor: str) -> str:
    """How a message about a tensor begins; an array that has no name needs none."""
    return f"tensor {tensor!r}: " if tensor else ""


def _check_alike(tensor: str, one: Column | Scalar, other: Column | Scalar) -> None:
    for what, a, b in (("dtype", one.dtype, other.dtype), ("shape", one.shape, other.shape)):
        if a != b:
            raise ValueError(
                f"{_at(tensor)}its columns need one {what}, but {one.name!r} has {a} and "
                f"{other.name!r} has {b}; take them apart"
            )


def _start(layout: Layout, column: Column | Scalar) -> Form:
    """Of a field's first element."""
    unit = layout.alignment // column.itemsize
    return tuple(unit * n for n in layout.starts[column.name])


def _pitches(layout: Layout, column: Column | Scalar, number: int) -> Form:
    """Of so many pitches of a column."""
    unit = layout.alignment // column.itemsize
    return (0, *(number * unit if size == column.itemsize else 0 for size in layout.sizes))


def _inner(layout: Layout, column: Column | Scalar) -> tuple[Form, ...]:
    """Strides of the axes within one row."""
    if len(column.shape) < 2:
        return tuple(_pitches(layout, column, 1) for _ in column.shape)
    r, c = column.shape
    numbers = (1, r) if column.order == "F" else (c, 1)
    return tuple(_pitches(layout, column, number) for number in numbers)


def common_distance(layout: Layout, columns: Sequence[Column | Scalar]) -> Form | None:
    """From each column to the next; None where it differs, whatever the row count."""
    first = columns[0]
    if len(columns) == 1:
        # Nobody takes this step: a scalar's is 1, a column's the room that it takes.
        one = (1, *(0 for _ in layout.sizes))
        return _pitches(layout, first, first.components) if first.per_row else one
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
    return len({(c.per_row, _inner(layout, c)) for c in columns}) == 1


def in_pieces(layout: Layout, names: tuple[str, ...]) -> bool:
    """Whether the fields lie in more than one run."""
    return len({run_numbers(layout)[name] for name in names}) > 1
