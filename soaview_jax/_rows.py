"""Which of an SoA's rows count, and which belong together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from soaview import SoA
from soaview.adapter import (
    check_integers,
    check_offsets,
    check_one_given,
    check_soa,
    exact_int,
    host_offsets,
)

from ._settings import INT32_MAX, x64


def mask(soa: SoA, count: jax.Array | int) -> jax.Array:
    """Which of the SoA's rows are among the first `count`: bool, shape `(rows,)`.

    For an SoA of a fixed row count of which `count` are valid: `jit` compiles once for all counts.

    >>> from soaview import Column, Layout
    >>> mask(Layout([Column("x", "float32")]).allocate(4), 3)
    Array([ True,  True,  True, False], dtype=bool)
    """
    check_count(soa)
    if isinstance(count, jax.core.Tracer):
        if count.shape or not jnp.issubdtype(count.dtype, jnp.integer):
            raise TypeError(f"count must be one integer, got {count.dtype} of shape {count.shape}")
        count = _among(count, soa.rows)
    else:
        count = exact_int(count, "count")
        if not 0 <= count <= soa.rows:
            raise ValueError(f"count must be between 0 and the SoA's {soa.rows} rows, got {count}")
    return jnp.arange(soa.rows) < count


def segments(soa: SoA, offsets: Any = None, *, counts: Any = None) -> jax.Array:
    """To which event each row belongs: int32, shape `(rows,)`, for `jax.ops.segment_sum`.

    Rows that come after the last event get the number of events, which `segment_sum` and the like
    leave out when they are told `num_segments`. In a function under `jit` the offsets may be
    traced, and are not checked then.

    Args:
        soa: one row for each hit, muon, ...
        offsets: integers: event i has the rows from `offsets[i]` to `offsets[i + 1]`; the first is
            0, the last at most the SoA's row count.
        counts: instead, how many rows each event has.

    Raises:
        TypeError, ValueError: offsets that are no integers, or do not cut the rows into events.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]})
    >>> segments(soa, counts=[2, 0, 1])
    Array([0, 0, 2], dtype=int32)
    """
    check_one_given(offsets, counts)
    check_count(soa)
    what, given = ("counts", counts) if offsets is None else ("offsets", offsets)
    if isinstance(given, jax.core.Tracer):
        check_integers(what, given.shape, jnp.issubdtype(given.dtype, jnp.integer), given.dtype)
        ends = _among(given, soa.rows)
        if offsets is None:
            # Without a sign, a sum that is too large does not come to be among the rows again.
            sums = ends.astype(jnp.uint64 if x64() else jnp.uint32).cumsum()
            ends = _among(sums, soa.rows)
        else:
            ends = ends[1:]
    else:
        host = host_offsets(what, given, soa.rows)
        host = np.concatenate([[0], host.cumsum()]) if offsets is None else host
        shortest = np.diff(host).min(initial=0)
        check_offsets(soa.rows, host[0], host[-1], shortest, all_rows=False)
        ends = jnp.asarray(host[1:])
    # A row's event is the number of those that have ended before it.
    ended = jnp.zeros(soa.rows, jnp.int32).at[ends].add(1, mode="drop")
    return ended.cumsum(dtype=jnp.int32)


def _among(number: jax.Array, rows: int) -> jax.Array:
    """A traced integer of any type as one of those that count rows, between 0 and `rows`."""
    last = min(rows, int(np.iinfo(number.dtype).max))
    least, most = jnp.asarray(0, number.dtype), jnp.asarray(last, number.dtype)
    return lax.clamp(least, number, most).astype(jnp.int64 if x64() else jnp.int32)


def check_count(soa: SoA) -> None:
    """Raise unless this is an SoA whose rows JAX counts."""
    check_soa(soa)
    if soa.rows > INT32_MAX and not x64():
        raise ValueError(
            f"JAX does not count to {soa.rows} rows while 64-bit types are switched off; switch "
            f"them on"
        )
