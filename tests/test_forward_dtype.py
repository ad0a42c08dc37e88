"""`forward` in another floating dtype than the columns have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import X, Y, filled, never

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value

NEEDS = ["torch", "jax"]

MIXED = Layout(
    [
        Column("f", "float32", (2,)),
        Column("h", "bfloat16"),
        Column("i", "int32"),
        Column("b", "bool"),
        Column("z", "complex64"),
        Scalar("s", "float32"),
        Column("o", "float32"),
        Column("k", "int32"),
        Column("w", "bfloat16"),
        Column("q", "complex64"),
    ]
)
TAKEN = Spec(f="f", h="h", i="i", b="b", z="z", s=Value("s"))


def mixed(rows=10):
    soa = MIXED.allocate(rows)
    soa["f"][...] = np.arange(2 * rows).reshape(rows, 2) / 8
    soa["h"][:], soa["i"][:], soa["b"][:], soa["z"][:] = 2, np.arange(rows), True, 1j
    soa[Value("s")][...] = 0.5
    return soa


def names_of(given):
    return [str(x.dtype).removeprefix("torch.") for x in given]


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", np.float16, np.dtype("f2"), torch.bfloat16, jnp.float16],
    ids=str,
)
def test_a_dtype_for_the_model(framework, dtype, batch_size):
    """Floating inputs are converted on the way in, and floating results on the way out."""
    name, seen = Column("x", dtype).dtype, []

    def model(f, h, i, b, z, s):
        seen.append(names_of([f, h, i, b, z, s]))
        return f[:, 0] + f[:, 1] * s, i + 1, h, z * 2

    soa = mixed()
    into = (soa, Spec(o="o", k="k", w="w", q="q"))
    framework.forward(model, (soa, TAKEN), into, dtype=dtype, batch_size=batch_size)
    assert seen[0] == [name, name, "int32", "bool", "complex64", name]
    wanted = soa["f"][:, 0] + soa["f"][:, 1] * 0.5
    np.testing.assert_allclose(soa["o"], wanted, rtol=0.01)
    assert (soa["k"] == soa["i"] + 1).all()
    assert (soa["w"] == 2).all()
    assert (soa["q"] == 2j).all()


def test_without_a_dtype_nothing_is_converted(framework):
    """Not on the way in, and a result of another floating dtype than its column's is refused."""
    soa, seen = mixed(), []

    def model(f, h, i, b, z, s):
        seen.append(names_of([f, h, i, b, z, s]))
        return h

    with pytest.raises(TypeError, match="'o': got dtype bfloat16, expected float32"):
        framework.forward(model, (soa, TAKEN), (soa, Spec(o="o")))
    assert seen == [["float32", "bfloat16", "int32", "bool", "complex64", "float32"]]
    assert not soa["o"].any()


@pytest.mark.parametrize(
    ("given", "column", "message"),
    [
        ("i", "o", "'o': got dtype int32, expected float32"),
        ("b", "o", "'o': got dtype bool, expected float32"),
        ("z", "o", "'o': got dtype complex64, expected float32"),
        ("f", "k", "'k': got dtype float16, expected int32"),
        ("f", "q", "'q': got dtype float16, expected complex64"),
    ],
)
def test_a_dtype_converts_floating_results_alone(framework, given, column, message):
    """Others must have their columns' dtypes; nothing is written where one has not."""
    soa = mixed()
    before = soa.buffer.root.copy()
    model = lambda x: x[:, 0] if x.ndim > 1 else x  # noqa: E731
    with pytest.raises(TypeError, match=message):
        framework.forward(model, (soa, Spec(x=given)), (soa, Spec({column: column})), dtype="f2")
    assert (soa.buffer.root == before).all()


@pytest.mark.parametrize(
    "dtype",
    ["int32", "bool", bool, "complex64", "float8", 3, "", ("f4", (3,)), np.int8, [2]],
    ids=str,
)
def test_a_dtype_must_be_floating(framework, dtype):
    """Any other is refused, with those that there are, before the model runs."""
    soa, out = filled(5)
    with pytest.raises(ValueError, match="dtype= must be a floating dtype .*bfloat16.*, got"):
        framework.forward(never, (soa, X), (out, Y), dtype=dtype)


def test_converted_inputs_are_copies():
    """A model may write into them; into those that have the dtype already, and others, not."""
    soa = mixed()
    before, into = soa.buffer.root.copy(), (soa, Spec(o="o"))
    writes = lambda x: x.fill_(7)  # noqa: E731
    soaview_torch.forward(lambda f: f.fill_(7)[:, 0], (soa, Spec(f="f")), into, dtype="float16")
    soaview_torch.forward(writes, (soa, Spec(h="h")), into, dtype="float64")
    assert (soa["o"] == 7).all()
    soa["o"][:] = 0
    assert (soa.buffer.root == before).all()
    seen = []
    look = lambda o: seen.append(o.data_ptr()) or o  # noqa: E731
    soaview_torch.forward(look, (soa, Spec(o="o")), into, dtype="float32")
    assert seen == [soa["o"].ctypes.data]
    for name, dtype in (("o", "float32"), ("i", "float16")):
        to = (soa, Spec({name: name}))
        with pytest.raises(RuntimeError, match="changed its inputs in place"):
            soaview_torch.forward(writes, to, to, dtype=dtype)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_jax_narrows_nothing_before_a_conversion(batch_size):
    """64-bit columns are refused by name while 64-bit types are switched off."""
    _, out = filled(5)
    options = {"batch_size": batch_size}
    wide, narrow = (out, Spec(t="total")), (out, Spec(a="a"))
    with jax.enable_x64(False):
        for dtype, inputs, outputs, match in (
            ("float16", wide, narrow, "tensor 't' is float64, and JAX has 64-bit types switched"),
            ("float16", narrow, wide, "tensor 't' is float64, and JAX has 64-bit types switched"),
            ("float64", narrow, (out, Spec(b="b")), "dtype= is float64, and JAX has 64-bit"),
        ):
            with pytest.raises(TypeError, match=match):
                soaview_jax.forward(lambda x: x, inputs, outputs, dtype=dtype, **options)
    out["total"][:] = np.arange(5) / 4
    with jax.enable_x64(True):
        soaview_jax.forward(lambda t: t, wide, narrow, dtype="float16", **options)
        soaview_jax.forward(lambda a: a * 2, narrow, wide, dtype="float64", **options)
    assert out["a"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert out["total"].tolist() == [0, 0.5, 1, 1.5, 2]
