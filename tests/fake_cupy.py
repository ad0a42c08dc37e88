"""CuPy's part that soaview uses, over the host's memory: what it does is noted in `did`.

It stands for the real one where there is no GPU: arrays are memory at an address with strides in
bytes, device 0 or 1 has to be the current one when it is used, and work is queued on a stream.
"""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np

from soaview._dlpack import _pointer, _Versioned

did: list[object] = []


class Device:
    """The current one is the last that was entered."""

    entered: list[int] = [0]  # noqa: RUF012 - as in CuPy, one for all

    def __init__(self, number):
        self.id = number

    def __enter__(self):
        self.entered.append(self.id)
        return self

    def __exit__(self, *raised):
        self.entered.pop()


class MemoryPointer:
    def __init__(self, ptr, owner, number=0):
        self.ptr, self.owner, self.number = ptr, owner, number

    def __add__(self, nbytes):
        return MemoryPointer(self.ptr + nbytes, self.owner, self.number)


class ndarray:  # noqa: N801 - CuPy's name
    kind = 2
    base = None  # the array that this is a view of

    def __init__(self, shape, dtype, memptr, strides=None):
        self.shape, self.dtype, self.data = tuple(shape), np.dtype(dtype), memptr
        self.strides = np.zeros(shape, dtype).strides if strides is None else tuple(strides)
        self.device = Device(memptr.number)

    @property
    def nbytes(self):
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def host(self):
        """The elements, where they lie."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        size = reach + self.dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.data.ptr)
        return np.ndarray(self.shape, self.dtype, memory, 0, self.strides)

    def __setitem__(self, key, values):
        did.append(("written", Device.entered[-1]))
        self.host()[key] = values.host()

    def copy(self):
        memory = self.host().copy()
        at = MemoryPointer(memory.ctypes.data, memory, self.data.number)
        return ndarray(memory.shape, memory.dtype, at)

    def __dlpack_device__(self):
        return self.kind, self.data.number

    def __dlpack__(self, *, stream=None, max_version=None):
        did.append(("exported", Device.entered[-1], stream))
        capsule = self.host().__dlpack__(max_version=(1, 0))
        managed = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        managed.tensor.kind, managed.tensor.index = self.kind, self.data.number
        return capsule


def from_dlpack(given):
    did.append(("adopted", Device.entered[-1]))
    array = np.from_dlpack(given)
    return ndarray(array.shape, array.dtype, MemoryPointer(array.ctypes.data, array), array.strides)


def asarray(given):
    interface = given.__cuda_array_interface__
    at = MemoryPointer(interface["data"][0], given, Device.entered[-1])
    return ndarray(interface["shape"], interface["typestr"], at, interface["strides"])


class Stream:
    def synchronize(self):
        did.append("waited")


def number_of(address):
    return types.SimpleNamespace(device=1 if address % 2**40 else -2)


def install(monkeypatch):
    """Let this be CuPy for a test."""
    del did[:]
    module = types.ModuleType("cupy")
    for name in ("ndarray", "from_dlpack", "asarray"):
        setattr(module, name, globals()[name])
    runtime = types.SimpleNamespace(pointerGetAttributes=number_of)
    module.cuda = types.SimpleNamespace(Device=Device, get_current_stream=Stream, runtime=runtime)
    monkeypatch.setattr(ndarray, "__module__", "cupy")
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
