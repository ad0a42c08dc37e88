"""An SoA's memory as torch has it: one import, of one storage and one version counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from soaview import View
from soaview._buffer import ITEMSIZE, WIDEST, Buffer
from soaview._device import DeviceBuffer, check_place, torch_bytes

DTYPE = {name: getattr(torch, name) for name in ITEMSIZE}
"""torch's dtypes."""


class Memory(dict[str, torch.Tensor]):
    """A buffer's memory as flat tensors, one per dtype, of one storage and one version counter.

    Attributes:
        base: the one that was imported; the others are its views.
        address: where its storage was then.
        root: the host's memory, whose read-only flag may be set later; None where none can be.
        wait: lets torch's current stream wait for the producer; None where nothing has to be.
        later: what has taken its place; see `memory_of`.
    """

    __slots__ = ("address", "base", "later", "root", "wait")

    address: int
    base: torch.Tensor

    def __init__(
        self, memory: NDArray[Any] | DeviceBuffer, root: NDArray[Any] | None = None
    ) -> None:
        self.wait: Callable[[], object] | None = None
        self.root = root
        self.later: list[Memory] = []
        if isinstance(memory, DeviceBuffer):
            flat = self["uint8"] = torch_bytes(memory)
        else:
            flat = self[WIDEST[memory.itemsize]] = torch.from_numpy(memory)
        self.base = flat
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
            check_place(self.address, memory)
            self.wait = _waiting(memory, flat.device)

    def __missing__(self, dtype: str) -> torch.Tensor:
        # Of several threads' the first: a graph is looked for in that one.
        return self.setdefault(dtype, self.base.view(DTYPE[dtype]))

    def as_imported(self) -> bool:
        """Whether it may be used: as it was, with no graph written into it, and not read-only.

        `share_memory_` of a tensor moves it; a value that requires a gradient brings its graph.
        """
        for flat in tuple(self.values()):
            if flat.requires_grad:
                return False
        root = self.root
        return self.base.data_ptr() == self.address and (root is None or root.flags.writeable)

    def replaced(self, buffer: Buffer) -> Memory:
        """What takes its place, the same for all threads.

        The same storage without the graph, which belongs to the tensors of the call that brought
        it; or the memory imported anew.
        """
        if not self.later:
            same = self._detached()
            self.later.append(same if same.as_imported() else _import(buffer))
        return self.later[0]

    def _detached(self) -> Memory:
        found = Memory.__new__(Memory)
        found.address, found.wait, found.root, found.later = self.address, self.wait, self.root, []
        found.base = self.base.detach()
        found.update({dtype: flat.detach() for dtype, flat in tuple(self.items())})
        return found

    @property
    def moved(self) -> bool:
        """Whether the storage is elsewhere than it was."""
        return self.base.data_ptr() != self.address

    @property
    def version(self) -> int:
        """Torch's count of the writes."""
        return self.base._version

    def alias(self, view: View) -> torch.Tensor:
        """The view's tensor."""
        return torch.as_strided(self[view.dtype_name], view.shape, view.strides, view.offset)


def memory_of(buffer: Buffer, key: str = "torch") -> Memory:
    """The buffer's memory as it was imported under this key: one for all threads.

    Whoever comes first, and whenever it has to be replaced, all get the same one, and so one count
    of writes: setting a dictionary's default and appending to a list are one step each.
    """
    imports: dict[str, Memory] = buffer.imports
    kept = imports.get(key)
    if kept is None:
        own = _import(buffer)
        kept = imports.setdefault(key, own)
        if kept is own:
            return own
    while not kept.as_imported() and (kept.root is None or kept.root.flags.writeable):
        kept = imports[key] = kept.replaced(buffer)
    return kept


def _import(buffer: Buffer) -> Memory:
    if isinstance(buffer, DeviceBuffer):
        return Memory(buffer)
    return Memory(buffer.wide, buffer.root)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense memory, without anything of torch's around it.

    Only then is it sure to be read as it is, without a word, when it is copied.
    """
    return (
        type(tensor) in _PLAIN
        and not tensor.is_nested  # which has no shape
        and tensor.layout is torch.strided
        and not tensor._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)


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
