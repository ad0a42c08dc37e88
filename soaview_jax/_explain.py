"""What is a view in JAX, and what is not: outside of `jit`, and inside."""

from __future__ import annotations

from math import prod

import jax

from soaview import SoA, Spec, Value, views
from soaview.adapter import (
    ITEMSIZE,
    Allocations,
    Run,
    Verdict,
    announce,
    columns_of,
    run_numbers,
    runs,
    verdicts,
    views_or_gathers,
)

from ._arrays import arrays, check_width, is_slice_of_memory, located, obstacle
from ._leaves import Leaves, name_of
from ._pytree import in_rows
from ._settings import NARROW, alignment_on, host_device, op_by_op, x64

INSIDE = "JAX inside jit"


def explain(soa: SoA, spec: Spec) -> list[Verdict]:
    """Of each array, whether JAX has a view of it or a copy, and why; `soaview.explain` asks.

    Inside `jit`, given the SoA as an argument, every spec is cut from the memory by the compiled
    function: what counts there is whether the memory goes in as it is. What XLA cannot import it
    copies on the way in, in every call: the fields in which the array lies.

    Args:
        soa: the memory.
        spec: the arrays.

    Raises:
        TypeError, KeyError, ValueError: as `arrays` does.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(33)
    >>> for verdict in explain(soa, Spec(x=["eta", "pt"])):
    ...     print(verdict.way, verdict.gives)
    JAX copy
    JAX inside jit view
    """
    if isinstance(soa.buffer, Leaves) and soa.buffer.traced:
        raise TypeError("soa is traced, and has no memory yet: explain it outside of jit")
    outside = verdicts("JAX", _taken, _address, soa, spec)
    return outside + [_inside(soa, spec, name) for name in spec]


def _taken(soa: SoA, spec: Spec) -> list[jax.Array]:
    """The array, where `arrays` aliases it; it also copies where `copy=False` acts as None."""
    [tensor] = views_or_gathers(soa, spec)
    buffer, why = soa.buffer, None
    if x64() or tensor.dtype_name not in NARROW:
        if isinstance(buffer, Leaves):
            if buffer.elsewhere:
                raise BufferError(
                    f"JAX made this SoA, on {soa.device}; what is not on {host_device()} alone is "
                    f"always copied; give the SoA to a jitted function as an argument"
                )
            why = obstacle(soa, located(buffer, tensor))
        elif op_by_op():
            why = obstacle(soa, tensor)
    if why is not None:
        raise BufferError(f"{why}. Here copy=False acts as None")
    return arrays(soa, spec)


def _address(array: jax.Array) -> int:
    """Of its first element; 0 where it is on several devices, which no memory of an SoA's is."""
    return array.unsafe_buffer_pointer() if len(array.devices()) == 1 else 0


def _inside(soa: SoA, spec: Spec, name: str) -> Verdict:
    [tensor] = views_or_gathers(soa, spec.subset(name))
    if not x64():
        try:
            check_width(tensor)
        except TypeError as error:
            return Verdict(name, INSIDE, "refused", 0, str(error))
    if isinstance(soa.buffer, Leaves) or 0 in tensor.shape:
        return Verdict(name, INSIDE, "view", 0, "")
    if isinstance(soa.buffer, Allocations):
        return _inside_bound(soa, spec, name)
    numbers = sorted({run_numbers(soa.layout)[column] for column in columns_of(spec[name])})
    needed = [(number, runs(soa.layout, soa.capacity)[number]) for number in numbers]
    copied = [(why, _bytes_in(soa, number)) for number, run in needed if (why := _why(soa, run))]
    if not copied:
        return Verdict(name, INSIDE, "view", 0, "")
    return Verdict(name, INSIDE, "copy", sum(nbytes for _, nbytes in copied), copied[0][0])


def _inside_bound(soa: SoA, spec: Spec, name: str) -> Verdict:
    """Of bound columns, whether each goes in as it is."""
    nbytes, why, multiple = 0, "", alignment_on(soa.device)
    for column in columns_of(spec[name]):
        field = soa.layout[column]
        entry = column if field.per_row else Value(column)
        if soa.buffer.on_host:
            array = soa[entry]
            size, dense, past = array.size, array.flags.c_contiguous, array.ctypes.data % multiple
        else:
            [view] = views(soa, Spec({column: entry}))
            size, dense, past = view.size, in_rows(view), view.address % multiple
        if past or not dense:
            nbytes += size * field.itemsize
            where = f"starts {past} bytes past a multiple of {multiple}" if dense else "is strided"
            why = why or (
                f"column {column!r} {where}, and XLA takes no such memory as it is: JAX copies it "
                f"on the way in, in every call"
            )
    return Verdict(name, INSIDE, "copy" if nbytes else "view", nbytes, why)


def _why(soa: SoA, run: Run) -> str:
    """Why a run of fields is copied on the way into a jitted function; empty where it is not."""
    if is_slice_of_memory(soa):
        if not run.per_row:
            return ""
        return (
            f"rows {soa.start}:{soa.start + soa.rows} are a slice of {soa.capacity}, whose columns "
            f"lie apart, so that its rows are copied on the way in; slice the SoA inside jit"
        )
    past = (soa.buffer.address + run.offset) % alignment_on(soa.device)
    if not past:
        return ""
    return (
        f"{name_of(run)!r} starts {past} bytes past a multiple of {alignment_on(soa.device)}, and "
        f"XLA takes no such memory as it is: JAX copies it on the way in, in every call; align the "
        f"buffer (layout.allocate does)"
    )


def _bytes_in(soa: SoA, number: int) -> int:
    """Of the run in what goes in: as many rows as the SoA has, and their padding."""
    run = runs(soa.layout, soa.rows)[number]
    return prod(run.shape) * ITEMSIZE[run.dtype]


announce("soaview_jax", explain)
