"""Functions of JAX's, from SoA to SoA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import jax
import numpy as np

from soaview import SoA, Spec
from soaview._forward import Pairs, check_model, pairs, results, work

from ._arrays import arrays, batch
from ._tree import INT32_MAX, NARROW, x64
from ._write import Fitting, fitting, places_of, store


def forward(
    fn: Callable[..., Any],
    inputs: Pairs,
    outputs: Pairs,
    *,
    batch_size: int | None = None,
    whole: SoA | Sequence[SoA] = (),
    progress: bool = False,
) -> None:
    """Run a function on the columns of SoAs, and write its results into the columns of SoAs.

    The function is compiled by `jax.jit`, together with the cutting of its arrays: for each layout,
    row count and batch size once. It gets the inputs' arrays one by one, in the order of the pairs
    and of their specs. Its results are one array, a tuple or list in the order of the outputs'
    specs, or a dict by the arrays' names. All of them are checked, and waited for, before any is
    written: if it raises, or gives what does not fit, nothing has been written. Outputs without
    rows are done without running the function.

    Args:
        fn: any function of arrays that can be traced. Pass the same object again and again: another
            one is compiled anew. What was compiled goes with a plain function, and is kept of other
            callables. Weights go best in a pytree that can be called, such as
            `jax.tree_util.Partial(apply, weights)` or an Equinox module, whose arrays are
            arguments; what a function has closed over is a constant.
        inputs: a pair `(soa, spec)`, or a list of pairs: SoAs of any row counts, on one device.
        outputs: likewise; writable, on the same device. They may be the inputs themselves.
        batch_size: run on so many rows at a time, the last batch short. Split are the SoAs that
            have as many rows as the outputs, which must agree; the function gets the others whole,
            in every batch. Results of all batches are kept until the end.
        whole: inputs that are not split, whatever their row count is. Name those that have nothing
            to do with the outputs' rows: their counts may be the same by chance.
        progress: show a bar (tqdm), and wait for each batch.

    Raises:
        TypeError, ValueError, KeyError, BufferError: inputs or outputs that do not go together;
            results of another number, name, kind, dtype, shape or device than their columns have;
            a 64-bit dtype while JAX has them switched off.

    >>> from soaview import Column, Layout
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("sum", "float32")])
    >>> soa = layout.pack({"x": [1.0, 2.0], "y": [3.0, 4.0], "sum": [0.0, 0.0]})
    >>> forward(lambda x: x.sum(1), (soa, Spec(x=["x", "y"])), (soa, Spec(sum="sum")), batch_size=1)
    >>> soa["sum"]
    array([4., 6.], dtype=float32)
    """
    check_model(fn)
    ins, outs = pairs("inputs", inputs), pairs("outputs", outputs)
    task = work(ins, outs, batch_size, whole, progress)
    for soa, spec in outs:
        places_of(soa, spec)  # raises
    if task.batched and task.rows > INT32_MAX and not x64():
        raise ValueError(
            f"JAX does not count to {task.rows} rows while 64-bit types are switched off; switch "
            f"them on"
        )
    run, function, weights = _compiled(fn)
    specs = tuple(spec for _, spec in ins)
    split = tuple(task.split) if task.batched else (False,) * len(ins)
    given = [soa for soa, _ in ins]
    if task.batched:
        given = jax.device_put(given)  # once, and on the CPU it is no copy
    found: Fitting = []
    for rows in task.batches():
        size = rows.stop - rows.start if task.batched else 0
        made = run(_Call(function, specs, split, size), weights, given, rows.start)
        if progress:
            jax.block_until_ready(made)  # type: ignore[no-untyped-call]
        for soa, spec, values in results(made, task.outputs_of(rows)):
            found += fitting(soa, spec, places_of(soa, spec), values)
    store(found)


class _Function(NamedTuple):
    """A function without its arrays, as a key of what was compiled.

    Attributes:
        tree, leaves: what it is as a pytree, with None for its arrays.
        kinds: of the leaves, for 1, 1.0 and True are equal, and so are 0.0 and -0.0.
    """

    tree: Any
    leaves: tuple[Any, ...]
    kinds: tuple[tuple[type, str], ...]


class _Call(NamedTuple):
    """What a call is compiled for, beside the SoAs' layouts and row counts.

    Attributes:
        function: None for the one that the compiled call belongs to.
        specs, split: of the inputs.
        size: rows of the batch.
    """

    function: _Function | None
    specs: tuple[Spec, ...]
    split: tuple[bool, ...]
    size: int


_COMPILED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Of plain functions, which take what was compiled for them along when they go."""


def _compiled(fn: Callable[..., Any]) -> tuple[Any, _Function | None, list[Any]]:
    """What runs a function, and what it has to be told of it: its key, and its arrays."""
    if type(fn) is FunctionType:
        run = _COMPILED.get(fn)
        if run is None:
            own = ref(fn)
            run = jax.jit(
                lambda call, weights, soas, start: _run(own(), call, soas, start), static_argnums=0
            )
            _COMPILED[fn] = run
        return run, None, []
    leaves, tree = jax.tree.flatten(fn)
    weights = [leaf if isinstance(leaf, (jax.Array, np.ndarray)) else None for leaf in leaves]
    rest = tuple(
        leaf if weight is None else None for leaf, weight in zip(leaves, weights, strict=True)
    )
    for weight in weights:
        if isinstance(weight, np.ndarray) and weight.dtype.name in NARROW and not x64():
            raise TypeError(
                f"fn holds a NumPy array of {weight.dtype} and shape {weight.shape}, and JAX has "
                f"64-bit types switched off: it would narrow it in silence; convert it first"
            )
    kinds = tuple((type(x), repr(x) if isinstance(x, (float, complex)) else "") for x in rest)
    function = _Function(tree, rest, kinds)
    try:
        hash(function)
    except TypeError as error:
        raise TypeError(
            f"fn cannot be told from others, for what it is made of has no hash ({error}); pass a "
            f"function, or a pytree that can be called"
        ) from error
    return _run_any, function, weights


@partial(jax.jit, static_argnums=0)
def _run_any(call: _Call, weights: list[Any], soas: list[SoA], start: jax.Array) -> Any:
    function = call.function
    assert function is not None
    both = zip(function.leaves, weights, strict=True)
    fn = jax.tree.unflatten(function.tree, [leaf if w is None else w for leaf, w in both])
    return _run(fn, call, soas, start)


def _run(fn: Any, call: _Call, soas: list[SoA], start: jax.Array) -> Any:
    given: list[jax.Array] = []
    for soa, spec, split in zip(soas, call.specs, call.split, strict=True):
        # Where JAX is told not to compile, what it cannot view is copied.
        cut = batch(soa[: call.size], spec, start) if split else arrays(soa, spec, copy=None)
        given += cut
    made = fn(*given)
    for leaf in jax.tree.leaves(made):
        narrow = isinstance(leaf, (np.ndarray, np.generic)) and leaf.dtype.name in NARROW
        if narrow and not x64():
            raise TypeError(
                f"the model gave a NumPy array of {leaf.dtype} and shape {leaf.shape}, and JAX has "
                f"64-bit types switched off: it would narrow it in silence; convert it first"
            )
    return made
