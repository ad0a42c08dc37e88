"""Functions of JAX's, from SoA to SoA."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from soaview import Spec, Value
from soaview.adapter import (
    BatchSize,
    Matches,
    Pair,
    Pairs,
    Target,
    Work,
    check_dtype,
    check_model,
    event_for,
    events_for,
    pairs,
    results,
    views_or_gathers,
    work,
)

from ._arrays import arrays, batch, check_width
from ._callables import Function, FunctionCache, split_arrays
from ._compiling import MOST, by_first, jitted
from ._event import LATER, Event, event_of_soas
from ._row_wise import capacity_of, check_row_wise, check_same, padded
from ._settings import INT32_MAX, NARROW, not_compiling, x64
from ._write import Part, matched, store, targets_of


def forward(
    fn: Callable[..., Any],
    inputs: Pairs,
    outputs: Pairs,
    *,
    batch_size: BatchSize = None,
    dtype: Any = None,
    row_wise: bool | Literal["verify"] = False,
    progress: bool = False,
) -> None:
    """Run a function on the columns of SoAs, and write its results into the columns of SoAs.

    The function is compiled by `jax.jit`, together with the taking of its arrays: for each layout,
    row count and batch size once. It gets the inputs' arrays one by one, in the order of the pairs
    and of their specs. Its results are one array, a tuple or list in the order of the outputs'
    specs, or a dict by the arrays' names. All of them are checked, and waited for, before any is
    written: if it raises, or gives what does not fit, nothing has been written. Outputs without
    rows are done without running the function.

    Args:
        fn: any function of arrays that can be traced. Pass the same object again and again: another
            one, though it is equal, is compiled anew. What was compiled goes with it. Weights go
            best in a pytree that can be called, such as `jax.tree_util.Partial(apply, weights)` or
            an Equinox module: its arrays are arguments, what was compiled is kept, and found again
            for the same functions and numbers in it. What a function has closed over, and what any
            other object or bound method holds, is a constant of the time when it was compiled.
        inputs: a pair `(soa, spec)`, or a list of pairs: SoAs of any row counts, on one device.
        outputs: likewise; writable, on the same device. They may be the inputs themselves.
        batch_size: run on so many rows at a time, the last batch short; results of all batches are
            kept until the end. Of several SoAs a list says for each pair how many of its rows a
            batch has, and None where the function gets all of them in every batch: `[256, None]`.
            Pairs of one SoA have the same size, and all make as many batches. Outputs are split as
            the input that they are, or else as the first one that is split.
        dtype: convert inputs of floating dtypes to this one, and floating results to the dtypes of
            their columns; integers, bools and complex numbers are left as they are, and so are the
            function's weights. Without it nothing is converted.
        row_wise: your word that the function works out each row from that row alone. Then it is
            compiled for capacities, powers of two from 256 on, and not for each row count: the rows
            of the inputs' arrays are copied into one, followed by zeros, and of the results the
            first rows are written. A function that looks along the rows (a sum, a mean, a softmax
            or a normalization over them) sees the zeros, and must not be used so: `"verify"` runs
            it twice, in two capacities with other rows beyond yours, and compares, in each call.
            For SoAs on the host, of one row count.
        progress: show a bar (tqdm), and wait for each batch.

    Raises:
        TypeError, ValueError, KeyError, BufferError: inputs or outputs that do not go together;
            results of another number, name, kind, dtype, shape or device than their columns have;
            a 64-bit dtype while JAX has them switched off; with `row_wise`, SoAs of other row
            counts, or a function that does not treat each row alone, where that is looked for.

    >>> from soaview import Column, Layout
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("sum", "float32")])
    >>> soa = layout.pack({"x": [1.0, 2.0], "y": [3.0, 4.0], "sum": [0.0, 0.0]})
    >>> forward(lambda x: x.sum(1), (soa, Spec(x=["x", "y"])), (soa, Spec(sum="sum")), batch_size=1)
    >>> soa["sum"]
    array([4., 6.], dtype=float32)
    """
    plain = batch_size is dtype is None and row_wise is progress is False and callable(fn)
    if plain and _at_once(fn, inputs, outputs):
        return
    check_model(fn)
    ins, outs = pairs("inputs", inputs), pairs("outputs", outputs)
    cast = check_dtype(dtype)
    task = work(ins, outs, batch_size, progress)
    if plain and len(ins) + len(outs) > 2:
        sides = [[(soa.layout, spec) for soa, spec in side] for side in (ins, outs)]
        event = events_for("jax.event", event_of_soas, *sides)
        if event is not None and event.run(call_of(fn, event), ins, outs) is not LATER:
            return
    for soa, spec in outs:
        targets_of(soa, spec)  # raises
    if not x64():
        _check_narrow(task, cast)
    check_row_wise(row_wise, task)
    compiled, function, weights = _compiled(fn)
    run = compiled.run
    specs = tuple(spec for _, spec in ins)
    given = [soa for soa, _ in ins]
    if task.batched and not row_wise:
        given = jax.device_put(given)  # once, and on the CPU it is no copy
    capacity = capacity_of(min(task.size, outs[0][0].rows)) if row_wise else None
    found: Matches[Part] = []
    for number in task.batches():
        ins, outs = task.inputs_of(number), task.outputs_of(number)
        if capacity is None:
            parts = task.rows_of(number)
            sizes = tuple(None if rows is None else rows.stop - rows.start for rows in parts)
            starts = [None if rows is None else rows.start for rows in parts]
            made = run(_Call(function, specs, sizes, cast), weights, given, starts)
        else:
            call = _Call(function, specs, None, cast)
            made = run(call, weights, padded(ins, capacity), [])
        if progress:
            jax.block_until_ready(made)  # type: ignore[no-untyped-call]
        fits = _fits(made, outs, cast, capacity)
        if capacity is not None and row_wise == "verify":
            again = run(call, weights, padded(ins, 2 * capacity, extreme=True), [])
            check_same(outs, fits, _fits(again, outs, cast, 2 * capacity))
        found += fits
    store(found)


def _at_once(fn: Any, inputs: Any, outputs: Any) -> bool:
    """Whether the function that is made of the layouts and specs has done all of it."""
    event = event_for("jax.event", event_of_soas, inputs, outputs)
    return event is not None and event.run(call_of(fn, event), (inputs,), (outputs,)) is not LATER


def call_of(fn: Any, event: Event) -> Callable[..., Any]:
    """The function on an event's rows and matrices, which is compiled for each row count."""
    call: Callable[..., Any] | None = event.calls.get(fn)
    if call is not None:
        return call
    compiled, function, weights = _compiled(fn)
    if function is not None:
        run = compiled.run
        return lambda rows, *given: run(_EventCall(function, event, rows), weights, given, None)
    return event.calls.make(fn, lambda own: _by_rows(own, event))  # type: ignore[no-any-return]


