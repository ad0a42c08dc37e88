"""Model outputs, written into an SoA's columns, or put in their place inside of `jit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from soaview import SoA, Spec, View
from soaview._buffer import Buffer, numpy_dtype
from soaview._device import DeviceBuffer
from soaview._runs import run_numbers
from soaview._soa import check_columns, check_given, check_writable, numbered
from soaview._spec import columns_of
from soaview._views import Scattered, views_or_columns

from ._arrays import check_width
from ._tree import (
    Leaves,
    device_name,
    from_leaves,
    leaves,
    put,
    x64,
)


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
    if ready is not None and ready[0] is spec and not soa.readonly:
        return ready[1]  # type: ignore[no-any-return]
    found = views_or_columns(soa, spec)
    _check_real("the SoA", isinstance(soa.buffer, Leaves) and soa.buffer.traced)
    check_writable(soa)
    check_columns(soa.layout, spec)
    places, on_host = [], not isinstance(soa.buffer, DeviceBuffer)
    for view in found:
        parts = view.parts if isinstance(view, Scattered) else [view]
        targets = [part.numpy() for part in parts] if on_host else []
        dtype = numpy_dtype(view.dtype_name)
        places.append(Place(view.shape, dtype, soa.device, parts, targets))
    soa.ready["jax.write"] = spec, places
    return places


def fitting(soa: SoA, spec: Spec, places: list[Place], arrays: Sequence[jax.Array]) -> Fitting:
    """Where each array goes, if all of them fit there."""
    if len(arrays) != len(places) or not all(map(_fits, places, arrays)):
        both = zip(numbered(spec, arrays), arrays, strict=True)
        given = [_describe(where, array) for where, array in both]
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
            writes = []
            for (place, _), array in zip(found, arrays, strict=True):
                for number, part in enumerate(place.parts):
                    assert isinstance(part.buffer, DeviceBuffer)
                    given = array[:, number] if len(place.parts) > 1 else array
                    writes.append(part.buffer.filling(part, given))
            for fill in writes:
                fill()
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
    yours is never changed, donated or not. Outside of `jit` all columns are copied first, also
    those of an SoA that JAX made, which may lie over memory of yours; what comes out is finished. A
    slice of your memory gives an SoA of its rows alone.

    Padding is zero in the leaves that change, outside of `jit` in all of them: no NaN is there that
    is no value. The other leaves keep what somebody wrote there, and `jax.tree.map` and
    `jax.debug_nans` take it for values.

    Args:
        soa: any, traced or not.
        spec: which columns each array replaces; a scalar is replaced as `Value(name)`.
        arrays: in spec order, with the shapes and dtypes that `arrays` gives.

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
    >>> soa["y"]
    array([2., 4.], dtype=float32)
    """
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"arrays must be a list in spec order, got {type(arrays).__name__}")
    views_or_columns(soa, spec)  # raises on what is no SoA, or no spec of it
    if not isinstance(soa.buffer, Leaves):
        soa = from_leaves(soa.layout, soa.rows, leaves(soa))
    held = soa.buffer
    assert isinstance(held, Leaves)
    found = views_or_columns(soa, spec)
    if not x64():
        for view in found:
            check_width(view)
    for where, array in zip(numbered(spec, arrays), arrays, strict=True):
        _check_kind(where, array)
    given = [(array.shape, array.dtype.name, soa.device) for array in arrays]
    check_given(soa, spec, found, given)
    made = list(held.leaves) if held.traced else held.copies()
    for view, array in zip(found, arrays, strict=True):
        put(view, array, made)
    if held.traced:  # afterwards, or else XLA copies the leaf instead of changing it in place
        numbers, entries = run_numbers(soa.layout), zip(found, spec.values(), strict=True)
        names = [name for view, at in entries if 0 not in view.shape for name in columns_of(at)]
        for number in {numbers[name] for name in names}:
            made[number] = held.without_padding(number, made[number])
    if not held.traced:  # what is made of memory is finished before somebody writes that
        for leaf in made:
            if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
                leaf.block_until_ready()
    return SoA(
        soa.layout,
        Leaves(soa.layout, soa.capacity, tuple(made)),
        soa.capacity,
        soa.start,
        soa.rows,
    )


def _check_kind(where: str, array: object) -> None:
    if not isinstance(array, jax.Array):
        raise TypeError(
            f"{where}: got {type(array).__name__}, expected a jax.Array; "
            f"jax.numpy.asarray makes one"
        )


def _describe(where: str, array: jax.Array) -> tuple[tuple[int, ...], str, str]:
    _check_kind(where, array)
    _check_real(where, isinstance(array, jax.core.Tracer))
    return array.shape, array.dtype.name, device_name(array.devices())


def _check_real(what: str, traced: bool) -> None:
    if traced:
        raise TypeError(
            f"{what} is traced: write outside of jit, to what it returned; inside, "
            f"soaview_jax.update replaces columns"
        )
