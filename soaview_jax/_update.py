"""Columns of an SoA replaced: what `write` is, inside of `jit`."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from soaview import SoA, Spec
from soaview.adapter import check_given, columns_of, run_numbers, tensor_labels, views_or_gathers

from ._arrays import check_width
from ._extract import insert
from ._leaves import Leaves
from ._pytree import in_leaves
from ._settings import is_array, x64
from ._write import check_array


def update(soa: SoA, spec: Spec, arrays: Sequence[jax.Array]) -> SoA:
    """The SoA with the spec's columns replaced, for the inside of `jit`: nothing is written.

    What comes out of `jit` is an SoA like any other, but immutable: its columns are XLA's. Where a
    jitted function is given such an SoA in `donate_argnums`, the columns change in place. Memory of
    yours is never changed: on the host it is left alone, on a GPU XLA refuses the donation. Outside
    of `jit` all columns are copied first, also those of an SoA that JAX made, which may lie over
    memory of yours; what comes out is finished. A slice of your memory gives an SoA of its rows
    alone.

    Padding is zero in the leaves that change, outside of `jit` in all of them: no NaN is there that
    is no value. The other leaves keep what somebody wrote there, and `jax.tree.map` and
    `jax.debug_nans` take it for values.

    Args:
        soa: any, traced or not.
        spec: which columns each array replaces; a scalar is replaced as `Value(name)`.
        arrays: in spec order, with the shapes and dtypes that `arrays` gives; outside of `jit` they
            are brought to the SoA's device.

    Raises:
        TypeError, ValueError: an array of another kind, dtype or shape; a column that would be
            replaced twice; a 64-bit dtype while JAX has them switched off.

    >>> from soaview import Column, Layout, Spec
    >>> from soaview_jax import arrays
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32")])
    >>> @jax.jit
    ... def double(soa):
    ...     [x] = arrays(soa, Spec(x="x"))
    ...     return update(soa, Spec(y="y"), [2 * x])
    >>> soa = double(layout.pack({"x": [1.0, 2.0], "y": [0.0, 0.0]}))
    >>> soa
    SoA(2 rows, 256 bytes on cpu, read-only: x float32, y float32)
    >>> jax.device_get(soa)["y"]
    array([2., 4.], dtype=float32)
    """
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list in spec order, got {type(arrays).__name__}")
    views_or_gathers(soa, spec)  # raises on what is no SoA, or no spec of it
    if not isinstance(soa.buffer, Leaves):
        soa = in_leaves(soa)
    old = soa.buffer
    assert isinstance(old, Leaves)
    found = views_or_gathers(soa, spec)
    if not x64():
        for view in found:
            check_width(view)
    for where, array in zip(tensor_labels(spec, arrays), arrays, strict=True):
        check_array(where, array)
    given = [(array.shape, array.dtype.name, soa.device) for array in arrays]
    check_given(soa, spec, found, given)
    made = list(old.leaves) if old.traced else old.copies()
    devices = {d for leaf in made if is_array(leaf) for d in leaf.devices()}
    for view, array in zip(found, arrays, strict=True):
        if len(devices) == 1 and is_array(array) and array.devices() != devices:
            array = jax.device_put(array, *devices)
        insert(view, array, made)
    if old.traced:  # afterwards, or else XLA copies the leaf instead of changing it in place
        numbers, entries = run_numbers(soa.layout), zip(found, spec.values(), strict=True)
        names = [name for view, at in entries if 0 not in view.shape for name in columns_of(at)]
        for number in {numbers[name] for name in names}:
            made[number] = old.without_padding(number, made[number])
    if not old.traced:  # what is made of memory is finished before somebody writes that
        for leaf in made:
            if is_array(leaf):
                leaf.block_until_ready()
    return SoA(
        soa.layout,
        Leaves(soa.layout, soa.capacity, tuple(made)),
        soa.capacity,
        soa.start,
        soa.rows,
    )
