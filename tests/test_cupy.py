"""Parts of a device's memory as CuPy shows them, by a stand-in over the host's memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from cases import CASES, filled, layout_of
from places import aligned

from soaview import Blocks, Column, Layout, Spec, Value, _frameworks, views
from soaview._frameworks import copied, filling, show
from soaview.adapter import views_or_gathers

NEEDS: list[str] = []


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.delitem(_frameworks._SHOW, "torch")  # who would be asked first, where it is there
    return fake_cupy.install(monkeypatch)


def on_device(memory, number=1, kind=2):
    """CuPy's array of these bytes, on a device."""
    at = fake_cupy.MemoryPointer(memory.ctypes.data, memory, number)
    array = fake_cupy.ndarray((memory.size,), "uint8", at)
    array.kind = kind
    return array


def shown(view):
    return show(view.buffer.memory, view.strided)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_every_entry(cupy, case, rows):
    """Its elements are those of the memory, by shape, strides and values, of slices, too."""
    memory, expected = filled(case.layout, rows)
    soa = case.layout.wrap(on_device(memory), rows)
    assert (soa.device, soa.readonly) == ("cuda:1", False)
    for part, chosen in ((soa, slice(None)), (soa[3:9], slice(3, 9))):
        [view] = views_or_gathers(part, Spec(t=case.entry))
        for one in getattr(view, "parts", [view]):
            found = shown(one)
            assert isinstance(found, fake_cupy.ndarray)
            want = np.ndarray(
                one.shape,
                one.dtype,
                memory,
                one.byte_offset,
                [s * one.itemsize for s in one.strides],
            )
            assert (found.shape, found.dtype) == (want.shape, want.dtype)
            np.testing.assert_array_equal(found.host(), want)
            if want.size:
                assert found.data.ptr == want.ctypes.data
                assert found.strides == want.strides
        if isinstance(case.entry, str):
            [view] = views(part, Spec(t=case.entry))
            np.testing.assert_array_equal(
                shown(view).host(),
                expected[case.entry][chosen]
                if view.strides[0]
                else np.broadcast_to(expected[case.entry], view.shape),
            )


LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Column("k", "int64", (2,))])


class Foreign:
    """Memory of somebody else's, which speaks DLPack."""

    def __init__(self, memory, number=0):
        self.array = on_device(memory, number)

    def __dlpack__(self, **asked):
        if fake_cupy.did[-1:] == [("adopted", 0)]:  # NumPy reads it for the stand-in
            return self.array.host().__dlpack__(max_version=(1, 0))
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        adopted = fake_cupy.did[-1:] == [("adopted", 0)]
        return (1, 0) if adopted else self.array.__dlpack_device__()


class OnlyInterface:
    def __init__(self, memory, **more):
        at = {"shape": (memory.size,), "typestr": "|u1", "data": (memory.ctypes.data, False)}
        self.memory = memory
        self.__cuda_array_interface__ = {**at, "version": 3, **more}


@pytest.mark.parametrize("by", ["CuPy", "DLPack", "interface", "pointer", "blocks"])
def test_however_the_memory_came(cupy, by):
    """CuPy's own, adopted from who speaks DLPack, by interface or address, and a part of it."""
    blocks = Blocks({"a": LAYOUT, "b": LAYOUT})
    rows = {"a": 5, "b": 33}
    memory = aligned(np.zeros(blocks.nbytes(rows), np.uint8))
    host = blocks.wrap(memory, rows)
    host["a"]["y"][:] = np.arange(5)
    host["b"]["y"][:] = np.arange(33)
    alone = memory[blocks.offset("b", rows) :]
    at = {"device": "cuda:0", "owner": memory}
    soa = {
        "CuPy": lambda: LAYOUT.wrap(on_device(alone), 33),
        "DLPack": lambda: LAYOUT.wrap(Foreign(alone), 33),
        "interface": lambda: LAYOUT.wrap(OnlyInterface(alone), 33),
        "pointer": lambda: LAYOUT.from_pointer(alone.ctypes.data, 33, **at),
        "blocks": lambda: blocks.wrap(on_device(memory), rows)["b"],
    }[by]()
    [y] = views(soa, Spec(y="y"))
    found = shown(y)
    np.testing.assert_array_equal(found.host(), np.arange(33))
    assert found.data.ptr == host["b"]["y"].ctypes.data
    [k] = views(soa[4:], Spec(k="k"))
    assert shown(k).data.ptr == host["b"]["k"][4:].ctypes.data


def test_the_device_of_the_memory_is_the_current_one(cupy):
    """CuPy takes the current device's stream when it exports, and what it adopts is there."""
    pointed = LAYOUT.from_pointer(1 << 40, 33, device="cuda:1")
    assert shown(views(pointed, Spec(x="x"))[0]).device.id == 1
    soa = LAYOUT.wrap(on_device(aligned(np.zeros(LAYOUT.nbytes(33), np.uint8))), 33)
    assert fake_cupy.did == [("exported", 1, None)]
    [x] = views(soa, Spec(x="x"))
    x.__dlpack__(stream=7)
    assert fake_cupy.did[1:] == [("exported", 1, 7)]
    assert fake_cupy.Device.entered == [0]


