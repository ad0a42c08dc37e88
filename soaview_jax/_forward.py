"""Functions of JAX's, from SoA to SoA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from soaview import SoA, Spec
from soaview._forward import Pairs, pairs, results, work

from ._arrays import arrays, batch
from ._tree import INT32_MAX, x64
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
        fn: any function of arrays that can be traced. Pass the same object again and again: what is
            equal to none before is compiled anew, and kept. Weights go best in a pytree that can be
            called, such as `jax.tree_util.Partial(apply, weights)` or an Equinox module, whose
            arrays are arguments; those that a function has closed over are constants.
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
    ins, outs = pairs("inputs", inputs), pairs("outputs", outputs)
    task = work(ins, outs, batch_size, whole, progress)
    for soa, spec in outs:
        places_of(soa, spec)  # raises
    if task.batched and task.rows > INT32_MAX and not x64():
        raise ValueError(
            f"JAX does not count to {task.rows} rows while 64-bit types are switched off; switch "
            f"them on"
        )
    leaves, tree = jax.tree.flatten(fn)
    dynamic = [leaf if isinstance(leaf, (jax.Array, np.ndarray)) else None for leaf in leaves]
    static = tuple(
        None if leaf is array else leaf for leaf, array in zip(leaves, dynamic, strict=True)
    )
    specs = tuple(spec for _, spec in ins)
    split = tuple(task.split) if task.batched else (False,) * len(ins)
    given = [soa for soa, _ in ins]
    if task.batched:
        given = jax.device_put(given)  # once, and on the CPU it is no copy
    found: Fitting = []
    for rows in task.batches():
        size = rows.stop - rows.start if task.batched else 0
        call = _Call(tree, static, specs, split, size)
        made = _run(call, dynamic, given, rows.start or 0)
        if progress:
            jax.block_until_ready(made)  # type: ignore[no-untyped-call]
        for soa, spec, values in results(made, task.outputs_of(rows)):
            found += fitting(soa, spec, places_of(soa, spec), values)
    store(found)


class _Call(NamedTuple):
    """What a compiled call is compiled for, beside the SoAs' layouts and row counts.

    Attributes:
        tree, static: of the function: what it is as a pytree, without its arrays.
        specs, split: of the inputs.
        size: rows of the batch.
    """

    tree: Any
    static: tuple[Any, ...]
    specs: tuple[Spec, ...]
    split: tuple[bool, ...]
    size: int


@partial(jax.jit, static_argnums=0)
def _run(call: _Call, dynamic: list[Any], soas: list[SoA], start: jax.Array) -> Any:
    both = zip(call.static, dynamic, strict=True)
    fn = jax.tree.unflatten(call.tree, [s if d is None else d for s, d in both])
    given: list[jax.Array] = []
    for soa, spec, split in zip(soas, call.specs, call.split, strict=True):
        given += batch(soa[: call.size], spec, start) if split else arrays(soa, spec)
    return fn(*given)
