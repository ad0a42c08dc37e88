"""What can be wrapped, and what holds the memory."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import weakref
from multiprocessing import shared_memory

import numpy as np
import pytest

from soaview import Column, Layout, Scalar, Spec, View, views

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
ROWS = 33
NBYTES = LAYOUT.nbytes(ROWS)


def image():
    """Bytes of an SoA whose x counts from 0."""
    soa = LAYOUT.allocate(ROWS)
    soa["x"][:] = np.arange(ROWS)
    return bytes(soa.buffer.root)


def aligned(nbytes, offset=0, alignment=128):
    raw = np.zeros(nbytes + 2 * alignment, np.uint8)
    return raw[-raw.__array_interface__["data"][0] % alignment + offset :][:nbytes]


def in_numpy(dtype):
    return np.frombuffer(bytearray(image()), dtype)


def in_ctypes():
    return (ctypes.c_char * NBYTES).from_buffer_copy(image())


def in_mmap():
    memory = mmap.mmap(-1, NBYTES)
    memory[:] = image()
    return memory


class DLPackOnly:
    """A producer that offers nothing but DLPack."""

    def __init__(self, owner, device=None):
        self.owner, self.device = owner, device

    def __dlpack__(self, **options):
        return self.owner.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.owner.__dlpack_device__()


SOURCES = {
    "bytes": image,
    "bytearray": lambda: bytearray(image()),
    "memoryview": lambda: memoryview(bytearray(image())),
    "numpy": lambda: in_numpy("u1"),
    "numpy int8": lambda: in_numpy("i1"),
    "numpy raw": lambda: in_numpy("V8"),
    "numpy 2-d": lambda: in_numpy("u1").reshape(-1, 2),
    "mmap": in_mmap,
    "array.array": lambda: array.array("B", image()),
    "ctypes": in_ctypes,
    "DLPack": lambda: DLPackOnly(in_numpy("u1")),
    "DLPack, CUDA's pinned memory": lambda: DLPackOnly(in_numpy("u1"), (3, 0)),
    "DLPack, ROCm's pinned memory": lambda: DLPackOnly(in_numpy("u1"), (11, 1)),
    "larger than needed": lambda: bytearray(image() + b"more"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_whatever_holds_host_memory_can_be_wrapped(source):
    """Wrapping copies nothing, remembers the owner, and knows whether it may be written."""
    owner = SOURCES[source]()
    soa = LAYOUT.wrap(owner, ROWS)
    assert soa.buffer.owner is owner
    assert soa.buffer.nbytes == NBYTES
    np.testing.assert_array_equal(soa["x"], np.arange(ROWS))
    assert soa.readonly == (source == "bytes")
    assert soa["x"].flags.writeable == (source != "bytes")
    if source != "bytes" and "DLPack" not in source:
        soa["x"][0] = 7
        assert np.float32(7).tobytes() in bytes(memoryview(owner).cast("B")[:4])


def test_shared_memory_can_be_wrapped():
    """A SharedMemory object or its buffer; closing it raises while a view lives."""
    for source in (lambda memory: memory, lambda memory: memory.buf):
        memory = shared_memory.SharedMemory(create=True, size=NBYTES)
        memory.unlink()
        memory.buf[:NBYTES] = image()
        soa = LAYOUT.wrap(source(memory), ROWS)
        assert soa["x"][5] == 5
        with pytest.raises(BufferError):
            memory.close()
        del soa
        memory.close()


def test_a_temporary_shared_memory_lives_as_long_as_its_views():
    """The SoA holds the object itself, which would otherwise close when collected."""
    memory = shared_memory.SharedMemory(create=True, size=NBYTES)
    memory.unlink()
    gone = weakref.ref(memory)
    x = LAYOUT.wrap(memory, ROWS)["x"]
    del memory
    gc.collect()
    x[:] = 1
    assert gone() is not None
    del x
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("keep", ["soa", "view", "slice"])
def test_the_export_is_held(keep):
    """Closing a mapping or resizing a bytearray raises while a view lives, and works after."""
    sources = (
        (in_mmap(), lambda owner: owner.close()),
        (bytearray(image()), lambda owner: owner.extend(b"x")),
        (array.array("B", image()), lambda owner: owner.append(1)),
    )
    for owner, change in sources:
        soa = LAYOUT.wrap(owner, ROWS)
        held = {"soa": soa, "view": soa["x"], "slice": soa[3:5]}[keep]
        del soa
        gc.collect()
        with pytest.raises(BufferError):
            change(owner)
        del held
        gc.collect()
        change(owner)


def test_the_owner_is_let_go():
    """Nothing keeps the memory once the last view is gone."""
    owner = aligned(NBYTES).base
    gone = weakref.ref(owner)
    soa = LAYOUT.wrap(owner, ROWS)
    view = views(soa, Spec(x="x"))[0]
    del owner, soa
    assert gone() is not None
    del view
    assert gone() is None


class OnTheDevice:
    """A producer that offers nothing but CUDA's interface; nobody follows the pointer."""

    __cuda_array_interface__ = {  # noqa: RUF012 - as producers have it
        "shape": (NBYTES,), "typestr": "|u1", "data": (1 << 40, False), "version": 3,
    }  # fmt: skip


