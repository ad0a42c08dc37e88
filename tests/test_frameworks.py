"""Both frameworks over one SoA."""

from __future__ import annotations

import functools
import inspect
import io
import pickle
import time

import dask.array
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import places
import polars as pl
import pytest
import torch
from dask.sizeof import sizeof
from jax.sharding import NamedSharding

import soaview_jax
import soaview_torch
from soaview import Blocks, Column, Layout, SoA, SoABlocks, Spec, explain, views
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory
from soaview_torch import _move, empty

NEEDS = ["torch", "jax"]


def test_same_verbs_same_signatures():
    """`tensors` and `arrays`, both `write`s and so on take the same arguments."""
    pairs = [
        (soaview_torch.tensors, soaview_jax.arrays),
        (soaview_torch.write, soaview_jax.write),
        (soaview_torch.segments, soaview_jax.segments),
        (soaview_torch.take, soaview_jax.take),
        (soaview_torch.concatenate, soaview_jax.concatenate),
    ]
    for ours, theirs in pairs:
        one, other = (inspect.signature(f).parameters.values() for f in (ours, theirs))
        assert [(p.kind, p.default) for p in one] == [(p.kind, p.default) for p in other]
    one, other = (inspect.signature(f).parameters for f in pairs[0])
    assert list(one) == list(other) == ["soa", "spec", "copy", "padded", "dtype"]


def test_one_writes_and_the_other_reads():
    """A torch model's output column is read by a jitted JAX function without a copy."""
    soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(64)
    soa["x"][:] = np.arange(64)
    [x] = soaview_torch.tensors(soa, Spec(x="x"))
    soaview_torch.write(soa, Spec(y="y"), [torch.sqrt(x)])
    [y] = soaview_jax.arrays(soa, Spec(y="y"))
    np.testing.assert_allclose(jax.jit(lambda y: y * y)(y), soa["x"], rtol=1e-6)
    soaview_jax.write(soa, Spec(x="x"), [y + 1])
    assert x[49] == 8


def test_what_jax_made_is_read_by_torch():
    """Copies are what torch gets of the columns of an SoA that a jitted function returned."""
    layout = Layout([Column("x", "float32"), Column("k", "int32"), Column("y", "float32")])
    soa = layout.allocate(33)
    soa["x"][:] = np.arange(33)
    spec = Spec(x="x", xy=["x", "y"])

    @jax.jit
    def double(soa):
        [x] = soaview_jax.arrays(soa, Spec(x="x"))
        return soaview_jax.update(soa, Spec(y="y"), [2 * x])

    made = double(soa)
    with pytest.raises(BufferError, match="JAX made this SoA.*copy=None"):
        soaview_torch.tensors(made, Spec(x="x"))
    with pytest.raises(BufferError, match="'xy': its columns are in memory apart.*copy=None"):
        soaview_torch.tensors(made, spec)
    for copy in (None, True):
        x, xy = soaview_torch.tensors(made, spec, copy=copy)
        x += 1
        assert xy[:, 1].tolist() == (2 * soa["x"]).tolist()
        assert made["x"][0] == 0
    soaview_torch.write(soa, Spec(xy=["x", "y"]), [xy])
    np.testing.assert_array_equal(soa["y"], made["y"])
    with pytest.raises(BufferError, match="read-only"):
        soaview_torch.write(made, Spec(xy=["x", "y"]), [xy])


def test_what_jax_made_is_moved_by_torch(monkeypatch):
    """It is put together in one buffer, and goes from there."""
    made = jax.tree.map(jax.numpy.array, Layout([Column("x", "float32")]).pack({"x": [1.0, 2.0]}))
    monkeypatch.setattr(_move, "empty", lambda layout, rows, device: empty(layout, rows))
    assert soaview_torch.to(made, "meta")["x"].tolist() == [1, 2]  # which stands for a device


# Memory of a device, which torch owns. Here it is the host's, by the way that a device's goes.


def of_a_device(rows):
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("d", "float64")])
    memory = np.zeros(layout.nbytes(rows) + 128, np.uint8)
    memory = memory[-memory.ctypes.data % 128 :][: layout.nbytes(rows)]
    layout.wrap(memory, rows)["x"][:] = np.arange(rows)
    return places.PretendedMemory().wrap(layout, memory, rows), memory


