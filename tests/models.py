"""Two layouts, and the models that the tests of `forward` take from one to the other."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import torch

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value

IN = Layout(
    [
        Column("x", "float32"),
        Column("gap", "int32"),
        Column("y", "float32"),
        Column("v", "float32", (3,)),
        Scalar("scale", "float32"),
    ]
)
OUT = Layout(
    [
        Column("sum", "float32"),
        Column("a", "float32"),
        Column("b", "float32"),
        Column("c", "float32"),
        Column("total", "float64"),
        Scalar("mean", "float32"),
    ]
)
X, Y = Spec(x=["x", "y"], v="v", scale="scale"), Spec(sum="sum", cb=["c", "b"])

FRAMEWORKS = {
    "torch": SimpleNamespace(forward=soaview_torch.forward, np=torch, cat=torch.concat),
    "jax": SimpleNamespace(forward=soaview_jax.forward, np=jnp, cat=jnp.concatenate),
}


def filled(rows):
    """An SoA of inputs, a zeroed one of outputs."""
    soa, random = IN.allocate(rows), np.random.default_rng(rows)
    for name in ("x", "y", "v"):
        soa[name][...] = random.normal(size=soa[name].shape)
    soa[Value("scale")][...] = 2
    return soa, OUT.allocate(rows)


def model(x, v, scale):
    """Of each row on its own: the scaled sum, and two columns."""
    return (x.sum(1) + v.sum(1)) * scale, x * 2


def expected(soa):
    x = np.stack([soa["x"], soa["y"]], axis=1)
    return (x.sum(1) + soa["v"].sum(1)) * 2, x * 2


def check(soa, out):
    total, double = expected(soa)
    np.testing.assert_allclose(out["sum"], total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["c"], double[:, 0])
    np.testing.assert_array_equal(out["b"], double[:, 1])
    assert not out["a"].any()


def never(*tensors):
    raise AssertionError("the model ran")
