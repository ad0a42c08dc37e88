"""Memory given as a bare pointer, with an owner or a finalizer."""

from __future__ import annotations

import ctypes
import gc
import pickle
import shutil
import subprocess
import weakref

import numpy as np
import places
import pytest
from cases import layout_of, wrapped

from soaview import Column, Layout, Scalar, Spec, Value, views
from soaview._frameworks import Interface

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("h", "bfloat16"), Scalar("n", "int64")]
)
ROWS = 33
FAR = 0x7F00_0000_0000


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
        ({"rows": 2**60, "device": "cpu"}, ValueError, "no memory of"),
        ({"readonly": 1}, TypeError, "readonly must be True or False"),
        ({"stream": 0}, ValueError, "stream must be a positive integer, got 0"),
        ({"stream": 2**64}, ValueError, "stream must be a positive integer"),
        ({"stream": True}, TypeError, "stream must be an integer"),
        (
            {"stream": 1, "device": "cpu"},
            ValueError,
            "a stream is CUDA's or ROCm's; the memory is on cpu",
        ),
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
    interface = Interface(soa.buffer.memory)
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
