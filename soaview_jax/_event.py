"""Code for event loops: memory of the host that is new in every call, of any row count.

One function is made of the layouts and specs. It hands XLA the runs that the specs need, where they
lie, and writes the results by NumPy. What is rare goes the long way: devices, slices, read-only
outputs, columns without a common distance, SoAs that JAX made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from soaview import Layout, Spec
from soaview.adapter import (
    EVENT_NAMES,
    MOST_OUTPUTS,
    Pair,
    Place,
    Places,
    Run,
    Side,
    array_lines,
    as_tuple,
    columns_of,
    compiled,
    in_order,
    numpy_dtype,
    places,
    results,
    run_numbers,
    runs,
    soa_lines,
    soas_of,
    writable_views,
)

from ._arrays import arrays
from ._callables import FunctionCache
from ._pytree import from_leaves
from ._settings import INT32_MAX, NARROW, is_array, x64
from ._write import matched, store, targets_of

LATER = object()
"""What such a function gives where the long way must do it; nothing has been done then."""


class Event:
    """What is made of the layouts and specs of an event's inputs and outputs.

    Attributes:
        inputs: layouts and specs.
        numbers: of each input, the runs that its spec needs.
        run: a function of `(call, inputs, outputs)`, made by `compiled`.
        calls: what `run` takes for a function, for each as long as it lives.
    """

    def __init__(self, inputs: Sequence[Side], outputs: Sequence[Side], wrapped: bool) -> None:
        self.inputs = inputs
        self.numbers = [_needed(layout, spec) for layout, spec in inputs]
        self.run = _function(inputs, outputs, self.numbers, wrapped)
        self.calls = FunctionCache()

    def given(self, rows: tuple[int, ...], matrices: Sequence[Any]) -> list[jax.Array]:
        """The arrays that a function gets, of traced matrices."""
        found: list[jax.Array] = []
        left = iter(matrices)
        for (layout, spec), numbers, count in zip(self.inputs, self.numbers, rows, strict=True):
            leaves: list[Any] = [None] * len(runs(layout, count))
            for number in numbers:
                leaves[number] = next(left)
            # Where JAX is told not to compile, what it cannot view is copied.
            found += arrays(from_leaves(layout, count, leaves), spec, copy=None)
        return found


def _needed(layout: Layout, spec: Spec) -> list[int]:
    of = run_numbers(layout)
    return sorted({of[name] for entry in spec.values() for name in columns_of(entry)})


def event_of_soas(inputs: Sequence[Side], outputs: Sequence[Side]) -> Event | None:
    """What runs functions on SoAs of these layouts, pairs of `(soa, spec)`.

    Args:
        inputs: whose columns the function gets.
        outputs: whose columns are written.

    Returns:
        None where columns have no single strided view, and of many outputs.

    Raises:
        KeyError, TypeError, ValueError: as `views` and `writable_views`.
    """
    return _event_of(inputs, outputs, True)


def event_of_arrays(inputs: Sequence[Side], outputs: Sequence[Side]) -> Event | None:
    """As `event_of_soas`, for arrays of bytes: pairs of `(array, rows)`."""
    return _event_of(inputs, outputs, False)


def _event_of(inputs: Sequence[Side], outputs: Sequence[Side], wrapped: bool) -> Event | None:
    for layout, spec in outputs:
        writable_views(layout.allocate(1), spec)
    sides = [*inputs, *outputs]
    if len(outputs) > MOST_OUTPUTS:
        return None
    if not all(spec and places(layout, spec) for layout, spec in sides):
        return None
    return Event(inputs, outputs, wrapped)


def _function(
    inputs: Sequence[Side], outputs: Sequence[Side], numbers: list[list[int]], wrapped: bool
) -> Callable[..., Any]:
    sides = [*inputs, *outputs]
    at = [_places(layout, spec, f"_{i}") for i, (layout, spec) in enumerate(sides)]
    ins, outs = range(len(inputs)), range(len(inputs), len(sides))
    names: dict[str, Any] = dict(_NAMES)
    names |= {dtype: numpy_dtype(dtype) for layout, _ in sides for dtype in _dtypes(layout)}
    lines = [f"{''.join(f'side_{i}, ' for i in ins)} = inputs"]
    lines += [f"{''.join(f'side_{i}, ' for i in outs)} = outputs"]
    matrices = []
    for i, (layout, _) in enumerate(sides):
        lines += _memory(i, at[i], wrapped, i in outs)
        if i in ins:
            grouped = runs(layout, 1)
            matrices += [_matrix(layout, grouped[number], i) for number in numbers[i]]
    used = {grouped.dtype for i in ins for grouped in (runs(sides[i][0], 1)[n] for n in numbers[i])}
    if used & NARROW.keys():
        lines.append("if not x64(): return LATER")
    for i in outs:  # the same columns may stand in two of them
        for j in range(outs[0], i):
            lines.append(f"if may_share_memory(root_{i}, root_{j}): return LATER")
    targets = [_target(i, t) for i in outs for t in at[i].tensors]
    values = [f"value_{n}" for n in range(len(targets))]
    arrays_ = [f"array_{n}" for n in range(len(targets))]
    lines += [f"target_{n} = {target}" for n, target in enumerate(targets)]
    rows = as_tuple(f"rows_{i}" for i in ins)
    lines.append(f"made = call({', '.join([rows, *matrices])})")
    if len(values) == 1:
        lines.append(
            f"{values[0]}, = (made,) if isinstance(made, Array) else in_order(made, outputs)"
        )
    else:
        plain = f"type(made) is tuple and len(made) == {len(values)}"
        lines.append(f"{', '.join(values)}, = made if {plain} else in_order(made, outputs)")
    fits = [
        f"is_array({value}) and {value}.shape == target_{n}.shape"
        f" and {value}.dtype == target_{n}.dtype"
        for n, value in enumerate(values)
    ]
    lines.append(f"if not ({' and '.join(fits)}): return misfit(made, outputs)")
    lines += [f"array_{n} = asarray({value})" for n, value in enumerate(values)]
    writable = [f"root_{i}.flags.writeable" for i in outs]
    lines.append(f"if not ({' and '.join(writable)}): return misfit(made, outputs)")
    if len(values) > 1:  # NumPy minds what overlaps, but not what the write before it has changed
        for array in arrays_:
            shared = " or ".join(f"may_share_memory({array}, root_{i})" for i in outs)
            lines.append(f"if {shared}: {array} = {array}.copy()")
    lines += [f"target_{n}[...] = array_{n}" for n in range(len(values))]
    if wrapped:
        names |= {"misfit": _misfit, "in_order": in_order}
    else:

        def soas(given: Any) -> list[Pair]:
            return soas_of("outputs", outputs, list(given))

        names["misfit"] = lambda made, given: _misfit(made, soas(given))
        names["in_order"] = lambda made, given: in_order(made, soas(given))
    return compiled("call, inputs, outputs", lines, names)


def _places(layout: Layout, spec: Spec, suffix: str) -> Places:
    found = places(layout, spec, suffix)
    assert found is not None
    return found


def _dtypes(layout: Layout) -> set[str]:
    return {field.dtype for field in layout.fields}


def _memory(i: int, at: Places, wrapped: bool, written: bool) -> list[str]:
    lines = (soa_lines if wrapped else array_lines)(i, at, _LATER)
    writable = f" and root_{i}.flags.writeable" if written else ""
    return [*lines, f"if not (rows_{i} <= {INT32_MAX}{writable}): {_LATER}"]


_LATER = "return LATER"


def _matrix(layout: Layout, run: Run, i: int) -> str:
    """A run where it lies, for any row count."""
    first = layout[run.names[0]]
    size, unit = first.itemsize, layout.alignment // first.itemsize
    count, width = str(run.shape[0]), str(run.shape[1])
    if run.per_row and run.interleaved:
        count = f"rows_{i}"
    elif run.per_row:
        width = f"{unit} * u{size}_{i}"
    start = " + ".join(
        f"{n * layout.alignment} * {u}" if u else str(n * layout.alignment)
        for n, u in zip(
            layout.starts[first.name], ("", *(f"u{s}_{i}" for s in layout.sizes)), strict=True
        )
        if n
    )
    return f"ndarray(({count}, {width}), {run.dtype}, root_{i}, {start or 0})"


def _target(i: int, t: Place) -> str:
    size = numpy_dtype(t.dtype).itemsize
    steps = as_tuple(f"{size} * {stride}" for stride in t.strides)
    return f"ndarray({t.shape}, {t.dtype}, root_{i}, {size} * {t.offset}, {steps})"


def _misfit(made: Any, outputs: list[Pair]) -> None:
    """Write what can be written all the same, or raise."""
    found = []
    for soa, spec, values in results(made, outputs):
        found += matched(soa, spec, targets_of(soa, spec), values)
    store(found)


_NAMES: dict[str, Any] = {
    **EVENT_NAMES,
    "Array": jax.Array,
    "LATER": LATER,
    "asarray": np.asarray,
    "is_array": is_array,
    "may_share_memory": np.may_share_memory,
    "x64": x64,
}
