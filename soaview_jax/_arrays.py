"""Arrays that alias an SoA's memory, and those that are taken from a traced one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from soaview import SoA, Spec, View
from soaview.adapter import (
    Allocations,
    Gather,
    check_copy,
    check_dtypes,
    host_array,
    is_dense,
    keep,
    views_or_gathers,
)

from ._extract import extract
from ._leaves import Leaves
from ._pytree import imported, in_leaves, leaves
from ._settings import NARROW, alignment_on, host_device, op_by_op, x64


def arrays(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False, dtype: Any = None
) -> list[jax.Array]:
    """The spec's arrays, in spec order, as JAX arrays over the SoA's memory.

    In a function under `jit`, or another of JAX's transformations, that is given the SoA as an
    argument, they are taken from it, for XLA to fuse into what reads them. That goes for every spec
    and row count, whatever `copy` is. On a CPU, XLA may take bfloat16 through float32 on the way:
    subnormal numbers can become zero, as in its arithmetic.

    Outside, XLA imports only memory that is dense, in any order of the axes, and starts on a
    multiple of 64 bytes, on a GPU of 16. A column of plain numbers, or an interleaved one, is dense
    at every row count; a vector, a matrix or neighbouring columns are when no padding lies between
    them. Read-only memory
    is welcome. Of another framework's memory on a device, JAX imports views of torch's or CuPy's,
    one of which must have been imported; JAX's stream waits for the producer's. On a GPU, XLA
    refuses to be given such arrays by donation.

    JAX computes asynchronously, over the memory itself: results still being computed see what is
    written into it, so write when `jax.block_until_ready` has returned them. Arrays outside of
    `jit` see it at any time. An SoA that is an argument is read in every call; one that a jitted
    function has closed over is a constant, with the values of the time when it was compiled.

    Args:
        soa: the memory.
        spec: which columns make each array.
        copy: outside of transformations, `False` never copies; `None` copies only the arrays that
            XLA cannot import; `True` copies all. Copies are finished when they are returned, and
            independent of the SoA. Of an SoA that JAX made, which is immutable, `False` acts as
            `None`, and so it does under `jax.disable_jit`, `jax.debug_nans` and `jax.debug_infs`:
            there JAX runs jitted functions as they are, on the SoA itself, and nothing tells. What
            is on another device than JAX's first CPU, or on several, is always copied, on these.
        padded: give the padded rows (pitch / itemsize) instead of the valid ones: dense at every
            row count. `soa.rows` says how many of them are valid. An interleaved column has none,
            and gives its rows.
        dtype: the floating dtype of all arrays, whatever their columns have, or of some, by name:
            `{"x": "float32"}`. One of integer, bool or other floating columns, or of several
            dtypes, is then a copy, converted by NumPy, or inside transformations and on devices by
            XLA: rounded to the nearest, and infinite where the dtype ends before. `copy=False`
            refuses that outside of transformations.

    Raises:
        BufferError: with `copy=False`, an array cannot be a view; it says which, why, and the ways
            out.
        TypeError: a 64-bit dtype while JAX has them switched off, which would narrow it, unless
            NumPy converts it before; a wrong kind of argument.
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
    x64_on = x64()
    if copy is False and dtype is None:
        try:
            known: _Prepared | None = soa.adapter_cache.get(("jax", spec.key, padded, x64_on))
        except (AttributeError, TypeError):  # no SoA, or no spec of it: what follows says so
            known = None
        if known is not None and known.padded is padded:
            return list(starmap(_alias, known.sources))
    if padded is True and op_by_op() and is_slice_of_memory(soa):
        soa = in_leaves(soa)  # as `jit` has it: of its rows alone
    dtypes = check_dtypes(spec, dtype)
    found = views_or_gathers(soa, spec, padded=padded, dtypes=dtypes)
    if not x64_on:
        for view in found:
            check_width(view)
    buffer = soa.buffer
    if isinstance(buffer, Leaves):
        if buffer.traced:
            return [extract(view) for view in found]
        if buffer.elsewhere:
            with jax.ensure_compile_time_eval():
                return [extract(view).block_until_ready() for view in found]
        copy = copy or None
        found = [located(buffer, view) for view in found]
    if copy is True:
        with jax.ensure_compile_time_eval():
            return _copies(soa, spec, padded, found, dtypes)
    obstacles = [obstacle(soa, view) for view in found]
    copied = [view for view, obstacle in zip(found, obstacles, strict=True) if obstacle]
    if copied and copy is False and not op_by_op():
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
        key = "jax", spec.key, padded, x64_on
        keep(soa, key, _Prepared(padded, sources))
    with jax.ensure_compile_time_eval():  # inside jit, too, copies are arrays
        aliases, copies = starmap(_alias, sources), iter(_copies(soa, spec, padded, copied, dtypes))
        return [next(copies if obstacle else aliases) for obstacle in obstacles]


