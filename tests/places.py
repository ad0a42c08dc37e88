"""Where the memory under test is: on the host, or on a device of torch's."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable

import numpy as np

from soaview import Blocks, Layout, SoA, SoABlocks, bind


class HostMemory:
    """Where the SoAs under test lie; this is the host's memory."""

    device = "cpu"
    number = 0

    def wrap(self, layout: Layout, memory: np.ndarray, rows: int) -> SoA:
        """An SoA, or blocks, with these bytes, over memory that nobody else holds."""
        return layout.wrap(memory, rows)

    def watched(
        self, layout: Layout, memory: np.ndarray, rows: int
    ) -> tuple[SoA, Callable[[], bool]]:
        """The same, and what says whether the memory has been freed."""
        base = weakref.ref(memory.base)
        return self.wrap(layout, memory, rows), lambda: base() is None

    def content(self, soa: SoA) -> np.ndarray:
        """The bytes under an SoA, copied to the host."""
        return soa.buffer.root.copy()

    def fill(self, soa: SoA, byte: int) -> None:
        """Write all bytes under an SoA."""
        soa.buffer.root[...] = byte

    def on_host(self, soa: SoA) -> SoA:
        """An SoA of the host with the same bytes."""
        whole = soa.layout.wrap(aligned(self.content(soa)), soa.capacity)
        return whole[soa.start : soa.start + soa.rows]


class TorchMemory(HostMemory):
    """Memory that torch owns, on any device."""

    def __init__(self, device: str) -> None:
        import torch

        there = torch.empty(0, device=device).device
        self.torch, self.device, self.number = torch, str(there), there.index or 0

    def wrap(self, layout, memory, rows):
        owner = self.torch.from_numpy(aligned(memory)).to(self.device)
        if memory.flags.writeable:
            return layout.wrap(owner, rows)
        at = {"device": self.device, "owner": owner, "readonly": True}
        return layout.from_pointer(owner.data_ptr(), rows, **at)

    def watched(self, layout, memory, rows):
        gc.collect()
        before = self.torch.cuda.memory_allocated()
        soa = self.wrap(layout, memory, rows)
        return soa, lambda: self.torch.cuda.memory_allocated() <= before

    def content(self, soa):
        return soa.buffer.owner.cpu().numpy().copy()

    def fill(self, soa, byte):
        soa.buffer.owner.fill_(byte)
        if self.device != "cpu":  # nobody waits for it who has been given a tensor before
            self.torch.cuda.synchronize(self.device)


class PretendedMemory(TorchMemory):
    """The host's memory by the way that a device's goes, which needs no device.

    The device's number is minded by JAX, which has several on the host, and not by torch.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__("cpu")
        from soaview._device import DeviceBuffer
        from soaview._dlpack import DeviceMemory

        class Pretended(DeviceMemory):
            device = "cpu"  # whatever the number, as JAX and torch call it

        self.buffer, self.memory, self.number = DeviceBuffer, Pretended, number

    def wrap(self, layout, memory, rows):
        owner = self.torch.from_numpy(memory if memory.flags.writeable else aligned(memory))
        readonly = not memory.flags.writeable
        at = owner.data_ptr(), len(owner), readonly, 1, self.number
        there = self.memory(*at, source=owner, owner=owner)
        if isinstance(layout, Blocks):
            return SoABlocks(layout, rows, self.buffer(there, layout.nbytes(rows), 1))
        buffer = self.buffer(there, layout.nbytes(rows), layout.itemsize)
        return SoA(layout, buffer, rows, 0, rows)

    watched = HostMemory.watched


class BoundMemory(HostMemory):
    """The host's memory, of which the columns are bound where they lie."""

    def wrap(self, layout, memory, rows):
        return bind(layout.wrap(memory, rows))

    def on_host(self, soa):
        return soa.pack()


def aligned(memory: np.ndarray) -> np.ndarray:
    """A copy that starts on a multiple of 128."""
    raw = np.empty(memory.size + 128, np.uint8)
    copy = raw[-raw.__array_interface__["data"][0] % 128 :][: memory.size]
    copy[...] = memory
    return copy


def soon(comes_true: Callable[[], object]) -> bool:
    """Whether it does after a collection: JAX lets go of what it read in a thread of its own."""
    gc.collect()
    for _ in range(100):
        if comes_true():
            return True
        time.sleep(0.05)
        gc.collect(0)
    return False


def unheld(end: Callable[[], object]) -> bool:
    """Whether memory can be closed, resized or emptied, and do so."""
    try:
        end()
    except BufferError:
        return False
    return True


under_test: HostMemory = HostMemory()
"""Where the SoAs of the suite are; `--device` of pytest sets it."""


def choose(device: str) -> None:
    """Let the SoAs of the suite be on this device; one that is absent is an error."""
    global under_test
    if device.startswith("pretended"):
        under_test = PretendedMemory(int(device.partition(":")[2] or 0))
    elif device != "cpu":
        under_test = TorchMemory(device)