@pytest.mark.slow
def test_a_device_is_an_argument_of_jit():
    """Its columns are JAX's imports of torch's views; nothing is copied, and slices work."""
    soa, _ = of_a_device(1000)
    [x] = soaview_torch.tensors(soa, Spec(x="x"))
    leaves = jax.tree.leaves(soa)
    assert [leaf.unsafe_buffer_pointer() for leaf in leaves] == [
        soa.buffer.address,
        soa.buffer.address + soa.layout.offset("d", 1000),
    ]
    total = jax.jit(lambda s: soaview_jax.arrays(s, Spec(x=["y", "x"]))[0].sum())
    for part in (soa, soa[3:500]):
        assert total(part) == x[part.start : part.start + part.rows].sum().item()
    x.zero_()
    assert total(soa) == 0
    with jax.enable_x64(True):
        assert jax.jit(lambda s: soaview_jax.arrays(s, Spec(d="d"))[0])(soa).dtype == np.float64


@pytest.mark.parametrize("make", ["itself", "again", "device_put", "slice", "forwarded"])
def test_donation_never_writes_memory_of_a_device(make):
    """Whatever way it went into JAX, no byte changes, and the SoA stays in use."""
    soa, memory = of_a_device(1024)
    before, spec = memory.copy(), Spec(x="x")
    add = lambda s: soaview_jax.update(s, spec, [soaview_jax.arrays(s, spec)[0] + 1])  # noqa: E731
    advance = jax.jit(add, donate_argnums=0)
    given = {
        "itself": lambda: soa,
        "again": lambda: [advance(soa), soa][1],
        "device_put": lambda: jax.device_put(soa),
        "slice": lambda: soa[:512],
        "forwarded": lambda: jax.jit(lambda s, y: (s, y + 1))(soa, 1)[0],
    }[make]()
    for count in (1, 2, 3):
        given = jax.block_until_ready(advance(given))
        assert given["x"][5] == 5 + count
        np.testing.assert_array_equal(memory, before)
    assert soaview_jax.arrays(soa, spec)[0][7] == 7


@pytest.mark.slow
def test_one_writes_on_a_device_and_the_other_reads():
    """JAX's arrays are written into memory that torch owns, where it is."""
    soa, _ = of_a_device(64)
    [x, y] = soaview_torch.tensors(soa, Spec(x="x", y="y"))
    [mine] = soaview_jax.arrays(soa, Spec(x="x"))
    assert mine.unsafe_buffer_pointer() == x.data_ptr()
    soaview_jax.write(soa, Spec(y="y"), [mine * 2])
    assert y[5] == 10
    spec = Spec(x="x", y="y")
    soaview_jax.write(soa, spec.reorder("y", "x"), soaview_jax.arrays(soa, spec))
    assert (x[5], y[5]) == (10, 5)
    copies = soaview_jax.arrays(soa, Spec(x="x", yx=["y", "x"]), copy=True)
    soaview_jax.write(soa, Spec(xy=["y", "x"]), [jax.numpy.ones((64, 2))])
    assert y.sum() == x.sum() == 64
    assert (copies[0][5], copies[1][5].tolist()) == (10, [5, 10])
    with jax.enable_x64(True):
        [d] = soaview_jax.arrays(soa, Spec(d="d"), copy=True)
    soa.buffer.owner.fill_(1)
    assert not d.any()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["columns", "results"])
def test_what_comes_from_the_soa_is_read_before_it_is_written(what):
    """Also while JAX is still busy: neither swapped columns nor pending results are falsified."""
    rows = 1_000_000
    soa, _ = of_a_device(rows)
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda i, x: jax.numpy.sin(x), x).sum() * 0)
    slow(jax.numpy.ones(rows)).block_until_ready()
    spec = Spec(x="x", y="y")
    x, y = soaview_jax.arrays(soa, spec)
    wait = slow(jax.numpy.ones(rows))
    if what == "results":
        y = jax.jit(lambda x, wait: x + wait)(x, wait)
        x = jax.numpy.full(rows, 7.0)
        soaview_jax.write(soa, spec, [x, y])
    else:
        soaview_jax.write(soa, spec.reorder("y", "x"), [x, y])
    x, y = soaview_torch.tensors(soa, spec)
    assert (y == torch.arange(rows)).all()
    assert (x == (7 if what == "results" else 0)).all()


