"""Memory of other devices and bare pointers. No address here is followed but the host's own."""

from __future__ import annotations

import ctypes
import gc
import pickle
import shutil
import subprocess
import sys
import weakref

import numpy as np
import places
import pytest
from cases import layout_of, wrapped

from soaview import Column, Layout, Scalar, Spec, Value, _device, views
from soaview._device import Interface

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
        (lambda: Producer(device=(13, 1)), "cuda:1", (13, 1)),
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
        managed = numbers[0] == 13 and "torch" in sys.modules  # who calls it CUDA's
        assert y.__dlpack_device__() == ((2, numbers[1]) if managed else numbers)


DLPACK = {  # https://github.com/dmlc/dlpack/blob/main/include/dlpack/dlpack.h
    2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 9: "vpi", 10: "rocm", 12: "ext_dev",
    13: "cuda", 14: "oneapi", 15: "webgpu", 16: "hexagon", 17: "maia",
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
    assert pointed.buffer.memory.kind == (2 if kind == 13 else kind)


def test_older_producers_are_read_only():
    """Before DLPack 1.0 a capsule says nothing of writing; from 1.0 on its flag does."""
    old, frozen = Producer(version=None), Producer(flags=1)
    assert LAYOUT.wrap(old, ROWS).readonly
    assert old.asked == [{"max_version": (1, 0)}, {}]
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
    interface = Interface(soa.buffer)
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
        (lambda: OnCuda(version=1), "version 2 or 3 is needed"),
        (lambda: OnCuda(mask=np.zeros(3)), "without a mask"),
        (lambda: OnCuda(shape=(-NBYTES,)), "its shape is"),
        (lambda: OnCuda(shape=(NBYTES * 1.0,)), "must be an integer"),
        (lambda: OnCuda(shape=(NBYTES // 8,), typestr="|O"), "Python objects"),
        (lambda: OnCuda(typestr="what"), "OnCuda's __cuda_array_interface__ is not one"),
        (lambda: OnCuda(strides=(2,)), "not contiguous"),
        (lambda: OnCuda(typestr="|V8", descr=[("x", "<f4"), ("y", "<f4")]), "holds records"),
        (lambda: OnCuda(typestr=">f4"), "not in this machine's byte order"),
        (lambda: OnCuda(typestr="<f4", shape=(NBYTES // 4,)), "holds float32, but field"),
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
    with pytest.raises((BufferError, ValueError), match=message):
        LAYOUT.wrap(make(), ROWS)


# Bare pointers


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"address": 0}, ValueError, "no memory of 768 bytes is at address 0x0"),
        ({"address": -FAR}, ValueError, "no memory of 768 bytes is at address -0x7f"),
        ({"address": 2**64 - 512}, ValueError, "no memory of 768 bytes is at"),
        ({"address": float(FAR)}, TypeError, "address must be an integer"),
        ({"address": None}, TypeError, "address must be an integer"),
        ({"address": FAR + 4}, BufferError, "misaligned"),
        ({"device": "gpu"}, ValueError, "device must be a name such as 'cuda:0' .*got 'gpu'"),
        ({"device": "cuda:"}, ValueError, "device must be a name"),
        ({"device": "cuda:-1"}, ValueError, "device must be a name"),
        ({"device": 0}, ValueError, "device must be a name"),
        ({"nbytes": 767}, ValueError, "too small: got 767 bytes, needed 768"),
        ({"nbytes": 2**65}, ValueError, "no memory of"),
        ({"nbytes": 1e6}, TypeError, "nbytes must be an integer"),
        ({"rows": -1}, ValueError, "rows must not be negative"),
        ({"rows": 2**62}, ValueError, "no memory of"),
        ({"readonly": 1}, TypeError, "readonly must be True or False"),
        ({"stream": 0}, ValueError, "stream must be a positive integer, got 0"),
        ({"stream": 2**64}, ValueError, "stream must be a positive integer"),
        ({"stream": True}, TypeError, "stream must be an integer"),
        ({"stream": 1, "device": "cpu"}, ValueError, "a stream is CUDA's; the memory is on cpu"),
        ({"owner": 1, "finalizer": print}, TypeError, "either an owner or a finalizer"),
        ({"finalizer": 3}, TypeError, "finalizer must be callable"),
    ],
)
def test_bad_pointers(arguments, error, message):
    """Every number is checked before anything is made of it."""
    arguments = {"address": FAR, "rows": ROWS, "device": "cuda:0", **arguments}
    with pytest.raises(error, match=message):
        LAYOUT.from_pointer(arguments.pop("address"), arguments.pop("rows"), **arguments)


def test_a_pointer_says_where_it_is():
    """The device of an address has no default: nobody could find out before the first access."""
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'device'"):
        LAYOUT.from_pointer(FAR, ROWS)


def test_a_finalizer_of_a_refused_pointer():
    """Where the call raises, the memory stays the caller's: its finalizer is not called."""
    called = []
    for wrong in ({"nbytes": 1}, {"device": "gpu"}, {"readonly": 1}, {"owner": LAYOUT}):
        at = {"device": "cuda:0", "finalizer": lambda: called.append(1), **wrong}
        with pytest.raises((TypeError, ValueError)):
            LAYOUT.from_pointer(FAR, ROWS, **at)
    with pytest.raises(BufferError, match="misaligned"):
        LAYOUT.from_pointer(FAR + 1, ROWS, device="cuda:0", finalizer=lambda: called.append(1))
    gc.collect()
    assert not called


def test_pointers_to_wide_numbers():
    """Items of 16 bytes start on a multiple of 16, as torch and GPUs read them."""
    layout = Layout([Column("z", "complex128")])
    layout.from_pointer(FAR + 16, ROWS, device="cuda:0")
    with pytest.raises(BufferError, match="8 bytes past a multiple of 16"):
        layout.from_pointer(FAR + 8, ROWS, device="cuda:0")


@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
def test_a_host_pointer(rows):
    """Memory of the host, by its address alone, is like any other."""
    layout = layout_of("float32", "bfloat16")
    there, expected = wrapped(layout, rows)
    soa = layout.from_pointer(there.buffer.address, rows, device="cpu", owner=there.buffer)
    assert (soa.device, soa.buffer.owner, soa.readonly) == ("cpu", there.buffer, False)
    for name in layout.starts:
        key = name if layout[name].per_row else Value(name)
        np.testing.assert_array_equal(soa[key], expected[name])
    soa["x"][...] = 7
    assert (there["x"] == 7).all()
    frozen = layout.from_pointer(there.buffer.address, rows, device="cpu", readonly=True)
    assert frozen.readonly
    assert not frozen["x"].flags.writeable
    for nbytes in (10**6, 10**6 + 1, 2**63):
        address = np.uint64(there.buffer.address)
        again = layout.from_pointer(address, rows, device="cpu:0", nbytes=nbytes)
        assert (again.device, again.buffer.nbytes) == ("cpu", there.buffer.nbytes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again))["x"], again["x"])


def test_no_rows_need_no_memory():
    """A pointer to nothing may be zero where nothing is needed."""
    layout = Layout([Column("x", "float32")])
    for device in ("cpu", "cuda:0"):
        soa = layout.from_pointer(0, 0, device=device)
        assert views(soa, Spec(x="x"))[0].shape == (0,)


class Owner:
    """Something that can be seen to go."""


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("by", ["owner", "finalizer"])
def test_the_memory_lives_as_long_as_a_view(device, by):
    """The owner is let go with the last view; the finalizer is called then, and once."""
    memory, calls = LAYOUT.allocate(ROWS).buffer.root, []
    gone = lambda: calls.append("gone")  # noqa: E731

    def make():
        if by == "finalizer":
            return LAYOUT.from_pointer(memory.ctypes.data, ROWS, device=device, finalizer=gone)
        owner = Owner()
        weakref.finalize(owner, gone)
        return LAYOUT.from_pointer(memory.ctypes.data, ROWS, device=device, owner=owner)

    soa = make()
    held = [soa[2:4], *views(soa, Spec(x="x"))]
    if device == "cpu":
        held += [soa["y"], np.from_dlpack(views(soa, Spec(x="x"))[0])]
    del soa
    while held:
        gc.collect()
        assert calls == []
        del held[0]
    gc.collect()
    assert calls == ["gone"]


def test_finalizers_at_the_end_of_python(run_python):
    """At the interpreter's exit nothing is called any more: the library may be gone already."""
    code = """if True:
        from soaview import Column, Layout
        layout = Layout([Column("x", "float32")])
        at = {"rows": 9, "device": "cuda:0"}
        kept = layout.from_pointer(1 << 40, **at, finalizer=lambda: print("freed", flush=True))
        gone = layout.from_pointer(1 << 40, **at, finalizer=lambda: print("end", flush=True))
        del gone
    """
    assert run_python("-c", code).stdout == "end\n"


def test_what_is_read_by_the_interface_holds_the_memory_alone():
    """It does not hold the buffer, which may keep it: a cycle through C++ would never be freed."""
    calls = []
    soa = LAYOUT.from_pointer(
        FAR, ROWS, device="cuda:0", finalizer=lambda: calls.append("gone"), readonly=True
    )
    interface = Interface(soa.buffer)
    assert interface.__cuda_array_interface__["data"] == (FAR, False)
    assert not any(thing is soa.buffer for thing in gc.get_referents(interface.__dict__))
    del soa
    assert calls == []
    del interface
    assert calls == ["gone"]


C_SOURCE = """
#include <stdint.h>
#include <stdlib.h>

static long freed = 0;

static size_t pitch(size_t rows) { return (rows * sizeof(float) + 127) / 128 * 128; }

/* x, y, out: columns of float; n: one int32 */
size_t soa_nbytes(size_t rows) { return 3 * pitch(rows) + 128; }

void *soa_new(size_t rows)
{
    char *memory = aligned_alloc(128, soa_nbytes(rows));
    for (size_t i = 0; i < rows; i++) {
        ((float *)memory)[i] = (float)i;
        ((float *)(memory + pitch(rows)))[i] = 2.0f * (float)i;
        ((float *)(memory + 2 * pitch(rows)))[i] = -1.0f;
    }
    *(int32_t *)(memory + 3 * pitch(rows)) = (int32_t)rows;
    return memory;
}

/* how many outputs are x + 10 y */
size_t soa_right(const char *memory, size_t rows)
{
    const float *x = (const float *)memory, *y = (const float *)(memory + pitch(rows));
    const float *out = (const float *)(memory + 2 * pitch(rows));
    size_t right = 0;
    for (size_t i = 0; i < rows; i++) right += out[i] == x[i] + 10.0f * y[i];
    return right;
}

void soa_free(void *memory) { freed++; free(memory); }
long soa_freed(void) { return freed; }
"""

C_LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("out", "float32"), Scalar("n", "int32")]
)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """A C library that allocates and fills SoAs, and reads what was written into them."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler, cc")
    folder = tmp_path_factory.mktemp("c")
    (folder / "soa.c").write_text(C_SOURCE)
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "soa.so"), str(folder / "soa.c")]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(folder / "soa.so"))
    for name in ("soa_nbytes", "soa_right"):
        getattr(found, name).restype = ctypes.c_size_t
    found.soa_new.restype = ctypes.c_void_p
    found.soa_nbytes.argtypes = found.soa_new.argtypes = [ctypes.c_size_t]
    found.soa_right.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    found.soa_free.argtypes = [ctypes.c_void_p]
    return found


@pytest.mark.parametrize("rows", [1, 33, 1024])
@pytest.mark.aliasing
def test_memory_of_a_c_library(adapter, library, rows):
    """A C library's SoA goes through a model, whose outputs the library reads where they are."""
    assert C_LAYOUT.nbytes(rows) == library.soa_nbytes(rows)
    address, before = library.soa_new(rows), library.soa_freed()
    soa = C_LAYOUT.from_pointer(
        address,
        rows,
        device="cpu",
        nbytes=library.soa_nbytes(rows),
        finalizer=lambda: library.soa_free(address),
    )
    assert soa[Value("n")] == rows
    x, y, n = adapter.tensors(soa, Spec(x="x", y="y", n=Value("n")), copy=None)
    assert int(n) == rows
    adapter.write(soa, Spec(out="out"), [x + 10 * y])
    assert library.soa_right(address, rows) == rows
    del soa
    gc.collect()
    assert library.soa_freed() == before  # x and y are views of it
    del x, y, n
    assert places.soon(lambda: library.soa_freed() == before + 1)


