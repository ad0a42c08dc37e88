"""Arrays that alias an SoA's memory, and model outputs written into its columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from soaview import SoA, SoABlocks, Spec, View
from soaview._buffer import Buffer, host_array, numpy_dtype
from soaview._device import DeviceBuffer
from soaview._runs import runs
from soaview._soa import check_columns, check_copy, check_given, check_writable
from soaview._views import Scattered, check_soa, views_or_columns

from ._tree import (
    NARROW,
    Leaves,
    cut,
    device_name,
    from_leaves,
    imported,
    leaves,
    put,
    shards,
    x64,
)

_ALIGNMENT = 64  # bytes; XLA's CPU client copies what does not start on such an address


def arrays(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False
) -> list[jax.Array]:
    """The spec's arrays, in spec order, as JAX arrays over the SoA's memory.

    In a function under `jit`, or another of JAX's transformations, that is given the SoA as an
    argument, they are cut from it, for XLA to fuse into what reads them. That goes for every spec
    and row count, whatever `copy` is.

    Outside, and where JAX runs a function as it is (`custom_vjp` without `jit`, `jax.disable_jit`),
    XLA imports only memory that is dense, in any order of the axes, and starts on a multiple of 64
    bytes. A column of plain numbers is dense at every row count; a vector, a matrix or neighbouring
    columns are when no padding lies between them. Read-only memory is welcome. Of another
    framework's memory on a device, JAX imports views of torch's or CuPy's, one of which must have
    been imported; JAX's stream waits for the producer's.

    JAX computes asynchronously, over the memory itself: results still being computed see what is
    written into it, so write when `jax.block_until_ready` has returned them. Arrays outside of
    `jit` see it at any time. An SoA that is an argument is read in every call; one that a jitted
    function has closed over is a constant, with the values of the time when it was compiled.

    Args:
        soa: the memory.
        spec: which columns make each array.
        copy: outside of transformations, `False` never copies; `None` copies only the arrays that
            XLA cannot import; `True` copies all. Copies are finished when they are returned, and
            independent of the SoA.
        padded: give the padded rows (pitch / itemsize) instead of the valid ones: dense at every
            row count. `soa.rows` says how many of them are valid.

    Raises:
        BufferError: with `copy=False`, an array cannot be a view; it says which, why, and the ways
            out.
        TypeError: a 64-bit dtype while JAX has them switched off, which would narrow it; a wrong
            kind of argument.
        KeyError, ValueError: no such column; columns that do not fit one array; SoAs stacked
            where one is expected.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(32)
    >>> soa["eta"][0] = 7
    >>> [x] = arrays(soa, Spec(x=["pt", "eta"]))
    >>> x.shape, x[0]
    ((32, 2), Array([0., 7.], dtype=float32))
    >>> jax.jit(lambda soa: arrays(soa, Spec(x=["eta", "pt"]))[0][0])(soa)
    Array([7., 0.], dtype=float32)
    """
    check_copy(copy)
    wide = x64()
    ready = soa.ready.get("jax") if copy is False and type(soa) is SoA else None
    if ready and ready[0] is spec and ready[1] is padded and ready[2] is wide:
        with jax.ensure_compile_time_eval():  # inside jit, too, these are arrays and no tracers
            return [_alias(*source) for source in ready[3]]
    found = views_or_columns(soa, spec, padded=padded)
    if not wide:
        for view in found:
            _check_width(view)
    buffer = soa.buffer
    if isinstance(buffer, Leaves):
        if buffer.traced or (copy is not False and buffer.elsewhere):
            return [cut(view) for view in found]
        found = [v if isinstance(v, Scattered) else buffer.locate(v) for v in found]
    if copy is True:
        with jax.ensure_compile_time_eval():
            return _copies(soa, spec, padded, found)
    obstacles = [_obstacle(soa, view) for view in found]
    copied = [view for view, obstacle in zip(found, obstacles, strict=True) if obstacle]
    if copied and copy is False:
        raise BufferError(
            f"tensor {copied[0].name!r}: {next(filter(None, obstacles))}. In a function under "
            f"jax.jit, given the SoA as an argument, arrays works for every spec"
        )
    sources = [
        _source(view)
        for view, obstacle in zip(found, obstacles, strict=True)
        if isinstance(view, View) and not obstacle
    ]
    if not (copied or buffer.piecewise):
        soa.ready["jax"] = spec, padded, wide, sources
    with jax.ensure_compile_time_eval():
        aliases, copies = starmap(_alias, sources), iter(_copies(soa, spec, padded, copied))
        return [next(copies if obstacle else aliases) for obstacle in obstacles]


def batch(soa: SoA, spec: Spec, first: jax.Array) -> list[jax.Array]:
    """The arrays of a traced SoA's rows, counted from a traced `first` instead of from 0."""
    found = views_or_columns(soa, spec)
    if not x64():
        for view in found:
            _check_width(view)
    return [cut(view, first) for view in found]


