"""DLPack's capsules: what they may say, and what is refused before it is followed."""

from __future__ import annotations

import ctypes
import gc
import weakref

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pytest
from test_typed import plain

from soaview import Spec, views


class Host:
    """A producer on the host whose capsule's numbers are made up, beside the address."""

    def __init__(self, **changed):
        self.memory = np.arange(64, dtype="u1")
        self.changed, self.kept = changed, []

    def __dlpack_device__(self):
        return self.changed.get("says", (1, 0))

    def __dlpack__(self, **asked):
        numbers = {
            "data": self.memory.ctypes.data, "kind": 1, "index": 0, "ndim": 1, "code": 1,
            "bits": 8, "lanes": 1, "shape": (64,), "strides": None, "offset": 0, **self.changed,
        }  # fmt: skip
        numbers.pop("says", None)
        for name in ("shape", "strides"):
            if numbers[name] is not None:
                numbers[name] = (ctypes.c_int64 * 70)(*numbers[name])
                self.kept.append(numbers[name])
                numbers[name] = ctypes.addressof(numbers[name])
        tensor = Tensor(**numbers)
        self.kept.append(tensor)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(tensor), b"dltensor", None)


class Tensor(ctypes.Structure):  # DLPack's DLTensor
    _fields_ = (
        ("data", ctypes.c_void_p), ("kind", ctypes.c_int32), ("index", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("offset", ctypes.c_uint64),
    )  # fmt: skip


BYTES, FLOATS = plain("uint8"), plain("float32")


def test_capsules_of_the_host():
    """Capsules are read as they are: bytes, typed, strided, in either order, with an offset."""
    assert BYTES.wrap(Host(), 9)["c1"][0] == 9
    assert BYTES.wrap(Host(offset=3, shape=(61,)), 9)["c1"][0] == 12
    assert BYTES.wrap(Host(ndim=0, shape=None), 0).rows == 0
    assert FLOATS.wrap(Host(code=2, bits=32, shape=(16,)), 8).rows == 8
    table = {"code": 2, "bits": 32, "ndim": 2}
    assert FLOATS.wrap(Host(**table, shape=(2, 8), strides=(8, 1)), 8).rows == 8
    soa = FLOATS.wrap(Host(**table, shape=(8, 2), strides=(1, 8)), 8)
    assert soa["c1"].tobytes() == bytes(range(32, 64))
    assert soa.readonly  # DLPack before 1.0 does not say
    assert BYTES.wrap(Host(says=(3, 0)), 9).device == "cpu"  # pinned memory is the host's


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ndim": -1}, "-1 axes"),
        ({"ndim": 65, "shape": (1,) * 65}, "65 axes"),
        ({"ndim": 2**31 - 1}, "2147483647 axes"),
        ({"ndim": 2**30, "strides": (1,)}, "1073741824 axes"),
        ({"ndim": 1, "shape": None}, "no shape"),
        ({"ndim": 64, "shape": None}, "no shape"),
        ({"shape": (-64,)}, "its shape is"),
        ({"data": None}, "no memory of 64 bytes is at address 0x0"),
        ({"data": 2**64 - 8}, "no memory of 64 bytes"),
        ({"offset": 2**64 - 8}, "no memory of 64 bytes"),
        ({"kind": 2}, "says 1:0, and its capsule 2:0"),
        ({"kind": 2, "says": (2, 1)}, "says 2:1, and its capsule 2:0"),
        ({"kind": 1, "says": (2, 0)}, "says 2:0, and its capsule 1:0"),
        ({"kind": 77}, "device 77:0 is not known"),
        ({"kind": 0}, "device 0:0 is not known"),
        ({"index": -1}, "device 1:-1"),
        ({"lanes": 4}, "in 4 lanes"),
        ({"lanes": 0}, "in 0 lanes"),
        ({"bits": 4}, "have 4 bits"),
        ({"strides": (2,)}, "not contiguous"),
        ({"strides": (-1,)}, "not contiguous"),
        ({"code": 2, "bits": 64}, "holds float64, but field 'c0' is uint8"),
        ({"code": 3}, "DLPack's type 3 of bits 8"),
        ({"code": 99}, "DLPack's type 99"),
        ({"code": 6}, "holds bool"),
        ({"code": 6, "bits": 32}, "holds bool32"),
        ({"bits": 16}, "holds uint16"),
        ({"ndim": 2, "shape": (32, 2)}, "columns of .* one after another"),
        ({"shape": (2**63 - 1,), "code": 0, "bits": 64}, "no memory of 7378"),
        ({"ndim": 2, "shape": (2, 2**62), "strides": (2**62, 1)}, "table's shape|no memory"),
    ],
)
def test_capsules_that_cannot_be(changed, message):
    """Each number of a capsule is checked before the next pointer is followed."""
    with pytest.raises((BufferError, TypeError, ValueError), match=message) as refusal:
        BYTES.wrap(Host(**changed), 32)
    assert len(str(refusal.value)) < 400


def test_views_of_an_soa_can_be_wrapped():
    """What soaview itself hands out says its dtype, too."""
    soa = FLOATS.allocate(8)
    [whole] = views(soa, Spec(t=["c0", "c1"]))
    again = FLOATS.wrap(whole, 8)
    again["c1"][3] = 7
    assert soa["c1"][3] == 7
    with pytest.raises(TypeError, match="holds float32, but field 'c0' is int32"):
        plain("int32").wrap(whole, 8)
    assert BYTES.wrap(soa.buffer, 32)["c1"][0] == 0


class Given:
    """A producer with options of its own, over an array of NumPy's."""

    def __init__(self, array, give):
        self.array, self.give = array, give

    def __dlpack__(self, **asked):
        return self.give(self.array, **asked)

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_that_is_given_twice(version):
    """Only one consumer takes it: while an SoA lives nobody else can, and so nobody frees it."""
    array = np.full(64, 7, np.uint8)
    alive = weakref.ref(array)
    again = Given(array.__dlpack__(max_version=version), lambda capsule, **asked: capsule)
    del array
    soa = BYTES.wrap(again, 9)
    column = soa["c1"]
    with pytest.raises(BufferError, match="gives a capsule that was taken before"):
        BYTES.wrap(again, 9)
    with pytest.raises(ValueError, match="Capsule"):
        np.from_dlpack(again)
    del soa
    assert column.tolist() == [7] * 9
    del column
    gc.collect()
    taken = np.from_dlpack(again)  # it has its own name again
    assert taken[0] == 7
    with pytest.raises(BufferError, match="taken before"):
        BYTES.wrap(again, 9)
    del taken, again
    gc.collect()
    assert alive() is None


def test_producers_that_copy():
    """No copy is asked for, and one that comes all the same is refused: writes would be lost."""
    array = np.zeros(64, np.uint8)

    def copies(array, *, copy=None, **asked):
        return array.__dlpack__(copy=copy is not False, **asked)

    soa = BYTES.wrap(Given(array, copies), 9)
    soa["c0"][:] = 5
    assert array[:9].tolist() == [5] * 9
    stubborn = Given(array, lambda array, **asked: array.__dlpack__(**{**asked, "copy": True}))
    with pytest.raises(BufferError, match="gives a copy of its memory.*wrap what owns the memory"):
        BYTES.wrap(stubborn, 9)
    without = Given(array, lambda array, *, max_version: array.__dlpack__(max_version=max_version))
    BYTES.wrap(without, 9)["c0"][:] = 6
    assert array[:9].tolist() == [6] * 9
