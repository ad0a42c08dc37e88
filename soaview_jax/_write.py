"""Model outputs, written into an SoA's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from soaview import SoA, Spec
from soaview.adapter import (
    Allocations,
    Buffer,
    Described,
    Matches,
    Strided,
    Target,
    keep,
    match,
    numpy_dtype,
    overlaps,
    parts_of,
    writable_views,
)

from ._leaves import Leaves
from ._settings import device_name, is_array


def write(soa: SoA, spec: Spec, arrays: Sequence[jax.Array]) -> None:
    """Write model outputs into the spec's columns; nothing is written unless all of them fit.

    Args:
        soa: writable memory.
        spec: where each array goes; a scalar is written as `Value(name)`.
        arrays: in spec order, with the shapes and dtypes that `arrays` gives, on the SoA's device;
            to an SoA on the host they are brought from any. They are waited for. An array may alias
            the SoA's buffer, and then changes with it.

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
    store(matched(soa, spec, targets_of(soa, spec), arrays))


Part = tuple[Any, Strided, NDArray[Any] | None]
"""The buffer and where in it an array, or a column of it, is written; on the host NumPy's view."""


def targets_of(soa: SoA, spec: Spec) -> list[Target[Part]]:
    """Where the spec's arrays are written."""
    try:
        known: list[Target[Part]] | None = soa.adapter_cache.get(("jax.write", spec.key))
    except (AttributeError, TypeError):  # no SoA, or no spec of it: what follows says so
        known = None
    if known is not None and not soa.readonly:
        return known
    leaves = soa.buffer if isinstance(soa, SoA) else None
    _check_real("the SoA", isinstance(leaves, Leaves) and leaves.traced)
    found = writable_views(soa, spec)
    targets: list[Target[Part]] = []
    on_host = soa.buffer.on_host
    for view, views in found:
        parts: list[Part] = [(v.buffer, v.strided, v.numpy() if on_host else None) for v in views]
        kind = numpy_dtype(view.dtype_name), soa.device
        targets.append(Target(view.shape, *kind, parts, soa.buffer))
    return keep(soa, ("jax.write", spec.key), targets)


def matched(
    soa: SoA,
    spec: Spec,
    targets: list[Target[Part]],
    arrays: Sequence[jax.Array],
    capacity: int | None = None,
) -> Matches[Part]:
    """Each array with its target, if all of them fit; to the host they come from any device.

    Of arrays that have `capacity` rows the first ones are the SoA's.
    """
    on_host = soa.buffer.on_host

    def describe(where: str, array: jax.Array) -> Described:
        shape, dtype, device = _describe(where, array)
        if capacity is not None:
            if shape[:1] != (capacity,):
                raise ValueError(
                    f"{where}: got shape {shape} for inputs of {capacity} rows, the capacity of "
                    f"row_wise=: fn must give a row for each; leave row_wise= out where it does not"
                )
            shape = soa.rows, *shape[1:]
        return shape, dtype, soa.device if on_host else device

    if capacity is None:
        return match(soa, spec, targets, arrays, fits=_fits, describe=describe)
    found = match(soa, spec, targets, arrays, fits=_never, describe=describe)
    # By NumPy, for XLA would compile for each row count.
    return [(target, np.asarray(array)[: soa.rows]) for target, array in found]


def _never(target: Target[Part], array: jax.Array) -> bool:
    return False


def _fits(target: Target[Part], array: jax.Array) -> bool:
    return (
        is_array(array)
        and array.shape == target.shape
        and array.dtype == target.dtype
        and device_name(array.devices()) == target.device
    )


def store(found: Matches[Part]) -> None:
    """Write arrays that fit, all to one device, once all of them are there."""
    # What comes from the memory itself could be changed by the first write before it is read.
    written: list[Buffer] = [*{id(target.memory): target.memory for target, _ in found}.values()]
    if all(buffer.on_host for buffer in written):
        values = [np.asarray(array) for _, array in found]
        for number, value in enumerate(values):
            if any(buffer.shares(value) for buffer in written):
                values[number] = value.copy()
        for (target, _), value in zip(found, values, strict=True):
            for (_, _, memory), piece in parts_of(target, value):
                assert memory is not None
                memory[...] = piece
        return
    with jax.ensure_compile_time_eval():
        arrays = [
            jnp.array(array) if any(_overlaps(array, buffer) for buffer in written) else array
            for _, array in found
        ]
        arrays = [array.block_until_ready() for array in arrays]
        writes = [
            memory.filling(at, piece)
            for (target, _), array in zip(found, arrays, strict=True)
            for (memory, at, _), piece in parts_of(target, array)
        ]
        # JAX may use the arrays' memory again as soon as nobody holds them, and who reads it here
        # does so on a stream of its own.
        for wait in [fill() for fill in writes]:
            wait()


def _overlaps(array: jax.Array, buffer: Buffer) -> bool:
    if isinstance(buffer, Allocations):
        return any(_overlaps(array, piece) for piece in buffer.pieces)
    if len(array.devices()) > 1:
        raise ValueError(
            f"an array is spread over {len(array.devices())} devices; gather it with "
            f"jax.device_put(array, device) first"
        )
    return overlaps(buffer.address, buffer.nbytes, array.unsafe_buffer_pointer(), array.nbytes)


def check_array(where: str, array: object) -> None:
    """Raise unless this is an array of JAX's."""
    if not isinstance(array, jax.Array):
        raise TypeError(
            f"{where}: got {type(array).__name__}, expected a jax.Array; "
            f"jax.numpy.asarray makes one"
        )


def _describe(where: str, array: jax.Array) -> Described:
    check_array(where, array)
    _check_real(where, isinstance(array, jax.core.Tracer))
    return array.shape, array.dtype.name, device_name(array.devices())


def _check_real(what: str, traced: bool) -> None:
    if traced:
        raise TypeError(
            f"{what} is traced: write outside of jit, to what it returned; inside, "
            f"soaview_jax.update replaces columns"
        )
