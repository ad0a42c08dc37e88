"""Rows by events: nested tensors of torch's, segment ids for JAX; blocks in both."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from places import PretendedMemory

import soaview_jax
import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, Spec, Value
from soaview_torch import jagged

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("v", "float64", (3,)),
        Column("m", "float32", (2, 2)),
        Scalar("s", "float32"),
    ]
)
OFFSETS = np.array([0, 3, 3, 4, 10, 10])
COUNTS = np.diff(OFFSETS)


@pytest.fixture
def soa():
    soa, random = LAYOUT.allocate(10), np.random.default_rng(0)
    for name in ("x", "y", "v", "m"):
        soa[name][...] = random.normal(size=soa[name].shape)
    return soa


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
    with pytest.raises(error, match=match):
        soaview_jax.segments(soa, **cuts)


def test_rows_after_the_last_event(soa):
    """Torch refuses them, and says how to leave them out; in JAX they belong to no event."""
    with pytest.raises(ValueError, match=r"have 7 rows, the SoA has 10; take its slice, soa\[:7\]"):
        jagged(soa, Spec(x="x"), counts=[3, 4])
    ids = soaview_jax.segments(soa, counts=[3, 4])
    assert ids.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    sums = jax.ops.segment_sum(jnp.array(soa["x"]), ids, num_segments=2)
    np.testing.assert_allclose(sums, [soa["x"][:3].sum(), soa["x"][3:7].sum()], rtol=1e-5)


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


BLOCKS = Blocks({"tracks": LAYOUT, "hits": Layout([Column("x", "float32"), Column("t", "int32")])})
ROWS = {"tracks": 10, "hits": 33}


def event():
    found = BLOCKS.allocate(ROWS)
    found["tracks"]["x"][:] = np.arange(10)
    found["hits"]["t"][:] = np.arange(33) % 10
    return found


def test_blocks_in_torch():
    """Blocks are allocated, wrapped and moved as one; each gives its tensors."""
    found = event()
    assert soaview_torch.to(found, "cpu") is found
    empty = soaview_torch.empty(BLOCKS, ROWS)
    assert empty["hits"].buffer.address == empty.buffer.address + BLOCKS.offset("hits", ROWS)
    memory = torch.zeros(BLOCKS.nbytes(ROWS), dtype=torch.uint8)
    [t] = soaview_torch.tensors(BLOCKS.wrap(memory, ROWS)["hits"], Spec(t="t"))
    t[:] = 1
    assert int(memory.sum()) == 33
    with pytest.raises(TypeError, match="layout must be a Layout or Blocks"):
        soaview_torch.empty({}, ROWS)
    with pytest.raises(KeyError, match="no row count for block 'hits'"):
        soaview_torch.empty(BLOCKS, {"tracks": 1})


def test_blocks_of_a_device(monkeypatch):
    """Each block finds its bytes in the memory of all; they are moved in one transfer."""
    found = event()
    owner = torch.from_numpy(found.buffer.root)
    place = PretendedMemory()
    there = place.memory(owner.data_ptr(), len(owner), False, 1, 0, source=owner)
    soas = type(found)(BLOCKS, ROWS, place.buffer(there, owner, len(owner), 8))
    [t] = soaview_torch.tensors(soas["hits"], Spec(t="t"))
    assert t.data_ptr() == owner.data_ptr() + soas["hits"].buffer.memory.first + 256
    np.testing.assert_array_equal(t, found["hits"]["t"])
    soaview_torch.write(soas["hits"], Spec(x="x"), [torch.ones(33)])
    assert found["hits"]["x"].all()
    [t] = soaview_jax.arrays(soas["hits"], Spec(t="t"))
    np.testing.assert_array_equal(t, found["hits"]["t"])
    copies = []
    real = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda self, *a, **k: copies.append(1) or real(self, *a, **k)
    )
    monkeypatch.setattr(
        soaview_torch._move, "empty", lambda layout, rows, device: BLOCKS.allocate(rows)
    )
    moved = soaview_torch.to(found, "meta")  # which stands for a device
    assert len(copies) == 1
    np.testing.assert_array_equal(moved["hits"]["t"], found["hits"]["t"])


def test_blocks_in_jax():
    """Blocks are a pytree of their SoAs, in and out of `jit`, and are exported."""
    found = event()

    @jax.jit
    def gather(soas):
        [x] = soaview_jax.arrays(soas["tracks"], Spec(x="x"))
        [t] = soaview_jax.arrays(soas["hits"], Spec(t="t"))
        hits = soaview_jax.update(soas["hits"], Spec(x="x"), [x[t]])
        return soas.replace({"hits": hits})

    with jax.enable_x64(True):
        made = gather(found)
        exported = jax.export.export(gather)(found)
        again = jax.export.deserialize(exported.serialize()).call(found)
    for soas in (made, again):
        assert soas.readonly
        assert soas.device == "cpu"
        np.testing.assert_array_equal(soas["hits"]["x"], np.arange(33) % 10)
        for own in (copy.deepcopy(soas), pickle.loads(pickle.dumps(soas))):
            np.testing.assert_array_equal(own["hits"]["x"], np.arange(33) % 10)
            assert own.buffer.nbytes == BLOCKS.nbytes(ROWS)
        assert copy.copy(soas)["hits"] is soas["hits"]
    with pytest.raises(BufferError, match="not in one buffer, for JAX made them"):
        _ = made.buffer
    assert soaview_torch.to(made, "cpu") is made
    keys = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(found)]
    assert keys[0] == "['tracks']['x:y']"


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


def test_blocks_moved_by_jax():
    """To a device, and split over a mesh."""
    found = event()
    mesh = jax.make_mesh((1,), ("rows",))
    for device in (jax.devices()[0], NamedSharding(mesh, PartitionSpec("rows"))):
        moved = soaview_jax.to(found, device)
        np.testing.assert_array_equal(moved["hits"]["t"], found["hits"]["t"])
        assert moved.layout == BLOCKS
