"""Rows by events: nested tensors of torch's, segment ids for JAX."""

from __future__ import annotations

from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from events import COUNTS, LAYOUT, OFFSETS, filled
from places import PretendedMemory
from torch._subclasses import FakeTensorMode

import soaview_jax
import soaview_torch
from soaview import Layout, Scalar, Spec
from soaview_torch import jagged

NEEDS = ["torch", "jax"]

soa = pytest.fixture(filled)


@pytest.mark.parametrize("entry", ["x", ["x", "y"], "v", "m", "s"], ids=str)
def test_jagged_tensors_alias(soa, entry):
    """Their values are the tensors themselves: pointer and strides; events are their rows."""
    spec = Spec(t=entry)
    [nested], [plain] = jagged(soa, spec, OFFSETS), soaview_torch.tensors(soa, spec)
    values = nested.values()
    assert values.data_ptr() == plain.data_ptr()
    assert (values.stride(), values.shape, values.dtype) == (
        plain.stride(),
        plain.shape,
        plain.dtype,
    )
    assert nested.layout is torch.jagged
    for number, event in enumerate(nested.unbind()):
        assert torch.equal(event, plain[OFFSETS[number] : OFFSETS[number + 1]])
    if entry != "s":
        soa.buffer.root[:] = 0
        assert not values.any()


@pytest.mark.parametrize(
    "cuts",
    [
        {"offsets": OFFSETS},
        {"offsets": OFFSETS.tolist()},
        {"offsets": OFFSETS.astype("int32")},
        {"offsets": OFFSETS.astype("uint8")},
        {"offsets": torch.from_numpy(OFFSETS)},
        {"counts": COUNTS},
        {"counts": torch.from_numpy(COUNTS).int()},
        {"counts": COUNTS.astype("uint16")},
    ],
    ids=lambda cuts: f"{next(iter(cuts))}-{type(next(iter(cuts.values()))).__name__}",
)
def test_offsets_and_counts(soa, cuts):
    """Both cut alike, from any integers, in torch and in JAX."""
    x, y = jagged(soa, Spec(x="x", y="y"), **cuts)
    wanted = np.add.reduceat(np.append(soa["x"] + soa["y"], 0), OFFSETS[:-1]) * (COUNTS > 0)
    np.testing.assert_allclose((x + y).sum(1).numpy(), wanted, rtol=1e-5, atol=1e-6)
    ids = soaview_jax.segments(soa, **{key: np.asarray(value) for key, value in cuts.items()})
    assert ids.dtype == "int32"
    assert ids.tolist() == np.repeat(range(5), COUNTS).tolist()


def test_jagged_is_independent_of_the_offsets(soa):
    """They are kept as a copy: the SoA that they came from may change."""
    offsets = OFFSETS.copy()
    [x] = jagged(soa, Spec(x="x"), offsets)
    offsets[:] = 99
    assert x.offsets().tolist() == OFFSETS.tolist()
    [x] = jagged(soa, Spec(x="x"), OFFSETS, copy=True)
    x.values()[:] = 0
    assert soa["x"].all()


def test_jagged_of_few(soa):
    """One event, none, and events of a slice."""
    [x] = jagged(soa, Spec(x="x"), [0, 10])
    assert x.shape[0] == 1
    [x] = jagged(soa[2:7], Spec(v="v"), counts=[1, 4])
    assert torch.equal(x.values(), torch.from_numpy(soa["v"][2:7]))
    for cuts in ({"offsets": [0]}, {"counts": []}, {"counts": [0, 0]}):
        [x] = jagged(soa[:0], Spec(x="x"), **cuts)
        assert x.shape[0] == len(cuts.get("counts", ()))
        assert soaview_jax.segments(soa[:0], **cuts).shape == (0,)
    assert jagged(soa, Spec(), OFFSETS) == []


