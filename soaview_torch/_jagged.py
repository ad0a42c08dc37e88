"""Rows by events: nested tensors over an SoA, where it lies."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from soaview import SoA, Spec
from soaview._ragged import check_cuts, check_kind, check_numbers, check_offsets, host_cuts

from ._tensors import tensors


def jagged(
    soa: SoA, spec: Spec, offsets: Any = None, *, counts: Any = None, copy: bool | None = False
) -> list[torch.Tensor]:
    """The spec's tensors as nested tensors, `(events, rows of each, ...)`, that alias the SoA.

    They are torch's jagged nested tensors (https://docs.pytorch.org/docs/stable/nested.html):
    `values()` is what `tensors` gives, pointer and strides included. All of a call have one ragged
    dimension, so that they can be combined. Offsets and counts are read, which waits for a device,
    and kept as a copy.

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
    check_cuts(offsets, counts)
    found = tensors(soa, spec, copy=copy)
    for name, tensor in zip(spec, found, strict=True):
        if not tensor.ndim:
            raise ValueError(f"tensor {name!r} is one value, and has no rows; leave it out")
    device = found[0].device if found else None
    what = "counts" if offsets is None else "offsets"
    given = counts if offsets is None else offsets
    if not isinstance(given, torch.Tensor):
        given = torch.from_numpy(host_cuts(what, given, soa.rows))
    if given.is_nested or given.is_quantized or given.is_meta or given.layout is not torch.strided:
        raise TypeError(f"{what} must be a plain dense tensor, got {given.layout}, {given.device}")
    real = given.is_floating_point() or given.is_complex() or given.dtype == torch.bool
    check_kind(what, tuple(given.shape), given.numel() == 0 or not real, given.dtype)
    with torch.inference_mode(False), torch.no_grad():
        given = given.to(device, torch.int64, copy=True)
        none = given.new_zeros(1)
        cuts = given if counts is None else torch.cat([none, given.cumsum(0)])
        steps = torch.cat([none, cuts.diff()]) if len(cuts) < 2 else cuts.diff()
        edges = [*torch.cat([given, none]).aminmax(), cuts[0], cuts[-1], *steps.aminmax()]
        low, high, first, last, shortest, longest = torch.stack(edges).tolist()
    check_numbers(what, soa.rows, low, high)
    check_offsets(soa.rows, first, last, shortest, all_rows=True)
    # torch makes no nested tensor of a plain one in inference mode, but uses it there.
    inference = torch.is_inference_mode_enabled()
    with torch.inference_mode(False) if inference else nullcontext():
        return [
            torch.nested.nested_tensor_from_jagged(t, cuts, min_seqlen=shortest, max_seqlen=longest)
            for t in found
        ]
