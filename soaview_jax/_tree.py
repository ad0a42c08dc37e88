"""The SoA as a pytree: one leaf per run of equal fields; inside `jit`, arrays are cut from them."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.dlpack
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import DictKey
from numpy.typing import NDArray

from soaview import Blocks, Layout, SoA, SoABlocks, View
from soaview._buffer import ITEMSIZE, Buffer, numpy_dtype
from soaview._device import DeviceBuffer
from soaview._runs import Run, runs
from soaview._views import Scattered

NARROW = {
    "int64": "int32",
    "uint64": "uint32",
    "float64": "float32",
    "complex128": "complex64",
}
"""What JAX makes of the types that it has switched off by default."""


INT32_MAX = 2**31 - 1


def x64() -> bool:
    """Whether JAX has 64-bit types switched on, here and now."""
    return jax.dtypes.canonicalize_dtype("float64").itemsize == 8


def op_by_op() -> bool:
    """Whether JAX may be running a jitted function as it is, here and now, to look for errors."""
    config: Any = jax.config
    return bool(config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs)


@contextmanager
def as_it_is() -> Iterator[None]:
    """While memory is only read, a NaN in it is not one that a calculation has made."""
    with jax.debug_nans(False), jax.debug_infs(False):
        yield


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

    wide = unguarded = root

    @property
    def device(self) -> str:
        """Where the leaves are."""
        if self.traced:
            return "no device: it is traced"
        arrays = [leaf for leaf in self.leaves if isinstance(leaf, jax.Array)]
        if any(map(_is_deleted, arrays)):
            return "no device: it was donated"
        return device_name(device for leaf in arrays for device in leaf.devices())

    @property
    def elsewhere(self) -> bool:
        """Whether the leaves are where NumPy does not read them: on a GPU, on several devices."""
        arrays = [leaf for leaf in self.leaves if isinstance(leaf, jax.Array)]
        devices = {d for leaf in arrays if not _is_deleted(leaf) for d in leaf.devices()}
        return len(devices) > 1 or any(device.platform != "cpu" for device in devices)

    @property
    def traced(self) -> bool:
        """Whether this is the inside of a transformation, where arrays have no values yet."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in self.leaves)

    def find(self, view: View) -> tuple[int, Run]:
        """The run in which a view lies: the last that starts at or before it."""
        found = runs(self.layout, self.rows)
        number = bisect_right(found, view.byte_offset, key=lambda run: run.offset) - 1
        return number, found[number]

    def leaf(self, number: int) -> Any:
        """A run's leaf, which must be what the layout says."""
        run, found = runs(self.layout, self.rows)[number], self.leaves[number]
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        where = f"the leaf of {name_of(run)!r}"
        if shape is None:
            raise TypeError(f"{where} is {type(found).__name__}, and no array: it has no columns")
        if dtype == jax.dtypes.float0:
            wide = run.dtype in ("float64", "complex128")
            off = ", as 64-bit types were switched off" if wide else ""
            raise TypeError(f"{where} is a gradient, and {run.dtype} has none{off}")
        if _is_deleted(found):
            raise RuntimeError(
                f"{where} is deleted: the SoA was donated to a jitted function; use the one that "
                f"it returned"
            )
        forms = [
            (run.shape, numpy_dtype(run.dtype)),
            *([_bits(run)] if run.dtype in NARROW else []),
        ]
        if (shape, dtype) in forms:
            return found
        if (shape[-2:], dtype) in forms:
            raise ValueError(
                f"{where} has the leading axes {shape[:-2]}: these are SoAs stacked; jax.vmap, "
                f"lax.map or lax.scan take them one by one, and "
                f"jax.tree.map(lambda leaf: leaf[0], soas) takes out the first"
            )
        if (shape, dtype) in [(form[1:], kind) for form, kind in forms]:
            raise ValueError(
                f"{where} has lost its axis of components, for a single SoA has no axis to map "
                f"over; stack SoAs, jax.tree.map(lambda *x: jnp.stack(x), *soas), or map over what "
                f"arrays gives"
            )
        raise TypeError(
            f"{where} is {dtype} of shape {shape}, but the layout has {run.dtype} of shape "
            f"{run.shape} there; take arrays from the SoA first, and convert, cut or distribute "
            f"these"
        )

    def copies(self) -> list[Any]:
        """The leaves in memory of their own, without padding, finished."""
        found: list[Any] = []
        leaves, _ = _flatten(from_leaves(self.layout, self.rows, self.leaves))
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), as_it_is():
            for number, leaf in enumerate(leaves):
                if getattr(leaf, "dtype", None) != jax.dtypes.float0:
                    self.leaf(number)
                    leaf = self.without_padding(number, jnp.array(leaf)).block_until_ready()
                found.append(leaf)
        return found

    def without_padding(self, number: int, leaf: Any) -> Any:
        """A leaf of this run, with zeros where it has no rows, whatever was there."""
        run = runs(self.layout, self.rows)[number]
        width = leaf.shape[1]
        words = width // max(run.shape[1], 1)  # two where 64 bits go as pairs of 32
        valid = words * (self.rows if self.layout[run.names[0]].per_row else 1)
        if valid >= width:
            return leaf
        if valid > INT32_MAX and not x64():
            raise ValueError(
                f"JAX does not count to row {valid} while 64-bit types are switched off; switch "
                f"them on"
            )
        if jax.typeof(leaf).sharding.mesh.size > 1:  # where JAX is strict about what is cut
            with jax.disable_jit(False):  # one operation, which takes its mesh from the leaf
                return jnp.where(jnp.arange(width) < valid, leaf, jnp.zeros((), leaf.dtype))
        zeros = lax.slice_in_dim(jnp.zeros_like(leaf), valid, width, axis=1)
        return lax.dynamic_update_slice(leaf, zeros, (0, valid))

    def locate(self, view: View) -> View:
        """The same view over its leaf, where that is an array on the host."""
        number, run = self.find(view)
        found = self.leaf(number)
        first = view.offset - run.offset // view.itemsize
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
                    f"give it to a jitted function as an argument, or bring it to the host with "
                    f"jax.device_get(soa)"
                )
        elif not isinstance(found, np.ndarray):
            raise TypeError(
                f"tensor {view.name!r}: the SoA has a {type(found).__name__} where its columns "
                f"should be, and no memory"
            )
        host = np.asarray(found).view()
        host.flags.writeable = False
        return replace(view, offset=first, buffer=Buffer(host, host.nbytes, view.itemsize))