def test_a_write_of_what_overlaps():
    """Arrays that reach into the SoA from before its start are read first, too."""
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    memory = torch.arange(96, dtype=torch.float32)
    there = DeviceMemory(memory.data_ptr() + 128, 256, False, 1, 0, source=memory[32:])
    buffer = DeviceBuffer(there._replace(owner=memory), 256, 4)
    soa = SoA(layout, buffer, 32, 0, 32)
    overlapping = jax.dlpack.from_dlpack(memory[16:48])
    given = [jax.numpy.full(32, -1.0), overlapping]
    soaview_jax.write(soa, Spec(x="x", y="y"), given)
    assert memory[64:].tolist() == list(range(16, 48))
    mesh = jax.make_mesh((2,), ("r",), devices=jax.devices()[:2])
    sharded = jax.device_put(jax.numpy.ones(32), NamedSharding(mesh, jax.P("r")))
    with pytest.raises(ValueError, match="spread over 2 devices; gather it"):
        soaview_jax.write(soa, Spec(x="x"), [sharded])


def test_a_producer_that_torch_adopts():
    """A part of memory whose owner cannot show one is shown by torch, which is imported."""
    memory = torch.arange(64, dtype=torch.float32)
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    there = DeviceMemory(memory.data_ptr(), 256, False, 1, 0, source=Dunders(memory))
    buffer = DeviceBuffer(there._replace(owner=memory), 256, 4)
    soa = SoA(layout, buffer, 32, 0, 32)
    [view] = views(soa, Spec(y="y"))
    assert view.__dlpack_device__() == (1, 0)
    assert np.from_dlpack(view).tolist() == list(range(32, 64))
    assert jax.dlpack.from_dlpack(view).unsafe_buffer_pointer() == memory.data_ptr() + 128
    [y] = soaview_torch.tensors(soa, Spec(y="y"))
    assert y.data_ptr() == memory.data_ptr() + 128
    assert torch.from_dlpack(buffer).data_ptr() == memory.data_ptr()


class Dunders:
    """DLPack's two methods, and nothing else that could help a reader."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **asked):
        return self._array.__dlpack__(**asked)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


@pytest.mark.parametrize("dtype", ["bool", "int16", "float32", "bfloat16", "complex64"])
def test_what_frameworks_say_of_their_memory(dtype):
    """Tensors of torch and arrays of JAX are believed, or refused, as NumPy's arrays are."""
    layout = Layout([Column("a", dtype), Column("b", dtype)], alignment=16)
    numbers = (np.arange(32) % 2).astype(np.dtype(dtype))
    tensor = torch.zeros(32, dtype=getattr(torch, dtype))
    tensor[:] = torch.arange(32) % 2
    for owner in (tensor, jnp.asarray(numbers)):
        soa = layout.wrap(owner, 16)
        np.testing.assert_array_equal(soa["b"], numbers[16:])
        np.testing.assert_array_equal(layout.wrap(owner.reshape(2, 16), 16)["b"], numbers[16:])
        with pytest.raises(ValueError, match="columns of .* one after another"):
            layout.wrap(owner.reshape(16, 2), 16)
        with pytest.raises(TypeError, match=f"holds {dtype}, but field 'a' is int32"):
            Layout([Column("a", "int32")]).wrap(owner, 1)
    soa = layout.wrap(tensor.reshape(2, 16).T, 16)  # rows first, column by column
    soa["b"][0] = 1
    assert tensor[16] == 1
    assert not soa.readonly
    assert layout.wrap(jnp.asarray(numbers), 16).readonly


def test_torch_loads_weights_only():
    """`torch.load` of an SoA says which public names to allow, and loads it once they are."""
    layout = Layout([Column("x", "float32", (2,)), Column("k", "int64")])
    soa = layout.pack({"x": np.ones((3, 2), "f4"), "k": [1, 2, 3]})
    blocks = Blocks({"a": layout, "b": layout}).allocate({"a": 2, "b": 3})
    blocks["b"]["k"] = 5
    for thing, names in ((soa, [SoA, Layout]), (blocks, [SoABlocks, Blocks, Layout])):
        file = io.BytesIO()
        torch.save(thing, file)
        allowed = []
        for name in names:
            file.seek(0)
            refused = pytest.raises(pickle.UnpicklingError, match="add_safe_globals")
            with torch.serialization.safe_globals(allowed), refused as refusal:
                torch.load(file, weights_only=True)
            assert f"soaview.{name.__name__}" in str(refusal.value)
            assert "soaview._" not in str(refusal.value)
            allowed.append(name)
        file.seek(0)
        with torch.serialization.safe_globals(allowed):
            twin = torch.load(file, weights_only=True)
        assert type(twin) is type(thing)
        both = (twin["b"], thing["b"]) if isinstance(thing, SoABlocks) else (twin, thing)
        for name in layout:
            np.testing.assert_array_equal(both[0][name], both[1][name])
        assert not twin.readonly


