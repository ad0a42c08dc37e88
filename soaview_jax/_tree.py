"""The SoA as a pytree: one leaf per run of equal fields; inside `jit`, arrays are cut from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import DictKey
from numpy.typing import NDArray

from soaview import Layout, SoA, View
from soaview._buffer import ITEMSIZE, Buffer, numpy_dtype
from soaview._runs import Run, runs
from soaview._views import Scattered

NARROW = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
"""What JAX makes of the types that it has switched off by default."""


def x64() -> bool:
    """Whether JAX has 64-bit types switched on, here and now."""
    return jax.dtypes.canonicalize_dtype("float64").itemsize == 8


class Leaves(Buffer):
    """Memory of an SoA that JAX made: immutable, and for each run an array of its own.

    Attributes:
        layout, rows: what the leaves were made for.
        leaves: per run, in order, whatever JAX put there: arrays, tracers, shapes alone.
    """

    __slots__ = ("layout", "leaves", "rows")

    piecewise = True
    readonly = True

    def __init__(self, layout: Layout, rows: int, leaves: tuple[Any, ...]) -> None:
        self.layout = layout
        self.rows = rows
        self.owner = self.leaves = leaves
        self.nbytes = layout.nbytes(rows)
        self.imports = {}

    @property
    def root(self) -> NDArray[np.uint8]:  # type: ignore[override]  # elsewhere there is one
        """There is none."""
        raise BufferError(
            "JAX made this SoA: its columns are XLA's, read-only, and not in one buffer. Ways out: "
            "soa[name] reads a column where it lies, copy=None of an adapter copies, and "
            "soaview_jax.write puts its arrays into an SoA of yours"
        )

    wide = root

    @property
    def device(self) -> str:
        """Where the leaves are."""
        if self.traced:
            return "no device: it is traced"
        arrays = [leaf for leaf in self.leaves if isinstance(leaf, jax.Array)]
        names = {device.platform for leaf in arrays for device in leaf.devices()}
        return "+".join(sorted(names)) or "cpu"

    @property
    def traced(self) -> bool:
        """Whether this is the inside of a transformation, where arrays have no values yet."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in self.leaves)

    def find(self, view: View) -> tuple[int, Run]:
        """The run in which a view lies: the last that starts at or before it."""
        for number, run in reversed([*enumerate(runs(self.layout, self.rows))]):
            if run.offset <= view.byte_offset:
                return number, run
        raise AssertionError(view)

    def leaf(self, number: int, run: Run) -> Any:
        """A run's leaf, which must be what the layout says."""
        found = self.leaves[number]
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        where = f"the leaf of {name_of(run)!r}"
        if dtype == jax.dtypes.float0:
            raise TypeError(f"{where} is a gradient, and {run.dtype} has none")
        forms = [
            (run.shape, numpy_dtype(run.dtype)),
            *([_bits(run)] if run.dtype in NARROW else []),
        ]
        if (shape, dtype) in forms:
            return found
        if shape is not None and (shape[-2:], dtype) in forms:
            raise ValueError(
                f"{where} has the leading axes {shape[:-2]}: these are SoAs stacked; jax.vmap, "
                f"lax.map or lax.scan take them one by one"
            )
        if shape is not None and (shape, dtype) in [(form[1:], kind) for form, kind in forms]:
            raise ValueError(
                f"{where} has lost its axis of components, for a single SoA has no axis to map "
                f"over; stack SoAs, jax.tree.map(lambda *x: jnp.stack(x), *soas), or map over what "
                f"arrays gives"
            )
        raise TypeError(
            f"{where} is {dtype} of shape {shape}, but the layout has {run.dtype} of shape "
            f"{run.shape} there; change columns with soaview_jax.update"
        )

    def locate(self, view: View) -> View:
        """The same view over its leaf, where that is an array on the host."""
        number, run = self.find(view)
        found = self.leaf(number, run)
        if isinstance(found, jax.core.Tracer):
            raise TypeError(
                f"tensor {view.name!r}: a traced SoA has no values yet; inside jit, take its "
                f"arrays with soaview_jax.arrays(soa, spec)"
            )
        if isinstance(found, jax.Array):
            devices = found.devices()
            if len(devices) > 1 or {device.platform for device in devices} != {"cpu"}:
                raise BufferError(
                    f"tensor {view.name!r}: the SoA is on {', '.join(sorted(map(str, devices)))}; "
                    f"use it inside jit, "
                    f"or bring it to the host with jax.device_get(soa)"
                )
        elif not isinstance(found, np.ndarray):
            raise TypeError(
                f"tensor {view.name!r}: the SoA has a {type(found).__name__} where its columns "
                f"should be, and no memory"
            )
        host = np.asarray(found).view()
        host.flags.writeable = False
        size = ITEMSIZE[run.dtype]
        return View(
            view.name,
            view.dtype,
            view.itemsize,
            view.shape,
            view.strides,
            view.offset - run.offset // size,
            Buffer(host, host.nbytes, size),
        )


