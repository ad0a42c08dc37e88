"""An interrupt of what JAX runs stays one."""

from __future__ import annotations

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaview import Column, Layout, Scalar, SoA, Spec, Value, View, _frameworks
from soaview._dlpack import DeviceMemory
from soaview.adapter import DeviceBuffer, host_array
from soaview_jax import arrays, forward, mask, segments, to, update, write

NEEDS = ["jax"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int32"), Scalar("n", "int32")]
)


class Interrupts:
    """Raises KeyboardInterrupt when it has been touched so many times."""

    def __init__(self):
        self.left = 0

    def touch(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


class Source(Interrupts):
    """What owns the memory that is shown as a device's; it is asked for each view."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory


def on_a_device(soa, monkeypatch):
    """The SoA's memory as a device's, whose owner is asked for every view, and may interrupt."""

    def show(memory, at):
        source.touch()
        return host_array(source.memory, at)

    monkeypatch.setitem(_frameworks._SHOW, __name__, show)
    source = Source(soa.buffer.root)
    at = soa.buffer.address, soa.buffer.nbytes, False, 1, 0
    memory = DeviceMemory(*at, source=source, owner=source)
    buffer = DeviceBuffer(memory, soa.buffer.nbytes, 8)
    return SoA(soa.layout, buffer, soa.rows, 0, soa.rows), source


def on_the_host(soa, monkeypatch):
    """The SoA itself; every NumPy view of it may interrupt."""
    source, numpy = Interrupts(), View.numpy

    def touched(view):
        source.touch()
        return numpy(view)

    monkeypatch.setattr(View, "numpy", touched)
    return soa, source


SPEC, SCALAR = Spec(a=["y", "x"], k="k"), Spec(n=Value("n"))


def new_values(soa):
    return [jnp.full((soa.rows, 2), 7.0), jnp.arange(soa.rows)]


DOES = {
    "arrays": lambda soa: arrays(soa, Spec(x="x", k="k")),
    "arrays that gather": lambda soa: arrays(soa, SPEC, copy=None),
    "arrays that copy": lambda soa: arrays(soa, SPEC, copy=True),
    "jit": lambda soa: jax.jit(lambda s: arrays(s, SPEC))(soa),
    "update": lambda soa: update(soa, SPEC, new_values(soa)),
    "to": lambda soa: to(soa, jax.devices()[1]),
    "write": lambda soa: write(soa, SPEC, new_values(soa)),
    "forward": lambda soa: forward(lambda a, k: (a + 1, k + 1), (soa, SPEC), (soa, SPEC)),
    "forward in batches": lambda soa: forward(
        lambda a, k: (a + 1, k + 1), (soa, SPEC), (soa, SPEC), batch_size=8
    ),
}
UNTOUCHED = {(on_the_host, name) for name in ("jit", "update", "to", "arrays")}


@pytest.mark.slow
@pytest.mark.parametrize("how", [on_a_device, on_the_host])
@pytest.mark.parametrize("name", DOES)
def test_an_interrupt_stays_one(how, name, monkeypatch):
    """Whenever the memory's owner, or a view, is interrupted, so is the caller; nothing is done."""
    interrupted = 0
    while True:
        mine = LAYOUT.allocate(33)
        mine["x"][:] = mine["k"][:] = np.arange(33)
        before = mine.buffer.root.copy()
        with monkeypatch.context() as patch:
            soa, source = how(mine, patch)
            source.left = interrupted + 1
            try:
                DOES[name](soa)
            except KeyboardInterrupt:
                interrupted += 1
                np.testing.assert_array_equal(mine.buffer.root, before)
            else:
                break
    assert bool(interrupted) != ((how, name) in UNTOUCHED)
    assert ("write" in name or "forward" in name) == (mine.buffer.root != before).any()


class Interrupting:
    """No integer, and no array: whoever asks is interrupted."""

    def interrupt(self, *_, **__):
        raise KeyboardInterrupt

    __array__ = __index__ = __call__ = interrupt


def interrupting(x):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "do",
    [
        lambda soa: mask(soa, Interrupting()),
        lambda soa: segments(soa, Interrupting()),
        lambda soa: segments(soa, counts=[1, Interrupting()]),
        lambda soa: forward(Interrupting(), (soa, SPEC), (soa, SPEC)),
        *(
            lambda soa, model=model: forward(
                model, (soa, Spec(x="x")), (soa, Spec(y="y")), batch_size=8
            )
            for model in (
                interrupting,
                jax.jit(interrupting),
                jax.vmap(interrupting),
                jax.grad(interrupting),
                jax.checkpoint(interrupting),
                jax.tree_util.Partial(interrupting),
                lambda x: jax.lax.scan(lambda c, y: interrupting(y), 0.0, x),
            )
        ),
    ],
)
def test_an_interrupt_of_a_model_or_a_number_stays_one(do):
    """While JAX traces, too, and where it runs op by op; and nothing is written."""
    soa = LAYOUT.allocate(33)
    for flags in (nullcontext(), jax.disable_jit(), jax.debug_nans(True)):
        with flags, pytest.raises(KeyboardInterrupt):
            do(soa)
    assert not soa.buffer.root.any()


def test_a_function_that_was_interrupted_is_run_again():
    """JAX keeps nothing of a trace that was cut short."""
    soa, interrupts = LAYOUT.allocate(33), Interrupts()

    def model(x):
        for _ in range(3):
            x = x + 1
            interrupts.touch()
        return x

    for left in (1, 2, 3):
        interrupts.left = left
        with pytest.raises(KeyboardInterrupt):
            forward(model, (soa, Spec(x="x")), (soa, Spec(y="y")))
        assert not soa["y"].any()
    forward(model, (soa, Spec(x="x")), (soa, Spec(y="y")))
    assert (soa["y"] == 3).all()


def test_an_interrupt_on_the_host_while_xla_runs():
    """XLA makes an error of its own of it, which says so; nothing is written."""
    soa = LAYOUT.allocate(33)

    def model(x):
        return jax.pure_callback(interrupting, x, x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="KeyboardInterrupt"):
        forward(model, (soa, Spec(x="x")), (soa, Spec(y="y")))
    assert not soa.buffer.root.any()
