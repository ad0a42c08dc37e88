"""Chosen rows of an SoA, and SoAs one after another, on the device where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from soaview import SoA, Spec, Value
from soaview import concatenate as concatenate_on_host
from soaview.adapter import (
    DeviceBuffer,
    check_alike,
    check_mask,
    check_present,
    check_same_scalar,
    check_soa,
    numpy_dtype,
    row_numbers,
)

from ._memory import device_of
from ._move import empty
from ._tensors import tensors

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""What has the same bits, of the types that torch does not choose from."""


def take(soa: SoA, rows: Any) -> SoA:
    """The chosen rows, in this order, in a new SoA on the same device: a copy.

    It is `soa.take`, on any device; there it waits for the device, to know that all rows are there.

    Args:
        soa: any.
        rows: integers along one axis, of which -1 is the last row, or a bool for each row; a
            tensor, or what NumPy takes for an array.

    Raises:
        IndexError: a row that is not there, or a mask of another length.
        TypeError: anything else.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]})
    >>> take(soa, torch.tensor([2, 0]))["pt"]
    array([3., 1.], dtype=float32)
    """
    check_soa(soa)
    if not on_device(soa):
        return soa.take(rows)
    index = _numbers(rows, soa)
    made = empty(soa.layout.allocate(0).layout, len(index), device=device_of(soa.device))
    spec = _all_fields(soa)
    both = zip(spec, tensors(soa, spec, copy=None), tensors(made, spec), strict=True)
    with torch.no_grad():
        for name, source, target in both:
            if soa.layout[name].per_row:
                gather(source, index, target)
            else:
                target.copy_(source)
    return made


def concatenate(soas: Sequence[SoA]) -> SoA:
    """The rows of several SoAs, one after another, in a new one on their device: a copy.

    It is `soaview.concatenate`, on any device; scalars are fetched from there, to be compared.

    Args:
        soas: a list of SoAs on one device, whose fields have the same names, dtypes and shapes, in
            the same order.

    Raises:
        TypeError, ValueError: no such list, several devices, or scalars that differ.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0]})
    >>> concatenate([soa, soa[1:]])["pt"]
    array([1., 2., 2.], dtype=float32)
    """
    soas = check_alike(soas)
    devices = dict.fromkeys([soa.device for soa in soas])
    if len(devices) > 1:
        raise ValueError(
            f"the SoAs are on {len(devices)} devices ({', '.join(devices)}); move them to one "
            f"first, with soaview_torch.to"
        )
    if not any(map(on_device, soas)):
        return concatenate_on_host(soas)
    first, spec = soas[0], _all_fields(soas[0])
    parts = [tensors(soa, spec, copy=None) for soa in soas]
    for position, name in enumerate(spec):
        if not first.layout[name].per_row:
            dtype = first.layout[name].dtype
            check_same_scalar(name, [_fetched(part[position], dtype) for part in parts])
    rows = sum([soa.rows for soa in soas])
    made = empty(first.layout.allocate(0).layout, rows, device=device_of(first.device))
    with torch.no_grad():
        for name, target, *each in zip(spec, tensors(made, spec), *parts, strict=True):
            if first.layout[name].per_row:
                torch.cat(each, out=target)
            else:
                target.copy_(each[0])
    return made


def on_device(soa: SoA) -> bool:
    """Whether the memory is a device's, which NumPy does not read."""
    return isinstance(soa.buffer.piece(0), DeviceBuffer)


def gather(source: torch.Tensor, index: torch.Tensor, target: torch.Tensor) -> None:
    """Put the source's rows of these numbers, which are there, into the target: in one pass."""
    bits = _SIGNED.get(source.dtype, source.dtype)
    torch.index_select(source.view(bits), 0, index, out=target.view(bits))


def _numbers(given: Any, soa: SoA) -> torch.Tensor:
    """The chosen rows' numbers, on the SoA's device."""
    if not isinstance(given, torch.Tensor) or given.device.type == "cpu":
        host = row_numbers(given, soa.rows) % max(soa.rows, 1)
        return torch.from_numpy(host).to(device_of(soa.device))
    if given.dtype is torch.bool and given.dim() == 1:
        check_mask(len(given), soa.rows)
        return given.nonzero().squeeze(1)
    if given.dim() != 1 or given.dtype.is_floating_point or given.dtype.is_complex:
        raise TypeError(
            f"rows must be integers or a mask along one axis, got {given.dtype} of shape "
            f"{tuple(given.shape)}"
        )
    index = given.long()
    if len(index):
        least, most = (int(number) for number in index.aminmax())
        check_present(least, most, soa.rows)
    return torch.where(index < 0, index + soa.rows, index)


def _all_fields(soa: SoA) -> Spec:
    fields = soa.layout.fields
    return Spec({f.name: f.name if f.per_row else Value(f.name) for f in fields})


def _fetched(scalar: torch.Tensor, dtype: str) -> NDArray[Any]:
    return scalar.cpu().reshape(-1).view(torch.uint8).numpy().view(numpy_dtype(dtype))
