"""Memory of other devices, and of bare pointers: what is told of it, and who can adopt it."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable
from functools import partial
from operator import setitem
from typing import TYPE_CHECKING, Any

import numpy as np

from ._buffer import (
    Buffer,
    Held,
    check_storage,
    exact_int,
    host_bytes,
    misaligned,
    numpy_dtype,
    too_small,
)
from ._dlpack import (
    DEVICES,
    KINDS,
    ON_HOST,
    Memory,
    capsule_of,
    check_address,
    check_stream,
    of_capsule,
    of_interface,
)
from ._typed import Asked
from ._views import View

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DeviceBuffer(Buffer):
    """Memory that NumPy does not read: its address is known, and never followed here.

    Attributes:
        memory: where it is.
    """

    __slots__ = ("memory",)

    def __init__(self, memory: Memory, owner: object, nbytes: int, itemsize: int) -> None:
        """Hold the first `nbytes` bytes of `memory`, aligned for items of `itemsize` bytes."""
        if memory.size < nbytes:
            raise too_small(memory.size, nbytes)
        if nbytes and memory.address % itemsize:
            raise misaligned(memory.address, itemsize)
        self.memory = memory
        self.owner = owner
        self.nbytes = nbytes
        self.imports = {}

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.memory.address

    @property
    def readonly(self) -> bool:
        """Whether the memory refuses writes."""
        return self.memory.readonly

    @property
    def device(self) -> str:
        """Where the memory is."""
        return f"{DEVICES[self.memory.kind]}:{self.memory.number}"

    @property
    def root(self) -> NDArray[np.uint8]:  # type: ignore[override]  # the host has it
        """There is none."""
        raise BufferError(
            f"the SoA's memory is on {self.device}, which NumPy does not read; take its tensors "
            f"there with an adapter, or move it to the host with the adapter's `to`"
        )

    wide = unguarded = root

    def part(self, first: int, nbytes: int, itemsize: int) -> Buffer:
        """Some of the bytes, as memory of its own that is aligned for items of `itemsize`."""
        at = self.memory
        part = at._replace(address=at.address + first, size=nbytes, first=at.first + first)
        return type(self)(part, self.owner, nbytes, itemsize)

    def dlpack_device(self, view: View) -> tuple[int, int]:
        """DLPack's numbers for the device; who adopts managed memory calls it CUDA's."""
        managed = self.memory.kind == 13 and _adopters(self.memory.source)
        return 2 if managed else self.memory.kind, self.memory.number

    def interface(self, view: View) -> dict[str, Any]:
        """The view's CUDA array interface, version 3.

        https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html
        """
        if DEVICES[self.memory.kind] != "cuda":
            return super().interface(view)
        if view.dtype_name == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16")
        return {
            "version": 3,
            "typestr": numpy_dtype(view.dtype_name).str,
            "shape": view.shape,
            "strides": tuple(stride * view.itemsize for stride in view.strides),
            "data": (0 if 0 in view.shape else view.address, self.readonly),
            "stream": self.memory.stream,
        }

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._whole().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._whole().__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface(self._whole())

    def _whole(self) -> View:
        return View("the memory", "uint8", 1, (self.nbytes,), (1,), 0, self)

    def producer(self, view: View) -> Any:
        """The view as the framework of the memory's owner has it, or one that adopts the memory."""
        refused: Exception | None = None
        for adopt in _adopters(self.memory.source):
            try:
                return adopt(self, view)
            except BufferError as error:
                refused = error
        if refused is not None:
            raise refused
        raise BufferError(
            f"tensor {view.name!r}: DLPack shows a part of {self.device}'s memory as a view of "
            f"torch's or CuPy's, and neither is imported; import one, or use what reads "
            f"__cuda_array_interface__"
        )

    def export(self, view: View, **asked: Any) -> Any:
        """The view's DLPack capsule, with all that was asked of it.

        Who shows it cannot mark it as read-only; a capsule from before DLPack 1.0 says nothing of
        that either, and is taken as read-only by those who mind.
        """
        if self.readonly:
            asked.pop("max_version", None)
        return self.producer(view).__dlpack__(**asked)

    def filling(self, view: View, array: Any) -> Callable[[], object]:
        """What writes an array of this device, of any framework's, where the view is.

        Whatever can be refused is refused before.
        """
        target = self.producer(view)
        given = sys.modules[_framework(target)].from_dlpack(array)
        write = target.copy_ if hasattr(target, "copy_") else partial(setitem, target, ...)
        return partial(write, given)


