"""Rows by events: nested tensors over an SoA, where it lies, and the rows' event numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from soaview import SoA, Spec, Value
from soaview.adapter import (
    check_among_rows,
    check_integers,
    check_offsets,
    check_one_given,
    check_soa,
    host_offsets,
)

from ._memory import import_of, is_plain
from ._tensors import tensors


def jagged(
    soa: SoA, spec: Spec, offsets: Any = None, *, counts: Any = None, copy: bool | None = False
) -> list[torch.Tensor]:
    """The spec's tensors as nested tensors, `(events, rows of each, ...)`, that alias the SoA.

    They are torch's jagged nested tensors (https://docs.pytorch.org/docs/stable/nested.html):
    `values()` is what `tensors` gives, pointer and strides included. All of a call have one ragged
    dimension, so that they can be combined. Offsets and counts are read, which waits for a device,
    and kept as a copy.

    torch has no gradient of their `sum` and `mean`, as it lacks `_nested_sum_backward`: where you
    train, give `values()` and the event numbers of `segments` to `index_add`.
    `F.scaled_dot_product_attention` finds "no viable backend" for several columns side by side,
    whose rows are not contiguous: pass `copy=True`. `nn.MultiheadAttention` takes no jagged tensors
    at all: pad them, `to_padded_tensor(0.0)`, and mask the padding.

    Args:
        soa: the memory, one row for each hit, muon, ...
        spec: which columns make each tensor; no `Value`.
        offsets: integers, a tensor or an array: event i has the rows from `offsets[i]` to
            `offsets[i + 1]`; the first is 0, the last the SoA's row count.
        counts: instead, how many rows each event has.
        copy: as in `tensors`.

    Raises:
        TypeError, ValueError: offsets that are no integers, or do not cut the rows into events.
        BufferError, KeyError: as `tensors`.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]})
    >>> [pt] = jagged(soa, Spec(pt="pt"), counts=[2, 0, 1])
    >>> pt.sum(1)
    tensor([3., 0., 3.])
    """
    check_one_given(offsets, counts)
    found = tensors(soa, spec, copy=copy)
    for name, entry in spec.items():
        if isinstance(entry, Value):
            raise ValueError(f"tensor {name!r} is one value, and has no rows; leave it out")
    device = found[0].device if found else torch.device("cpu")
    events = _events(soa, offsets, counts, device, all_rows=True)
    # torch makes no nested tensor of a plain one in inference mode, but uses it there.
    inference = torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if inference else nullcontext():
        return [
            torch.nested.nested_tensor_from_jagged(
                t, events.offsets, min_seqlen=events.shortest, max_seqlen=events.longest
            )
            for t in found
        ]


def segments(soa: SoA, offsets: Any = None, *, counts: Any = None) -> torch.Tensor:
    """To which event each row belongs: int64, shape `(rows,)`, on the SoA's device.

    They are the indices that `index_add` and `scatter_reduce` take. Rows that come after the last
    event get the number of events, for which torch's functions need one place more: without it
    they raise, or, on a device, stop the program.

    Args:
        soa: one row for each hit, muon, ...
        offsets: integers, a tensor or an array: event i has the rows from `offsets[i]` to
            `offsets[i + 1]`; the first is 0, the last at most the SoA's row count.
        counts: instead, how many rows each event has.

    Raises:
        TypeError, ValueError: offsets that are no integers, or do not cut the rows into events.
        BufferError: memory of a device that torch does not reach.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]})
    >>> [pt] = tensors(soa, Spec(pt="pt"))
    >>> ids = segments(soa, counts=[1, 0, 1])
    >>> ids
    tensor([0, 2, 3])
    >>> torch.zeros(3 + 1).index_add(0, ids, pt)[:3]
    tensor([1., 0., 2.])
    """
    check_one_given(offsets, counts)
    check_soa(soa)
    events = _events(soa, offsets, counts, _device(soa), all_rows=False)
    with torch.inference_mode(False), torch.no_grad():
        ends = torch.cat([events.offsets, events.offsets.new_tensor([soa.rows])])
        return torch.repeat_interleave(ends.diff(), output_size=soa.rows)


class _Events(NamedTuple):
    """Where events begin and end: int64, on a device; the rows of the shortest and longest event.

    Without events these two are 0.
    """

    offsets: torch.Tensor
    shortest: int
    longest: int


def _events(
    soa: SoA, offsets: Any, counts: Any, device: torch.device, *, all_rows: bool
) -> _Events:
    """The one that is given, checked; a copy of it."""
    what = "counts" if offsets is None else "offsets"
    given = counts if offsets is None else offsets
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(host_offsets(what, given, soa.rows))
    if not is_plain(given) or given.is_quantized or given.is_meta:
        raise TypeError(
            f"{what} must be a plain dense tensor, got {type(given).__name__} of layout "
            f"{given.layout} on {given.device}"
        )
    real = given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
    check_integers(what, tuple(given.shape), given.numel() == 0 or not real, given.dtype)
    with torch.inference_mode(False), torch.no_grad():
        given = given.to(device, torch.int64, copy=True)
        none = given.new_zeros(1)
        ends = given if counts is None else torch.cat([none, given.cumsum(0)])
        steps = torch.cat([none, ends.diff()]) if len(ends) < 2 else ends.diff()
        edges = [*torch.cat([given, none]).aminmax(), ends[0], ends[-1], *steps.aminmax()]
        low, high, first, last, shortest, longest = torch.stack(edges).tolist()
    check_among_rows(what, soa.rows, given, low, high)
    check_offsets(soa.rows, first, last, shortest, all_rows=all_rows)
    return _Events(ends, shortest, longest)


def _device(soa: SoA) -> torch.device:
    if soa.device == "cpu":
        return torch.device("cpu")
    buffer = soa.buffer.piece(0)  # all allocations of bound columns are on one device
    if buffer.piecewise:
        raise BufferError(
            f"the SoA is JAX's, on {soa.device}; outside of jit, pass jax.device_get(soa)"
        )
    with torch.inference_mode(False):
        return import_of(buffer).base.device
