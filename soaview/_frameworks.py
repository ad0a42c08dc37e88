"""What frameworks that the caller has imported know of memory: the one room that names any.

Nothing is imported here. A framework is found in `sys.modules`, or by what its arrays have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from operator import setitem
from typing import TYPE_CHECKING, Any

from ._buffer import check_address
from ._dlpack import DEVICES
from ._dtypes import numpy_dtype

if TYPE_CHECKING:
    from ._dlpack import DeviceMemory
    from ._strided import Strided


class Interface:
    """Memory by the CUDA array interface, for a reader that minds read-only flags.

    https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html

    It holds the memory and not the buffer, which may keep what is read from this.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        if DEVICES[memory.kind] != "cuda":
            raise BufferError(
                f"bare memory on {memory.device} has no protocol, as CUDA's has; wrap what speaks "
                f"DLPack"
            )
        self.memory = memory
        self.__cuda_array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (memory.size,),
            "strides": (1,),
            "data": (memory.address, False),
            "stream": memory.stream,
        }


def framework_of(thing: object) -> str:
    """The name of the package that a thing's type comes from."""
    return type(thing).__module__.partition(".")[0]


def bytes_in(framework: str, memory: DeviceMemory) -> Any:
    """The bytes as a flat array of the framework's; their address is not checked.

    Raises:
        BufferError: the framework does not take them.
    """
    if framework != "torch":
        raise BufferError(f"soaview does not know how {framework} takes memory on {memory.device}")
    return _bytes_in_torch(memory)


def _bytes_in_torch(memory: DeviceMemory) -> Any:
    torch, source = sys.modules["torch"], memory.source
    try:
        if source is None:
            return torch.as_tensor(Interface(memory), device=memory.device)
        whole = torch.from_dlpack(source).reshape(-1).view(torch.uint8)
        part = whole[memory.first :][: memory.size]
        # `as_strided` counts from where the storage starts, so that a part needs one of its own.
        return torch.from_dlpack(part) if part.storage_offset() else part
    except (AssertionError, BufferError, RuntimeError, TypeError) as error:
        raise BufferError(f"torch does not take memory on {memory.device}: {error}") from error


def waiter_in(framework: str, memory: DeviceMemory, device: Any) -> Callable[[], object] | None:
    """What lets the framework's current stream on a device wait for the memory's producer.

    None where nothing has to be waited for, or the framework asks the producer itself.
    """
    if framework != "torch":
        return None
    torch, source = sys.modules["torch"], memory.source
    if memory.stream is not None:
        theirs = torch.cuda.ExternalStream(memory.stream, device=device)
        return lambda: torch.cuda.current_stream(device).wait_stream(theirs)
    if device.type != "cuda" or source is None or isinstance(source, torch.Tensor):
        return None  # torch's own streams are the user's to order
    default = 0 if torch.version.hip is not None else 1  # as DLPack numbers the default stream
    # The producer orders its work before the stream that it is given; the capsule is not used.
    return lambda: source.__dlpack__(
        stream=torch.cuda.current_stream(device).cuda_stream or default
    )


def _check_address(found: int, memory: DeviceMemory) -> None:
    check_address(found, memory.address, memory.size, memory.device)


def _shown_by_torch(memory: DeviceMemory, at: Strided) -> Any:
    torch, whole = sys.modules["torch"], _bytes_in_torch(memory)
    _check_address(whole.data_ptr(), memory)
    if memory.stream is not None:  # any other producer has just been asked for a capsule
        waiter = waiter_in("torch", memory, whole.device)
        assert waiter is not None
        waiter()
    items = whole.view(getattr(torch, at.dtype))
    return items.as_strided(at.shape, at.strides, at.offset)


def _shown_by_cupy(memory: DeviceMemory, at: Strided) -> Any:
    cupy, source = sys.modules["cupy"], memory.source
    if source is None:
        data = cupy.asarray(Interface(memory)).data
    else:
        whole = source if isinstance(source, cupy.ndarray) else cupy.from_dlpack(source)
        data = whole.data + memory.first
    _check_address(data.ptr, memory)
    strides = tuple(stride * at.itemsize for stride in at.strides)
    return cupy.ndarray(at.shape, numpy_dtype(at.dtype), data + at.byte_offset, strides)


Show = Callable[["DeviceMemory", "Strided"], Any]

_SHOW: dict[str, Show] = {"torch": _shown_by_torch, "cupy": _shown_by_cupy}


def showing(source: object) -> list[Show]:
    """Who can show a part of this memory: the framework of its source, or those imported."""
    own = framework_of(source)
    if own in _SHOW:
        return [_SHOW[own]]
    return [show for name, show in _SHOW.items() if name in sys.modules]


def show(memory: DeviceMemory, at: Strided) -> Any:
    """The elements as the framework of the memory's owner has them, or one that adopts them.

    Raises:
        BufferError: none of them takes the memory, or none has been imported.
    """
    refused: Exception | None = None
    for by in showing(memory.source):
        try:
            return by(memory, at)
        except BufferError as error:
            refused = error
    if refused is not None:
        raise refused
    raise BufferError(
        f"tensor {at.name!r}: DLPack shows a part of {memory.device}'s memory as a view of torch's "
        f"or CuPy's, and neither is imported; import one, or use what reads "
        f"__cuda_array_interface__"
    )


def filling(target: Any, array: Any) -> Callable[[], object]:
    """What writes an array of this device, of any framework's, over a target that `show` gave."""
    given = sys.modules[framework_of(target)].from_dlpack(array)
    write = target.copy_ if hasattr(target, "copy_") else partial(setitem, target, ...)
    return partial(write, given)


def check_storage(owner: Any) -> None:
    """Raise for a tensor of torch's that reaches past its storage, which was shrunk under it."""
    if hasattr(owner, "untyped_storage"):
        reach = sum((n - 1) * s for n, s in zip(owner.shape, owner.stride(), strict=True))
        end = (owner.storage_offset() + reach + 1) * owner.element_size()
        size = owner.untyped_storage().nbytes()
        if owner.numel() and end > size:
            raise BufferError(
                f"a tensor reaches to byte {end} of its storage, which was resized to {size} bytes"
            )


def check_plain(tensor: Any) -> None:
    """Raise for a tensor of torch's that is not simply memory, such as a negated or fake one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        # NumPy lacks bfloat16.
        (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def detached(owner: Any) -> Any:
    """Of a torch tensor its twin, which `set_` and `resize_` of the tensor leave alone."""
    return owner.detach() if hasattr(owner, "detach") else owner


def check_readable(value: Any) -> None:
    """Raise for values of torch's that NumPy cannot read, with what it can read instead."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        raise TypeError(
            "NumPy does not read torch's bfloat16; pass "
            "values.view(torch.int16).numpy().view('bfloat16')"
        )
