"""SoAs in memory of torch's, and moved from device to device in one transfer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, overload

import torch

from soaview import Blocks, Layout, SoA, SoABlocks, Spec, Value
from soaview.adapter import INT64_MAX, Allocations, Buffer, check_soa, copy_rows

from ._memory import device_of, name_of, to_read
from ._tensors import tensors
from ._write import write


@overload
def empty(
    layout: Layout, rows: int, *, device: torch.device | str = ..., pin_memory: bool = ...
) -> SoA: ...
@overload
def empty(
    layout: Blocks,
    rows: Mapping[str, Any],
    *,
    device: torch.device | str = ...,
    pin_memory: bool = ...,
) -> SoABlocks: ...
def empty(
    layout: Any, rows: Any, *, device: torch.device | str = "cpu", pin_memory: bool = False
) -> Any:
    """An SoA, or blocks of them, in memory of torch's, with whatever that holds.

    Args:
        layout: the fields, or the blocks.
        rows: how many; of each block.
        device: where; `"cuda"` is torch's current one.
        pin_memory: memory of the host that a GPU copies from and to without waiting.

    Raises:
        MemoryError: torch has not so much.
        TypeError: neither layout nor blocks; no device.

    >>> from soaview import Column
    >>> empty(Layout([Column("pt", "float32")]), 3)
    SoA(3 rows, 128 bytes on cpu: pt float32)
    """
    if not isinstance(layout, (Layout, Blocks)):
        raise TypeError(f"layout must be a Layout or Blocks, got {type(layout).__name__}")
    nbytes = layout.nbytes(rows)
    if nbytes > INT64_MAX:
        raise MemoryError(f"{rows} rows need {nbytes} bytes")
    first, alignment = 0, layout.alignment  # torch's own is 64 or more, which XLA wants
    for spare in (0, alignment):  # which doubles a power of two, where memory is pinned
        with torch.inference_mode(False):
            memory = _bytes_of(nbytes + spare, device_of(device), pin_memory)
        try:
            first = -memory.data_ptr() % alignment
        except RuntimeError:
            raise TypeError(
                "inside torch.func.grad or functionalize, torch gives no real memory; take it "
                "outside"
            ) from None
        if not first:
            break
    return layout.wrap(memory[first : first + nbytes], rows)


def _bytes_of(nbytes: int, device: torch.device | str, pin_memory: bool) -> torch.Tensor:
    """Memory of torch's, with whatever it holds."""

    def taken(count: int) -> torch.Tensor:
        return torch.empty(count, dtype=torch.uint8, device=device, pin_memory=pin_memory)

    try:
        return taken(nbytes)
    except RuntimeError as error:
        taken(0)  # raises where it is the device that is not there
        raise MemoryError(f"torch has no {nbytes} bytes on {device}: {error}") from error


Movable = TypeVar("Movable", SoA, SoABlocks)


def to(soa: Movable, device: torch.device | str, *, non_blocking: bool = False) -> Movable:
    """The SoA on another device: one transfer of its memory, and itself where it is there already.

    Of a slice, its rows alone are moved; they are put together where they are, first. Blocks are
    moved together.

    Args:
        soa: any, or blocks of them.
        device: where to; `"cuda"` is torch's current one.
        non_blocking: return before the transfer is done, as torch's own `to` does: memory of the
            host must be pinned for that, as `empty` pins it, and must not be written until torch's
            stream has got there. It may be dropped at once where torch owns it.

    >>> from soaview import Column
    >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0]})
    >>> to(soa, "cpu") is soa
    True
    """
    if not isinstance(soa, SoABlocks):
        check_soa(soa)
    target = torch.empty(0, device=device_of(device)).device  # with its number
    if name_of(target) == soa.device:
        return soa
    if isinstance(soa, SoA) and isinstance(soa.buffer, Allocations) and not soa.buffer.on_host:
        soa = _packed(soa)
    elif (soa if isinstance(soa, SoABlocks) else soa.buffer).piecewise:
        soa = copy.deepcopy(soa)
    with torch.inference_mode(False), torch.no_grad():
        source = _bytes(soa.buffer)
        if isinstance(soa, SoA) and soa.rows != soa.capacity:
            pinned = source.is_pinned()
            rows_alone = empty(soa.layout, soa.rows, device=source.device, pin_memory=pinned)
            part = _bytes(rows_alone.buffer)
            rows = range(soa.start, soa.start + soa.rows)
            copy_rows(soa.layout, soa.capacity, rows, source, part)
            source = part
        moved = empty(soa.layout, soa.rows, device=target)
        _bytes(moved.buffer).copy_(source, non_blocking=non_blocking)
    return moved


def _packed(soa: SoA) -> SoA:
    """Bound columns in one buffer, on their device."""
    layout: Any = soa.layout
    spec = Spec({f.name: f.name if f.per_row else Value(f.name) for f in layout.fields})
    made = empty(layout.laid(), soa.rows, device=device_of(soa.device))
    write(made, spec, tensors(soa, spec, copy=None))
    return made


def _bytes(buffer: Buffer) -> torch.Tensor:
    owner = buffer.owner
    if buffer.on_host and isinstance(owner, torch.Tensor) and owner.is_pinned():
        # A view of it, whose memory torch's allocator does not use again before a copy is done.
        items = owner.detach().as_strided((owner.numel(),), (1,), owner.storage_offset())
        first = buffer.address - owner.data_ptr()
        part = items.view(torch.uint8)[max(first, 0) :][: buffer.nbytes]
        if first >= 0 and len(part) == buffer.nbytes:
            return part
    memory = to_read(buffer)
    if memory.wait is not None:
        memory.wait()
    return memory["uint8"]