def _check_width(view: View | Scattered) -> None:
    narrow = NARROW.get(view.dtype)
    if narrow is not None:
        raise TypeError(
            f"tensor {view.name!r} is {view.dtype}, and JAX has 64-bit types switched off: it "
            f"would narrow it to {narrow} in silence. Ways out: "
            f'jax.config.update("jax_enable_x64", True) at the start of the program, '
            f"`with jax.enable_x64(True):` around the call, or a field of {narrow}"
        )


def _obstacle(soa: SoA, view: View | Scattered) -> str | None:
    """Why XLA cannot import this view, and the ways out; None where it can."""
    if isinstance(view, Scattered):
        return view.why()
    if not _is_dense(view.shape, view.strides):
        return _padding(soa, view)
    if 0 in view.shape:
        return None
    on_host = not isinstance(view.buffer, DeviceBuffer)
    if on_host and view.dtype == "bfloat16" and not view.numpy().flags.c_contiguous:
        return (
            "NumPy cannot export bfloat16 through DLPack, and what JAX takes instead it aliases in "
            "row-major order only; take its columns one by one, or let copy=None copy it"
        )
    start = view.address
    if start % _ALIGNMENT:
        return (
            f"it starts at address {start:#x}, {start % _ALIGNMENT} bytes past a multiple of "
            f"{_ALIGNMENT}, and XLA imports only what starts on one; align the buffer "
            f"(layout.allocate does) and the first row of a slice, or let copy=None copy it"
        )
    return None


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the axes."""
    expected = 1
    if 0 in shape:
        return True
    for stride, count in sorted(zip(strides, shape, strict=True)):
        if count > 1:
            if stride != expected:
                return False
            expected *= count
    return True


def _padding(soa: SoA, view: View) -> str:
    """What lies between the elements of a view that is not dense."""
    field_rows = f"rows {view.shape[0]}"
    if view.strides[0] == 0:
        return (
            "a scalar broadcast to the rows has no dense form, the only one that XLA imports; "
            "write Value(name) in the spec and let the model broadcast it, or let copy=None copy it"
        )
    if soa.rows != soa.capacity:
        return (
            f"{field_rows} are a slice of {soa.capacity}, whose columns lie apart, and XLA imports "
            f"only dense memory; slice the arrays of the whole SoA, or let copy=None copy it"
        )
    padded = soa.layout.alignment // view.itemsize
    padded_rows = -(-soa.rows // padded) * padded
    dense = soa.layout.dense_rows(soa.rows)
    if _is_dense((padded_rows, *view.shape[1:]), view.strides):
        return (
            f"{field_rows}, padded rows {padded_rows}: padding lies between its columns, and XLA "
            f"imports only dense memory; padded=True gives all {padded_rows} rows, "
            f"layout.dense_rows({soa.rows}) is {dense}, a row count without padding, and "
            f"copy=None copies it"
        )
    return (
        f"its columns are not neighbours (strides {view.strides}, in elements), and XLA imports "
        f"only dense memory; declare the fields one after another, or let copy=None copy it"
    )


def _source(view: View) -> tuple[str, NDArray[Any] | View, int]:
    """What JAX imports, and where the array must then be."""
    if isinstance(view.buffer, DeviceBuffer):
        return view.name, view, view.address
    # Without the read-only flag, for JAX asks for capsules that cannot carry it. It never writes
    # to memory that is imported as `_alias` does, not even when the array is donated.
    memory = view.buffer.unguarded
    host = host_array(memory, view.dtype, view.shape, view.strides, view.offset)
    return view.name, host, view.address


def _alias(name: str, host: NDArray[Any] | View, address: int) -> jax.Array:
    # Never copy=True: that one returns an alias all the same, and lets XLA write into it.
    if isinstance(host, View):
        array: jax.Array = imported(host, copy=False)
    elif host.dtype.kind == "V":  # bfloat16, which NumPy cannot export
        array = jax.device_put(host, _host())
    else:
        # Where there is nothing to copy, the address need not be aligned.
        array = jax.dlpack.from_dlpack(host, copy=False if host.size else None)
    if array.dtype != host.dtype or (array.size and array.unsafe_buffer_pointer() != address):
        raise BufferError(
            f"tensor {name!r}: JAX {jax.__version__} copied or converted it in silence; "
            f"use copy=None, and please report this"
        )
    return array


def _host() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]


def _copies(
    soa: SoA, spec: Spec, padded: bool, found: Sequence[View | Scattered]
) -> list[jax.Array]:
    """Copies that nobody else holds, in one transfer, and finished."""
    if not found:
        return []
    if isinstance(soa.buffer, DeviceBuffer):
        # Cut on the device from imports of the whole runs.
        whole = SoA(soa.layout, soa.buffer, soa.capacity, 0, soa.capacity)
        there = Leaves(soa.layout, soa.capacity, leaves(whole))
        soa = SoA(soa.layout, there, soa.capacity, soa.start, soa.rows)
        some = spec.subset(*(view.name for view in found))
        cuts = [cut(view) for view in views_or_columns(soa, some, padded=padded)]
        return [array.block_until_ready() for array in cuts]  # what XLA puts out is never an alias
    hosts = [
        np.stack([part.numpy() for part in view.parts], axis=1)
        if isinstance(view, Scattered)
        else np.array(view.numpy(), order="C")
        for view in found
    ]
    copies: list[jax.Array] = jax.device_put(hosts, _host())
    for copy in copies:
        copy.block_until_ready()
    return copies


def write(soa: SoA, spec: Spec, arrays: Sequence[jax.Array]) -> None:
    """Write model outputs into the spec's columns; nothing is written unless all of them fit.

    Args:
        soa: writable memory.
        spec: where each array goes; a scalar is written as `Value(name)`.
        arrays: in spec order, on the SoA's device, with the shapes and dtypes that `arrays` gives.
            They are waited for. An array may alias the SoA's buffer, and then changes with it.

    Raises:
        TypeError, ValueError: an array of another kind, dtype, shape or device; a column that
            would be written twice.
        BufferError: read-only memory.

    >>> import jax.numpy as jnp
    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("score", "float32")]).allocate(3)
    >>> write(soa, Spec(y="score"), [jnp.array([1.0, 2.0, 3.0])])
    >>> soa["score"]
    array([1., 2., 3.], dtype=float32)
    """
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list in spec order, got {type(arrays).__name__}")
    store(fitting(soa, spec, places_of(soa, spec), arrays))


class Place(NamedTuple):
    """Where `write` puts an array.

    Attributes:
        shape, dtype, device: that the array must have.
        parts: its view, or those of its columns.
        targets: on the host, these as NumPy views.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    parts: Sequence[View]
    targets: list[NDArray[Any]]