def object_array():
    return np.array([None] * 400)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: bytes(NBYTES - 1), ValueError, "too small: got 639 bytes, needed 640 .1 m.*; e"),
        (lambda: b"", ValueError, "too small: got 0 bytes, needed 640"),
        (lambda: aligned(NBYTES, 1), BufferError, "misaligned: .* 1 bytes past a multiple of 4"),
        (lambda: aligned(NBYTES, 2), BufferError, "misaligned: .* 2 bytes past a multiple of 4"),
        (lambda: memoryview(bytes(NBYTES + 8))[3:], BufferError, "misaligned"),
        (lambda: aligned(2 * NBYTES)[::2], BufferError, "not contiguous: shape .640,.* strides .2"),
        (lambda: aligned(NBYTES)[::-1], BufferError, "not contiguous: .* strides .-1,"),
        (lambda: np.zeros((40, 40), "u1").T, BufferError, "not contiguous"),
        (lambda: np.zeros((80, 80), "u1")[:, :40], BufferError, "not contiguous"),
        (lambda: memoryview(bytes(2 * NBYTES))[::2], BufferError, "not contiguous"),
        (object_array, TypeError, "holds Python objects"),
        (lambda: memoryview(object_array()), TypeError, "holds Python objects"),
        (lambda: np.ma.zeros(NBYTES, "u1"), TypeError, "masked array"),
        (lambda: [0] * NBYTES, TypeError, "cannot wrap list .*bytes-like object is required"),
        (lambda: None, TypeError, "cannot wrap NoneType"),
        (lambda: 0x7F0000000000, TypeError, "cannot wrap int"),
        (lambda: "x" * NBYTES, TypeError, "cannot wrap str"),
        (lambda: bytes, TypeError, "cannot wrap <class 'bytes'>: it is a class"),
        (lambda: Segment(None), TypeError, "cannot wrap Segment"),
        (lambda: DLPackOnly(aligned(NBYTES), ("cpu", 0)), BufferError, "has no memory to wrap"),
        (lambda: DLPackOnly(aligned(NBYTES), (1,)), BufferError, "has no memory to wrap"),
        (lambda: DLPackOnly(aligned(NBYTES), (77, 0)), BufferError, "device 77:0 is not known"),
    ],
)  # fmt: skip
def test_what_cannot_be_wrapped(make, error, message):
    """Each thing wrong with a buffer has its own sentence, with what was got and needed."""
    with pytest.raises(error, match=message):
        LAYOUT.wrap(make(), ROWS)


@pytest.mark.parametrize("offset", range(33))
def test_alignment_is_that_of_the_largest_item(offset):
    """An address must suit the layout's largest item, and no more than that."""
    for dtype, needed in (("uint8", 1), ("float16", 2), ("int32", 4), ("float64", 8), ("c16", 16)):
        layout = Layout([Column("b", "uint8"), Column("x", dtype)])
        memory = aligned(layout.nbytes(5), offset)
        if offset % needed:
            with pytest.raises(BufferError, match="misaligned"):
                layout.wrap(memory, 5)
        else:
            layout.wrap(memory, 5)["x"][:] = 1


class Segment:
    """Something with a `buf`, as SharedMemory has."""

    def __init__(self, buf):
        self.buf = buf


def test_read_only_segments_stay_read_only():
    """The flag of the memory counts, not the kind of object that holds it."""
    soa = LAYOUT.wrap(Segment(memoryview(image())), ROWS)
    assert soa.readonly
    assert not soa["x"].flags.writeable
    assert not LAYOUT.wrap(Segment(memoryview(bytearray(image()))), ROWS).readonly


def test_buffers_that_numpy_was_only_pointed_at(tmp_path):
    """The export is held below `np.memmap` and `np.ndarray(buffer=...)`, too."""
    path = tmp_path / "soa.bin"
    path.write_bytes(image() + b"more")
    mapped = np.memmap(path, np.uint8, mode="r+")
    below = bytearray(b"start " * 20 + image())
    pointed = np.ndarray(NBYTES, np.uint8, below, offset=120)
    for owner, close in (
        (mapped, mapped._mmap.close),
        (mapped[:NBYTES], mapped._mmap.close),
        (pointed, below.clear),
        (pointed.view(np.int8).reshape(-1, 2), below.clear),
    ):
        x = LAYOUT.wrap(owner, ROWS)["x"]
        np.testing.assert_array_equal(x, np.arange(ROWS))
        assert x.flags.writeable
        assert np.shares_memory(x, owner)
        with pytest.raises(BufferError):
            close()
    del x
    below.clear()
    frozen = np.ndarray(NBYTES, np.uint8, bytearray(image()))
    frozen.flags.writeable = False
    for readonly in (np.memmap(path, np.uint8, mode="r"), frozen):
        assert LAYOUT.wrap(readonly, ROWS).readonly


