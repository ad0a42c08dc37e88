"""Memory of other devices, and of bare pointers."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

import numpy as np

from ._buffer import Buffer, HostBuffer, misaligned, too_small
from ._dlpack import (
    DEVICES,
    KINDS,
    ON_HOST,
    DeviceMemory,
    Lying,
    capsule_of,
    check_order,
    check_pointer,
    check_stream,
    of_capsule,
    of_interface,
)
from ._dtypes import exact_int, numpy_dtype
from ._frameworks import (
    bytes_in,
    check_plain,
    check_storage,
    copied,
    detached,
    filling,
    made_current,
    number_of,
    show,
    waiter_in,
)
from ._host import ArrayInterface, host_bytes
from ._strided import Strided
from ._typed import Asked, numpy_says

if TYPE_CHECKING:
    from numpy.typing import NDArray


@final
class DeviceBuffer(Buffer):
    """Memory that NumPy does not read: its address is known, and never followed here.

    It speaks DLPack, and on a CUDA device the CUDA array interface, as its bytes.

    Attributes:
        memory: where it is.
    """

    __slots__ = ("memory",)

    def __init__(self, memory: DeviceMemory, nbytes: int, itemsize: int) -> None:
        """Hold the first `nbytes` bytes of `memory`, aligned for items of `itemsize` bytes."""
        if memory.size < nbytes:
            raise too_small(memory.size, nbytes)
        if nbytes and memory.address % itemsize:
            raise misaligned(memory.address, itemsize)
        self.memory = memory._replace(size=nbytes)
        self.owner = memory.owner
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
        return self.memory.device

    @property
    def root(self) -> NDArray[np.uint8]:
        """There is none."""
        raise BufferError(
            f"the SoA's memory is on {self.device}, which NumPy does not read; take its tensors "
            f"there with an adapter, or move it to the host with the adapter's `to`"
        )

    words = unguarded = root

    def array(self, at: Strided) -> NDArray[Any]:
        """There is none."""
        return self.root

    def value(self, at: Strided) -> Any:
        """The value that lies there, fetched by the framework that shows it."""
        shown = show(self.memory, at)
        with made_current(shown):
            return shown.item()

    def part(self, first: int, nbytes: int, itemsize: int) -> DeviceBuffer:
        """Some of the bytes, as memory of its own that is aligned for items of `itemsize`."""
        self._check_part(first, nbytes)
        at = self.memory
        part = at._replace(address=at.address + first, size=nbytes, first=at.first + first)
        return DeviceBuffer(part, nbytes, itemsize)

    def export(self, at: Strided, **options: Any) -> Any:
        """The DLPack capsule of these elements, with all options that the consumer gives.

        Who shows it cannot mark it as read-only; a capsule from before DLPack 1.0 says nothing of
        that either, and is taken as read-only by those who mind.
        """
        if self.readonly:
            options.pop("max_version", None)
        shown = show(self.memory, at)
        if options.get("copy") is True:
            del options["copy"]
            shown = copied(shown)
        with made_current(shown):
            return shown.__dlpack__(**options)

    def dlpack_device(self, at: Strided) -> tuple[int, int]:
        """DLPack's numbers for the device."""
        return self.memory.kind, self.memory.number

    def interface(self, at: Strided) -> dict[str, Any]:
        """The CUDA array interface of these elements, version 3.

        https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html
        """
        if not DEVICES[self.memory.kind].startswith("cuda"):
            return super().interface(at)
        if at.dtype == "bfloat16":
            raise AttributeError("the CUDA array interface has no bfloat16")
        return {
            "version": 3,
            "typestr": numpy_dtype(at.dtype).str,
            "shape": at.shape,
            "strides": tuple(stride * at.itemsize for stride in at.strides),
            "data": (0 if 0 in at.shape else self.address + at.byte_offset, self.readonly),
            "stream": self.memory.stream,
        }

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.export(self._whole(), **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.dlpack_device(self._whole())

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface(self._whole())

    def _whole(self) -> Strided:
        return Strided("the memory", "uint8", 1, (self.nbytes,), (1,), 0)

    def filling(self, at: Strided, values: Any) -> Callable[[], Callable[[], object]]:
        """What writes values of this device over these elements; it refuses before.

        It gives what waits until that is done: until then somebody must hold the values.
        """
        return filling(show(self.memory, at), values)

    def bytes_in(self, framework: str) -> Any:
        """The whole memory as a flat array of bytes of the framework's."""
        return bytes_in(framework, self.memory)

    def waiter(self, framework: str, device: Any) -> Callable[[], object] | None:
        """What lets the framework's current stream wait for the producer."""
        return waiter_in(framework, self.memory, device)


_CUDA = "__cuda_array_interface__"


class _Anchor:
    """What goes when nobody needs the memory of a bare pointer any more."""

    def __init__(self, owner: object) -> None:
        self.owner = owner


def buffer_of(owner: Any, nbytes: int, itemsize: int, asked: Asked) -> HostBuffer | DeviceBuffer:
    """The first `nbytes` bytes of memory that somebody else owns, wherever it is."""
    found = None if isinstance(owner, (np.ndarray, type)) else lying_of(owner)
    if found is None:
        root = host_bytes(owner, asked)
    else:
        memory, lying = found
        check_order(asked, lying)
        if memory.kind not in ON_HOST:
            return DeviceBuffer(memory._replace(owner=owner), nbytes, itemsize)
        # An address of its own where there are no bytes, as for a bare pointer.
        at = memory.address or 64, memory.size, memory.readonly
        root = np.asarray(ArrayInterface(*at, (memory.export, memory.source), owner))
    buffer = HostBuffer(root, nbytes, itemsize)
    buffer.owner = owner
    return buffer


def lying_of(owner: Any) -> tuple[DeviceMemory, Lying] | None:
    """Where the owner says its memory is, from its first element to its last; None where not."""
    name = type(owner).__name__
    if hasattr(type(owner), "__dlpack__"):
        try:
            kind, index = (int(number) for number in owner.__dlpack_device__())
            if kind not in DEVICES:
                raise BufferError(f"DLPack device {kind}:{index} is not known here")
            check_storage(owner)
            source = detached(owner)
            if kind in ON_HOST:
                check_plain(source)
            with made_current(owner):
                capsule = capsule_of(owner)
        except Exception as error:  # somebody else's code may raise anything
            raise BufferError(
                f"{name} has no memory to wrap ({error}); pass a plain dense array, detached"
            ) from error
        memory, lying = of_capsule(capsule, (kind, index))
        return memory._replace(source=source), lying
    try:
        interface = getattr(owner, _CUDA, None)
        if interface is None:
            return None
        memory, dtype, lying = of_interface(interface)
    except Exception as error:  # likewise
        raise BufferError(f"{name}'s __cuda_array_interface__ is not one ({error})") from error
    lying = lying._replace(dtype=numpy_says(dtype))
    return memory._replace(number=number_of(memory)), lying


def located(
    address: object, device: object, needed: int, nbytes: object, readonly: object, stream: object
) -> DeviceMemory:
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
    if stream is not None and found[1] not in ("cuda", "cuda_managed", "rocm"):
        raise ValueError(f"a stream is CUDA's or ROCm's; the memory is on {device}")
    address, kind = check_pointer(address, size), KINDS[found[1]]
    number, stream = int(found[2] or 0), check_stream(stream, found[1])
    return DeviceMemory(address, needed, readonly, kind, number, stream)


def pointed(
    memory: DeviceMemory, itemsize: int, owner: object, finalizer: Callable[[], object] | None
) -> HostBuffer | DeviceBuffer:
    """The memory that a bare pointer leads to, held by `owner` or given back by `finalizer`."""
    if owner is not None and finalizer is not None:
        raise TypeError("give either an owner or a finalizer of the memory, not both")
    if finalizer is not None and not callable(finalizer):
        raise TypeError(f"finalizer must be callable, got {finalizer!r:.60}")
    anchor = _Anchor(owner)
    buffer: HostBuffer | DeviceBuffer
    if memory.kind in ON_HOST:
        pointer = ArrayInterface(memory.address or 64, memory.size, memory.readonly, anchor)
        buffer = HostBuffer(np.asarray(pointer), memory.size, itemsize)
        buffer.owner = owner
    else:
        memory = memory._replace(export=anchor, owner=owner)
        buffer = DeviceBuffer(memory, memory.size, itemsize)
    if finalizer is not None:
        weakref.finalize(anchor, finalizer).atexit = False
    return buffer
