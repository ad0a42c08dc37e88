"""The SoA as a pytree: one leaf for each run of equal fields."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.dlpack
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey

from soaview import Blocks, Layout, SoA, SoABlocks, Spec, Value, View, views
from soaview.adapter import (
    ITEMSIZE,
    Allocations,
    Buffer,
    apart,
    is_dense,
    keep,
    numpy_dtype,
    runs,
)

from ._leaves import Leaves, bits_of, name_of
from ._settings import NARROW, alignment_on, x64


def leaves(soa: SoA) -> tuple[Any, ...]:
    """Per run a matrix over the memory itself: `Run.shape`.

    64-bit runs go as pairs of 32 bits where JAX has those types switched off. A slice, whose
    columns lie apart, goes as a copy of its rows.
    """
    _check_leaves(soa)
    return _flatten(soa)[0]


def _check_leaves(soa: SoA) -> None:
    if isinstance(soa.buffer, Leaves):
        for number in range(len(soa.buffer.leaves)):
            soa.buffer.leaf(number)


Aux = tuple[Layout, int]


_Known = tuple[bool | None, tuple[tuple[Any, ...], Aux]]
"""Whether 64-bit types were switched on, or None where it does not matter; leaves and the rest."""


def _flatten(soa: SoA) -> tuple[tuple[Any, ...], Aux]:
    # This runs in every call of a jitted function.
    known: _Known | None = soa.adapter_cache.get("jax.tree")
    if known is not None and (known[0] is None or known[0] is x64()):
        return known[1]
    if isinstance(soa.buffer, Allocations):
        return _flatten_bound(soa)
    aux = (soa.layout, soa.rows)
    if soa.rows != soa.capacity:
        return _own_rows(soa), aux
    buffer = soa.buffer
    if isinstance(buffer, Leaves):
        mode, found = buffer.native()
    else:
        mode, found = None, []
        memory = buffer.root if buffer.on_host else None
        for run in runs(*aux):
            shape, dtype = run.shape, run.dtype
            if dtype in NARROW:
                mode = x64()
                if not mode:
                    (shape, _), dtype = bits_of(run), "uint32"
            if memory is not None:
                found.append(np.ndarray(shape, numpy_dtype(dtype), memory, run.offset))
            else:
                found.append(_run_of_a_device(buffer, name_of(run), dtype, shape, run.offset))
        if memory is None:  # what is imported from a device may be donated
            return tuple(found), aux
    return keep(soa, "jax.tree", (mode, (tuple(found), aux)))[1]


def _flatten_bound(soa: SoA) -> tuple[tuple[Any, ...], Aux]:
    """Of bound columns a leaf for each, its rows where they lie."""
    layout: Any = soa.layout
    if not soa.buffer.on_host:
        columns = [_column_of_a_device(soa, field) for field in layout.fields]
        return tuple(columns), (apart(layout), soa.rows)
    mode, found, copied = None, [], False
    for field in layout.fields:
        column = soa[field.name if field.per_row else Value(field.name)]
        leaf = column.reshape(soa.rows if field.per_row else 1, field.components)
        if field.dtype in NARROW:
            mode = x64()
            if not mode:
                leaf = np.ascontiguousarray(leaf).view(np.uint32)
        copied = copied or not np.may_share_memory(leaf, column)
        found.append(leaf)
    made = tuple(found), (apart(layout), soa.rows)
    # What was copied does not see what is written later.
    return made if copied else keep(soa, "jax.tree", (mode, made))[1]


def _column_of_a_device(soa: SoA, field: Any) -> jax.Array:
    """A matrix of rows and components over the memory itself, or copied where it is strided."""
    entry = field.name if field.per_row else Value(field.name)
    [view] = views(soa, Spec({field.name: entry}))
    dtype, words = field.dtype, 1
    if dtype in NARROW and not x64():
        dtype, words = "uint32", field.itemsize // 4
    shape = soa.rows if field.per_row else 1, field.components * words
    if in_rows(view):
        return _run_of_a_device(view.buffer, field.name, dtype, shape, view.byte_offset)
    strides = (*[stride * words for stride in view.strides], 1)
    at = (*view.shape, words), strides, view.offset * words
    return imported(View(field.name, dtype, ITEMSIZE[dtype], *at, view.buffer), copy=None).reshape(
        shape
    )


def in_rows(view: View) -> bool:
    """Whether its elements are one after another, those of the first row first."""
    steps = [step for n, step in zip(view.shape, view.strides, strict=True) if n > 1]
    return steps == sorted(steps, reverse=True) and is_dense(view.shape, view.strides)


def in_leaves(soa: SoA) -> SoA:
    """The SoA as JAX has it: of leaves, those of the memory itself."""
    _check_leaves(soa)
    found, aux = _flatten(soa)
    return from_leaves(*aux, found)


def _run_of_a_device(
    buffer: Buffer, name: str, dtype: str, shape: tuple[int, int], first: int
) -> jax.Array:
    """A matrix over the memory itself, from a byte on."""
    size = ITEMSIZE[dtype]
    return imported(View(name, dtype, size, shape, (shape[1], 1), first // size, buffer), copy=None)


def imported(view: View, *, copy: bool | None) -> jax.Array:
    """A dense view of another device's memory; a copy, with `copy=None`, where XLA needs one."""
    given: View | _Copy = view
    if copy is None and (view.address % alignment_on(view.device) or not in_rows(view)):
        given = _Copy(view)
    try:
        array: jax.Array = jax.dlpack.from_dlpack(given, copy=copy)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BufferError(
            f"tensor {view.name!r}: JAX does not take memory on {view.device}: {error}"
        ) from error
    _refuse_donation(array)
    return array


