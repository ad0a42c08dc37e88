"""What other libraries tell of their memory: DLPack's capsules and the CUDA array interface."""

from __future__ import annotations

import ctypes
import math
import re
from typing import Any, NamedTuple, Protocol

import numpy as np

from ._dtypes import exact_int
from ._typed import Asked, by_columns

# DLPack's DLDeviceType: https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h
DEVICES = {
    1: "cpu",
    2: "cuda",
    4: "opencl",
    7: "vulkan",
    8: "metal",
    9: "vpi",
    10: "rocm",
    12: "ext_dev",
    14: "oneapi",
    15: "webgpu",
    16: "hexagon",
    17: "maia",
    3: "cuda",  # pinned, which the host reads
    11: "rocm",  # likewise
    13: "cuda_managed",
}
KINDS = {name: kind for kind, name in reversed(DEVICES.items())}
ON_HOST = {1, 3, 11}

_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_MOST_AXES = 64


class Producer(Protocol):
    """What speaks DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html."""

    def __dlpack__(self, **options: Any) -> object:
        """A capsule."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Device type and number."""


class DeviceMemory(NamedTuple):
    """Where somebody's memory is.

    Attributes:
        address, size: in bytes.
        readonly: whether it may be written.
        kind, number: DLPack's device type and device number.
        stream: the CUDA stream that the memory is being written on; None where nothing has to be
            waited for, or where a DLPack producer sees to it.
        export: what holds the memory, beside its owner.
        source: what speaks DLPack for it; None for a bare pointer.
        first: byte of the source's memory at which this one starts.
        owner: the object that was wrapped.
    """

    address: int
    size: int
    readonly: bool
    kind: int
    number: int
    stream: int | None = None
    export: object = None
    source: Producer | None = None
    first: int = 0
    owner: object = None

    @property
    def device(self) -> str:
        """Its name: the host's has no number, unless it is another one."""
        name = DEVICES[self.kind]
        return name if name == "cpu" and not self.number else f"{name}:{self.number}"


class _DLTensor(ctypes.Structure):
    # https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("index", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    )


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
_name_of = ctypes.pythonapi.PyCapsule_GetName
_name_of.restype, _name_of.argtypes = ctypes.c_void_p, [ctypes.py_object]
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_void_p]

_USED = ctypes.create_string_buffer(b"used_dltensor")
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_USED))  # a capsule points at it, and may outlive all


class _Taken:
    """A capsule that nobody else takes: who takes one renames it, by DLPack's rules.

    When this goes, the capsule has its own name again, and frees the memory when nobody holds it.
    """

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule
        self.name = _name_of(capsule)
        _rename(capsule, ctypes.addressof(_USED))

    def __del__(self, rename: Any = _rename) -> None:
        rename(self.capsule, self.name)


def capsule_of(owner: Producer) -> object:
    """The owner's DLPack capsule of its own memory; the default stream waits for the producer."""
    for options in ({"max_version": (1, 0), "copy": False}, {"max_version": (1, 0)}):
        try:
            return owner.__dlpack__(**options)
        except TypeError:  # a producer that does not know one of them
            pass
    return owner.__dlpack__()


class Lying(NamedTuple):
    """How elements lie in memory: strides in bytes, and None where they follow in order."""

    dtype: str | None
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None

    @property
    def span(self) -> int:
        """Bytes from the first element's begin to the last one's end."""
        if self.strides is None or 0 in self.shape:
            return math.prod(self.shape) * self.itemsize
        steps = zip(self.shape, self.strides, strict=True)
        return sum((n - 1) * stride for n, stride in steps) + self.itemsize


