"""Both frameworks over one SoA."""

from __future__ import annotations

import inspect

import jax
import numpy as np
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec


def test_same_verbs_same_signatures():
    """`tensors` and `arrays`, and both `write`s, take the same arguments."""
    pairs = [
        (soaview_torch.tensors, soaview_jax.arrays),
        (soaview_torch.write, soaview_jax.write),
    ]
    for ours, theirs in pairs:
        one, other = (inspect.signature(f).parameters.values() for f in (ours, theirs))
        assert [(p.kind, p.default) for p in one] == [(p.kind, p.default) for p in other]
    one, other = (inspect.signature(f).parameters for f in pairs[0])
    assert list(one) == list(other) == ["soa", "spec", "copy", "padded"]


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
