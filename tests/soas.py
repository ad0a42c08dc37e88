"""Small SoAs, and what the tests of JAX's transformations do with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from jax import lax

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, update

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("k", "int32"),
        Column("d", "float64"),
        Scalar("n", "int32"),
    ]
)
XY = Spec(xy=["x", "y"])

one_by_one = pytest.mark.parametrize(
    "case", [c for c in CASES if c.dtype == "float32"], ids=lambda c: c.name
)


def filled(rows, layout=LAYOUT):
    soa = layout.allocate(rows)
    for number, field in enumerate(layout.fields):
        target = soa[field.name] if field.per_row else soa[Value(field.name)]
        target[...] = np.arange(target.size).reshape(target.shape) + number
    return soa


def owned(soa):
    """The same SoA in memory of XLA's."""
    return jax.block_until_ready(jax.tree.map(jnp.array, soa))


def addresses(soa):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(soa)]


def stacked(*soas):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *soas)


def total(soa):
    [xy] = arrays(soa, XY)
    return xy.sum()


STEP = Spec(x="x")


def step(soa):
    return update(soa, STEP, [arrays(soa, STEP)[0] + 1])


def total_of(soa):
    return soa["x"].sum() + soa["y"].sum()


@jax.jit
def slow(x):
    """Takes long enough to be waited for."""
    return lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), x).sum()