class _Prepared(NamedTuple):
    """What makes an SoA's arrays again and again.

    Attributes:
        padded: whether they have the padded rows.
        sources: the arguments of `_alias` for each.
    """

    padded: bool
    sources: list[tuple[str, NDArray[Any] | View, int]]


def located(buffer: Leaves, view: View | Gather) -> View | Gather:
    """A view in the memory of its leaf, where that is on the host."""
    if isinstance(view, Gather):
        return view
    where, at = buffer.locate(view.strided)
    return View(*at, where)


def batch(soa: SoA, spec: Spec, start: jax.Array) -> list[jax.Array]:
    """The arrays of as many rows as a traced SoA has, from a traced `start` on."""
    found = views_or_gathers(soa, spec)
    if not x64():
        for view in found:
            check_width(view)
    return [extract(view, start) for view in found]


def is_slice_of_memory(soa: SoA) -> bool:
    """Whether its columns lie apart, in memory that others laid out."""
    there = isinstance(soa.buffer, (Leaves, Allocations))
    return type(soa) is SoA and soa.rows != soa.capacity and not there


def check_width(view: View | Gather) -> None:
    """Raise for a 64-bit dtype while JAX has them switched off.

    What a gather converts must not have one either, but where NumPy reads it.
    """
    dtypes = [view.dtype_name]
    if isinstance(view, Gather) and not view.soa.buffer.on_host:
        dtypes += [view.soa.layout[name].dtype for name in view.columns]
    for dtype in dtypes:
        if (narrow := NARROW.get(dtype)) is not None:
            raise TypeError(
                f"tensor {view.name!r} is {dtype}, and JAX has 64-bit types switched off: it would "
                f"narrow it to {narrow} in silence. Ways out: "
                f'jax.config.update("jax_enable_x64", True) at the start of the program, '
                f"`with jax.enable_x64(True):` around the call, or a field of {narrow}"
            )


def obstacle(soa: SoA, view: View | Gather) -> str | None:
    """Why XLA cannot import this view, and the ways out; None where it can."""
    if isinstance(view, Gather):
        return view.why()
    if not is_dense(view.shape, view.strides):
        return _padding(soa, view)
    if 0 in view.shape:
        return None
    if (
        view.buffer.on_host
        and view.dtype_name == "bfloat16"
        and not view.numpy().flags.c_contiguous
    ):
        return (
            "NumPy cannot export bfloat16 through DLPack, and what JAX takes instead it aliases in "
            "row-major order only; take its columns one by one, or let copy=None copy it"
        )
    start, alignment = view.address, alignment_on(view.device)
    if start % alignment:
        return (
            f"it starts at address {start:#x}, {start % alignment} bytes past a multiple of "
            f"{alignment}, and XLA imports only what starts on one; align the buffer "
            f"(layout.allocate does) and the first row of a slice, or let copy=None copy it"
        )
    return None


