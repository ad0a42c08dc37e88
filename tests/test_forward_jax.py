"""`forward` of JAX's: what is compiled, and what 64-bit types do."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from models import IN, X, Y, check, filled, model, never

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec
from soaview_jax._forward import _Call, _run

NEEDS = ["torch", "jax"]


def test_jax_compiles_each_size_once():
    """Of several SoAs, too: starts are traced, and only the last batch has sizes of its own."""
    traced = []

    def model(x, w, u):
        traced.append((x.shape, w.shape, u.shape))
        return x + w.sum() + u.sum()

    for rows in (20, 20):
        soa, out = filled(rows)
        wide = IN.allocate(2 * rows)
        pairs = [(soa, Spec(x="x")), (wide, Spec(w="x")), (wide[:3], Spec(u="y"))]
        soaview_jax.forward(model, pairs, (out, Spec(a="a")), batch_size=[3, 6, None])
    assert traced == [((3,), (6,), (3,)), ((2,), (4,), (3,))]


def test_jax_compiles_once():
    """For each row count and batch size once; weights in a callable pytree are arguments."""
    traced = []

    def apply(weights, x):
        traced.append(x.shape)
        return x * weights["w"]

    for number in range(4):
        soa, out = filled(50)
        fn = jax.tree_util.Partial(apply, {"w": jnp.full((), number, "float32")})
        for batch_size in (None, 20):
            pairs = (soa, Spec(x="x")), (out, Spec(a="a"))
            soaview_jax.forward(fn, *pairs, batch_size=batch_size)
            np.testing.assert_array_equal(out["a"], number * soa["x"])
    assert traced == [(50,), (20,), (10,)]


def doubled(*given):
    return [x * 2 for x in given]


def test_jax_reads_only_the_batch():
    """Whatever the columns' order, nothing that is computed for a batch is as long as the SoA."""
    soa, _ = filled(1000)
    for spec in (Spec(x=["x", "y"]), Spec(x=["y", "x"]), Spec(v="v"), Spec(s=["scale"])):
        for specs, sizes, cast in (((spec,), (10,), None), ((spec, spec), (10, 7), "float16")):
            call, soas = _Call(None, specs, sizes, cast), [soa] * len(specs)
            run = lambda soas, starts, call=call: _run(doubled, call, soas, starts)  # noqa: E731
            jaxpr = jax.make_jaxpr(run)(soas, [5] * len(specs))
            made = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
            assert 10 <= max(made) <= 10 * len(jax.tree.leaves(soa)) * 2


def test_jax_wants_64_bit_types_switched_on():
    """A 64-bit column is refused by name, in batches, too; nothing is narrowed."""
    soa, out = filled(33)
    with jax.enable_x64(False):
        for batch_size in (None, 8):
            pairs = (out, Spec(t="total")), (soa, Spec(x="x"))
            with pytest.raises(TypeError, match="'t' is float64.*jax_enable_x64"):
                soaview_jax.forward(lambda t: t.astype("f4"), *pairs, batch_size=batch_size)
            with pytest.raises(TypeError, match="'t': got dtype float32, expected float64"):
                soaview_jax.forward(lambda x: x, *pairs[::-1], batch_size=batch_size)
    with jax.enable_x64(True):
        pairs = (soa, Spec(x="x")), (out, Spec(t="total"))
        soaview_jax.forward(lambda x: x.astype("float64"), *pairs, batch_size=8)
    np.testing.assert_array_equal(out["total"], soa["x"])


def test_jax_counts_rows_in_32_bits():
    """Without 64-bit types JAX cannot find the rows of batches that begin past 2^31."""
    soa = Layout([Column("k", "int8")]).allocate(2**31 + 1)
    out = Layout([Column("k", "int8")]).allocate(2**31 + 1)
    pairs = (soa, Spec(k="k")), (out, Spec(k="k"))
    with pytest.raises(ValueError, match="does not count to 2147483649 rows.*switch them on"):
        soaview_jax.forward(never, *pairs, batch_size=2**30)


def test_what_jax_made_goes_in():
    """An SoA that a jitted function returned is an input of JAX's, and of torch's with a copy."""
    soa, out = filled(33)
    made = jax.jit(lambda s: soaview_jax.update(s, Spec(x="x"), [jnp.ones(33)]))(soa)
    for forward, options in ((soaview_jax.forward, {}), (soaview_torch.forward, {"copy": None})):
        out.buffer.root[:] = 0
        for batch_size in (None, 10):
            forward(model, (made, X), (out, Y), batch_size=batch_size, **options)
            check(made, out)
    with pytest.raises(BufferError, match="read-only"):
        soaview_jax.forward(never, (soa, X), (made, Spec(x="x", y="y")))


