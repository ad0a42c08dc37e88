"""What frameworks that the caller has imported know of memory: the one room that names any.

Nothing is imported here. A framework is found in `sys.modules`, or by what its arrays have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
        if not (DEVICES[memory.kind].startswith("cuda") or _is_torchs_rocm(memory)):
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


def _is_torchs_rocm(memory: DeviceMemory) -> bool:
    """Whether torch is built for ROCm, and the memory is there: to torch that is CUDA's."""
    torch = sys.modules.get("torch")
    return DEVICES[memory.kind] == "rocm" and torch is not None and torch.version.hip is not None


def made_current(thing: object) -> AbstractContextManager[object]:
    """Makes the device of a framework's array the current one.

    torch refuses to export from any other, and CuPy takes a stream of the current one.
    """
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    found: AbstractContextManager[object] = nullcontext()
    if torch is not None and isinstance(thing, torch.Tensor) and thing.device.type == "cuda":
        found = torch.cuda.device(thing.device)
    elif cupy is not None and isinstance(thing, cupy.ndarray):
        found = cupy.cuda.Device(thing.device.id)
    return found


def number_of(memory: DeviceMemory) -> int:
    """The number of the CUDA device that an address is on, as torch or CuPy knows it.

    Where neither is there, or knows of the address, it is what the memory says.
    """
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if not memory.size:
        return memory.number
    try:
        if torch is not None and torch.cuda.is_available():
            return int(torch.as_tensor(Interface(memory._replace(stream=None))).device.index)
        if cupy is not None:
            found = int(cupy.cuda.runtime.pointerGetAttributes(memory.address).device)
            return found if found >= 0 else memory.number
    except (RuntimeError, TypeError, ValueError):  # it is no address of CUDA's
        pass
    return memory.number


def bytes_in(framework: str, memory: DeviceMemory) -> Any:
    """The bytes as a flat array of the framework's; their address is not checked.

    Raises:
        BufferError: the framework does not take them.
    """
    if framework != "torch":
        raise BufferError(f"soaview does not know how {framework} takes memory on {memory.device}")
    return _bytes_in_torch(memory)


def _bytes_in_torch(memory: DeviceMemory) -> Any:
    torch = sys.modules["torch"]
    source: Any = memory.source
    try:
        if source is None:
            pointer, count = Interface(memory), torch.cuda.device_count()
            if memory.number >= count:  # which torch does not mind, for it never looks there
                raise BufferError(f"of CUDA's devices it sees {count}")
            device = memory.device.replace("rocm", "cuda")  # as torch calls it
            return torch.as_tensor(pointer, device=device)
        if type(source) is torch.Tensor:
            # Of its storage, so that torch's allocator knows whose memory it is, which
            # `record_stream` needs; with a count of writes of its own.
            whole = source.data
        else:
            with made_current(source):
                whole = torch.from_dlpack(source)
        # Dense in any order of its axes: what it has is what lies there.
        items = whole.as_strided((whole.numel(),), (1,), whole.storage_offset())
        part = items.view(torch.uint8)[memory.first :][: memory.size]
        _check_size(part.numel(), memory)
        if part.storage_offset() % 16:  # between items there is no offset that torch has
            with made_current(part):
                return torch.from_dlpack(part)
        return part
    except Exception as error:  # somebody else's code may raise anything
        raise BufferError(f"torch does not take memory on {memory.device}: {error}") from error


def _check_size(found: int, memory: DeviceMemory) -> None:
    """Raise where an owner gives less memory than it gave when it was wrapped."""
    if found < memory.size:
        raise BufferError(
            f"its owner gives {found} bytes of it now, and the SoA has {memory.size}; wrap it anew"
        )


def waiter_in(framework: str, memory: DeviceMemory, device: Any) -> Callable[[], object] | None:
    """What lets the framework's current stream on a device wait for the memory's producer.

    None where nothing has to be waited for, or the framework asks the producer itself.
    """
    if framework != "torch":
        return None
    torch, source = sys.modules["torch"], memory.source
    default = 0 if torch.version.hip is not None else 1  # as DLPack numbers the default stream
    stream = memory.stream
    if stream is not None:
        # torch knows the default stream by another number, and takes no other for it.
        theirs = (
            torch.cuda.default_stream(device)
            if stream == default
            else torch.cuda.ExternalStream(stream, device=device)
        )

        def wait() -> None:
            _check_no_capture(memory)
            torch.cuda.current_stream(device).wait_stream(theirs)

        return wait
    if device.type != "cuda" or source is None or isinstance(source, torch.Tensor):
        return None  # torch's own streams are the user's to order

    def ask() -> None:
        _check_no_capture(memory)
        # The producer orders its work before the stream that it is given; the capsule is not used.
        with made_current(source):
            stream = torch.cuda.current_stream(device).cuda_stream or default
            try:
                source.__dlpack__(stream=stream)
            except Exception as error:  # somebody else's code may raise anything
                raise BufferError(
                    f"who writes the memory on {memory.device} does not tell when it is done: "
                    f"{error}"
                ) from error

    return ask