def device_name(devices: Iterable[jax.Device]) -> str:
    """Devices by the names that the core gives them."""
    names = set()
    for device in devices:
        if device.platform == "gpu":
            kind = "rocm" if "rocm" in device.client.platform_version else "cuda"
            names.add(f"{kind}:{device.local_hardware_id}")
        else:
            names.add(device.platform)
    return "+".join(sorted(names)) or "cpu"


def _is_deleted(leaf: Any) -> bool:
    traced = isinstance(leaf, jax.core.Tracer)
    return isinstance(leaf, jax.Array) and not traced and leaf.is_deleted()


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
    if isinstance(soa.buffer, Leaves):
        for number in range(len(soa.buffer.leaves)):
            soa.buffer.leaf(number)
    return _flatten(soa)[0]


Aux = tuple[Layout, int]


def _flatten(soa: SoA) -> tuple[tuple[Any, ...], Aux]:
    # This runs in every call of a jitted function.
    kept: Any = soa.ready.get("jax.tree")
    if kept is not None and (kept[0] is None or kept[0] is x64()):
        return kept[1]  # type: ignore[no-any-return]
    aux = (soa.layout, soa.rows)
    if soa.rows != soa.capacity:
        return _own_rows(soa), aux
    found, mode = [], None
    for number, run in enumerate(runs(*aux)):
        if isinstance(soa.buffer, Leaves):
            leaf = soa.buffer.leaves[number]
        elif isinstance(soa.buffer, DeviceBuffer):
            leaf = _imported_run(soa.buffer, run)
        else:
            leaf = np.ndarray(run.shape, numpy_dtype(run.dtype), soa.buffer.root, run.offset)
        if run.dtype in NARROW:
            mode = x64()
            native, bits = (run.shape, numpy_dtype(run.dtype)), _bits(run)
            if isinstance(leaf, np.ndarray) and (leaf.shape, leaf.dtype) in (native, bits):
                leaf = leaf.view((native if mode else bits)[1])
        found.append(leaf)
    if not isinstance(soa.buffer, DeviceBuffer):  # whose imports may be donated
        soa.ready["jax.tree"] = mode, (tuple(found), aux)
    return tuple(found), aux