def _padding(soa: SoA, view: View) -> str:
    """What lies between the elements of a view that is not dense."""
    field_rows = f"rows {view.shape[0]}"
    if view.strides[0] == 0:
        return (
            "a scalar broadcast to the rows has no dense form, the only one that XLA imports; "
            "write Value(name) in the spec and let the model broadcast it, or let copy=None copy it"
        )
    if isinstance(soa.buffer, Allocations):
        return (
            f"its elements are not next to each other (strides {view.strides}, in elements), and "
            f"XLA imports only dense memory; let copy=None copy it, or take it from soa.pack()"
        )
    if soa.rows != soa.capacity:
        return (
            f"{field_rows} are a slice of {soa.capacity}, whose columns lie apart, and XLA imports "
            f"only dense memory; slice the arrays of the whole SoA, or let copy=None copy it"
        )
    if view.strides[0] > 1:
        return (
            f"it is of several interleaved columns, and padding or other fields lie between them "
            f"(strides {view.strides}, in elements), and XLA imports only dense memory; take them "
            f"one by one, or let copy=None copy it"
        )
    padded = soa.layout.alignment // view.itemsize
    padded_rows = -(-soa.rows // padded) * padded
    dense = soa.layout.dense_rows(soa.rows)
    if is_dense((padded_rows, *view.shape[1:]), view.strides):
        return (
            f"{field_rows}, padded rows {padded_rows}: padding lies between its columns, and XLA "
            f"imports only dense memory; padded=True gives all {padded_rows} rows, "
            f"layout.dense_rows({soa.rows}) is {dense}, a row count without padding, and "
            f"copy=None copies it"
        )
    padding = ""
    if dense != soa.rows:
        padding = (
            f", and take padded=True or a row count without padding (layout.dense_rows("
            f"{soa.rows}) is {dense})"
        )
    return (
        f"its columns are not neighbours (strides {view.strides}, in elements), and XLA imports "
        f"only dense memory; declare the fields one after another{padding}, or let copy=None copy "
        f"it"
    )


def _source(view: View) -> tuple[str, NDArray[Any] | View, int]:
    """What JAX imports, and where the array must then be."""
    if not view.buffer.on_host:
        return view.name, view, view.address
    # Without the read-only flag, for JAX asks for capsules that cannot carry it. It never writes
    # to memory that is imported as `_alias` does, not even when the array is donated.
    return view.name, host_array(view.buffer.unguarded, view.strided), view.address


def _alias(name: str, host: NDArray[Any] | View, address: int) -> jax.Array:
    array = _imported(host)
    if isinstance(array, jax.core.Tracer):  # inside jit, too, these are arrays
        with jax.ensure_compile_time_eval():
            array = _imported(host)
    if array.dtype != host.dtype or (array.size and array.unsafe_buffer_pointer() != address):
        raise BufferError(
            f"tensor {name!r}: JAX {jax.__version__} copied or converted it in silence; "
            f"use copy=None, and please report this"
        )
    return array


def _imported(host: NDArray[Any] | View) -> jax.Array:
    # Never copy=True: that one returns an alias all the same, and lets XLA write into it.
    if isinstance(host, View):
        array: jax.Array = imported(host, copy=False)
    elif host.dtype.kind == "V":  # bfloat16, which NumPy cannot export
        array = jax.device_put(host, host_device())
    else:
        # Where there is nothing to copy, the address need not be aligned.
        array = jax.dlpack.from_dlpack(host, copy=False if host.size else None)
    return array


def _copies(
    soa: SoA,
    spec: Spec,
    padded: bool,
    found: Sequence[View | Gather],
    dtypes: Mapping[str, str],
) -> list[jax.Array]:
    """Copies that nobody else holds, in one transfer, and finished."""
    if not found:
        return []
    if isinstance(soa.buffer, Allocations) and not soa.buffer.on_host:
        some = spec.subset(*(view.name for view in found))
        made = [extract(view) for view in views_or_gathers(in_leaves(soa), some, dtypes=dtypes)]
        return [array.block_until_ready() for array in made]
    if not (soa.buffer.on_host or soa.buffer.piecewise):
        # Taken on the device from imports of the whole runs.
        whole = SoA(soa.layout, soa.buffer, soa.capacity, 0, soa.capacity)
        buffer = Leaves(soa.layout, soa.capacity, leaves(whole))
        soa = SoA(soa.layout, buffer, soa.capacity, soa.start, soa.rows)
        some = spec.subset(*(view.name for view in found))
        there = views_or_gathers(soa, some, padded=padded, dtypes=dtypes)
        made = [extract(view) for view in there]
        return [array.block_until_ready() for array in made]  # what XLA puts out is never an alias
    hosts = [
        view.numpy() if isinstance(view, Gather) else np.array(view.numpy(), order="C")
        for view in found
    ]
    copies: list[jax.Array] = jax.device_put(hosts, host_device())
    for copy in copies:
        copy.block_until_ready()
    return copies