def _check_no_capture(memory: DeviceMemory) -> None:
    """Raise while torch captures a CUDA graph, which cannot wait for work outside of it."""
    if sys.modules["torch"].cuda.is_current_stream_capturing():
        raise BufferError(
            f"a CUDA graph is being captured, and cannot wait for who writes the memory on "
            f"{memory.device}; take the tensors before the capture, and use them in it"
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
    return items.as_strided(at.shape, at.strides, items.storage_offset() + at.offset)


def _shown_by_cupy(memory: DeviceMemory, at: Strided) -> Any:
    cupy, source = sys.modules["cupy"], memory.source
    try:
        with cupy.cuda.Device(memory.number):
            if source is None:
                data = cupy.asarray(Interface(memory)).data
            else:
                whole = source if isinstance(source, cupy.ndarray) else cupy.from_dlpack(source)
                _check_size(whole.nbytes - memory.first, memory)
                data = whole.data + memory.first
    except Exception as error:  # somebody else's code may raise anything
        raise BufferError(f"CuPy does not take memory on {memory.device}: {error}") from error
    _check_address(data.ptr, memory)
    strides = tuple(stride * at.itemsize for stride in at.strides)
    return cupy.ndarray(at.shape, numpy_dtype(at.dtype), data + at.byte_offset, strides)


Show = Callable[["DeviceMemory", "Strided"], Any]

_SHOW: dict[str, Show] = {"torch": _shown_by_torch, "cupy": _shown_by_cupy}


def _showing(memory: DeviceMemory) -> list[Show]:
    """Who can show a part of this memory: the framework of its source, or those imported."""
    own = framework_of(memory.source)
    if own in _SHOW:
        return [_SHOW[own]]
    takes_managed = DEVICES[memory.kind] == "cuda_managed"
    names = [name for name in _SHOW if name != "torch" or not takes_managed]
    return [_SHOW[name] for name in names if name in sys.modules]


def show(memory: DeviceMemory, at: Strided) -> Any:
    """The elements as the framework of the memory's owner has them, or one that adopts them.

    Raises:
        BufferError: none of them takes the memory, or none has been imported.
    """
    refused: Exception | None = None
    for by in _showing(memory):
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


def copied(shown: Any) -> Any:
    """A copy of what `show` gave, in order, by its own framework."""
    with made_current(shown):
        if framework_of(shown) != "torch":
            return shown.copy()
        return shown.clone(memory_format=sys.modules["torch"].contiguous_format)


def filling(target: Any, array: Any) -> Callable[[], Callable[[], object]]:
    """What writes an array of this device, of any framework's, over a target that `show` gave.

    It gives what waits until that is done: until then somebody must hold the array.
    """
    name = framework_of(target)
    framework = sys.modules[name]
    try:
        with made_current(target):
            given = framework.from_dlpack(array)
    except Exception as error:  # somebody else's code may raise anything
        raise BufferError(f"{name} does not take the values: {error}") from error
    if given.shape != target.shape:
        raise ValueError(f"got shape {tuple(given.shape)}, expected {tuple(target.shape)}")
    if given.dtype != target.dtype:
        raise TypeError(f"got dtype {given.dtype}, expected {target.dtype}; convert it first")

    def fill() -> Callable[[], object]:
        stream = None
        with made_current(target):
            if name == "torch":
                target.copy_(given)
                if target.device.type == "cuda":
                    stream = framework.cuda.current_stream(target.device)
            else:
                target[...] = given
                if name == "cupy":
                    stream = framework.cuda.get_current_stream()
        return _nothing if stream is None else stream.synchronize

    return fill


def _nothing() -> None:
    """There is nothing to wait for."""


def check_storage(owner: Any, label: str = "a tensor") -> None:
    """Raise for a tensor of torch's that reaches past its storage, which was shrunk under it."""
    if hasattr(owner, "untyped_storage"):
        reach = sum((n - 1) * s for n, s in zip(owner.shape, owner.stride(), strict=True))
        end = (owner.storage_offset() + reach + 1) * owner.element_size()
        size = owner.untyped_storage().nbytes()
        if owner.numel() and end > size:
            raise BufferError(
                f"{label} reaches to byte {end} of its storage, which was resized to {size} bytes"
            )


def check_plain(tensor: Any) -> None:
    """Raise for a tensor of torch's that is not simply memory, such as a negated or fake one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        # NumPy lacks bfloat16.
        (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def in_numpy(tensor: Any) -> Any:
    """NumPy's array over a tensor of torch's; bfloat16 as `ml_dtypes` has it."""
    torch = sys.modules["torch"]
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))


def detached(owner: Any) -> Any:
    """Of a torch tensor its twin, which `set_` and `resize_` of the tensor leave alone."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(owner, torch.Tensor):
        return owner
    with torch._C.DisableTorchFunctionSubclass():  # whatever a subclass makes of it
        return torch.Tensor.detach(owner)


def check_readable(value: Any) -> None:
    """Raise for values of torch's that NumPy cannot read, with what it can read instead."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        raise TypeError(
            "NumPy does not read torch's bfloat16; pass "
            "values.view(torch.int16).numpy().view('bfloat16')"
        )