def test_jax_tells_numbers_apart():
    """1, 1.0 and True in a callable pytree are functions of their own."""
    _, out = filled(5)
    ints = Layout([Column("i", "int32")]).pack({"i": [1, 2, 3, 4, 5]})

    def half(k, i):
        return (i / k if isinstance(k, float) else i // k).astype("float32")

    for k, wanted in ((2, [0, 1, 1, 2, 2]), (2.0, [0.5, 1, 1.5, 2, 2.5]), (True, [1, 2, 3, 4, 5])):
        fn = jax.tree_util.Partial(half, k)
        soaview_jax.forward(fn, (ints, Spec(i="i")), (out, Spec(a="a")))
        assert out["a"].tolist() == wanted


def test_jax_tells_signs_of_zero_apart():
    """0.0 and -0.0 are equal, and functions of their own all the same."""
    soa, out = filled(5)
    signed = lambda k, x: x * 0 + np.copysign(np.float32(1), np.float32(k))  # noqa: E731
    for k in (0.0, -0.0):
        fn = jax.tree_util.Partial(signed, k)
        soaview_jax.forward(fn, (soa, Spec(x="x")), (out, Spec(a="a")))
        assert (out["a"] == np.copysign(1, k)).all()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_jax_narrows_no_results(batch_size):
    """64-bit NumPy arrays that the model gives are refused while JAX would narrow them."""
    soa, out = filled(5)

    def model(x):
        return np.full(x.shape, 1e300)

    with pytest.raises(TypeError, match="the model gave a NumPy array of float64 and shape"):
        soaview_jax.forward(model, (soa, Spec(x="x")), (out, Spec(a="a")), batch_size=batch_size)
    assert not out["a"].any()


def test_jax_narrows_no_weights():
    """64-bit NumPy arrays of a callable pytree are refused while JAX would narrow them."""
    soa, out = filled(5)
    pairs = (soa, Spec(x="x")), (out, Spec(t="total"))
    fn = jax.tree_util.Partial(lambda w, x: x * w, np.full(5, 1e300))
    with pytest.raises(TypeError, match=r"fn holds a NumPy array of float64 and shape \(5,\)"):
        soaview_jax.forward(fn, *pairs)
    with jax.enable_x64(True):
        soaview_jax.forward(fn, *pairs)
    np.testing.assert_allclose(out["total"], soa["x"].astype("float64") * 1e300)


def test_jax_keeps_no_plain_function():
    """What was compiled for a function goes with it, and so does what it has closed over."""
    soa, out = filled(5)
    gone = []
    for _ in range(3):
        weights = jnp.ones(5)
        fn = lambda x, weights=weights: x * weights  # noqa: E731
        soaview_jax.forward(fn, (soa, Spec(x="x")), (out, Spec(a="a")))
        gone.append(weakref.ref(weights))
        del fn, weights
    assert places.soon(lambda: all(weights() is None for weights in gone))

    class Callable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(TypeError, match="fn cannot be told from others.*pass a function, or a"):
        soaview_jax.forward(Callable(), (soa, Spec(x="x")), (out, Spec(a="a")))


@pytest.mark.slow
def test_jax_without_compilation():
    """Where JAX is told not to compile, the columns that it cannot view are copied."""
    soa, out = filled(33)
    for batch_size in (None, 10):
        out.buffer.root[:] = 0
        with jax.disable_jit():
            soaview_jax.forward(model, (soa, X), (out, Y), batch_size=batch_size)
        check(soa, out)


def test_jax_waits_for_each_batch_that_a_bar_counts(monkeypatch):
    """So that the bar tells what has been done; without one, nothing is waited for in between."""
    soa, out = filled(50)
    waited, real = [], jax.block_until_ready
    monkeypatch.setattr(
        jax, "block_until_ready", lambda made: waited.append(made.shape) or real(made)
    )
    for progress, shapes in ((False, []), (True, [(20,), (20,), (10,)])):
        pairs = (soa, Spec(x="x")), (out, Spec(a="a"))
        soaview_jax.forward(lambda x: x * 2, *pairs, batch_size=20, progress=progress)
        assert waited == shapes


@pytest.mark.parametrize("batch_size", [None, 10])
def test_what_jax_brought_to_the_host_goes_in(batch_size):
    """`jax.device_get` of what a jitted function returned is an input of both."""
    soa, out = filled(33)
    made = jax.jit(lambda s: soaview_jax.update(s, Spec(x="x"), [jnp.ones(33)]))(soa)
    brought = jax.device_get(made)
    assert (brought["x"] == 1).all()
    options = {"batch_size": batch_size}
    soaview_jax.forward(model, (brought, X), (out, Y), **options)
    check(brought, out)
    out.buffer.root[:] = 0
    with pytest.raises(BufferError):
        soaview_torch.forward(never, (brought, X), (out, Y), **options)
    soaview_torch.forward(model, (brought, X), (out, Y), copy=None, **options)
    check(brought, out)
    assert (brought["x"] == 1).all()