def of_capsule(capsule: object, device: tuple[int, int]) -> tuple[DeviceMemory, Lying]:
    """What a capsule says. It is taken, and then holds the memory and frees it.

    Args:
        capsule: DLPack's, of either kind.
        device: where its producer says that the memory is.

    Raises:
        BufferError, ValueError: a capsule that cannot be, or that says something else than its
            producer. Nothing is read through a pointer of it before it is sure how much there is.
    """
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if managed.major != 1:
            raise BufferError(f"it speaks DLPack {managed.major}.{managed.minor}, not 1")
        if managed.flags & 2:
            raise BufferError(
                "it gives a copy of its memory, though none was asked for: what is written there "
                "is lost; wrap what owns the memory, or a copy that you make of it"
            )
        tensor, readonly = managed.tensor, bool(managed.flags & 1)
    elif _is_valid(capsule, b"dltensor"):
        # Before 1.0 there was no flag; like NumPy, take the memory as read-only.
        tensor, readonly = _DLTensor.from_address(_pointer(capsule, b"dltensor")), True
    elif _is_valid(capsule, b"used_dltensor") or _is_valid(capsule, b"used_dltensor_versioned"):
        raise BufferError("its __dlpack__ gives a capsule that was taken before, and no new one")
    else:
        raise BufferError(f"its __dlpack__ gives {type(capsule).__name__}, and no capsule to read")
    where = tensor.kind, tensor.index
    if tensor.kind not in DEVICES or tensor.index < 0:
        raise BufferError(f"DLPack device {tensor.kind}:{tensor.index} is not known here")
    if _device_of(*where) != _device_of(*device):
        raise BufferError(
            f"its __dlpack_device__ says {device[0]}:{device[1]}, and its capsule "
            f"{tensor.kind}:{tensor.index}"
        )
    if not 0 <= tensor.ndim <= _MOST_AXES or (tensor.ndim and not tensor.shape):
        raise BufferError(f"its capsule has {tensor.ndim} axes, or no shape for them")
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    if min(shape, default=0) < 0:
        raise BufferError(f"its shape is {shape}")
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.ndim and tensor.strides else None
    if tensor.lanes != 1 or tensor.bits % 8:
        raise BufferError(f"its items have {tensor.bits} bits in {tensor.lanes} lanes")
    kind = _CODES.get(tensor.code, f"DLPack's type {tensor.code} of bits ")
    says = "bool" if kind == "bool" and tensor.bits == 8 else f"{kind}{tensor.bits}"
    size = tensor.bits // 8
    lying = Lying(says, size, shape, strides and tuple(stride * size for stride in strides))
    address = check_pointer((tensor.data or 0) + tensor.byte_offset, lying.span)
    return DeviceMemory(address, lying.span, readonly, *where, None, _Taken(capsule)), lying


def _device_of(kind: int, number: int) -> tuple[str, int]:
    """Managed memory is CUDA's to some; the host has one number."""
    return ("cpu", 0) if kind in ON_HOST else (DEVICES[kind].removesuffix("_managed"), number)


def of_interface(interface: Any) -> tuple[DeviceMemory, np.dtype[Any], Lying]:
    """What a CUDA array interface says. It names no device: the first one, if nobody knows better.

    Versions differ in what nobody needs here, and in the stream; RMM calls its own 0.

    Raises:
        Whatever reading it raises.
    """
    if interface["version"] not in (0, 1, 2, 3) or interface.get("mask") is not None:
        raise ValueError("a version up to 3 is needed, without a mask")
    typestr = interface["typestr"]
    if not isinstance(typestr, str) or not re.fullmatch("[<>|=]?[A-Za-z?][0-9]*", typestr):
        raise TypeError(f"its typestr is {typestr!r:.60}")
    dtype = np.dtype(typestr)
    if dtype.type is np.void and interface.get("descr"):
        dtype = np.dtype(list(interface["descr"]))
    shape = tuple(exact_int(number, "shape") for number in interface["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {shape}")
    strides = interface.get("strides")
    if strides is not None:
        strides = tuple(exact_int(stride, "stride") for stride in strides)
        if len(strides) != len(shape):
            raise ValueError(f"its strides are {strides}, its shape is {shape}")
    address, readonly = interface["data"]
    lying = Lying(None, dtype.itemsize, shape, strides)
    stream = check_stream(interface.get("stream"))
    address = check_pointer(address, lying.span)
    memory = DeviceMemory(address, lying.span, bool(readonly), KINDS["cuda"], 0, stream)
    return memory, dtype, lying


def check_order(asked: Asked, lying: Lying) -> None:
    """Raise unless these are items without gaps, of the dtype and in the order that is asked."""
    says, itemsize, shape, strides = lying
    c, fortran = True, len(shape) < 2
    if strides is not None and 0 not in shape:
        c = _is_dense(shape, strides, itemsize)
        fortran = _is_dense(shape[::-1], strides[::-1], itemsize)
    if not (by_columns(asked, says, shape, c=c, fortran=fortran) or c):
        raise BufferError(
            f"the buffer is not contiguous: shape {shape}, strides {strides}; pass the array that "
            f"owns the memory, or a contiguous copy of it"
        )


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int) -> bool:
    """Whether the last axis is the fastest, without gaps."""
    for count, stride in zip(reversed(shape), reversed(strides), strict=True):
        if count > 1 and stride != step:
            return False
        step *= count
    return True


def check_pointer(value: object, size: int) -> int:
    """An address at which so many bytes can be."""
    address = exact_int(value, "address")
    if (address == 0 and size) or not 0 <= address <= 2**64 - size:
        raise ValueError(f"no memory of {size} bytes is at address {address:#x}")
    return address


def check_stream(value: object, device: str = "cuda") -> int | None:
    """A stream as an integer, or None; ROCm's default one is 0, which CUDA leaves out."""
    if value is None:
        return None
    stream = exact_int(value, "stream")
    if not (device != "rocm") <= stream < 2**64:
        raise ValueError(
            f"stream must be a positive integer, got {stream}: 1 is the legacy default stream, 2 "
            f"the thread's"
        )
    return stream
