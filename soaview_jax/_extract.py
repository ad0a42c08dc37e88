"""Arrays read from the leaves of an SoA, and put into them, for XLA to fuse."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from soaview import View
from soaview.adapter import Gather

from ._leaves import Leaves
from ._settings import INT32_MAX, as_it_is, x64


@as_it_is()
def extract(view: View | Gather, start: jax.Array | None = None) -> jax.Array:
    """The view's array, taken from its leaf: for XLA to fuse into what reads it.

    Its rows begin where the view's do, or at a traced `start`.
    """
    if 0 in view.shape:
        return jnp.zeros(view.shape, view.dtype_name, device=_device_of(view))
    if isinstance(view, Gather) and not view.stacked:
        return extract(view.parts[0], start).astype(view.dtype_name)
    found = []
    for span in _spans(view):
        axes, numbers = span.in_memory()
        _check_shards(view, span)
        leaf, first, end = span.leaf, span.start, span.start + span.rows
        if start is not None and span.per_row:
            # Before the columns are chosen, so that a batch costs no more than its own rows.
            leaf = lax.dynamic_slice_in_dim(leaf, start, span.rows, axis=1)
            first, end = 0, span.rows
        steps = {int(step) for step in np.diff(numbers)} or {1}
        if len(steps) == 1 and min(steps) > 0:
            # At once, so that nobody meets what lies between.
            last = int(numbers[-1]) + 1
            matrix = lax.slice(leaf, (int(numbers[0]), first), (last, end), (*steps, 1))
        else:
            matrix = lax.slice_in_dim(leaf, first, end, axis=1)
            matrix = matrix.at[numbers].get(mode="promise_in_bounds")
        matrix = matrix.reshape(*(span.components.shape[axis] for axis in axes), span.rows)
        found.append(matrix.transpose(-1, *np.argsort(axes)))
    if isinstance(view, View):
        one = found[0]
        return jnp.broadcast_to(one, view.shape) if span.has_rows else one.reshape(view.shape)
    found = [f.astype(view.dtype_name) for f in found] if view.converted else found
    return jnp.concatenate([jnp.broadcast_to(f, (view.shape[0], *f.shape[1:])) for f in found], 1)


@as_it_is()
def insert(view: View | Gather, value: jax.Array, leaves: list[Any]) -> None:
    """Put the value where the view is, in place of the leaf that is there."""
    if 0 in view.shape:
        return
    done = 0
    for span in _spans(view):
        value = value if span.has_rows else value[None]
        part = value
        if isinstance(view, Gather):
            part = value[:, done : done + len(span.components)]
            done += len(span.components)
        axes, numbers = span.in_memory()
        matrix = part.transpose(*(axis + 1 for axis in axes), 0).reshape(-1, span.rows)
        order = np.argsort(numbers)
        if (np.diff(order) != 1).any():
            matrix, numbers = matrix.at[order].get(mode="promise_in_bounds"), numbers[order]
        first = 0
        for stretch in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            rows = lax.slice_in_dim(matrix, first, first + len(stretch))
            first += len(stretch)
            at = (int(stretch[0]), span.start)
            if span.turned:
                rows, at = rows.T, at[::-1]
            leaves[span.number] = lax.dynamic_update_slice(leaves[span.number], rows, at)


class _Span(NamedTuple):
    """Where a view, or neighbouring columns of it, are: in one leaf.

    Attributes:
        number: of the leaf.
        leaf: a matrix (components, padded rows).
        turned: whether that is its transpose, as the rows of what is interleaved come first.
        start, rows: the first one, and how many; a scalar has one.
        per_row: whether it is no scalar.
        has_rows: whether the view has an axis of rows; the value of a scalar has none.
        components: their numbers, in the shape of one row's element.
    """

    number: int
    leaf: Any
    turned: bool
    start: int
    rows: int
    per_row: bool
    has_rows: bool
    components: NDArray[np.int64]

    def in_memory(self) -> tuple[list[int], NDArray[np.int64]]:
        """The axes of `components`, longest step first, and the numbers in that order."""
        found = self.components
        reach = [
            abs(found.take(-1, axis) - found.take(0, axis)).max() for axis in range(found.ndim)
        ]
        axes = sorted(range(found.ndim), key=lambda axis: -reach[axis])
        return axes, found.transpose(axes).ravel()


def _device_of(view: View | Gather) -> jax.Device | None:
    """The one device that the view's SoA is on; None where it is traced, or on several."""
    buffer = (view if isinstance(view, View) else view.parts[0]).buffer
    assert isinstance(buffer, Leaves)
    arrays = [leaf for leaf in buffer.leaves if isinstance(leaf, jax.Array)]
    devices = set() if buffer.traced else {d for leaf in arrays for d in leaf.devices()}
    return devices.pop() if len(devices) == 1 else None


def _spans(view: View | Gather) -> list[_Span]:
    if isinstance(view, View):
        return [_span(view)]
    found = []
    parts = [_span(part) for part in view.parts]
    for _, group in groupby(parts, lambda span: span.number):
        spans = list(group)
        components = np.stack([span.components for span in spans])
        found.append(spans[0]._replace(components=components))
    return found


def _span(view: View) -> _Span:
    assert isinstance(view.buffer, Leaves)
    number, run = view.buffer.find(view.strided)
    leaf = view.buffer.leaf(number)
    if leaf.dtype != view.dtype_name:
        raise TypeError(
            f"tensor {view.name!r} is {view.dtype_name}, and its SoA was passed to JAX while "
            f"64-bit types were switched off; switch them on before that"
        )
    width = run.shape[1]
    first, start = divmod(view.offset - run.offset // view.itemsize, width)
    if run.interleaved:
        leaf, first, start = leaf.T, start, first
    has_rows = run.per_row or view.strides[:1] == (0,)
    rows = view.shape[0] if run.per_row else 1
    if start + rows > INT32_MAX and not x64():
        raise ValueError(
            f"tensor {view.name!r}: JAX does not count to row {start + rows} while 64-bit types "
            f"are switched off; switch them on"
        )
    components = np.full((), first)
    unit = 1 if run.interleaved else width
    for length, step in zip(view.shape[has_rows:], view.strides[has_rows:], strict=True):
        components = np.add.outer(components, np.arange(length) * (step // unit))
    return _Span(number, leaf, run.interleaved, start, rows, run.per_row, has_rows, components)


def shards(sharding: jax.sharding.NamedSharding, axis: int) -> int:
    """Into how many parts a sharding cuts an array's axis."""
    names = (*sharding.spec, *[None] * axis, None)[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(sharding.mesh.shape[name] for name in names)


def _check_shards(view: View | Gather, span: _Span) -> None:
    """Where a mesh's axes are explicit, JAX cuts a sharded axis into equal parts only."""
    parts = shards(jax.typeof(span.leaf).sharding, 1)
    if span.rows % parts:
        even = -(-span.rows // parts) * parts
        raise ValueError(
            f"tensor {view.name!r}: {span.rows} rows do not split evenly over {parts} devices, as "
            f"the mesh's explicit axes need it; lay the SoA out for {even} rows and use "
            f"soaview_jax.mask, or make the mesh with axis_types=(jax.sharding.AxisType.Auto,)"
        )