Fitting = list[tuple[Place, jax.Array]]


def places_of(soa: SoA, spec: Spec) -> list[Place]:
    """Where the spec's arrays are written."""
    ready = soa.ready.get("jax.write") if type(soa) is SoA else None
    if ready is not None and ready[0] is spec:
        return ready[1]  # type: ignore[no-any-return]
    found = views_or_columns(soa, spec)
    _check_real("the SoA", isinstance(soa.buffer, Leaves) and soa.buffer.traced)
    check_writable(soa)
    check_columns(soa.layout, spec)
    places, on_host = [], not isinstance(soa.buffer, DeviceBuffer)
    for view in found:
        parts = view.parts if isinstance(view, Scattered) else [view]
        targets = [part.numpy() for part in parts] if on_host else []
        dtype = numpy_dtype(view.dtype)
        places.append(Place(view.shape, dtype, soa.device, parts, targets))
    soa.ready["jax.write"] = spec, places
    return places


def fitting(soa: SoA, spec: Spec, places: list[Place], arrays: Sequence[jax.Array]) -> Fitting:
    """Where each array goes, if all of them fit there."""
    if len(arrays) != len(places) or not all(map(_fits, places, arrays)):
        given = [_describe(number, array) for number, array in enumerate(arrays)]
        check_given(soa, spec, views_or_columns(soa, spec), given)
    return list(zip(places, arrays, strict=True))