# Views as producers


class Recorder:
    """DLPack's two methods over an array, and nothing else that could help a reader."""

    def __init__(self, array):
        self.array, self.asked = array, []

    def __dlpack__(self, **asked):
        self.asked.append(asked)
        return self.array.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_the_consumers_wishes_are_passed_on(monkeypatch):
    """On a device, `__dlpack__` is that of the owner's own view, with all that was asked of it."""
    part = Recorder(np.arange(3))
    monkeypatch.setitem(_device._ADOPT, "test_device", lambda buffer, view: part)
    [view] = views(LAYOUT.wrap(Producer(), ROWS), Spec(x="x"))
    wishes = {"stream": 7, "max_version": (1, 1), "dl_device": (1, 0), "copy": False}
    with pytest.raises(Exception, match="stream"):  # which NumPy has none of
        view.__dlpack__(**wishes)
    assert part.asked == [wishes]
    assert view.__dlpack_device__() == (2, 0)


def test_the_parent_buffer_is_a_producer():
    """Its bytes come by the same protocols as its views."""
    soa = LAYOUT.wrap(Producer(), ROWS)
    assert soa.buffer.__cuda_array_interface__["shape"] == (NBYTES,)
    assert soa.buffer.__cuda_array_interface__["data"] == (FAR, False)
    assert not hasattr(
        LAYOUT.wrap(Producer(device=(10, 0)), ROWS).buffer, "__cuda_array_interface__"
    )
    host, _ = wrapped(LAYOUT, ROWS)
    assert host.buffer.__dlpack_device__() == (1, 0)
    np.testing.assert_array_equal(np.from_dlpack(host.buffer), host.buffer.root)