def _by_rows(own: Callable[[], Any], event: Event) -> Callable[..., Any]:
    """A jitted function for each row count, which takes less than one with static arguments."""
    known: dict[tuple[int, ...], Callable[..., Any]] = {}

    def call(rows: tuple[int, ...], *given: Any) -> Any:
        if not_compiling():
            return _called(own(), event.given(rows, given))
        run = known.get(rows)
        if run is None:
            if len(known) >= MOST:
                known.clear()
            run = jitted(lambda *given: _called(own(), event.given(rows, given)), *given)
            run = known.setdefault(rows, run)
        return run(*given)

    return call


def _fits(made: Any, outs: list[Pair], cast: str | None, capacity: int | None) -> Matches[Part]:
    """What the function gave, with where it is written, if all of it fits."""
    found: Matches[Part] = []
    for soa, spec, values in results(made, outs):
        targets = targets_of(soa, spec)
        if cast is not None:
            values = list(map(_cast, values, targets))
        found += matched(soa, spec, targets, values, capacity)
    return found


def _check_narrow(task: Work, cast: str | None) -> None:
    """Raise for what JAX does not do while 64-bit types are switched off."""
    if task.batched:
        for (soa, _), size in zip(task.inputs, task.split, strict=True):
            if size is not None and soa.rows > INT32_MAX:
                raise ValueError(
                    f"JAX does not count to {soa.rows} rows while 64-bit types are switched off; "
                    f"switch them on"
                )
    if cast is not None:
        if cast in NARROW:
            raise TypeError(
                f"dtype= is {cast}, and JAX has 64-bit types switched off: it would narrow it in "
                f"silence; switch them on"
            )
        for soa, spec in task.outputs:
            for view in views_or_gathers(soa, spec):
                check_width(view)


