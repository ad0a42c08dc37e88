"""What a spec compiles to: functions of the rows that are made of integers alone.

It is the only generated code.
"""

from __future__ import annotations

import linecache
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from ._bound import BoundFields
from ._dtypes import ITEMSIZE
from ._resolve import Form, Pattern, resolved
from ._spec import Spec

if TYPE_CHECKING:
    from ._layout import Layout
    from ._strided import Numbers


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Plan:
    """A spec compiled for a layout.

    Attributes:
        numbers: the tensors' `Strided`s as plain tuples, from capacity, start and rows; of a plan
            with gathers none.
        gathers: the tensors that have no single strided view, with their places in the spec.
        allocations: in which of a bound SoA's each tensor is.
    """

    numbers: Callable[[int, int, int], list[Numbers]]
    gathers: tuple[tuple[int, Pattern], ...]
    allocations: tuple[int, ...]


def plan_of(layout: Layout | BoundFields, spec: Spec, padded: bool, piecewise: bool) -> Plan:
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
        patterns = [resolved(layout, name, entry, piecewise) for name, entry in spec.items()]
        gathers = tuple((i, p) for i, p in enumerate(patterns) if p.columns)
        # Beside gathers the others are planned on their own, where they are wanted.
        plan = Plan(_none, gathers, ()) if gathers else _compiled(layout, patterns, padded)
        layout.plans[key] = plan
    return plan


def _none(capacity: int, start: int, rows: int) -> list[Numbers]:
    return []


class Place(NamedTuple):
    """A tensor in memory, as text: dtype, shape, strides and offset, in elements.

    Of bound columns `allocation` is the number of theirs.
    """

    dtype: str
    shape: str
    strides: tuple[str, ...]
    offset: str
    allocation: int = 0


class Places(NamedTuple):
    """A spec's tensors over memory of any row count, as source text: see `places`.

    Attributes:
        lines: assignments that work out numbers from `rows`, an integer that is no less than 1.
        nbytes: an expression, how many bytes the layout takes; of bound columns empty.
        inside: an expression, whether every element lies in `nbytes` bytes: the gate. Of bound
            columns it speaks of `nbytes_0`, `nbytes_1` and so on, those of the allocations.
        tensors: where they are, by what the lines have assigned.
    """

    lines: list[str]
    nbytes: str
    inside: str
    tensors: list[Place]


def places(
    layout: Layout | BoundFields, spec: Spec, suffix: str = "", *, bound: bool = False
) -> Places | None:
    """Where a spec's tensors are, as text of which an adapter makes one function for an event loop.

    Every event has another row count, and a loop over forms, or many small functions, takes several
    times as long as a function that is made of their integers.

    Args:
        layout: the fields.
        spec: the tensors.
        suffix: at the end of every variable, so that one function may hold several.
        bound: whether bound columns will do.

    Returns:
        None where a tensor has no single strided view, or columns are bound and will not do. Else
        text that is made of integers, `rows`,
        `nbytes`, and variables of its own.

    Raises:
        KeyError, ValueError: as `views`.

    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("pt", "float32"), Column("eta", "float32")])
    >>> found = places(layout, Spec(x=["pt", "eta"], eta="eta"))
    >>> found.lines, found.nbytes
    (['u4 = -(-rows * 4 // 128)', 'n0 = 32 * u4'], '128 * (2 * u4)')
    >>> found.inside
    '(0 + rows + 1 * n0) * 4 <= nbytes and (n0 + rows) * 4 <= nbytes'
    >>> found.tensors[0]
    Place(dtype='float32', shape='(rows, 2,)', strides=('1', 'n0'), offset='0', allocation=0)
    """
    patterns = [resolved(layout, name, entry, False) for name, entry in spec.items()]
    anywhere = isinstance(layout, BoundFields)
    if any(pattern.columns for pattern in patterns) or (anywhere and not bound):
        return None
    units = [f"u{size}{suffix}" for size in layout.sizes]
    rows, nbytes, numbers = f"rows{suffix}", f"nbytes{suffix}", dict[str, str]()

    def number(form: Form) -> str:
        """A name for a number that is worked out once; a plain one as it is."""
        source = _total(form, units)
        name = f"n{len(numbers)}{suffix}"
        return source if source.isdigit() else numbers.setdefault(source, name)

    inside, tensors = [], []
    for pattern in patterns:
        offset = number(pattern.offset)
        shape = [str(n) for n in pattern.shape]
        strides = [number(form) for form in pattern.strides]
        steps = [f"{n - 1} * {s}" for n, s in zip(pattern.shape, strides, strict=True) if n > 1]
        step = pattern.rows or 0
        row = rows if step == 1 else f"{step} * {rows} - {step - 1}" if step else "1"
        last = " + ".join([offset, row, *steps])
        most = f"nbytes_{pattern.allocation}{suffix}" if anywhere else nbytes
        inside.append(f"({last}) * {ITEMSIZE[pattern.dtype]} <= {most}")
        if pattern.rows is not None:
            shape, strides = [rows, *shape], [str(pattern.rows), *strides]
        tensors.append(
            Place(pattern.dtype, as_tuple(shape), tuple(strides), offset, pattern.allocation)
        )
    up = zip(units, layout.sizes, strict=True)
    lines = [
        *(f"{unit} = -(-{rows} * {size} // {layout.alignment})" for unit, size in up),
        *(f"{name} = {source}" for source, name in numbers.items()),
    ]
    end = () if isinstance(layout, BoundFields) else layout.end
    whole = f"{layout.alignment} * ({_total(end, units)})" if end else ""
    return Places(lines, whole, " and ".join(inside) or "True", tensors)


