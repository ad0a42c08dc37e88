"""`explain` of SoAs that JAX made, and where JAX runs op by op."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from soaview import Column, Layout, Scalar, Spec, Value, explain
from soaview_jax import arrays

NEEDS = ["jax"]

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
SPEC = Spec(x="x", xy=["x", "y"], yx=["y", "x"], n=Value("n"))


def said(soa, way="JAX"):
    return {v.tensor: v for v in explain(soa, SPEC).verdicts if v.way == way}


def test_an_soa_that_jax_made():
    """Its columns are aliased where XLA can; a copy says that `copy=False` copies there."""
    soa = jax.jit(lambda soa: soa)(LAYOUT.allocate(33))
    found = said(soa)
    assert {name: v.gives for name, v in found.items()} == {
        "x": "view", "xy": "copy", "yx": "copy", "n": "view",
    }  # fmt: skip
    assert found["xy"].nbytes == 264
    assert "padding lies between" in found["xy"].why
    assert found["xy"].why.endswith("Here copy=False acts as None")
    assert "reversed" in found["yx"].why
    assert {v.gives for v in said(soa, "JAX inside jit").values()} == {"view"}
    [x] = arrays(soa, Spec(x="x"))
    assert x.unsafe_buffer_pointer() == soa["x"].ctypes.data


def test_op_by_op():
    """Where JAX runs jitted functions as they are, what XLA cannot import is copied."""
    with jax.disable_jit():
        found = said(LAYOUT.allocate(33))
    assert {name: v.gives for name, v in found.items()} == {
        "x": "view", "xy": "copy", "yx": "copy", "n": "view",
    }  # fmt: skip
    assert found["xy"].why.endswith("Here copy=False acts as None")


@pytest.mark.parametrize("device", [1, 2])
def test_another_device(device):
    """What JAX has there is copied on the way out, and given to a jitted function as it is."""
    soa = jax.device_put(LAYOUT.allocate(33), jax.devices()[device])
    assert {v.gives for v in said(soa).values()} == {"copy"}
    assert all("is always copied" in v.why for v in said(soa).values())
    assert {v.gives for v in said(soa, "JAX inside jit").values()} == {"view"}


def test_a_traced_soa():
    """It has no memory yet."""
    with pytest.raises(TypeError, match="soa is traced, and has no memory yet: explain it outside"):
        jax.jit(lambda soa: explain(soa, SPEC))(LAYOUT.allocate(3))


def test_other_leaves():
    """Donated SoAs and stacked ones are named."""
    given = jax.tree.map(jnp.array, LAYOUT.allocate(33))
    jax.jit(lambda soa: soa, donate_argnums=0)(given)
    with pytest.raises(RuntimeError, match="the SoA was donated"):
        explain(given, SPEC)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), LAYOUT.allocate(3), LAYOUT.allocate(3))
    with pytest.raises(ValueError, match="these are SoAs stacked"):
        explain(stacked, SPEC)