def _cast(value: Any, target: Target[Part]) -> Any:
    """The value in the target's dtype, if both are floating; any other is for `match` to judge."""
    dtypes = (value.dtype, target.dtype) if isinstance(value, jax.Array) else (bool,)
    floating = all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes)
    return value.astype(target.dtype) if floating else value


class _Call(NamedTuple):
    """What a call is compiled for, beside the SoAs' layouts and row counts.

    Attributes:
        function: None for the one that the compiled call belongs to.
        specs: of the inputs.
        sizes: of the inputs, the rows of the batch, None where they go whole; None where the inputs
            are not SoAs, but arrays that have the rows last.
        cast: what floating inputs are converted to.
    """

    function: Function | None
    specs: tuple[Spec, ...]
    sizes: tuple[int | None, ...] | None
    cast: str | None


class _EventCall(NamedTuple):
    """What a call on an event's matrices is compiled for; `rows` of each input."""

    function: Function | None
    event: Event
    rows: tuple[int, ...]


_COMPILED = FunctionCache()
"""Of functions that are no pytrees."""


class _Compiled:
    """A function that `jax.jit` compiles.

    Attributes:
        own: gives the function back.
        run: it, on whole SoAs.
    """

    def __init__(self, own: Callable[[], Any], run: Callable[..., Any] | None = None) -> None:
        self.own = own
        self.run = by_first(run or (lambda call, _, soas, starts: _run(own(), call, soas, starts)))


def _compiled(fn: Callable[..., Any]) -> tuple[_Compiled, Function | None, list[Any]]:
    """What runs a function, and what it has to be told of it: its key, and its arrays."""
    found: _Compiled | None = _COMPILED.get(fn)
    if found is not None:
        return found, None, []
    leaves, tree = jax.tree.flatten(fn)
    for leaf in leaves:
        narrow = isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.name in NARROW
        if narrow and not x64():
            shape = f" and shape {leaf.shape}" if isinstance(leaf, np.ndarray) else ""
            raise TypeError(
                f"fn holds a NumPy {'array' if shape else 'number'} of {leaf.dtype}{shape}, and "
                f"JAX has 64-bit types switched off: it would narrow it in silence; convert it "
                f"first"
            )
    try:
        if leaves and leaves[0] is fn:
            hash(fn)
            return _COMPILED.make(fn, _Compiled), None, []
        return _any(), *split_arrays(tree, leaves)
    except TypeError as error:
        raise TypeError(
            f"fn cannot be told from others, for what it is made of has no hash ({error}); pass a "
            f"function, or a pytree that can be called"
        ) from error


@cache
def _any() -> _Compiled:
    """Any function that is a pytree."""
    return _Compiled(lambda: None, _run_any)


def _run_any(call: _Call | _EventCall, weights: list[Any], soas: Any, starts: Any) -> Any:
    function = call.function
    assert function is not None
    return _run(function.whole(weights), call, soas, starts)


def _run(fn: Any, call: _Call | _EventCall, soas: Any, starts: Any) -> Any:
    given: list[jax.Array] = []
    if isinstance(call, _EventCall):
        given = call.event.given(call.rows, soas)
    elif call.sizes is None:
        entries = [entry for spec in call.specs for entry in spec.values()]
        for array, entry in zip(soas, entries, strict=True):
            given.append(array if isinstance(entry, Value) else jnp.moveaxis(array, -1, 0))
    else:
        for soa, spec, size, start in zip(soas, call.specs, call.sizes, starts, strict=True):
            # Where JAX is told not to compile, what it cannot view is copied.
            whole = size is None
            given += arrays(soa, spec, copy=None) if whole else batch(soa[:size], spec, start)
    if isinstance(call, _Call) and call.cast is not None:
        given = [x.astype(call.cast) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in given]
    return _called(fn, given)


_LEAVES = jax.Array, np.ndarray, np.generic, bool, int, float, complex


def _called(fn: Any, given: list[jax.Array]) -> Any:
    made = fn(*given)
    for leaf in jax.tree.leaves(made):
        if not isinstance(leaf, _LEAVES):
            raise TypeError(
                f"the model gave {type(leaf).__name__}, expected arrays: one, a tuple or list in "
                f"the order of the specs, or a dict by the arrays' names"
            )
        if isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.name in NARROW and not x64():
            raise TypeError(
                f"the model gave a NumPy array of {leaf.dtype} and shape {leaf.shape}, and JAX has "
                f"64-bit types switched off: it would narrow it in silence; convert it first"
            )
    return made
