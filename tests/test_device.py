"""Memory of other devices, and who shows it. No address here is followed but the host's own."""

from __future__ import annotations

import ctypes
import pickle
import weakref

import numpy as np
import pytest

from soaview import Column, Layout, Scalar, Spec, Value, views
from soaview._frameworks import Interface

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("h", "bfloat16"), Scalar("n", "int64")]
)
ROWS = 33
NBYTES = LAYOUT.nbytes(ROWS)
FAR = 0x7F00_0000_0000


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class Versioned(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


freed = []


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def note_freed(capsule):
    freed.append(capsule)


FREED = ctypes.cast(note_freed, ctypes.c_void_p)


class Producer:
    """Device memory by DLPack's two methods alone, with capsules that nobody consumes."""

    def __init__(
        self, shape=(NBYTES,), *, strides=None, bits=8, device=(2, 0), address=FAR, **more
    ):
        self.shape, self.strides, self.bits, self.device = shape, strides, bits, device
        self.address, self.more = address, {"flags": 0, "version": (1, 0), "offset": 0, **more}
        self.kept, self.asked = [], []

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        if "max_version" in asked and self.more["version"] is None:
            raise TypeError("unexpected keyword argument 'max_version'")
        numbers = (ctypes.c_int64 * len(self.shape))(*self.shape)
        steps = (ctypes.c_int64 * len(self.shape))(*self.strides) if self.strides else None
        tensor = Tensor(
            self.address,
            self.device,
            len(self.shape),
            1 | self.bits << 8 | 1 << 16,
            ctypes.addressof(numbers),
            ctypes.addressof(steps) if steps else None,
            self.more["offset"],
        )
        name = b"dltensor"
        if self.more["version"] is not None:
            name = b"dltensor_versioned"
            version = (ctypes.c_uint32 * 2)(*self.more["version"])
            tensor = Versioned(version, None, None, self.more["flags"], tensor)
        self.kept += [numbers, steps, tensor, name]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        return new(ctypes.addressof(tensor), name, FREED)


class OnCuda:
    """Device memory by the CUDA array interface alone."""

    def __init__(self, **changed):
        interface = {"shape": (NBYTES,), "typestr": "|u1", "data": (FAR, False), "version": 3}
        self.__cuda_array_interface__ = {**interface, **changed}


# What the protocols tell


@pytest.mark.parametrize(
    ("make", "device", "numbers"),
    [
        (lambda: Producer(), "cuda:0", (2, 0)),
        (lambda: Producer(device=(2, 3)), "cuda:3", (2, 3)),
        (lambda: Producer(device=(13, 1)), "cuda_managed:1", (13, 1)),
        (lambda: Producer(device=(10, 0)), "rocm:0", (10, 0)),
        (lambda: Producer((NBYTES // 2, 2)), "cuda:0", (2, 0)),
        (
            lambda: Producer((2, NBYTES // 2, 1), strides=(NBYTES // 2, 1, 7)),
            "cuda:0",
            None,
        ),
        (lambda: Producer((NBYTES + 99,)), "cuda:0", None),
        (lambda: Producer(address=FAR - 256, offset=256), "cuda:0", None),
        (OnCuda, "cuda:0", (2, 0)),
        (
            lambda: OnCuda(version=2, strides=None, shape=(NBYTES // 4,), typestr="|V4"),
            "cuda:0",
            None,
        ),
        (lambda: OnCuda(strides=(1,), stream=7), "cuda:0", None),
        (lambda: OnCuda(version=0, strides=None), "cuda:0", None),
        (lambda: FAR, "cuda:0", (2, 0)),
    ],
)
def test_where_memory_is(make, device, numbers):
    """Address, size and device come from the protocol, and views are plain arithmetic on them."""
    owner = make()
    if owner == FAR:
        soa = LAYOUT.from_pointer(FAR, ROWS, device="cuda:0")
    else:
        soa = LAYOUT.wrap(owner, ROWS)
        assert soa.buffer.owner is owner
        assert soa.buffer.memory.source is (owner if isinstance(owner, Producer) else None)
    assert (soa.device, soa.readonly, soa.rows) == (device, False, ROWS)
    fields = "x float32, y float32, h bfloat16, n int64"
    assert repr(soa) == f"SoA(33 rows, {NBYTES} bytes on {device}: {fields})"
    assert (soa.buffer.address, soa.buffer.nbytes) == (FAR, NBYTES)
    xy, y, n = views(soa[3:9], Spec(xy=["x", "y"], y="y", n=Value("n")))
    assert (xy.shape, xy.strides, xy.address) == ((6, 2), (1, 64), FAR + 12)
    assert (y.address, n.address, n.device) == (FAR + 268, FAR + 640, device)
    if numbers:
        assert y.__dlpack_device__() == numbers


DLPACK = {  # https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h
    2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 9: "vpi", 10: "rocm", 12: "ext_dev",
    13: "cuda_managed", 14: "oneapi", 15: "webgpu", 16: "hexagon", 17: "maia",
}  # fmt: skip


@pytest.mark.parametrize("kind", range(-1, 20))
def test_dlpacks_devices(kind):
    """Each device of DLPack's has its name, by which a pointer names it, too; no other has one."""
    if kind in (1, 3, 11):  # the host's own, and what it shares with CUDA and ROCm
        return
    if kind not in DLPACK:
        with pytest.raises(BufferError, match=f"device {kind}:5 is not known"):
            LAYOUT.wrap(Producer(device=(kind, 5)), ROWS)
        return
    soa = LAYOUT.wrap(Producer(device=(kind, 5)), ROWS)
    assert soa.device == f"{DLPACK[kind]}:5"
    pointed = LAYOUT.from_pointer(FAR, ROWS, device=soa.device)
    assert pointed.buffer.memory.kind == kind


def test_older_producers_are_read_only():
    """Before DLPack 1.0 a capsule says nothing of writing; from 1.0 on its flag does."""
    old, frozen = Producer(version=None), Producer(flags=1)
    assert LAYOUT.wrap(old, ROWS).readonly
    new = {"max_version": (1, 0)}
    assert old.asked == [{**new, "copy": False}, new, {}]
    assert LAYOUT.wrap(frozen, ROWS).readonly
    assert LAYOUT.wrap(OnCuda(data=(FAR, True)), ROWS).readonly
    assert LAYOUT.from_pointer(FAR, ROWS, device="cuda:0", readonly=True).readonly


def test_the_cuda_array_interface_of_views():
    """A view on a CUDA device has version 3 of it; elsewhere, and for bfloat16, there is none."""
    soa = LAYOUT.from_pointer(FAR, ROWS, device="cuda:1", stream=5, readonly=True)
    xy, h, n, none = views(soa, Spec(xy=["y"], h="h", n="n", none=Value("n")))
    assert xy.__cuda_array_interface__ == {
        "version": 3,
        "typestr": "<f4",
        "shape": (33, 1),
        "strides": (4, 256),
        "data": (FAR + 256, True),
        "stream": 5,
    }
    assert n.__cuda_array_interface__["strides"] == (0,)
    assert none.__cuda_array_interface__["shape"] == ()
    assert views(soa[:0], Spec(x="x"))[0].__cuda_array_interface__["data"] == (0, True)
    assert not hasattr(h, "__cuda_array_interface__")
    for other in (LAYOUT.allocate(3), LAYOUT.wrap(Producer(device=(10, 0)), ROWS)):
        assert not hasattr(views(other, Spec(x="x"))[0], "__cuda_array_interface__")


def test_the_host_does_not_read_it():
    """What would follow the address says where the memory is, and what to do."""
    soa = LAYOUT.wrap(Producer(), ROWS)
    [view] = views(soa, Spec(x="x"))
    for read in (
        lambda: soa["x"],
        lambda: view.numpy(),
        lambda: np.asarray(view),
        lambda: soa.buffer.root,
        lambda: pickle.dumps(soa),
        lambda: soa[3:5].__deepcopy__({}),
    ):
        with pytest.raises(BufferError, match="is on cuda:0, which NumPy does not read; take its"):
            read()


def test_the_producer_lives_as_long_as_a_view():
    """Its owner and the capsule are held by the SoA and by every view."""
    owner = Producer()
    gone, before = weakref.ref(owner), len(freed)
    soa = LAYOUT.wrap(owner, ROWS)
    [view] = views(soa[2:], Spec(x="x"))
    interface = Interface(soa.buffer.memory)
    del owner, soa
    assert gone() is not None
    del view
    assert (gone() is None, len(freed)) == (False, before)
    del interface
    assert (gone() is None, len(freed)) == (True, before + 1)


class Untold(Producer):
    __dlpack__ = None


class Liar(Producer):
    """A producer whose capsule says something else than it does."""

    def __init__(self, device):
        super().__init__(device=device)

    def __dlpack_device__(self):
        return (2, 0)


class Broken(Producer):
    def __dlpack__(self, **asked):
        raise OSError("this is not yours")


class Lost:
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("no device")


class Shrunk(Producer):
    """What torch says of a tensor whose storage was resized."""

    def stride(self):
        return (1,)

    def storage_offset(self):
        return 0

    def element_size(self):
        return 1

    def numel(self):
        return NBYTES

    def untyped_storage(self):
        return self

    def nbytes(self):
        return NBYTES - 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shrunk(), "reaches to byte 768 of its storage, which was resized to 767 bytes"),
        (lambda: Producer((NBYTES - 1,)), "too small: got 767 bytes, needed 768"),
        (lambda: Producer(address=FAR + 4), "misaligned: .* 4 bytes past a multiple of 8"),
        (lambda: Producer((NBYTES,), strides=(2,)), "not contiguous: shape .*strides .2"),
        (lambda: Producer((8, NBYTES // 8), strides=(1, 8)), "not contiguous"),
        (lambda: Producer((NBYTES,), strides=(-1,)), "not contiguous"),
        (lambda: Producer(version=(2, 0)), r"speaks DLPack 2.0, not 1"),
        (lambda: Producer(device=(77, 0)), "device 77:0 is not known"),
        (lambda: Untold(), "no memory to wrap"),
        (lambda: Producer(address=0), "no memory of 768 bytes is at address 0x0"),
        (lambda: Producer(offset=2**64 - 512), "no memory of 768 bytes"),
        (lambda: Producer((-2, -NBYTES)), "its shape is"),
        (lambda: Liar((77, 0)), "device 77:0 is not known"),
        (lambda: Liar((2, -1)), "device 2:-1 is not known"),
        (lambda: Broken(), r"Broken has no memory to wrap \(this is not yours\)"),
        (lambda: OnCuda(typestr=None), "its typestr is None"),
        (lambda: OnCuda(strides=(1.0,)), "stride must be an integer"),
        (lambda: OnCuda(stream=2**64), "stream must be a positive integer"),
        (lambda: OnCuda(version=4), "a version up to 3 is needed"),
        (lambda: OnCuda(mask=np.zeros(3)), "without a mask"),
        (lambda: OnCuda(shape=(-NBYTES,)), "its shape is"),
        (lambda: OnCuda(shape=(NBYTES * 1.0,)), "must be an integer"),
        (lambda: OnCuda(shape=(NBYTES // 8,), typestr="|O"), "Python objects"),
        (lambda: OnCuda(typestr="what"), "OnCuda's __cuda_array_interface__ is not one"),
        (lambda: OnCuda(typestr="(2,3)f4"), r"its typestr is '\(2,3\)f4'"),
        (lambda: OnCuda(typestr=",,"), "its typestr is ',,'"),
        (lambda: OnCuda(typestr="f400"), "OnCuda's __cuda_array_interface__ is not one"),
        (lambda: OnCuda(strides=()), r"its strides are \(\), its shape is"),
        (lambda: Lost(), r"Lost's __cuda_array_interface__ is not one \(no device\)"),
        (lambda: OnCuda(strides=(2,)), "not contiguous"),
        (lambda: OnCuda(typestr="|V8", descr=[("x", "<f4"), ("y", "<f4")]), "holds records"),
        (
            lambda: OnCuda(typestr=">f4"),
            "^the buffer's numbers .* are not in this machine's byte order",
        ),
        (lambda: OnCuda(typestr="<f4", shape=(NBYTES // 4,)), "^the buffer holds float32"),
        (lambda: OnCuda(strides=(1, 1)), "is not one"),
        (lambda: OnCuda(stream=0), "stream must be a positive integer, got 0"),
        (lambda: OnCuda(data=(0, False)), "no memory of 768 bytes is at address 0x0"),
        (lambda: OnCuda(data=(-FAR, False)), "no memory"),
        (lambda: OnCuda(data=None), "is not one"),
        (lambda: OnCuda(shape=(2**62,), typestr="|V8"), "no memory of"),
    ],
)
def test_bad_producers(make, message):
    """What a protocol tells is checked, and refused with what was got."""
    with pytest.raises((BufferError, TypeError, ValueError), match=message):
        LAYOUT.wrap(make(), ROWS)