BAD_CUTS = {
    "neither": ({}, TypeError, "either offsets.*or counts="),
    "both": ({"offsets": OFFSETS, "counts": COUNTS}, TypeError, "either"),
    "past the end": (
        {"offsets": [0, 3, 11]},
        ValueError,
        "between 0 and the SoA's 10 rows, got 11",
    ),
    "a late start": ({"offsets": [1, 10]}, ValueError, "start at row 0, got 1"),
    "a step back": ({"offsets": [0, 7, 5, 10]}, ValueError, "must not decrease, got a step of -2"),
    "negative": (
        {"counts": [11, -1]},
        ValueError,
        "counts must be between 0 and the SoA's 10 rows, got -1",
    ),
    "floats": ({"offsets": [0.0, 10.0]}, TypeError, "integers along one axis, got .*float"),
    "bools": ({"counts": [True] * 10}, TypeError, "integers along one axis, got .*bool"),
    "a matrix": ({"offsets": [[0, 10]]}, TypeError, r"one axis, got .* of shape \(1, 2\)"),
    "a number": ({"counts": 10}, TypeError, r"one axis, got .* of shape \(\)"),
    "empty": ({"offsets": []}, ValueError, "offsets are empty"),
    "too many": ({"counts": [5, 6]}, ValueError, "the events have 11 rows, the SoA has 10"),
    "huge": ({"offsets": np.array([0, 2**64 - 1], "uint64")}, ValueError, "between 0 and"),
    "masked": ({"offsets": np.ma.array([0, 5, 10], mask=[0, 1, 0])}, TypeError, "mask would be"),
    "without memory": ({"offsets": torch.zeros(2, dtype=int, device="meta")}, TypeError, "offsets"),
    "sparse": ({"offsets": torch.tensor([0, 10]).to_sparse()}, TypeError, "offsets must be"),
    "many": ({"counts": [2**62, 2**62]}, ValueError, "between 0 and the SoA's 10 rows, got 4611"),
}


@pytest.mark.parametrize("bad", BAD_CUTS, ids=str)
def test_bad_cuts(soa, bad):
    """Offsets that would reach past the rows, or cut nothing, are refused by both."""
    cuts, error, match = BAD_CUTS[bad]
    with pytest.raises(error, match=match):
        jagged(soa, Spec(x="x"), **cuts)
    for segments in SEGMENTS:
        with pytest.raises(error, match=match):
            segments(soa, **cuts)


SEGMENTS = [soaview_torch.segments, soaview_jax.segments]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize(
    ("counts", "total"),
    [
        ([2**61] * 9, 9 * 2**61),
        ([2**62] * 2, 2**63),
        ([2**61, 2**62, 2**62, 2**62, 2**62], 2**61 + 2**64),
        ([2**62, *[0] * 6, *[2**62] * 4], 5 * 2**62),
    ],
    ids=str,
)
def test_sums_that_64_bits_do_not_hold(kind, counts, total):
    """Counts are added exactly, however many rows they make together."""
    huge = Layout([Scalar("n", "int8")]).allocate(2**62)
    with pytest.raises(ValueError, match=f"the events have {total} rows, the SoA has {2**62}"):
        jagged(huge, Spec(n="n"), counts=kind(counts))
    calls = [lambda: soaview_torch.segments(huge, counts=kind(counts))]
    if kind is not torch.tensor:
        calls += [lambda: x64(lambda: soaview_jax.segments(huge, counts=kind(counts)))]
    for call in calls:
        with pytest.raises(ValueError, match=f"the events have {total} rows, the SoA has"):
            call()


def x64(call):
    with jax.enable_x64(True):
        return call()


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize("counts", [[2**62], [0, 2**62, 0], [2**61, 0, 2**61], [2**60] * 4, []])
def test_sums_that_64_bits_hold(kind, counts):
    """As many events as rows allow are cut exactly where they are, however large they are."""
    rows = sum(counts)
    huge = Layout([Scalar("n", "int8")]).allocate(rows)
    given = kind(counts) if counts else np.array(counts, "int64")
    [n] = jagged(huge, Spec(n="n"), counts=given)
    assert n.offsets().tolist() == [0, *accumulate(counts)]


def test_rows_after_the_last_event(soa):
    """`jagged` says how to leave them out; of segments, they belong to an event after the last."""
    with pytest.raises(ValueError, match=r"have 7 rows, the SoA has 10; take its slice, soa\[:7\]"):
        jagged(soa, Spec(x="x"), counts=[3, 4])
    ids = soaview_jax.segments(soa, counts=[3, 4])
    assert ids.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    sums = jax.ops.segment_sum(jnp.array(soa["x"]), ids, num_segments=2)
    wanted = [soa["x"][:3].sum(), soa["x"][3:7].sum()]
    np.testing.assert_allclose(sums, wanted, rtol=1e-5)
    ids = soaview_torch.segments(soa, counts=[3, 4])
    assert ids.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    [x] = soaview_torch.tensors(soa, Spec(x="x"))
    sums = torch.zeros(3).index_add(0, ids, x)[:2]
    np.testing.assert_allclose(sums, wanted, rtol=1e-5)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        torch.zeros(2).index_add(0, ids, x)


