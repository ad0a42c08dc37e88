"""Both frameworks over one SoA."""

from __future__ import annotations

import inspect

import jax
import numpy as np
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
