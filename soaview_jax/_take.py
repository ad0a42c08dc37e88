"""Chosen rows of an SoA, and SoAs one after another, where JAX has them: inside of `jit`, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from soaview import SoA, Value
from soaview import concatenate as concatenate_on_host
from soaview.adapter import (
    DeviceBuffer,
    check_alike,
    check_same_scalar,
    check_soa,
    numpy_dtype,
    row_numbers,
    runs,
)

from ._extract import shards
from ._leaves import Leaves
from ._pytree import from_leaves, in_leaves
from ._rows import check_count
from ._settings import x64


def take(soa: SoA, rows: Any) -> SoA:
    """The chosen rows, in this order, in a new SoA: a copy, where the SoA is.

    It is `soa.take`, of any SoA, and it may be called in a function under `jit`. There the rows may
    be traced integers, too, which are not checked: below and above those that are there the first
    and the last are taken.

    Args:
        soa: any.
        rows: integers along one axis, of which -1 is the last row, or a bool for each row, which
            may not be traced; an array, or what NumPy takes for one.

    Raises:
        IndexError: a row that is not there, or a mask of another length.
        TypeError: anything else.

    >>> from soaview import Column, Layout
    >>> soa = jax.device_put(Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]}))
    >>> jax.jit(take)(soa, jnp.array([-1, 0]))["pt"]
    array([3., 1.], dtype=float32)
    """
    check_soa(soa)
    check_count(soa)
    index: Any
    if isinstance(rows, jax.core.Tracer):
        if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
            raise TypeError(
                f"traced rows must be integers along one axis, got {rows.dtype} of shape "
                f"{rows.shape}; of a mask nobody knows how many rows it has"
            )
        if rows.size and not soa.rows:
            raise IndexError("there is no row to take: the SoA has 0 rows")
        last = max(soa.rows - 1, 0)
        if jnp.issubdtype(rows.dtype, jnp.unsignedinteger):  # some are beyond a signed type
            rows = jnp.minimum(rows, min(last, int(np.iinfo(rows.dtype).max)))
        rows = rows.astype("int64" if x64() else "int32")
        index = jnp.clip(jnp.where(rows < 0, rows + soa.rows, rows), 0, last)
    else:
        index = row_numbers(rows, soa.rows) % max(soa.rows, 1)
        if not _is_elsewhere(soa):
            return soa.take(index)
    there, count = in_leaves(soa), len(index)
    made = []
    for run, own, leaf in _runs_of(there, count):
        if not run.per_row:
            made.append(leaf)
        elif run.interleaved:
            made.append(_chosen(leaf, index, 0))
        else:
            made.append(_padded(_chosen(_by_rows(run, leaf), index, 1), own))
    return from_leaves(there.layout, count, made)


def concatenate(soas: Sequence[SoA]) -> SoA:
    """The rows of several SoAs, one after another, in a new one: a copy, where they are.

    It is `soaview.concatenate`, of any SoAs, and it may be called in a function under `jit`, where
    scalars are not compared: they are the first one's.

    Args:
        soas: a list of SoAs of the same fields, in memory alike.

    Raises:
        TypeError, ValueError: no such list, or scalars that differ.

    >>> from soaview import Column, Layout
    >>> soa = jax.device_put(Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0]}))
    >>> concatenate([soa, soa])["pt"]
    array([1., 2., 1., 2.], dtype=float32)
    """
    soas = check_alike(soas)
    if not any(map(_is_elsewhere, soas)):
        return concatenate_on_host(soas)
    all_there = [in_leaves(soa) for soa in soas]
    first, rows = all_there[0], sum(soa.rows for soa in soas)
    for number, there in enumerate(all_there):
        if there.layout.fields != first.layout.fields:
            raise ValueError(
                f"the fields of soas[{number}] lie otherwise in memory than those of soas[0]: "
                f"{there.layout!r:.200}, expected {first.layout!r:.200}; concatenate them on the "
                f"host, soaview.concatenate(jax.device_get(soas))"
            )
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(all_there)):
        scalars = [_scalars(there) for there in all_there]
        for field in first.layout.fields:
            if not field.per_row:
                check_same_scalar(field.name, [each[Value(field.name)] for each in scalars])
    made = []
    for number, (run, own, leaf) in enumerate(_runs_of(first, rows)):
        leaves = [there.buffer.leaves[number] for there in all_there]  # type: ignore[attr-defined]
        if not run.per_row:
            made.append(leaf)
        elif run.interleaved:
            made.append(jnp.concatenate(leaves, axis=0))
        else:
            both = zip(all_there, leaves, strict=True)
            parts = [
                _by_rows(runs(there.layout, there.rows)[number], each)[:, : there.rows]
                for there, each in both
            ]
            made.append(_padded(jnp.concatenate(parts, axis=1), own))
    return from_leaves(first.layout, rows, made)


def _is_elsewhere(soa: SoA) -> bool:
    """Whether it is JAX's, or on a device: not the host's memory that NumPy reads."""
    return isinstance(soa.buffer.piece(0), (Leaves, DeviceBuffer))


def _runs_of(soa: SoA, count: int) -> list[tuple[Any, Any, Any]]:
    """Each run of an SoA of leaves, the same for so many rows, and its leaf."""
    buffer = soa.buffer
    assert isinstance(buffer, Leaves)
    leaves = [buffer.leaf(number) for number in range(len(buffer.leaves))]
    both = runs(soa.layout, soa.rows), runs(soa.layout, count), leaves
    return list(zip(*both, strict=True))


def _by_rows(run: Any, leaf: Any) -> Any:
    """A leaf's components, padded rows, and words: two where 64 bits go as pairs of 32."""
    words = 1 if leaf.dtype == numpy_dtype(run.dtype) else numpy_dtype(run.dtype).itemsize // 4
    return jnp.reshape(leaf, (run.shape[0], run.shape[1], words))


def _chosen(leaf: Any, index: Any, axis: int) -> jax.Array:
    """Rows of a leaf; where a mesh's axes are explicit, and it splits them, all on each device."""
    sharding = jax.typeof(leaf).sharding
    split = shards(sharding, axis) > 1
    where = (slice(None),) * axis + (index,)
    out = sharding.update(spec=()) if split else None
    return jnp.asarray(leaf).at[where].get(mode="clip", out_sharding=out)


def _padded(parts: jax.Array, own: Any) -> jax.Array:
    components, rows, words = parts.shape
    parts = jnp.pad(parts, ((0, 0), (0, own.shape[1] - rows), (0, 0)))
    return parts.reshape(components, own.shape[1] * words)


def _scalars(soa: SoA) -> SoA:
    """The scalars alone, fetched to the host: without rows."""
    made = [
        np.zeros(own.shape, numpy_dtype(own.dtype)) if run.per_row else np.asarray(leaf)
        for run, own, leaf in _runs_of(soa, 0)
    ]
    return from_leaves(soa.layout, 0, made)