def _imported_run(buffer: DeviceBuffer, run: Run) -> jax.Array:
    shape, dtype = run.shape, run.dtype
    if dtype in NARROW and not x64():
        shape, dtype = _bits(run)[0], "uint32"
    size = ITEMSIZE[dtype]
    place = (shape, (shape[1], 1), run.offset // size)
    return imported(View(name_of(run), dtype, size, *place, buffer), copy=None)


def imported(view: View, *, copy: bool | None) -> jax.Array:
    """A dense view of another device's memory; a copy, with `copy=None`, where XLA needs one."""
    try:
        array: jax.Array = jax.dlpack.from_dlpack(view, copy=copy)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BufferError(
            f"tensor {view.name!r}: JAX does not take memory on {view.device}: {error}"
        ) from error
    return array


def _own_rows(soa: SoA) -> tuple[Any, ...]:
    layout, found = soa.layout, []
    whole = leaves(SoA(layout, soa.buffer, soa.capacity, 0, soa.capacity))
    memory = layout.allocate(soa.rows).buffer.root
    both = zip(runs(layout, soa.capacity), runs(layout, soa.rows), strict=True)
    for source, (run, own) in zip(whole, both, strict=True):
        if not layout[run.names[0]].per_row:
            found.append(source)
            continue
        words = source.shape[1] // run.shape[1]
        rows = source[:, soa.start * words : (soa.start + soa.rows) * words]
        padding = own.shape[1] * words - rows.shape[1]
        if isinstance(source, np.ndarray):
            target = np.ndarray((len(rows), own.shape[1] * words), source.dtype, memory, own.offset)
            target[:, : rows.shape[1]] = rows
            found.append(target)
        else:
            found.append(jnp.pad(rows, ((0, 0), (0, padding))))
    return tuple(found)


def from_leaves(layout: Layout, rows: int, leaves: Iterable[Any]) -> SoA:
    """The SoA whose runs are these."""
    return SoA(layout, Leaves(layout, rows, tuple(leaves)), rows, 0, rows)


@as_it_is()
def cut(view: View | Scattered, start: jax.Array | None = None) -> jax.Array:
    """The view's array, cut from its leaf: for XLA to fuse into what reads it.

    Its rows begin where the view's do, or at a traced `start`.
    """
    if 0 in view.shape:
        return jnp.zeros(view.shape, view.dtype_name)
    found = []
    for place in _places(view):
        axes, numbers = place.in_memory()
        _check_shards(view, place)
        leaf, first, end = place.leaf, place.start, place.start + place.rows
        if start is not None and place.per_row:
            # Before the columns are chosen, so that a batch costs no more than its own rows.
            leaf = lax.dynamic_slice_in_dim(leaf, start, place.rows, axis=1)
            first, end = 0, place.rows
        steps = {int(step) for step in np.diff(numbers)} or {1}
        if len(steps) == 1 and min(steps) > 0:
            # At once, so that nobody meets what lies between.
            last = int(numbers[-1]) + 1
            block = lax.slice(leaf, (int(numbers[0]), first), (last, end), (*steps, 1))
        else:
            block = lax.slice_in_dim(leaf, first, end, axis=1)
            block = block.at[numbers].get(mode="promise_in_bounds")
        block = block.reshape(*(place.components.shape[axis] for axis in axes), place.rows)
        found.append(block.transpose(-1, *np.argsort(axes)))
    if isinstance(view, View):
        return jnp.broadcast_to(found[0], view.shape) if view.shape else found[0].reshape(())
    return jnp.concatenate([jnp.broadcast_to(f, (view.shape[0], *f.shape[1:])) for f in found], 1)


@as_it_is()
def put(view: View | Scattered, value: jax.Array, leaves: list[Any]) -> None:
    """Put the value where the view is, in place of the leaf that is there."""
    if 0 in view.shape:
        return
    value = value if view.shape else value.reshape(1)
    done = 0
    for place in _places(view):
        part = value
        if isinstance(view, Scattered):
            part = value[:, done : done + len(place.components)]
            done += len(place.components)
        axes, numbers = place.in_memory()
        block = part.transpose(*(axis + 1 for axis in axes), 0).reshape(-1, place.rows)
        order = np.argsort(numbers)
        if (np.diff(order) != 1).any():
            block, numbers = block.at[order].get(mode="promise_in_bounds"), numbers[order]
        first = 0
        for stretch in np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1):
            rows = lax.slice_in_dim(block, first, first + len(stretch))
            first += len(stretch)
            at = (int(stretch[0]), place.start)
            leaves[place.number] = lax.dynamic_update_slice(leaves[place.number], rows, at)


class _Place(NamedTuple):
    """Where a view, or neighbouring columns of it, are: in one leaf.

    Attributes:
        number: of the leaf.
        leaf: a matrix (components, padded rows).
        start, rows: the first one, and how many; a scalar has one.
        per_row: whether it is no scalar.
        components: their numbers, in the shape of one row's element.
    """

    number: int
    leaf: Any
    start: int
    rows: int
    per_row: bool
    components: NDArray[np.int64]

    def in_memory(self) -> tuple[list[int], NDArray[np.int64]]:
        """The axes of `components`, longest step first, and the numbers in that order."""
        found = self.components
        reach = [
            abs(found.take(-1, axis) - found.take(0, axis)).max() for axis in range(found.ndim)
        ]
        axes = sorted(range(found.ndim), key=lambda axis: -reach[axis])
        return axes, found.transpose(axes).ravel()


