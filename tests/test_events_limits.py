"""What torch cannot do with nested tensors of an SoA, as the docstrings say.

Where one of these fails because torch now can, take the sentence out.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from events import COUNTS, LAYOUT, OFFSETS, filled
from torch.nn.attention import SDPBackend, sdpa_kernel

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec, Value
from soaview_torch import jagged

NEEDS = ["torch", "jax"]


soa = pytest.fixture(filled)


@pytest.mark.parametrize("copied", [False, True])
def test_torch_has_no_gradient_of_jagged_sums(soa, copied):
    """Neither of `sum` nor of `mean`; of `amax`, and of `segments` with `index_add`, it has."""
    [x] = jagged(soa, Spec(x=["x", "y"]), OFFSETS, copy=copied)
    weight = torch.ones(2, requires_grad=True)
    for reduced in ((x * weight).sum(1), (x * weight).mean(1)):
        with pytest.raises(
            (NotImplementedError, RuntimeError), match="_nested_sum_backward|SymInt"
        ):
            reduced.sum().backward()
    (x * weight).amax(1).sum().backward()
    weight.grad = None
    ids = soaview_torch.segments(soa, OFFSETS)
    sums = torch.zeros(5, 2).index_add(0, ids, (x * weight).values())
    (sums * torch.arange(5)[:, None]).sum().backward()
    wanted = (soa[["x", "y"]] * ids.numpy()[:, None]).sum(0)
    np.testing.assert_allclose(weight.grad, wanted, rtol=1e-5)


def heads(nested):
    """Two heads of four columns."""
    return nested.unflatten(-1, [2, 4]).transpose(1, 2)


def wide(rows=40):
    soa = Layout([Column(f"c{i}", "float32") for i in range(8)]).allocate(rows)
    for number, name in enumerate(soa):
        soa[name][:] = np.random.default_rng(number).normal(size=rows)
    return soa, Spec(x=list(soa))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # torch's own
def test_torch_attends_to_no_strided_columns():
    """Over nested tensors of strided columns it finds no backend; over copies it does."""
    soa, spec = wide()
    counts = [10, 20, 10]
    [strided] = jagged(soa, spec, counts=counts)
    # A torch that is built for CUDA looks for a device first.
    with pytest.raises(RuntimeError, match="No viable backend for scaled_dot_product|CUDA error"):
        F.scaled_dot_product_attention(*[heads(strided)] * 3)
    [copied] = jagged(soa, spec, counts=counts, copy=True)
    found = F.scaled_dot_product_attention(*[heads(copied)] * 3)
    for given, event in zip(copied.unbind(), found.unbind(), strict=True):
        h = given.unflatten(-1, [2, 4]).transpose(0, 1)
        torch.testing.assert_close(event, F.scaled_dot_product_attention(h, h, h))
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.inference_mode(), pytest.raises(AssertionError, match="not support NestedTensor"):
        attention(copied, copied, copied)
    padded = copied.to_padded_tensor(0.0)
    assert attention(padded, padded, padded)[0].shape == (3, 20, 8)


def test_flash_attention_takes_no_strided_columns():
    """Where it is demanded, it is not available for a strided last axis; for a copy it is."""
    soa = Layout([Column(f"c{i}", "float32", (8,)) for i in range(6)]).allocate(40)
    out = Layout([Column(f"o{i}", "float32", (8,)) for i in range(6)]).allocate(40)
    pairs = (soa, Spec(x=list(soa))), (out, Spec(y=list(out)))

    def attend(x):
        h = x.unflatten(-1, [2, 4]).transpose(1, 2)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(h, h, h).transpose(1, 2).flatten(2)

    with (
        warnings.catch_warnings(action="ignore"),  # in which torch says why not
        pytest.raises(RuntimeError, match="No available kernel"),
    ):
        soaview_torch.forward(attend, *pairs)
    soaview_torch.forward(attend, *pairs, copy=True)


def test_a_value_has_no_rows(soa):
    """A scalar as it is cannot be cut; no SoA, no spec: neither."""
    with pytest.raises(ValueError, match="'s' is one value, and has no rows"):
        jagged(soa, Spec(x="x", s=Value("s")), OFFSETS)
    with pytest.raises(TypeError, match="soa must be an SoA"):
        jagged(None, Spec(x="x"), OFFSETS)
    with pytest.raises(TypeError, match="soa must be an SoA"):
        soaview_jax.segments(None, OFFSETS)


def test_segments_inside_jit(soa):
    """Offsets may be traced: one compilation for all of that length, none of them checked."""
    traced = []

    @jax.jit
    def sums(soa, offsets, counts):
        traced.append(1)
        [x] = soaview_jax.arrays(soa, Spec(x="x"))
        one = soaview_jax.segments(soa, offsets)
        other = soaview_jax.segments(soa, counts=counts)
        return [jax.ops.segment_sum(x, ids, num_segments=5) for ids in (one, other)]

    for offsets in (OFFSETS, np.array([0, 1, 2, 5, 5, 9])):
        one, other = sums(soa, offsets, np.diff(offsets))
        wanted = [soa["x"][a:b].sum() for a, b in pairwise(offsets)]
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one, other)
    assert len(traced) == 1


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int32"])
def test_small_integers_inside_jit(dtype):
    """Sums of counts are not counted in the counts' own type, nor rows in the offsets'."""
    soa = LAYOUT.allocate(300)
    counts = np.array([100, 100, 100], dtype)
    ids = jax.jit(lambda s, c: soaview_jax.segments(s, counts=c))(soa, counts)
    assert np.bincount(ids).tolist() == [100] * 3
    offsets = np.array([0, 10, 100, 120], dtype)
    ids = jax.jit(soaview_jax.segments)(soa, offsets)
    assert np.bincount(ids).tolist() == [10, 90, 20, 180]


def test_arrays_of_every_kind_cut(soa):
    """Views, other byte orders and tensors are taken; what holds no integers is named."""
    for offsets in (OFFSETS[::-1][::-1], OFFSETS.astype(">i4"), OFFSETS.astype("uint64")):
        [x] = jagged(soa, Spec(x="x"), offsets)
        assert x.offsets().tolist() == OFFSETS.tolist()
        assert soaview_jax.segments(soa, offsets).shape == (10,)
    for wrong in ("abc", {}, [None], [[0], [1, 2]], [2**70], np.array(["2020"], "M8[D]")):
        with pytest.raises(TypeError, match="counts must be integers along one axis"):
            jagged(soa, Spec(x="x"), counts=wrong)
        with pytest.raises(TypeError, match="counts must be integers along one axis"):
            soaview_jax.segments(soa, counts=wrong)


def test_jagged_in_inference_mode(soa):
    """Nested tensors are made, and used, inside of a model that `forward` runs."""
    events = Layout([Column("n", "int64"), Column("sum", "float32")]).allocate(5)
    events["n"][:] = COUNTS

    def model(n, x):
        [nested] = jagged(soa, Spec(x="x"), counts=n)
        return nested.sum(1)

    pairs = [(events, Spec(n="n")), (soa, Spec(x="x"))]
    soaview_torch.forward(model, pairs, (events, Spec(sum="sum")))
    wanted = [soa["x"][a:b].sum() for a, b in pairwise(OFFSETS)]
    np.testing.assert_allclose(events["sum"], wanted, rtol=1e-4, atol=1e-6)