def name_of(run: Run) -> str:
    """A leaf's name in JAX's messages: its field, or its first and last."""
    return run.names[0] if len(run.names) == 1 else f"{run.names[0]}:{run.names[-1]}"


def _bits(run: Run) -> tuple[tuple[int, int], np.dtype[Any]]:
    """Shape and dtype that carry a run's bits past a JAX that would narrow it."""
    components, width = run.shape
    return (components, width * ITEMSIZE[run.dtype] // 4), np.dtype("uint32")


def leaves(soa: SoA) -> tuple[Any, ...]:
    """Per run a matrix (components, padded rows) over the memory itself.

    64-bit runs go as pairs of 32 bits where JAX has those types switched off. A slice, whose
    columns lie apart, goes as a copy of its rows.
    """
    return _flatten(soa)[0]


Aux = tuple[Layout, int]


def _flatten(soa: SoA) -> tuple[tuple[Any, ...], Aux]:
    # This runs in every call of a jitted function.
    kept: Any = soa.ready.get("jax.tree")
    if kept is not None and (kept[0] is None or kept[0] is x64()):
        return kept[1]  # type: ignore[no-any-return]
    buffer, aux = soa.buffer, (soa.layout, soa.rows)
    if soa.rows != soa.capacity:
        return _own_rows(soa), aux
    if isinstance(buffer, Leaves):
        return buffer.leaves, aux
    found, mode = [], None
    for run in runs(*aux):
        shape, dtype = run.shape, numpy_dtype(run.dtype)
        if run.dtype in NARROW:
            mode = x64()
            if not mode:
                shape, dtype = _bits(run)
        found.append(np.ndarray(shape, dtype, buffer.root, run.offset))
    soa.ready["jax.tree"] = mode, (tuple(found), aux)
    return tuple(found), aux


def _own_rows(soa: SoA) -> tuple[Any, ...]:
    whole = SoA(soa.layout, soa.buffer, soa.capacity, 0, soa.capacity)
    targets = leaves(soa.layout.allocate(soa.rows))
    found = []
    for number, run in enumerate(runs(soa.layout, soa.capacity)):
        buffer, target = soa.buffer, targets[number]
        source = buffer.leaf(number, run) if isinstance(buffer, Leaves) else leaves(whole)[number]
        if not soa.layout.field(run.names[0]).per_row:
            found.append(source)
            continue
        words = source.shape[1] // run.shape[1]
        first, last = soa.start * words, (soa.start + soa.rows) * words
        if isinstance(source, np.ndarray):
            target[:, : last - first] = source[:, first:last]
            found.append(target)
        else:
            padding = target.shape[1] - (last - first)
            found.append(jnp.pad(source[:, first:last], ((0, 0), (0, padding))))
    return tuple(found)


def from_leaves(layout: Layout, rows: int, leaves: Iterable[Any]) -> SoA:
    """The SoA whose runs are these."""
    return SoA(layout, Leaves(layout, rows, tuple(leaves)), rows, 0, rows)


def cut(view: View | Scattered) -> jax.Array:
    """The view's array, cut from its leaf: for XLA to fuse into what reads it."""
    if isinstance(view, Scattered):
        return jnp.stack([cut(part) for part in view.parts], axis=1)
    if 0 in view.shape:
        return jnp.zeros(view.shape, view.dtype)
    place = _Place(view)
    components = [lax.slice_in_dim(place.leaf, i, j) for i, j in place.stretches]
    block = components[0] if len(components) == 1 else lax.concatenate(components, 0)
    if not view.shape:
        return block[0, 0]
    rows = view.shape[0] if view.strides[0] else 1
    _check_shards(view, place.leaf, rows)
    block = lax.slice_in_dim(block, place.start, place.start + rows, axis=1)
    found = block.reshape(*(view.shape[axis] for axis in place.axes), rows)
    found = found.transpose(-1, *np.argsort([axis - 1 for axis in place.axes]))
    return jnp.broadcast_to(found, view.shape)


def shards(sharding: jax.sharding.NamedSharding, axis: int) -> int:
    """Into how many parts a sharding cuts an array's axis."""
    names = (*sharding.spec, *[None] * axis, None)[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(sharding.mesh.shape[name] for name in names)


def _check_shards(view: View, leaf: Any, rows: int) -> None:
    """Where a mesh's axes are explicit, JAX cuts a sharded axis into equal parts only."""
    parts = shards(jax.typeof(leaf).sharding, 1)
    if rows % parts:
        raise ValueError(
            f"tensor {view.name!r}: {rows} rows do not split evenly over {parts} devices, as the "
            f"mesh's explicit axes need it; take padded=True and soaview_jax.mask, or a mesh with "
            f"axis_types=(jax.sharding.AxisType.Auto,)"
        )


def put(view: View | Scattered, value: jax.Array, leaves: list[Any]) -> None:
    """Put the value where the view is, in place of the leaf that is there."""
    if isinstance(view, Scattered):
        for number, part in enumerate(view.parts):
            put(part, value[:, number], leaves)
        return
    if 0 in view.shape:
        return
    place = _Place(view)
    block = value.transpose(*place.axes, 0) if view.shape else value.reshape(1, 1)
    block = block.reshape(-1, block.shape[-1])
    done = 0
    for first, last in place.stretches:
        rows = lax.slice_in_dim(block, done, done + last - first)
        leaf = leaves[place.number]
        leaves[place.number] = lax.dynamic_update_slice(leaf, rows, (first, place.start))
        done += last - first


class _Place:
    """Where a view is in its leaf.

    Attributes:
        number: of the leaf.
        leaf: a matrix (components, padded rows).
        start: its first row.
        axes: the view's axes within one row, from the one with the longest step to the shortest.
        stretches: (first, last + 1) of components that follow each other, in the order of `axes`.
    """

    def __init__(self, view: View) -> None:
        assert isinstance(view.buffer, Leaves)
        self.number, run = view.buffer.find(view)
        self.leaf = view.buffer.leaf(self.number, run)
        if self.leaf.dtype != view.dtype:
            raise TypeError(
                f"tensor {view.name!r} is {view.dtype}, and its SoA was passed to JAX while 64-bit "
                f"types were switched off; switch them on before that"
            )
        width = run.shape[1]
        first, self.start = divmod(view.offset - run.offset // view.itemsize, width)
        self.axes = sorted(range(1, len(view.shape)), key=lambda axis: -view.strides[axis])
        numbers = np.array([first])
        for axis in self.axes:
            steps = np.arange(view.shape[axis]) * (view.strides[axis] // width)
            numbers = np.add.outer(numbers, steps).ravel()
        ends = [i for i, (a, b) in enumerate(pairwise(numbers), 1) if b != a + 1]
        self.stretches = [
            (int(part[0]), int(part[-1]) + 1) for part in np.split(numbers, ends) if part.size
        ]


def _flatten_with_keys(soa: SoA) -> tuple[list[tuple[DictKey, Any]], Aux]:
    found, aux = _flatten(soa)
    keys = [DictKey(name_of(run)) for run in runs(*aux)]
    return list(zip(keys, found, strict=True)), aux


def _unflatten(aux: Aux, children: Iterable[Any]) -> SoA:
    return from_leaves(*aux, children)


def _to_bytes(aux: Aux) -> bytes:
    return json.dumps({"layout": aux[0].to_dict(), "rows": aux[1]}).encode()


def _from_bytes(data: bytes | bytearray) -> Aux:
    found = json.loads(data)
    return Layout.from_dict(found["layout"]), found["rows"]


jax.tree_util.register_pytree_with_keys(SoA, _flatten_with_keys, _unflatten, _flatten)
jax.export.register_pytree_node_serialization(
    SoA,
    serialized_name="soaview.SoA",
    serialize_auxdata=_to_bytes,
    deserialize_auxdata=_from_bytes,
)