def test_what_is_written_is_waited_for(cupy):
    """Once all is queued: until then somebody must hold the values."""
    memory = aligned(np.zeros(LAYOUT.nbytes(33), np.uint8))
    soa = LAYOUT.wrap(on_device(memory), 33)
    [x, k] = views(soa, Spec(x="x", k="k"))
    del fake_cupy.did[:]
    fills = [
        filling(shown(x), np.full(33, 3, np.float32)),
        filling(shown(k), np.arange(66).reshape(33, 2)),
    ]
    assert not memory.any()
    waits = [fill() for fill in fills]
    assert fake_cupy.did == [("adopted", 1)] * 2 + [("written", 1)] * 2
    host = LAYOUT.wrap(memory, 33)
    assert (host["x"] == 3).all()
    assert not host["y"].any()
    np.testing.assert_array_equal(host["k"], np.arange(66).reshape(33, 2))
    waits[0]()
    assert fake_cupy.did[4:] == ["waited"]


def test_copies_are_in_order(cupy):
    """For a reader that cannot take the memory where it lies."""
    memory, _ = filled(layout_of("float32", "float64"), 33)
    soa = layout_of("float32", "float64").wrap(on_device(memory), 33)
    [m] = views(soa, Spec(m="m"))
    found = copied(shown(m))
    assert found.data.ptr != m.address
    np.testing.assert_array_equal(found.host(), shown(m).host())
    assert found.host().flags.c_contiguous


def test_memory_that_moved(cupy):
    """What CuPy shows is compared with the address that was wrapped."""
    memory = aligned(np.zeros(LAYOUT.nbytes(33) + 128, np.uint8))
    array = on_device(memory)
    soa = LAYOUT.wrap(array, 33)
    array.data += 128
    with pytest.raises(BufferError, match="memory on cuda:1 is not where it was"):
        shown(views(soa, Spec(x="x"))[0])


def test_memory_that_is_no_longer_given(cupy, monkeypatch):
    """An owner that gives less than before, or what CuPy does not take, is refused in our words."""
    memory = aligned(np.zeros(LAYOUT.nbytes(33), np.uint8))
    array = on_device(memory)
    soa = LAYOUT.wrap(array, 33)
    array.shape = (len(memory) - 1,)
    with pytest.raises(BufferError, match=f"its owner gives {len(memory) - 1} bytes of it now"):
        shown(views(soa, Spec(x="x"))[0])
    soa = LAYOUT.from_pointer(memory.ctypes.data, 33, device="cuda:1", owner=memory)

    def fails(given):
        raise KeyError("no driver")

    monkeypatch.setattr(cupy, "asarray", fails)
    with pytest.raises(BufferError, match="CuPy does not take memory on cuda:1: 'no driver'"):
        shown(views(soa, Spec(x="x"))[0])


def test_managed_memory(cupy, monkeypatch):
    """It has a name of its own, and only CuPy shows it: torch is not asked."""
    monkeypatch.setattr(_frameworks, "_SHOW", {"torch": None, **_frameworks._SHOW})
    torch = SimpleNamespace(Tensor=(), cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", torch)
    memory = aligned(np.zeros(LAYOUT.nbytes(33), np.uint8))
    soa = LAYOUT.wrap(on_device(memory, 0, kind=13), 33)
    assert soa.device == "cuda_managed:0"
    [n] = views(soa, Spec(x="x"))
    assert n.__dlpack_device__() == (13, 0)
    assert isinstance(shown(n), fake_cupy.ndarray)
    assert n.__cuda_array_interface__["data"] == (n.address, False)
    at = {"device": "cuda_managed:0", "owner": memory}
    soa = LAYOUT.from_pointer(memory.ctypes.data, 33, **at)
    assert isinstance(shown(views(soa, Spec(x="x"))[0]), fake_cupy.ndarray)


def test_the_device_of_an_interface(cupy, monkeypatch):
    """The protocol has none: who knows the pointer is asked; else the first one is meant."""
    if "torch" in sys.modules:  # who is asked first, where it has a GPU
        monkeypatch.setattr(sys.modules["torch"].cuda, "is_available", lambda: False)
    memory = aligned(np.zeros(LAYOUT.nbytes(33), np.uint8))
    assert LAYOUT.wrap(OnlyInterface(memory), 33).device == "cuda:1"
    unknown = OnlyInterface(memory, data=(2**40, False))
    assert LAYOUT.wrap(unknown, 33).device == "cuda:0"
    assert LAYOUT.wrap(OnlyInterface(memory, shape=(0,), data=(0, False)), 0).device == "cuda:0"
    for version in (0, 2):  # RMM's, and before there were streams
        assert LAYOUT.wrap(OnlyInterface(memory, version=version), 33).rows == 33
    with pytest.raises(BufferError, match="a version up to 3 is needed"):
        LAYOUT.wrap(OnlyInterface(memory, version=4), 33)


def test_values_of_rows_and_alone(cupy):
    """A scalar is shown as one value, and for all rows with a stride of 0."""
    layout = layout_of("int32", "float64")
    memory, expected = filled(layout, 33)
    soa = layout.wrap(on_device(memory), 33)
    alone, rows = views(soa, Spec(a=Value("n"), b="n"))
    assert shown(alone).host() == expected["n"]
    assert shown(rows).strides == (0,)
    assert (shown(rows).host() == expected["n"]).all()