_CUDA = "__cuda_array_interface__"


class Interface:
    """A buffer's bytes by the CUDA array interface, for a reader that minds read-only flags.

    It holds the memory and not the buffer, which may keep what is read from this.
    """

    def __init__(self, buffer: DeviceBuffer) -> None:
        if not hasattr(buffer, _CUDA):
            raise BufferError(
                f"bare memory on {buffer.device} has no protocol, as CUDA's has; wrap what speaks "
                f"DLPack"
            )
        self.owner, self.export = buffer.owner, buffer.memory.export
        data = {"data": (buffer.address, False)}
        self.__cuda_array_interface__ = {**buffer.__cuda_array_interface__, **data}


class _Anchor:
    """What goes when nobody needs the memory of a bare pointer any more."""

    def __init__(self, owner: object) -> None:
        self.owner = owner


def _framework(thing: object) -> str:
    return type(thing).__module__.partition(".")[0]


def _adopters(source: object) -> list[Callable[[DeviceBuffer, View], Any]]:
    """Who can show a part of this memory: the framework of its source, or those imported."""
    own = _framework(source)
    if own in _ADOPT:
        return [_ADOPT[own]]
    return [adopt for name, adopt in _ADOPT.items() if name in sys.modules]


def check_place(found: int, buffer: DeviceBuffer) -> None:
    """Raise where a framework has the memory elsewhere than it was: moved, or copied."""
    if buffer.nbytes and found != buffer.address:
        raise BufferError(
            f"the memory on {buffer.device} is not where it was: it was wrapped at "
            f"{buffer.address:#x}, and is given at {found:#x}; its owner has moved it, or it is on "
            f"another device than was said and was copied. Wrap it anew"
        )


def torch_bytes(buffer: DeviceBuffer) -> Any:
    """The bytes as a tensor of torch's, which is imported; their address is not checked."""
    torch, source = sys.modules["torch"], buffer.memory.source
    try:
        if source is None:
            return torch.as_tensor(Interface(buffer), device=buffer.device)
        whole = torch.from_dlpack(source).reshape(-1).view(torch.uint8)
        part = whole[buffer.memory.first :][: buffer.nbytes]
        # `as_strided` counts from where the storage starts, so that a part needs one of its own.
        return torch.from_dlpack(part) if part.storage_offset() else part
    except (AssertionError, BufferError, RuntimeError, TypeError) as error:
        raise BufferError(f"torch does not take memory on {buffer.device}: {error}") from error


def _by_torch(buffer: DeviceBuffer, view: View) -> Any:
    torch, whole = sys.modules["torch"], torch_bytes(buffer)
    check_place(whole.data_ptr(), buffer)
    if buffer.memory.stream is not None:
        theirs = torch.cuda.ExternalStream(buffer.memory.stream, device=whole.device)
        torch.cuda.current_stream(whole.device).wait_stream(theirs)
    items = whole.view(getattr(torch, view.dtype_name))
    return items.as_strided(view.shape, view.strides, view.offset)


def _by_cupy(buffer: DeviceBuffer, view: View) -> Any:
    cupy, source = sys.modules["cupy"], buffer.memory.source
    if source is None:
        memory = cupy.asarray(Interface(buffer)).data
    else:
        whole = source if isinstance(source, cupy.ndarray) else cupy.from_dlpack(source)
        memory = whole.data + buffer.memory.first
    check_place(memory.ptr, buffer)
    strides = tuple(stride * view.itemsize for stride in view.strides)
    memory = memory + view.byte_offset
    return cupy.ndarray(view.shape, numpy_dtype(view.dtype_name), memory, strides)


_ADOPT: dict[str, Callable[[DeviceBuffer, View], Any]] = {"torch": _by_torch, "cupy": _by_cupy}


