"""Blocks of several SoAs in both frameworks."""

from __future__ import annotations

import copy
import pickle

import jax
import numpy as np
import pytest
import torch
from events import LAYOUT
from jax.sharding import NamedSharding, PartitionSpec
from places import PretendedMemory

import soaview_jax
import soaview_torch
from soaview import Blocks, Column, Layout, Spec

NEEDS = ["torch", "jax"]

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
    at = owner.data_ptr(), len(owner), False, 1, 0
    there = place.memory(*at, source=owner, owner=owner)
    soas = type(found)(BLOCKS, ROWS, place.buffer(there, len(owner), 8))
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


def test_blocks_moved_by_jax():
    """To a device, and split over a mesh."""
    found = event()
    mesh = jax.make_mesh((1,), ("rows",))
    for device in (jax.devices()[0], NamedSharding(mesh, PartitionSpec("rows"))):
        moved = soaview_jax.to(found, device)
        np.testing.assert_array_equal(moved["hits"]["t"], found["hits"]["t"])
        assert moved.layout == BLOCKS


NESTED = Blocks({"first": LAYOUT, "inner": BLOCKS})
NESTED_ROWS = {"first": 5, "inner": ROWS}


def test_blocks_in_blocks():
    """In torch one buffer; in JAX a pytree of pytrees, in and out of `jit`, exported and moved."""
    soas = soaview_torch.empty(NESTED, NESTED_ROWS)
    assert soas.buffer.nbytes == NESTED.nbytes(NESTED_ROWS)
    soas.buffer.root[...] = 0
    [t] = soaview_torch.tensors(soas["inner"]["hits"], Spec(t="t"))
    t += 2
    assert soaview_torch.to(soas, "cpu") is soas
    mesh = jax.make_mesh((1,), ("rows",))

    @jax.jit
    def doubled(soas):
        inner, spec = soas["inner"], Spec(t="t")
        [t] = soaview_jax.arrays(inner["hits"], spec)
        hits = soaview_jax.update(inner["hits"], spec, [2 * t])
        return soas.replace({"inner": inner.replace({"hits": hits})})

    with jax.enable_x64(True):
        exported = jax.export.export(doubled)(soas)
        again = jax.export.deserialize(exported.serialize()).call(soas)
        moved = soaview_jax.to(soas, NamedSharding(mesh, PartitionSpec("rows")))
        for made in (doubled(soas), again, doubled(moved)):
            assert made.layout == NESTED
            assert made.rows == NESTED_ROWS
            assert (np.asarray(made["inner"]["hits"]["t"]) == 4).all()
            assert (copy.deepcopy(made)["inner"]["hits"]["t"] == 4).all()
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(soas)]
    assert "['inner']['hits']['t']" in paths