def _fits(place: Place, array: jax.Array) -> bool:
    return (
        isinstance(array, jax.Array)
        and not isinstance(array, jax.core.Tracer)
        and array.shape == place.shape
        and array.dtype == place.dtype
        and device_name(array.devices()) == place.device
    )


def store(found: Fitting) -> None:
    """Write arrays that fit, all to one device, once all of them are there."""
    # What comes from the memory itself could be changed by the first write before it is read.
    buffers = {id(part.buffer): part.buffer for place, _ in found for part in place.parts}.values()
    if all(isinstance(buffer, DeviceBuffer) for buffer in buffers):
        with jax.ensure_compile_time_eval():
            arrays = [
                jnp.array(array) if any(_overlaps(array, buffer) for buffer in buffers) else array
                for _, array in found
            ]
            arrays = [array.block_until_ready() for array in arrays]
            for (place, _), array in zip(found, arrays, strict=True):
                for number, part in enumerate(place.parts):
                    assert isinstance(part.buffer, DeviceBuffer)
                    part.buffer.fill(part, array[:, number] if len(place.parts) > 1 else array)
        return
    values = [np.asarray(array) for _, array in found]
    for number, value in enumerate(values):
        if any(np.may_share_memory(value, buffer.root) for buffer in buffers):
            values[number] = value.copy()
    for (place, _), value in zip(found, values, strict=True):
        for number, target in enumerate(place.targets):
            target[...] = value[:, number] if len(place.parts) > 1 else value


def _overlaps(array: jax.Array, buffer: Buffer) -> bool:
    if len(array.devices()) > 1:
        raise ValueError(
            f"an array is spread over {len(array.devices())} devices; gather it with "
            f"jax.device_put(array, device) first"
        )
    begin = array.unsafe_buffer_pointer()
    return begin < buffer.address + buffer.nbytes and buffer.address < begin + array.nbytes


def update(soa: SoA, spec: Spec, arrays: Sequence[jax.Array]) -> SoA:
    """The SoA with the spec's columns replaced, for the inside of `jit`: nothing is written.

    What comes out of `jit` is an SoA like any other, but immutable: its columns are XLA's. Where a
    jitted function is given such an SoA in `donate_argnums`, the columns change in place. Memory of
    yours is never changed, donated or not; outside of `jit` it is copied first. A slice of such
    memory gives an SoA of its rows alone.

    Args:
        soa: any, traced or not.
        spec: which columns each array replaces; a scalar is replaced as `Value(name)`.
        arrays: in spec order, with the shapes and dtypes that `arrays` gives.

    Raises:
        TypeError, ValueError: an array of another kind, dtype or shape; a column that would be
            replaced twice; a 64-bit dtype while JAX has them switched off.

    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32")])
    >>> @jax.jit
    ... def double(soa):
    ...     [x] = arrays(soa, Spec(x="x"))
    ...     return update(soa, Spec(y="y"), [2 * x])
    >>> soa = double(layout.pack({"x": [1.0, 2.0], "y": [0.0, 0.0]}))
    >>> soa
    SoA(2 rows, 256 bytes on cpu, read-only: x, y)
    >>> soa["y"]
    array([2., 4.], dtype=float32)
    """
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list in spec order, got {type(arrays).__name__}")
    views_or_columns(soa, spec)  # raises on what is no SoA, or no spec of it
    if not isinstance(soa.buffer, Leaves):
        # Copies, for what is made of them must not change when the memory does.
        with jax.ensure_compile_time_eval():
            copies = [jnp.array(leaf) for leaf in leaves(soa)]
        for copy in copies:
            copy.block_until_ready()
        soa = from_leaves(soa.layout, soa.rows, copies)
    assert isinstance(soa.buffer, Leaves)
    found = views_or_columns(soa, spec)
    if not x64():
        for view in found:
            _check_width(view)
    for number, array in enumerate(arrays):
        _check_kind(number, array)
    given = [(array.shape, array.dtype.name, soa.device) for array in arrays]
    check_given(soa, spec, found, given)
    changed = list(soa.buffer.leaves)
    for view, array in zip(found, arrays, strict=True):
        put(view, array, changed)
    return SoA(
        soa.layout,
        Leaves(soa.layout, soa.capacity, tuple(changed)),
        soa.capacity,
        soa.start,
        soa.rows,
    )