def held(owner: Any, nbytes: int, itemsize: int, asked: Asked) -> Buffer:
    """The first `nbytes` bytes of memory that somebody else owns, wherever it is."""
    plain = isinstance(owner, (np.ndarray, type))
    memory = None if plain else _exported(owner, asked)
    if memory is None:
        root = host_bytes(owner, asked)
    elif memory.kind in ON_HOST:
        # An address of its own where there are no bytes, as for a bare pointer.
        at = memory.address or 64, memory.size, memory.readonly
        root = np.asarray(Held(*at, (memory.export, memory.source), owner))
    else:
        return DeviceBuffer(memory, owner, nbytes, itemsize)
    buffer = Buffer(root, nbytes, itemsize)
    buffer.owner = owner
    return buffer


def _exported(owner: Any, asked: Asked) -> Memory | None:
    """Where the owner says its memory is; None where it does not."""
    name = type(owner).__name__
    if hasattr(type(owner), "__dlpack__"):
        try:
            kind, index = (int(number) for number in owner.__dlpack_device__())
            if kind not in DEVICES:
                raise BufferError(f"DLPack device {kind}:{index} is not known here")
            check_storage(owner)
            # Of a torch tensor its twin, which `set_` and `resize_` of the tensor leave alone.
            source = owner.detach() if hasattr(owner, "detach") else owner
            if kind in ON_HOST:
                _check_plain(source)
            capsule = capsule_of(owner)
        except Exception as error:  # somebody else's code may raise anything
            raise BufferError(
                f"{name} has no memory to wrap ({error}); pass a plain dense array, detached"
            ) from error
        return of_capsule(capsule, (kind, index), asked)._replace(source=source)
    interface = getattr(owner, _CUDA, None)
    if interface is None:
        return None
    try:
        return of_interface(interface, asked)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BufferError(f"{name}'s __cuda_array_interface__ is not one ({error})") from error


def _check_plain(tensor: Any) -> None:
    """Raise for a tensor of torch's that is not simply memory, such as a negated or fake one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        # NumPy lacks bfloat16.
        (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def located(
    address: object, device: object, needed: int, nbytes: object, readonly: object, stream: object
) -> Memory:
    """Where a bare pointer leads, as far as numbers can be checked."""
    size = needed if nbytes is None else exact_int(nbytes, "nbytes")
    if size < needed:
        raise too_small(size, needed)
    found = (
        re.fullmatch(r"([a-z_]+)(?::([0-9]{1,4}))?", device) if isinstance(device, str) else None
    )
    if found is None or found[1] not in KINDS:
        raise ValueError(
            f"device must be a name such as 'cuda:0' or 'cpu' (known are {', '.join(KINDS)}), "
            f"got {device!r:.60}"
        )
    if readonly is not True and readonly is not False:
        raise TypeError(f"readonly must be True or False, got {readonly!r:.60}")
    if stream is not None and found[1] != "cuda":
        raise ValueError(f"a stream is CUDA's; the memory is on {device}")
    address, kind = check_address(address, size), KINDS[found[1]]
    return Memory(address, needed, readonly, kind, int(found[2] or 0), check_stream(stream))


def pointed(
    memory: Memory, itemsize: int, owner: object, finalizer: Callable[[], object] | None
) -> Buffer:
    """The memory that a bare pointer leads to, held by `owner` or given back by `finalizer`."""
    if owner is not None and finalizer is not None:
        raise TypeError("give either an owner or a finalizer of the memory, not both")
    if finalizer is not None and not callable(finalizer):
        raise TypeError(f"finalizer must be callable, got {finalizer!r:.60}")
    anchor = _Anchor(owner)
    buffer: Buffer
    if memory.kind in ON_HOST:
        pointed_at = Held(memory.address or 64, memory.size, memory.readonly, anchor)
        buffer = Buffer(np.asarray(pointed_at), memory.size, itemsize)
        buffer.owner = owner
    else:
        buffer = DeviceBuffer(memory._replace(export=anchor), owner, memory.size, itemsize)
    if finalizer is not None:
        weakref.finalize(anchor, finalizer).atexit = False
    return buffer