def test_a_flag_set_later_changes_nothing():
    """What was writable when it was wrapped stays so, whatever becomes of the owner's flag."""
    owner = aligned(NBYTES)
    soa = LAYOUT.wrap(owner, ROWS)
    owner.flags.writeable = False
    assert not soa.readonly
    soa["x"][0] = 1


def test_no_rows_need_no_memory():
    """An SoA without rows or scalars wraps an empty buffer."""
    layout = Layout([Column("x", "float64")])
    for empty in (b"", bytearray(), np.empty(0, np.uint8), memoryview(b"")):
        soa = layout.wrap(empty, 0)
        assert soa["x"].shape == (0,)


def test_allocation_is_zeroed_and_aligned():
    """`allocate` gives zeros, on addresses that every framework takes."""
    for alignment in (16, 64, 128, 4096):
        layout = Layout([Column("x", "complex128"), Column("b", "bool")], alignment=alignment)
        for rows in (0, 1, 1000):
            soa = layout.allocate(rows)
            assert rows == 0 or soa.buffer.address % max(alignment, 64) == 0
            assert not soa.buffer.root.any()
            assert not soa.readonly
    for rows in (2**50, 2**62, 10**30):
        with pytest.raises(MemoryError, match=f"{rows} rows need {XL.nbytes(rows)} bytes"):
            XL.allocate(rows)


XL = Layout([Column("x", "float64")])


def test_views_speak_dlpack():
    """A view gives its shape, strides and offsets, and any DLPack consumer can take it."""
    soa = LAYOUT.wrap(bytearray(image()), ROWS)
    [view] = views(soa, Spec(xy=["x", "y"]))
    assert isinstance(view, View)
    assert (view.shape, view.strides, view.offset, view.byte_offset) == ((33, 2), (1, 64), 0, 0)
    assert (view.name, view.dtype, view.itemsize, view.device) == ("xy", "float32", 4, "cpu")
    taken = np.from_dlpack(view)
    soa["y"][3] = 9
    assert taken[3, 1] == 9
    assert view.__dlpack_device__() == (1, 0)
    [y] = views(soa[5:], Spec(y="y"))
    assert (y.offset, y.byte_offset, y.address) == (69, 276, soa.buffer.address + 276)
    frozen = np.from_dlpack(views(LAYOUT.wrap(image(), ROWS), Spec(x="x"))[0])
    assert not frozen.flags.writeable
    for entry in ("n", ["n"]):  # all rows of which are one value
        assert not np.from_dlpack(views(soa, Spec(n=entry))[0]).flags.writeable
    assert repr(y) == "View('y', float32, shape=(28,), strides=(1,), offset=69, device='cpu')"


def test_unguarded_memory_holds_the_owner():
    """The memory without its read-only flag is the same memory, and keeps the owner alive."""
    owner = aligned(NBYTES)
    owner.flags.writeable = False
    gone = weakref.ref(owner.base)
    soa = LAYOUT.wrap(owner, ROWS)
    memory = soa.buffer.unguarded
    assert memory.flags.writeable
    assert memory.__array_interface__["data"][0] == soa.buffer.address
    del owner, soa
    gc.collect()
    assert gone() is not None


def test_memory_that_is_gone(tmp_path):
    """Arrays that only point at a buffer are refused once it was closed or resized."""
    path = tmp_path / "memory"
    path.write_bytes(image())
    mapped = np.memmap(path, mode="r+")
    mapped._mmap.close()
    with pytest.raises(BufferError, match="memory is that of mmap, which does not export it"):
        LAYOUT.wrap(mapped, ROWS)
    memory = bytearray(1 << 20)
    array = np.ndarray(1 << 20, np.uint8, memory)
    memory.clear()
    memory.extend(b"x" * 10)
    with pytest.raises(BufferError, match="not lie in the memory of its base, bytearray of 10 by"):
        LAYOUT.wrap(array, ROWS)


class Raising(DLPackOnly):
    def __dlpack__(self, **asked):
        raise ZeroDivisionError("on purpose")


def test_producers_that_raise():
    """Whatever somebody else's protocol raises is the cause of a refusal."""
    with pytest.raises(BufferError, match="Raising has no memory to wrap .*on purpose"):
        LAYOUT.wrap(Raising(in_numpy("u1")), ROWS)
