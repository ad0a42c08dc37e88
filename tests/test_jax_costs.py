"""What JAX copies, and what is waited for: finished copies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import soaview_jax
from soaview import Column, Layout, Scalar, Spec
from soaview.adapter import _targets
from soaview_jax import arrays, forward, mask, to, update, write

NEEDS = ["jax"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int32"), Scalar("n", "int32")]
)


def aligned(rows, start):
    """An SoA so many bytes past a multiple of 64."""
    memory = np.zeros(LAYOUT.nbytes(rows) + 128, np.uint8)
    return LAYOUT.wrap(memory[-memory.ctypes.data % 64 + start :], rows)


def torn(soa, number, spec, copy):
    """Whether memory that is written right after a copy was returned changes the copy."""
    soa["x"][:] = soa["y"][:] = number
    [t] = arrays(soa, spec, copy=copy)
    soa["x"][:] = soa["y"][:] = -1
    return bool((np.asarray(t) != number).any())


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("nbytes", [64, 1 << 10, 1 << 13, 1 << 16, 1 << 18, 1 << 20, 1 << 22])
@pytest.mark.parametrize("start", [0, 16])
def test_copies_are_finished(nbytes, start):
    """Memory written right after a copy was returned does not tear it: not once in 200 times."""
    soa = aligned(nbytes // 4, start)
    for number in range(200):
        copy, spec = ((True, Spec(t="x")), (None, Spec(t=["y", "x"])))[number % 2]
        assert not torn(soa, number, spec, None if start else copy)


def test_copies_that_nobody_made_are_torn(monkeypatch):
    """JAX's own way to copy is an alias or unfinished: with it, the test above would fail."""

    def copies(soa, spec, padded, found, dtypes):
        return [jax.device_put(view.numpy()) for view in found]

    monkeypatch.setattr(soaview_jax._arrays, "_copies", copies)
    soa = aligned(1 << 20, 0)
    assert any(torn(soa, n, Spec(t="x"), True) for n in range(200))


IMPORTS = {
    "a copy": lambda host: jnp.array(host),
    "a narrowed copy": lambda host: jnp.array(host, "float16"),
    "another type": lambda host: jax.dlpack.from_dlpack(host.view("int32")),
}


@pytest.mark.parametrize("how", IMPORTS)
def test_what_jax_did_in_silence_is_refused(how, monkeypatch):
    """An import that lies somewhere else, or has another dtype, is never handed out as a view."""
    monkeypatch.setattr(soaview_jax._arrays, "_imported", IMPORTS[how])
    with pytest.raises(BufferError, match="tensor 'x': JAX .* copied or converted it in silence"):
        arrays(LAYOUT.allocate(64), Spec(x="x"))


# How much is copied, and waited for


@pytest.fixture
def counted(monkeypatch):
    """What was copied and transferred, and how many arrays were waited for."""
    found = {"copies": 0, "transfers": 0, "waits": 0}

    def counting(what, function):
        def call(*args, **options):
            found[what] += 1
            return function(*args, **options)

        return call

    array = type(jnp.ones(1))
    monkeypatch.setattr(jax, "device_put", counting("transfers", jax.device_put))
    monkeypatch.setattr(jnp, "array", counting("copies", jnp.array))
    monkeypatch.setattr(np, "array", counting("copies", np.array))
    monkeypatch.setattr(np, "stack", counting("copies", np.stack))
    monkeypatch.setattr(array, "block_until_ready", counting("waits", array.block_until_ready))
    return found


COSTS = {
    "views": (lambda soa: arrays(soa, Spec(x="x", xy=["x", "y"], k="k")), 0, 0, 0),
    "nothing needs a copy": (lambda soa: arrays(soa, Spec(x="x", k="k"), copy=None), 0, 0, 0),
    "one needs a copy": (lambda soa: arrays(soa, Spec(x="x", yx=["y", "x"]), copy=None), 1, 1, 1),
    "copies": (lambda soa: arrays(soa, Spec(x="x", y="y", k="k"), copy=True), 3, 1, 3),
    "to": (lambda soa: to(soa, jax.devices()[0]), 0, 1, 0),
    "mask": (lambda soa: mask(soa, 3), 0, 0, 0),
    "write": (lambda soa: write(soa, Spec(x="x"), VALUES), 0, 0, 0),
    "forward": (lambda soa: forward(grow, (soa, Spec(x="x")), (soa, Spec(x="x"))), 0, 0, 0),
    "forward in batches": (
        lambda soa: forward(grow, (soa, Spec(x="x")), (soa, Spec(x="x")), batch_size=8),
        0,
        1,
        0,
    ),
    "update": (lambda soa: update(soa, Spec(x="x"), VALUES), 3, 0, 6),
}
VALUES = [jnp.ones(32)]


def grow(x):
    return x + 1


@pytest.mark.parametrize("name", COSTS)
def test_nothing_is_copied_where_that_is_promised(name, counted):
    """Views cost no copy, copies one each in one transfer, and copies alone are waited for."""
    do, copies, transfers, waits = COSTS[name]
    soa = LAYOUT.allocate(32)
    do(soa)  # what is compiled or worked out for the first time is not counted
    counted |= {"copies": 0, "transfers": 0, "waits": 0}
    do(soa)
    assert counted == {"copies": copies, "transfers": transfers, "waits": waits}


def test_what_fits_is_not_looked_at_twice(monkeypatch):
    """Arrays that fit are written without working out what a refusal would say."""
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    soa = layout.allocate(3)

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(_targets, "check_given", never)
    spec = Spec(x="x", y="y")
    soaview_jax.write(soa, spec, [jnp.ones(3), jnp.zeros(3)])
    assert soa["x"].tolist() == [1, 1, 1]
    with monkeypatch.context() as again:  # where they go is not worked out again
        again.setattr(soaview_jax._write, "writable_views", never)
        soaview_jax.write(soa, spec, [jnp.zeros(3), jnp.ones(3)])
    assert soa["y"].tolist() == [1, 1, 1]
    with pytest.raises(AssertionError):
        soaview_jax.write(soa, Spec(x="x"), [jnp.ones(4)])
