"""JAX over memory of a device, and with results on another device than the memory's."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import fake_cupy
import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from cases import filled

import soaview_jax
from soaview import Column, Layout, SoA, Spec, views
from soaview_jax import _leaves, _pytree, _write, arrays, forward, to, update, write

NEEDS = ["torch", "jax"]

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Column("k", "int32", (2,))])
X, Y = Spec(x="x"), Spec(y="y")


def of_a_device(rows=33, number=0):
    memory, expected = filled(LAYOUT, rows)
    return places.PretendedMemory(number).wrap(LAYOUT, memory, rows), memory, expected


class OnGpu:
    """An import of JAX's on a GPU, as far as it is asked."""

    class Capsule:
        pass

    def __init__(self):
        at = {"platform": "gpu", "get_stream_for_external_ready_events": lambda: 77}
        self.device = SimpleNamespace(**at)

    def devices(self):
        return [self.device]

    def __dlpack__(self, *, stream):
        capsule = self.Capsule()
        self.asked.append((stream, weakref.ref(capsule)))
        return capsule


def test_an_import_is_kept_from_donation(monkeypatch):
    """A capsule of it lives as long as it does, with which XLA refuses; nobody waits for it."""
    made, asked = [OnGpu()], []
    made[0].asked = asked
    monkeypatch.setattr(jax.dlpack, "from_dlpack", lambda given, copy: made[0])
    soa, *_ = of_a_device()
    [view] = views(soa, X)
    for copy in (False, None):
        assert _pytree.imported(view, copy=copy) is made[0]
    gc.collect()
    assert [stream for stream, _ in asked] == [77, 77]
    assert all(capsule() is not None for _, capsule in asked)
    made.clear()
    gc.collect()
    assert all(capsule() is None for _, capsule in asked)


def test_on_which_addresses_xla_takes_memory():
    """GPUs want a multiple of 16, the CPU of 64: one rule for each, whatever JAX's own says."""
    at = 1 << 40
    for device, first, taken in (
        ("cuda:0", 16, True),
        ("rocm:0", 48, True),
        ("cuda:0", 4, False),
        ("cpu", 64, True),
        ("cpu", 16, False),
    ):
        memory = np.zeros(LAYOUT.nbytes(33) + 256, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % 128 if device == "cpu" else at
        soa = LAYOUT.from_pointer(start + first, 33, device=device, owner=memory)
        match = "does not take memory on" if taken else r"past a multiple of (64|16)"
        if device == "cpu" and taken:
            assert arrays(soa, X)[0].shape == (33,)
            continue
        with pytest.raises(BufferError, match=match):
            arrays(soa, X)


def test_a_run_that_xla_does_not_take_is_copied(monkeypatch):
    """By the framework that has it: for `copy=None`, and for `jit`, as on the host."""
    given, real = [], jax.dlpack.from_dlpack

    def record(view, copy):
        given.append(view)
        return real(view, copy=copy)

    monkeypatch.setattr(jax.dlpack, "from_dlpack", record)
    for module in (_pytree, soaview_jax._arrays):
        monkeypatch.setattr(module, "alignment_on", lambda device: 16)
    layout = Layout([Column("a", "int32"), Column("x", "float32")], alignment=4)
    memory, rows = places.aligned(np.zeros(layout.nbytes(33), np.uint8)), 33
    layout.wrap(memory, rows)["x"][:] = np.arange(33)
    soa = places.PretendedMemory().wrap(layout, memory, rows)
    [x] = arrays(soa, X, copy=None)
    np.testing.assert_array_equal(x, np.arange(33))
    assert [type(one).__name__ for one in given] == ["View", "_Copy"]
    total = jax.jit(lambda soa: arrays(soa, X)[0].sum())
    assert total(soa) == np.arange(33).sum()
    layout.wrap(memory, rows)["x"][:] = 2
    assert total(soa) == 66
    assert x[5] == 5
    copied = np.from_dlpack(given[1])
    assert (copied == 2).all()
    assert copied.ctypes.data != given[1].view.address


def test_to_where_it_is_makes_memory_of_jaxs():
    """It can be donated, and whatever happens to the SoA's memory later is not seen."""
    soa, memory, expected = of_a_device()
    before = memory.copy()
    there = soaview_jax.to(soa, jax.devices()[0])
    addresses = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(there)}
    own = range(soa.buffer.address, soa.buffer.address + soa.buffer.nbytes)
    assert not any(address in own for address in addresses)
    made = jax.jit(lambda s: update(s, X, [arrays(s, X)[0] + 1]), donate_argnums=0)(there)
    np.testing.assert_array_equal(made["x"], expected["x"] + 1)
    np.testing.assert_array_equal(memory, before)
    aliases = jax.tree.leaves(jax.device_put(soa, jax.devices()[0]))  # as the documents say
    assert any(leaf.unsafe_buffer_pointer() in own for leaf in aliases)