def _compiled(layout: Layout | BoundFields, patterns: list[Pattern], padded: bool) -> Plan:
    # One expression instead of a loop over forms, for an event loop meets a new row count in
    # every call, and this is several times faster. Names reach it as `n0`, ...: it is made of
    # integers alone.
    units = [f"u{size}" for size in layout.sizes]
    names: dict[str, Any] = {}
    items = []
    for i, p in enumerate(patterns):
        names[f"n{i}"], names[f"d{i}"] = p.name, p.dtype
        size = ITEMSIZE[p.dtype]
        has_more = padded and not p.interleaved
        rows = f"{layout.alignment // size} * u{size}" if has_more else "rows"
        items.append(f"    (n{i}, d{i}, {size}, {_source(p, rows, units)}),")
    lines = [
        *(f"u{size} = -(-capacity * {size} // {layout.alignment})" for size in layout.sizes),
        "return [",
        *items,
        "]",
    ]
    run = compiled("capacity, start, rows", lines, names)
    return Plan(run, (), tuple([p.allocation for p in patterns]))


_made = count()


def compiled(arguments: str, lines: list[str], names: dict[str, Any]) -> Callable[..., Any]:
    """A function of these lines; a traceback and a debugger show them.

    Args:
        arguments: theirs.
        lines: what it does: text of the program's own, never of what somebody passes to it.
        names: what they mean beside that.

    >>> compiled("rows", ["return 2 * rows"], {})(3)
    6
    """
    filename = f"<soaview plan {next(_made)}>"
    source = "\n".join([f"def run({arguments}):", *(f"    {line}" for line in lines)]) + "\n"
    names = dict(names)
    exec(compile(source, filename, "exec"), names)
    made: Callable[..., Any] = names.pop("run")
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
        offset += " + start" if pattern.rows == 1 else f" + {pattern.rows} * start"
    return f"{as_tuple(shape)}, {as_tuple(strides)}, {offset}"


def _total(form: Form, units: list[str]) -> str:
    """A form as source text."""
    constant, *more = form
    terms = [f"{n} * {unit}" for n, unit in zip(more, units, strict=True) if n]
    return " + ".join([*([str(constant)] if constant or not terms else []), *terms])


def as_tuple(items: Iterable[str]) -> str:
    """Expressions as one of a tuple.

    >>> as_tuple(["rows", "2"]), as_tuple([])
    ('(rows, 2,)', '()')
    """
    items = list(items)
    return f"({', '.join(items)},)" if items else "()"