Movable = TypeVar("Movable", SoA, SoABlocks)


def to(soa: Movable, device: jax.Device | NamedSharding) -> Movable:
    """The SoA on another device, or split over those of a mesh, for the inside of `jit`.

    One transfer for each device and leaf, which is a run of neighbouring fields of one dtype;
    scalars go to all devices. On the CPU a part may be the memory itself, so leave that alone while
    the result is in use.

    Args:
        soa: any, or blocks of them.
        device: one of `jax.devices()`; or a sharding of the row axis alone:
            `NamedSharding(mesh, PartitionSpec("rows"))`.

    Raises:
        TypeError, ValueError: another kind of device or sharding; padded rows that the devices do
            not divide.

    >>> from jax.sharding import NamedSharding, PartitionSpec
    >>> from soaview import Column, Layout
    >>> mesh = jax.make_mesh((1,), ("rows",))
    >>> soa = Layout([Column("x", "float32")]).pack({"x": [1.0, 2.0]})
    >>> to(soa, NamedSharding(mesh, PartitionSpec("rows")))
    SoA(2 rows, 128 bytes on cpu, read-only: x)
    """
    if isinstance(soa, SoABlocks):
        moved = {name: _to(block, device) for name, block in soa.items()}
        return SoABlocks.of(soa.layout, moved, soa.rows)
    return _to(soa, device)


def _to(soa: SoA, device: jax.Device | NamedSharding) -> SoA:
    check_soa(soa)
    if isinstance(device, jax.Device):
        return from_leaves(soa.layout, soa.rows, jax.device_put(leaves(soa), device))
    sharding = device
    if (
        not isinstance(sharding, NamedSharding)
        or len(sharding.spec) > 1
        or PartitionSpec.UNCONSTRAINED in sharding.spec
    ):
        raise TypeError(
            f"device must be a jax.Device or a NamedSharding of one axis, that of the rows, such "
            f"as NamedSharding(mesh, PartitionSpec('rows')), got {sharding!r:.200}"
        )
    columns, scalars = sharding.update(spec=(None, *sharding.spec)), sharding.update(spec=())
    parts = shards(sharding, 0)
    even = soa.layout.dense_rows(1) * parts
    shardings = []
    for run in runs(soa.layout, soa.rows):
        shardings.append(columns if soa.layout.field(run.names[0]).per_row else scalars)
        if shardings[-1] is columns and run.shape[1] % parts:
            raise ValueError(
                f"{parts} devices do not divide the {run.shape[1]} padded rows of "
                f"{run.names[0]!r}; lay the SoA out for {-(-soa.rows // even) * even} rows, and "
                f"use soaview_jax.mask"
            )
    return from_leaves(soa.layout, soa.rows, jax.device_put(list(leaves(soa)), shardings))


def _check_kind(number: int, array: object) -> None:
    if not isinstance(array, jax.Array):
        raise TypeError(
            f"tensor number {number}: got {type(array).__name__}, expected a jax.Array; "
            f"jax.numpy.asarray makes one"
        )


def _describe(number: int, array: jax.Array) -> tuple[tuple[int, ...], str, str]:
    _check_kind(number, array)
    _check_real(f"tensor number {number}", isinstance(array, jax.core.Tracer))
    return array.shape, array.dtype.name, device_name(array.devices())


def _check_real(what: str, traced: bool) -> None:
    if traced:
        raise TypeError(
            f"{what} is traced: write outside of jit, to what it returned; inside, "
            f"soaview_jax.update replaces columns"
        )