@pytest.fixture
def elsewhere(monkeypatch):
    """JAX computes on its second device, which is named as such, and read by none but JAX."""

    def name(devices):
        return "+".join(sorted({f"cpu:{d.id}" if d.id else "cpu" for d in devices})) or "cpu"

    for module in (_write, _leaves):
        monkeypatch.setattr(module, "device_name", name)
    monkeypatch.setattr(_leaves, "is_host", lambda device: device.id == 0)
    with jax.default_device(jax.devices()[1]):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_results_are_brought_home():
    """An SoA on the host is written from wherever the results are: by `forward` and `write`."""
    soa = LAYOUT.allocate(9)
    soa["x"][:] = np.arange(9)

    def double(x):
        return x * 2

    for size in (None, 4):
        soa["y"][:] = 0
        forward(double, (soa, X), (soa, Y), batch_size=size)
        np.testing.assert_array_equal(soa["y"], np.arange(9) * 2)
    y = jax.jit(lambda soa: arrays(soa, X)[0] * 3)(soa)
    assert y.devices() == {jax.devices()[1]}
    write(soa, Y, [y])
    np.testing.assert_array_equal(soa["y"], np.arange(9) * 3)
    write(soa, Spec(k="k"), [jnp.ones((9, 2), "int32")])
    assert (soa["k"] == 1).all()
    with pytest.raises(ValueError, match=r"got shape \(8,\), expected \(9,\)"):
        write(soa, Y, [jnp.zeros(8)])
    eager = update(soa, Y, [jnp.ones(9)])
    assert arrays(eager, Y)[0][0] == 1


@pytest.mark.usefixtures("elsewhere")
def test_memory_of_a_device_is_written_from_there_alone():
    """Results of another device's are refused, and told where to go."""
    soa, *_ = of_a_device(number=0)
    with pytest.raises(ValueError, match="got device cpu:1, the SoA is on cpu; move the tensor th"):
        write(soa, Y, [jnp.zeros(33)])
    write(soa, Y, [jax.device_put(jnp.zeros(33), jax.devices()[0])])


def test_what_is_written_is_read_before_jax_has_its_memory_again(monkeypatch):
    """JAX's arrays are held until the framework that writes them says that it is done."""
    fake_cupy.install(monkeypatch)
    memory, _ = filled(LAYOUT, 33)
    pretended = places.PretendedMemory()
    array = fake_cupy.ndarray(
        (memory.size,), "uint8", fake_cupy.MemoryPointer(memory.ctypes.data, memory)
    )
    there = pretended.memory(memory.ctypes.data, memory.size, False, 1, 0, None, None, array)
    buffer = pretended.buffer(there._replace(owner=array), memory.size, 4)
    soa = SoA(LAYOUT, buffer, 33, 0, 33)
    write(soa, Spec(xy=["y", "x"], k="k"), [jnp.ones((33, 2)), jnp.ones((33, 2), "int32")])
    kinds = [what if isinstance(what, str) else what[0] for what in fake_cupy.did]
    assert kinds == ["adopted"] * 3 + ["written"] * 3 + ["waited"] * 3
    host = LAYOUT.wrap(memory, 33)
    assert (host["x"] == 1).all()
    assert (host["k"] == 1).all()
    forward(lambda x: x + 1, (host, X), (soa, Y))
    assert fake_cupy.did[-1] == "waited"
    assert (host["y"] == 2).all()


@pytest.mark.parametrize("entry", ["x", ["y", "x"], "k"], ids=str)
def test_no_rows_are_where_the_others_are(entry):
    """On the memory's device, whatever JAX's default is."""
    memory = places.aligned(np.zeros(LAYOUT.nbytes(0), np.uint8))
    soa = places.PretendedMemory(2).wrap(LAYOUT, memory, 0)
    for copy in (None, True):
        [found] = arrays(soa, Spec(t=entry), copy=copy)
        assert found.devices() == {jax.devices()[2]}
        assert len(found) == 0


@pytest.mark.slow
def test_arrays_stay_with_their_soa():
    """Of JAX's devices on the host, all of an SoA is on one: its arrays, copies, and updates."""
    soa, there = LAYOUT.allocate(64), jax.devices()[1]
    moved = to(soa, there)
    for copy in (False, None, True):
        assert {a.devices().pop() for a in arrays(moved, X, copy=copy)} == {there}
    assert jax.jit(lambda a, s: a + arrays(s, X)[0])(*arrays(moved, X), moved).devices() == {there}
    ones = jax.device_put(jnp.ones(64), jax.devices()[2])
    for old, device in ((soa, jax.devices()[0]), (moved, there)):
        made = update(old, Y, [ones])
        assert {d for leaf in jax.tree.leaves(made) for d in leaf.devices()} == {device}
        assert made["y"].sum() == 64
    traced = jax.jit(lambda y: arrays(update(soa, Y, [y + 1]), Y)[0])
    for device in jax.devices()[:2]:
        y = traced(jax.device_put(jnp.ones(64), device))
        assert (y.devices(), y.sum()) == ({device}, 128)