def test_dask_knows_the_size():
    """Schedulers see the bytes of an SoA's rows, wherever it is, and so they know when to spill."""
    layout = Layout([Column("x", "float64"), Column("y", "float64")])
    soa = layout.allocate(100_000)
    assert sizeof(soa) == soa.buffer.nbytes
    assert sizeof(soa[:1000]) == layout.nbytes(1000)
    assert sizeof(jax.device_put(soa)) == soa.buffer.nbytes
    blocks = Blocks({"a": layout, "b": layout})
    event = blocks.allocate({"a": 10, "b": 1000})
    assert sizeof(event) == blocks.nbytes({"a": 10, "b": 1000})
    assert sizeof([soa, soa]) > 2 * soa.buffer.nbytes


def test_views_are_arrays_to_others():
    """JAX, torch, Dask, pandas and polars take a view as they take NumPy's arrays."""
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("h", "bfloat16")])
    soa = layout.pack({"x": np.arange(33, dtype="f4"), "y": 1.0, "h": [2] * 33})
    xy, x, h = views(soa, Spec(xy=["x", "y"], x="x", h="h"))
    table = soa[["x", "y"]]
    assert (jnp.asarray(xy) == table).all()
    assert jnp.asarray(h).dtype == jnp.bfloat16
    assert jnp.asarray(x).sum() == 528
    assert jax.jit(lambda v: v.sum())(np.asarray(x)) == 528
    assert torch.as_tensor(np.asarray(xy)).sum() == table.sum()
    for chunks in (10, (7, 1), "auto"):
        lazy = dask.array.from_array(xy, chunks=chunks)
        assert (lazy.shape, lazy.dtype) == ((33, 2), np.float32)
        np.testing.assert_array_equal(lazy[3:20].compute(), table[3:20])
    assert pd.Series(np.asarray(x)).sum() == pl.Series(np.asarray(x)).sum() == 528
    assert jnp.result_type(x) == np.float32


def costs(call, sizes):
    """The least thread time of a few calls at each size, taken by turns."""
    found = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            begin = time.thread_time()
            call(size)
            found[size].append(time.thread_time() - begin)
    return [min(times) for times in found.values()]


@functools.cache
def wide(columns):
    layout = Layout([Column(f"c{number}", "int8") for number in range(columns)])
    return layout, layout.allocate(2), [*layout]


REFUSALS = {
    "reversed": lambda layout, soa, names: views(soa, Spec(t=names[::-1])),
    "uneven": lambda layout, soa, names: views(soa, Spec(t=[*names[:9], *names[11:]])),
    "an index": lambda layout, soa, names: soa[names[::-1]],
    "torch": lambda layout, soa, names: soaview_torch.tensors(soa, Spec(t=names[::-1])),
    "jax": lambda layout, soa, names: soaview_jax.arrays(soa, Spec(t=names[::-1])),
    "twice": lambda layout, soa, names: soaview_torch.write(soa, Spec(t=names, u="c0"), []),
    "no such name": lambda layout, soa, names: views(soa, Spec(t=[*names, "c"])),
    "no arrays": lambda layout, soa, names: layout.pack({}),
    "offsets": lambda layout, soa, names: layout.check(dict.fromkeys(names, 1), 9),
    "a dtype": lambda layout, soa, names: layout.wrap(np.zeros(9, "f4"), 9),
    "forward": lambda layout, soa, names: soaview_torch.forward(
        len, (soa, Spec(t=names[::-1])), (soa, Spec(t="c0"))
    ),
    "written twice": lambda layout, soa, names: soaview_torch.forward(
        len, (soa, Spec(t="c0")), [(soa, Spec(t=names)), (soa, Spec(u="c7"))]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_take_time_in_proportion(refusal):
    """Ten times as many fields take some ten times as long to refuse, not a hundred times."""

    def refused(columns):
        with pytest.raises((BufferError, KeyError, TypeError, ValueError)):
            REFUSALS[refusal](*wide(columns))

    few, many = costs(refused, (2000, 20_000))
    assert many < 40 * few + 0.01


def test_explain_memory_of_a_device():
    """NumPy has neither views nor copies of it; the frameworks have."""
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    soa = places.PretendedMemory().wrap(layout, np.zeros(layout.nbytes(33), np.uint8), 33)
    found = explain(soa, Spec(x="x", yx=["y", "x"])).verdicts
    assert [(v.way, v.gives, v.nbytes) for v in found[:2]] == [("NumPy", "refused", 0)] * 2
    assert all("NumPy does not read" in v.why for v in found[:2])
    assert [v.gives for v in found if v.way == "torch"] == ["view", "copy"]
    assert [v.gives for v in found if v.way == "JAX"][1] == "copy"