@pytest.mark.parametrize("rows", [0, 1, 10])
def test_segments_in_torch(rows):
    """Ids of int64 for `index_add` and `scatter_reduce`, with gradients, in every mode."""
    soa = LAYOUT.allocate(rows)
    soa["x"][:] = np.arange(1, rows + 1)
    counts = np.bincount(np.arange(rows) // 3, minlength=2)
    for given in (counts, torch.from_numpy(counts), counts.tolist()):
        ids = soaview_torch.segments(soa, counts=given)
        assert (ids.dtype, ids.device.type, ids.shape) == (torch.int64, "cpu", (rows,))
        assert ids.tolist() == [row // 3 for row in range(rows)]
    with torch.inference_mode():
        ids = soaview_torch.segments(soa, np.cumsum([0, *counts]))
    assert ids.tolist() == [row // 3 for row in range(rows)]
    [x] = soaview_torch.tensors(soa, Spec(x="x"))
    weight = torch.ones(rows, requires_grad=True)
    pooled = torch.zeros(len(counts)).index_add(0, ids, x * weight)
    (pooled**2).sum().backward()
    assert weight.grad.tolist() == [2 * pooled[i] * v for i, v in zip(ids, x, strict=True)]
    most = torch.zeros(len(counts)).scatter_reduce(0, ids, x, "amax")
    assert most.tolist() == [x[ids == i].max().item() if c else 0 for i, c in enumerate(counts)]
    ids.fill_(0)
    assert soa["x"].tolist() == list(range(1, rows + 1))


def test_segments_need_no_memory_to_write(soa):
    """Read-only memory, a slice, and what JAX made have segments, too."""
    frozen = LAYOUT.wrap(bytes(soa.buffer.root), 10)
    made = jax.device_put(soa)
    for some in (frozen, made, soa[2:7], frozen[2:7]):
        counts = [1, len(some) - 2]
        wanted = [0, *[1] * (len(some) - 2), 2]
        assert soaview_torch.segments(some, counts=counts).tolist() == wanted
    elsewhere = LAYOUT.from_pointer(1 << 40, 10, device="cuda:99")
    with pytest.raises(BufferError, match="torch does not take memory on cuda:99"):
        soaview_torch.segments(elsewhere, counts=[10])
    with pytest.raises(BufferError, match="the SoA is JAX's, on no device: it is traced; outside"):
        jax.jit(lambda s: soaview_torch.segments(s, counts=[10]))(soa)


def test_segments_of_a_device(soa):
    """They are made where the memory is."""
    there = PretendedMemory().wrap(LAYOUT, soa.buffer.root, 10)
    ids = soaview_torch.segments(there, counts=torch.tensor([4, 6]))
    assert ids.tolist() == [0] * 4 + [1] * 6


@pytest.mark.parametrize("cuts", [OFFSETS, [0, 10], [0, 4, 10], [0, 0, 10]], ids=str)
def test_the_lengths_that_torch_is_told(soa, cuts):
    """The rows of the shortest and longest event, which torch would have to look for."""
    for given in ({"offsets": cuts}, {"counts": torch.tensor(np.diff(cuts))}):
        [x] = jagged(soa, Spec(x="x"), **given)
        assert x._maybe_min_seqlen == min(np.diff(cuts))
        assert x._maybe_max_seqlen == max(np.diff(cuts))
    [x] = jagged(soa[:0], Spec(x="x"), [0])
    assert (x._maybe_min_seqlen, x._maybe_max_seqlen) == (0, 0)


def odd_cuts():
    """Tensors of integers that are not simply memory."""
    with FakeTensorMode():
        fake = torch.tensor([0, 10])
    plain = torch.tensor([0, 10])
    return {
        "fake": fake,
        "a subclass": plain.as_subclass(type("Own", (torch.Tensor,), {})),
        "functional": torch._to_functional_tensor(plain),
        "zero": torch._efficientzerotensor(2, dtype=torch.int64),
        "nested": torch.nested.nested_tensor([plain], layout=torch.jagged),
    }


@pytest.mark.parametrize("kind", ["fake", "a subclass", "functional", "zero", "nested"])
def test_cuts_that_are_no_memory(soa, kind):
    """Tensors around which torch has put something are refused before they are read."""
    odd = odd_cuts()[kind]
    for call in (jagged, lambda soa, _, odd: soaview_torch.segments(soa, odd)):
        with pytest.raises(TypeError, match="offsets must be a plain dense tensor, got"):
            call(soa, Spec(x="x"), odd)
    with pytest.raises(TypeError, match="counts must be a plain dense tensor"):
        torch.func.vmap(lambda c: soaview_torch.segments(soa, counts=c))(torch.tensor([[4, 6]]))
