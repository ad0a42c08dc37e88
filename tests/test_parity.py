"""What the C++ package for PyTorch tests, test by test and by its names: here for torch and JAX.

Its layouts and networks are the CMS experiment's; values and code are of our own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, Spec, Value

NEEDS = ["torch", "jax"]

EXAMPLES = Path(__file__).parents[1] / "examples"

SOA = Layout(
    [
        Column("a", "float64", (3,)),
        Column("b", "float64", (3,)),
        Column("c", "float32", (2, 2)),
        Column("x", "float64"),
        Column("y", "float64"),
        Column("z", "float64"),
        Scalar("type", "float32"),
        Scalar("someNumber", "int32"),
        Column("v", "float64"),
        Column("w", "float64"),
    ]
)
REGISTERED = Spec(
    vector=["a", "b"],
    single_vector="a",
    matrix="c",
    column=["x", "y", "z"],
    single_column=["x"],
    scalar=["type"],
)
ORDER = "column", "scalar", "matrix", "vector", "single_column", "single_vector"

FRAMEWORKS = {
    "torch": (torch, soaview_torch.tensors, soaview_torch.forward),
    "jax": (jax.numpy, soaview_jax.arrays, soaview_jax.forward),
}


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    with jax.enable_x64(True):
        numbers, tensors, forward = FRAMEWORKS[request.param]
        yield SimpleNamespace(np=numbers, tensors=tensors, forward=forward)


@pytest.fixture
def network(monkeypatch):
    """An example by its name, and its network in a framework."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def of(framework, name):
        example = importlib.import_module(name)
        by_torch, by_jax = importlib.import_module("both").networks(example)
        return example, by_torch if framework.np is torch else by_jax

    return of


def filled(rows):
    """Rows that differ in every number."""
    soa, row = SOA.allocate(rows), np.arange(rows)
    for number, name in enumerate("abcxyz"):
        size = soa[name][:0].size or int(np.prod(SOA[name].shape, dtype=int))
        values = 10 * number + np.arange(size).reshape(SOA[name].shape)
        soa[name][...] = values + row.reshape(-1, *[1] * values.ndim)
    soa[Value("type")][...], soa[Value("someNumber")][...] = 4, 5
    return soa


def check(soa, tensors):
    column, scalar, matrix, vector, single_column, single_vector = map(np.asarray, tensors)
    rows = len(soa)
    assert column.shape == (rows, 3)
    assert scalar.shape == single_column.shape == (rows, 1)
    assert (matrix.shape, vector.shape, single_vector.shape) == (
        (rows, 2, 2),
        (rows, 2, 3),
        (rows, 3),
    )
    for number, name in enumerate("xyz"):
        assert (column[:, number] == soa[name]).all()
    assert (scalar == 4).all()
    for i in range(rows):
        assert (matrix[i] == soa["c"][i]).all()
        assert (vector[i] == [soa["a"][i], soa["b"][i]]).all()
        assert single_column[i] == soa["x"][i]
        assert (single_vector[i] == soa["a"][i]).all()


@pytest.mark.parametrize("rows", [64, 1, 0], ids=["interface", "single_element", "no_element"])
def test_interface(framework, rows):
    """Tensors of every kind, in a changed order, of many rows, of one and of none."""
    soa = filled(rows)
    tensors = framework.tensors(soa, REGISTERED.reorder(*ORDER), copy=None)
    assert len(tensors) == 6
    check(soa, tensors)
    if framework.np is torch:
        check(soa, soaview_torch.tensors(soa, REGISTERED.reorder(*ORDER)))  # all of them views


def test_multi_output(framework):
    """Each result of a model goes to its own column."""
    soa = filled(64)
    given, into = (soa, Spec(x="x", y="y")), Spec(v="v", w="w")
    framework.forward(lambda x, y: (x, y), given, (soa, into))
    assert (soa["v"] == soa["x"]).all()
    assert (soa["w"] == soa["y"]).all()
    apart = [(soa, Spec(w="w")), (soa, Spec(v="v"))]
    framework.forward(lambda x, y: {"v": -x, "w": -y}, given, apart)
    assert (soa["v"] == -soa["x"]).all()
    assert (soa["w"] == -soa["y"]).all()