def _places(view: View | Scattered) -> list[_Place]:
    if isinstance(view, View):
        return [_place(view)]
    found = []
    parts = [_place(part) for part in view.parts]
    for _, group in groupby(parts, lambda place: place.number):
        places = list(group)
        components = np.stack([place.components for place in places])
        found.append(places[0]._replace(components=components))
    return found


def _place(view: View) -> _Place:
    assert isinstance(view.buffer, Leaves)
    number, run = view.buffer.find(view)
    leaf = view.buffer.leaf(number)
    if leaf.dtype != view.dtype_name:
        raise TypeError(
            f"tensor {view.name!r} is {view.dtype_name}, and its SoA was passed to JAX while "
            f"64-bit types were switched off; switch them on before that"
        )
    width = run.shape[1]
    first, start = divmod(view.offset - run.offset // view.itemsize, width)
    per_row = bool(view.strides and view.strides[0])
    rows = view.shape[0] if per_row else 1
    if start + rows > INT32_MAX and not x64():
        raise ValueError(
            f"tensor {view.name!r}: JAX does not count to row {start + rows} while 64-bit types "
            f"are switched off; switch them on"
        )
    components = np.full((), first)
    for length, step in zip(view.shape[1:], view.strides[1:], strict=True):
        components = np.add.outer(components, np.arange(length) * (step // width))
    return _Place(number, leaf, start, rows, per_row, components)


def shards(sharding: jax.sharding.NamedSharding, axis: int) -> int:
    """Into how many parts a sharding cuts an array's axis."""
    names = (*sharding.spec, *[None] * axis, None)[axis]
    names = (names,) if isinstance(names, str) else names or ()
    return math.prod(sharding.mesh.shape[name] for name in names)


def _check_shards(view: View | Scattered, place: _Place) -> None:
    """Where a mesh's axes are explicit, JAX cuts a sharded axis into equal parts only."""
    parts = shards(jax.typeof(place.leaf).sharding, 1)
    if place.rows % parts:
        even = -(-place.rows // parts) * parts
        raise ValueError(
            f"tensor {view.name!r}: {place.rows} rows do not split evenly over {parts} devices, as "
            f"the mesh's explicit axes need it; lay the SoA out for {even} rows and use "
            f"soaview_jax.mask, or make the mesh with axis_types=(jax.sharding.AxisType.Auto,)"
        )


def _flatten_with_keys(soa: SoA) -> tuple[list[tuple[DictKey, Any]], Aux]:
    found, aux = _flatten(soa)
    keys = [DictKey(name_of(run)) for run in runs(*aux)]
    return list(zip(keys, found, strict=True)), aux


def _unflatten(aux: Aux, children: Iterable[Any]) -> SoA:
    return from_leaves(*aux, children)


BlocksAux = tuple[Blocks, tuple[tuple[str, int], ...]]


def _blocks_flatten(soas: SoABlocks) -> tuple[list[tuple[DictKey, SoA]], BlocksAux]:
    found = [(DictKey(name), soa) for name, soa in soas.items()]
    return found, (soas.layout, tuple(soas.rows.items()))


def _blocks_unflatten(aux: BlocksAux, children: Iterable[Any]) -> SoABlocks:
    layout, rows = aux
    return SoABlocks.of(layout, dict(zip(layout, children, strict=True)), dict(rows))


def _to_bytes(aux: Aux) -> bytes:
    return json.dumps({"layout": aux[0].to_dict(), "rows": aux[1]}).encode()


def _from_bytes(data: bytes | bytearray) -> Aux:
    found = json.loads(data)
    return Layout.from_dict(found["layout"]), found["rows"]


def _blocks_to_bytes(aux: BlocksAux) -> bytes:
    layouts = {name: layout.to_dict() for name, layout in aux[0].items()}
    return json.dumps({"layouts": layouts, "rows": dict(aux[1])}).encode()


def _blocks_from_bytes(data: bytes | bytearray) -> BlocksAux:
    found = json.loads(data)
    layouts = {name: Layout.from_dict(layout) for name, layout in found["layouts"].items()}
    return Blocks(layouts), tuple(found["rows"].items())


jax.tree_util.register_pytree_with_keys(SoA, _flatten_with_keys, _unflatten, _flatten)
jax.tree_util.register_pytree_with_keys(SoABlocks, _blocks_flatten, _blocks_unflatten)
for _kind, _to, _from in (
    (SoA, _to_bytes, _from_bytes),
    (SoABlocks, _blocks_to_bytes, _blocks_from_bytes),
):
    jax.export.register_pytree_node_serialization(
        _kind,
        serialized_name=f"soaview.{_kind.__name__}",
        serialize_auxdata=_to,
        deserialize_auxdata=_from,
    )
