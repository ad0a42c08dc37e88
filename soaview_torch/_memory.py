"""An SoA's memory as torch has it: one import, of one storage and one version counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from soaview import View
from soaview._buffer import ITEMSIZE, WIDEST, Buffer
from soaview._device import DeviceBuffer, check_address, torch_bytes

DTYPE = {name: getattr(torch, name) for name in ITEMSIZE}
"""torch's dtypes."""


class Memory(dict[str, torch.Tensor]):
    """A buffer's memory as flat tensors, one per dtype, of one storage and one version counter."""

    __slots__ = ("address", "wait")

    def __init__(self, memory: NDArray[Any] | DeviceBuffer) -> None:
        self.wait: Callable[[], object] | None = None
        if isinstance(memory, DeviceBuffer):
            flat = self["uint8"] = torch_bytes(memory)
        else:
            flat = self[WIDEST[memory.itemsize]] = torch.from_numpy(memory)
        try:
            self.address = flat.data_ptr() if type(flat) is torch.Tensor else 0
        except RuntimeError:
            self.address = 0
        if not self.address and flat.numel():
            raise TypeError(
                "inside fake tensors, functionalize, torch.func.grad or export, torch gives no "
                "tensor of real memory; take the tensors outside, and pass them in"
            )
        if isinstance(memory, DeviceBuffer):
            check_address(self.address, memory)
            self.wait = _waiting(memory, flat.device)

    def __missing__(self, dtype: str) -> torch.Tensor:
        flat = self[dtype] = next(iter(self.values())).view(DTYPE[dtype])
        return flat

    def as_imported(self) -> bool:
        """Whether the storage is where it was, and no graph has been written into it.

        `share_memory_` of a tensor moves it; a value that requires a gradient brings its graph.
        """
        for flat in tuple(self.values()):
            if flat.requires_grad or flat.data_ptr() != self.address:
                return False
        return True

    def detached(self) -> Memory:
        """The same storage, without the graph that has been written into it."""
        found = Memory.__new__(Memory)
        found.address, found.wait = self.address, self.wait
        found.update({dtype: flat.detach() for dtype, flat in tuple(self.items())})
        return found

    @property
    def moved(self) -> bool:
        """Whether the storage is elsewhere than it was."""
        return next(iter(self.values())).data_ptr() != self.address

    @property
    def version(self) -> int:
        """Torch's count of the writes."""
        return next(iter(self.values()))._version

    def alias(self, view: View) -> torch.Tensor:
        """The view's tensor."""
        return torch.as_strided(self[view.dtype_name], view.shape, view.strides, view.offset)


def memory_of(buffer: Buffer, key: str = "torch") -> Memory:
    """The buffer's memory as it was imported under this key, if it still is as it was."""
    kept: Memory | None = buffer.imports.get(key)
    if kept is not None and not kept.as_imported():
        # A graph belongs to the tensors of the call that brought it, not to the memory.
        kept = kept.detached()
        if not kept.as_imported():
            kept = None
    if kept is None:
        kept = Memory(as_given(buffer))
    buffer.imports[key] = kept
    return kept


def as_given(buffer: Buffer) -> NDArray[Any] | DeviceBuffer:
    """What `Memory` imports."""
    return buffer if isinstance(buffer, DeviceBuffer) else buffer.wide


def _waiting(buffer: DeviceBuffer, device: torch.device) -> Callable[[], object] | None:
    source, stream = buffer.memory.source, buffer.memory.stream
    if stream is not None:
        theirs = torch.cuda.ExternalStream(stream, device=device)  # type: ignore[no-untyped-call]
        return lambda: torch.cuda.current_stream(device).wait_stream(theirs)
    if device.type != "cuda" or source is None or isinstance(source, torch.Tensor):
        return None  # torch's own streams are the user's to order
    default = 0 if torch.version.hip is not None else 1  # as DLPack numbers the default stream
    # The producer orders its work before the stream that it is given; the capsule is not used.
    return lambda: source.__dlpack__(
        stream=torch.cuda.current_stream(device).cuda_stream or default
    )