def test_more_outputs_than_asked_for(framework):
    """C++ drops them in silence; here they are refused by name, and nothing is written."""
    soa = filled(8)
    given, into = (soa, Spec(x="x", y="y")), (soa, Spec(v="v"))
    for model, match in (
        (lambda x, y: (x, y), r"the model gave 2 tensors, but the outputs' specs have 1: \['v'\]"),
        (lambda x, y: {"v": x, "w": y}, r"gave tensors \['v', 'w'\], but .* name \['v'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            framework.forward(model, given, into)
    assert not soa["v"].any()


def test_empty_metadata(framework):
    """Of no tensors there are none; a model is not run on nothing."""
    soa = filled(32)
    assert framework.tensors(soa, Spec()) == []
    with pytest.raises(ValueError, match="inputs: a spec has no tensors"):
        framework.forward(lambda: None, (soa, Spec()), (soa, Spec(v="v")))


def test_const_inputs(framework):
    """A model that writes into its input does not reach memory that is read-only."""
    source, out = filled(33), SOA.allocate(33)
    before = source.buffer.root.copy()
    const = SOA.wrap(bytes(before), 33)
    spec = Spec(x="x", xyz=["x", "y", "z"])

    def model(x, xyz):
        if framework.np is torch:
            xyz.mul_(2)
            return xyz[:, 0] + x.add_(1)
        return xyz[:, 0] * 2 + x + 1

    options = {"copy": None} if framework.np is torch else {}
    framework.forward(model, (const, spec), (out, Spec(v="v")), **options)
    assert (out["v"] == 3 * source["x"] + 1).all()
    assert (const.buffer.root == before).all()
    with pytest.raises(BufferError, match="read-only"):
        framework.forward(lambda x, xyz: x, (source, spec), (const, Spec(v="v")))
    if framework.np is torch:
        with pytest.raises(BufferError, match="read-only.*copy=None"):
            soaview_torch.tensors(const, spec)


def test_soa_to_torch(framework):
    """A linear layer from three columns of one SoA to two of another."""
    position = Layout([Column(name, "float32") for name in "xyz"]).allocate(4)
    result = Layout([Column(name, "float32") for name in "xy"]).allocate(4)
    for number, name in enumerate("xyz"):
        position[name][:] = np.arange(4) ** number - 1.5
    weight = np.array([[0.5, -1, 2], [1, 0, -0.25]], "float32")
    there = framework.np.asarray(weight.T)
    framework.forward(
        lambda x: x @ there + 1, (position, Spec(main=list("xyz"))), (result, Spec(r=["x", "y"]))
    )
    wanted = np.stack([*position.values()], axis=1) @ weight.T + 1
    np.testing.assert_allclose(np.stack([*result.values()], axis=1), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["simple_net", "tiny_resnet"])
def test_mini_batch(framework, network, name):
    """In batches, the last one short, results are those of the whole, within 1e-5 of them."""
    example, model = network(framework, name)
    inputs, (out, spec) = example.event(80)
    found = []
    for batch_size in (None, 32):
        framework.forward(model, inputs, (out, spec), batch_size=batch_size)
        found.append(np.array(next(iter(out.values()))))
        out.buffer.root[:] = 0
    whole, parts = found
    assert (np.abs(parts - whole) < 1e-5 * np.abs(whole)).all()


def test_fp16(framework, network):
    """Half precision is within one percent of single, into columns of single precision."""
    example, model = network(framework, "simple_net")
    (soa, spec), (out, to) = example.event(64)
    for column in soa.values():
        column[:] = np.abs(column) % 1
    if framework.np is torch:
        half = example.Net().eval()
        half.load_state_dict(model.state_dict())
        half.half()
    else:
        half = jax.tree.map(lambda leaf: leaf.astype("float16"), model)
    framework.forward(model, (soa, spec), (out, to))
    single, seen = out["reco_pt"].copy(), []
    out["reco_pt"][:] = 0

    def watched(x):
        seen.append(str(x.dtype))
        return half(x)

    framework.forward(watched, (soa, spec), (out, to), dtype="float16")
    assert [name.removeprefix("torch.") for name in seen] == ["float16"]
    assert out["reco_pt"].dtype == "float32"
    assert (np.abs(out["reco_pt"] - single) <= 0.01 * np.abs(single)).all()
    assert (out["reco_pt"] != single).any()


def test_masked_net(framework, network):
    """One of three features is masked for all rows, by a vector, and nothing by the scalar."""
    example, model = network(framework, "masked_net")
    [(particles, _), (mask, _)], (out, to) = inputs, output = example.event(50)
    assert output == (out, to)
    mask["mask"][...] = [0, 1, 0]
    framework.forward(model, inputs, output)
    np.testing.assert_allclose(out["reco_pt"], particles["pt"] + particles["phi"], rtol=1e-6)
    mask[Value("scalar_mask")][...] = 1
    framework.forward(model, inputs, output)
    assert not out["reco_pt"].any()


def test_tiny_resnet(framework, network):
    """Matrices are images: of each the probabilities add up to one."""
    example, model = network(framework, "tiny_resnet")
    inputs, (out, to) = example.event(33)
    framework.forward(model, inputs, (out, to))
    assert (np.abs(out["logits"].sum(axis=1) - 1) < 1e-4).all()


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_track_hit_deep_set(framework, network, size):
    """Tracks in batches, with the first track of each; hits, and whose they are, whole."""
    example, model = network(framework, "track_hit_deep_set")
    wholly, (whole, to) = example.event(50)
    framework.forward(model, wholly, (whole, to))
    batch_size, seen = [size, None, None, 1], []
    inputs, (out, _) = example.event_in_batches(50, batch_size)

    def watched(*given):
        seen.append([tuple(tensor.shape) for tensor in given])
        return model(*given)

    framework.forward(watched, inputs, (out, to), batch_size=batch_size)
    assert (np.abs(out["reco_pt"] - whole["reco_pt"]) <= 1e-5 * whole["reco_pt"]).all()
    tracks = {min(size, 50), 50 % size or size}
    wanted = {((min(n, 50), 3), (200, 3), (200, 1), (1, 1)) for n in tracks}
    assert {tuple(shapes) for shapes in seen} == wanted
    if framework.np is torch:
        assert len(seen) == -(-50 // size)


def test_batches_that_are_not_as_many(framework, network):
    """Every input that is sliced makes the same number of batches; an empty one makes none."""
    example, model = network(framework, "track_hit_deep_set")
    inputs, outputs = example.event_in_batches(50, [10])
    with pytest.raises(ValueError, match="makes 3 batches of 50 rows by 20, but 5 of 5 rows by 1"):
        framework.forward(model, inputs, outputs, batch_size=[20, None, None, 1])
    inputs, outputs = example.event_in_batches(0, [10])
    framework.forward(model, inputs, outputs, batch_size=[10, None, None, 1])


MAPS = {
    dtype: Blocks(
        {
            "content": Layout([Column("values", "uint32"), Column("fraction", "float32")]),
            "offsets": Layout([Column("keys_offsets", dtype)]),
        }
    )
    for dtype in ("uint32", "uint64")
}


@pytest.mark.parametrize("dtype", MAPS)
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_association_map(dtype, closed):
    """Values by key, of two blocks as they are; the last offset may be left to the row count."""
    counts = [3, 0, 2, 4]
    starts = np.cumsum([0, *counts])[: None if closed else -1]
    soas = MAPS[dtype].allocate({"content": 9, "offsets": len(starts)})
    content, offsets = soas["content"], soas["offsets"]["keys_offsets"]
    content["values"][:], content["fraction"][:] = np.arange(9), np.arange(9) / 8
    offsets[:] = starts
    ids = np.repeat(range(4), counts)
    ends = offsets if closed else np.append(offsets, offsets.dtype.type(len(content)))
    [values, fraction] = soaview_torch.jagged(
        content, Spec(v="values", f="fraction"), ends, copy=False
    )
    assert fraction.values().data_ptr() == content["fraction"].ctypes.data
    for key, event in enumerate(values.unbind()):
        assert event.tolist() == np.flatnonzero(ids == key).tolist()
    # What comes after the last offset is the last key's, and so the end may be missing.
    [there] = soaview_torch.tensors(soas["offsets"], Spec(o="keys_offsets"))
    for given in (offsets, there):
        assert soaview_torch.segments(content, given).tolist() == ids.tolist()
    assert soaview_jax.segments(content, offsets).tolist() == ids.tolist()
    sums = jax.ops.segment_sum(content["fraction"], soaview_jax.segments(content, offsets), 4)
    np.testing.assert_allclose(sums, [content["fraction"][ids == key].sum() for key in range(4)])
    with jax.enable_x64(dtype == "uint64"):  # a map is an argument of jit, too
        inside = jax.jit(
            lambda soas: soaview_jax.segments(
                soas["content"], *soaview_jax.arrays(soas["offsets"], Spec(o="keys_offsets"))
            )
        )
        assert inside(soas).tolist() == ids.tolist()
