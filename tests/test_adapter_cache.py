"""What adapters keep of what they have made, and find again."""

from __future__ import annotations

import numpy as np
import pytest

import soaview_jax
import soaview_jax._arrays
import soaview_torch
import soaview_torch._tensors
from soaview import Column, Layout, Spec, _spec

NEEDS = ["torch", "jax"]

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32")])


def soa_of(rows):
    values = np.arange(rows, dtype=np.float32)
    return LAYOUT.pack({"x": values, "y": -values})


@pytest.fixture(params=["torch", "jax"])
def framework(request, monkeypatch):
    """Tensors by an adapter, and how often it has worked out any."""
    if request.param == "torch":
        module = soaview_torch._tensors
        tensors, name = module.tensors, "resolve"
    else:
        module = soaview_jax._arrays
        tensors, name = module.arrays, "views_or_gathers"
    resolved, real = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: resolved.append(a) or real(*a, **k))
    return tensors, resolved


def test_adapters_find_what_they_made(framework):
    """The same spec, an equal one, and two by turns are worked out once each."""
    tensors, resolved = framework
    soa = soa_of(32)
    for _ in range(3):
        for spec in (Spec(x="x"), Spec(xy=["x", "y"]), Spec(x="y")):
            tensors(soa, spec)
    assert len(resolved) == 3
    [x], [y] = tensors(soa, Spec(x="x")), tensors(soa, Spec(x="y"))
    assert (float(x[3]), float(y[3])) == (3, -3)
    tensors(soa[0:16], Spec(x="x"))
    tensors(soa, Spec(x="x"), padded=True)
    assert len(resolved) == 5


@pytest.mark.parametrize("padded", [1, 0, "yes", None, [], np.True_])
def test_only_bools_find_anything(framework, padded):
    """What is equal to True, and is not it, is refused as if nothing had been made before."""
    tensors, _ = framework
    soa = soa_of(32)
    tensors(soa, Spec(x="x"))
    tensors(soa, Spec(x="x"), padded=True)
    with pytest.raises(TypeError, match="padded must be True or False"):
        tensors(soa, Spec(x="x"), padded=padded)
    for spec in ({"x": "x"}, [], "x", None):
        with pytest.raises(TypeError, match="spec must be a Spec"):
            tensors(soa, spec)
    with pytest.raises(TypeError, match="soa must be an SoA"):
        tensors(soa.buffer, Spec(x="x"))


def test_what_a_layout_keeps_is_bounded(framework, monkeypatch):
    """A loop may make a spec of another name in every round, of tensors and of functions."""
    monkeypatch.setattr(_spec, "MOST_PLANS", 20)
    tensors, _ = framework
    adapter = soaview_torch if tensors is soaview_torch.tensors else soaview_jax
    layout = Layout(LAYOUT.fields)  # with plans of its own
    for number in range(30):
        soa = layout.pack({"x": [number, 2.0], "y": [0.0, 0.0]})
        spec = Spec(**{f"x{number}": "x"})
        assert float(tensors(soa, spec)[0][0]) == number
        if number % 5 == 0:
            adapter.forward(abs, (soa, spec), (soa, Spec(**{f"y{number}": "y"})))
            assert soa["y"].tolist() == [number, 2]
        assert len(layout.plans) <= 20 + 2 * len(layout)