def test_read_only_parts_are_shown_by_old_capsules(monkeypatch):
    """Their view's own capsule has no flag, and NumPy takes those without one as read-only."""
    monkeypatch.setitem(_device._ADOPT, "test_device", lambda buffer, view: np.arange(3))
    for flags in (0, 1):
        soa = LAYOUT.wrap(Producer(flags=flags), ROWS)
        for part in (*views(soa, Spec(x="x")), soa.buffer):
            found = np.from_dlpack(Dunders(part))
            assert found.flags.writeable == (flags == 0)


class Dunders:
    """DLPack's two methods, for a part that is in truth on the host."""

    def __init__(self, part):
        self.part = part

    def __dlpack__(self, **asked):
        return self.part.__dlpack__(**asked)

    def __dlpack_device__(self):
        return (1, 0)


def test_nobody_to_show_a_part(run_python):
    """Without torch and CuPy, a part of device memory has no DLPack, and the way out is told."""
    code = """if True:
        from soaview import Column, Layout, Spec, views
        soa = Layout([Column("x", "float32")]).from_pointer(1 << 40, 9, device="cuda:0")
        [view] = views(soa, Spec(x="x"))
        assert view.__dlpack_device__() == (2, 0)
        try:
            view.__dlpack__()
        except BufferError as error:
            print(error)
    """
    assert "neither is imported; import one, or use" in run_python("-c", code).stdout


def test_rows_that_no_memory_has():
    """A layout of scalars alone has a limit of rows, too, by way of a pointer as by any other."""
    layout = Layout([Scalar("n", "int32")])
    with pytest.raises(ValueError, match="more than memory can have"):
        layout.from_pointer(2**20, 2**70, device="cuda:0")
    assert layout.from_pointer(2**20, 2**63 - 1, device="cuda:0").rows == 2**63 - 1