class _Copy:
    """A view that gives capsules of copies, made by the framework that has its memory."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __dlpack__(self, **options: Any) -> Any:
        return self.view.__dlpack__(**{**options, "copy": True})

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.view.__dlpack_device__()


def _refuse_donation(array: Any) -> None:
    """Keep a capsule of an import, for as long as that lives: XLA then raises where it is donated.

    On a GPU it would else write its results there. On a CPU it knows that imports are immutable.
    """
    if isinstance(array, jax.core.Tracer):
        return
    [device] = array.devices()
    if device.platform != "cpu":
        # JAX's own stream waits for the producer already, and so nobody waits here.
        stream = device.get_stream_for_external_ready_events()
        weakref.finalize(array, _let_go, array.__dlpack__(stream=stream)).atexit = False


def _let_go(capsule: object) -> None:
    """Nobody holds it any more."""


def _own_rows(soa: SoA) -> tuple[Any, ...]:
    layout, found = soa.layout, []
    whole = leaves(SoA(layout, soa.buffer, soa.capacity, 0, soa.capacity))
    memory = layout.allocate(soa.rows).buffer.root
    both = zip(runs(layout, soa.capacity), runs(layout, soa.rows), strict=True)
    for source, (run, own) in zip(whole, both, strict=True):
        if not run.per_row:
            found.append(source)
            continue
        words = source.shape[1] // run.shape[1]
        rows = source[soa.start : soa.start + soa.rows]
        if not run.interleaved:
            rows = source[:, soa.start * words : (soa.start + soa.rows) * words]
        shape = own.shape[0], own.shape[1] * words
        if isinstance(source, np.ndarray):
            target = np.ndarray(shape, source.dtype, memory, own.offset)
            target[:, : rows.shape[1]] = rows
            found.append(target)
        else:
            found.append(jnp.pad(rows, ((0, 0), (0, shape[1] - rows.shape[1]))))
    return tuple(found)


def from_leaves(layout: Layout, rows: int, leaves: Iterable[Any]) -> SoA:
    """The SoA whose runs are these."""
    return SoA(layout, Leaves(layout, rows, tuple(leaves)), rows, 0, rows)


def _flatten_with_keys(soa: SoA) -> tuple[list[tuple[DictKey, Any]], Aux]:
    found, aux = _flatten(soa)
    keys = [DictKey(name_of(run)) for run in runs(*aux)]
    return list(zip(keys, found, strict=True)), aux


def _unflatten(aux: Aux, children: Iterable[Any]) -> SoA:
    return from_leaves(*aux, children)


BlocksAux = tuple[Blocks, tuple[tuple[str, Any], ...]]


def _blocks_flatten(soas: SoABlocks) -> tuple[list[tuple[DictKey, Any]], BlocksAux]:
    found = [(DictKey(name), soa) for name, soa in soas.items()]
    return found, (soas.layout, _pairs(soas.rows))


def _pairs(rows: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Row counts as pairs, which have a hash."""
    return tuple((k, _pairs(n) if isinstance(n, Mapping) else n) for k, n in rows.items())


def _rows_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """The same again; JSON has made lists of tuples."""
    return {k: n if isinstance(n, int) else _rows_of(n) for k, n in pairs}


def _blocks_unflatten(aux: BlocksAux, children: Iterable[Any]) -> SoABlocks:
    layout, rows = aux
    return SoABlocks.of(layout, dict(zip(layout, children, strict=True)), _rows_of(rows))


def _to_bytes(aux: Aux) -> bytes:
    if aux[0].apart:
        raise TypeError("functions of bound columns are not exported; export them for soa.pack()")
    return json.dumps({"layout": aux[0].to_dict(), "rows": aux[1]}).encode()


def _from_bytes(data: bytes | bytearray) -> Aux:
    found = json.loads(data)
    return Layout.from_dict(found["layout"]), found["rows"]


def _blocks_to_bytes(aux: BlocksAux) -> bytes:
    return json.dumps({**aux[0].to_dict(), "rows": aux[1]}).encode()


def _blocks_from_bytes(data: bytes | bytearray) -> BlocksAux:
    found = json.loads(data)
    return Blocks.from_dict({"blocks": found["blocks"]}), _pairs(_rows_of(found["rows"]))


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
