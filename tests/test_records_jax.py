"""Records that are bound whole, in JAX: one leaf of words, which is the memory itself."""

from __future__ import annotations

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bound import fields_of, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Spec, bind, explain
from soaview_jax import arrays, forward, to, update, write

NEEDS = ["jax"]
N = 5

KINDS = ["bool", "i1", "u2", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"]
PLAIN = np.dtype([("x", "f4"), ("y", "f4"), ("q", "i1"), ("m", "i4")], align=True)


def filled(rows, dtype, past=0):
    """Records that start so many bytes past a multiple of 64, each value another one."""
    memory = np.zeros(rows * dtype.itemsize + 128, np.uint8)
    first = -memory.ctypes.data % 64 + past
    records = memory[first : first + rows * dtype.itemsize].view(dtype)
    for number, name in enumerate(dtype.names):
        part = records[name]
        if part.dtype.names is None:
            part[...] = values_of(part.shape, part.dtype, 7 * number)
    return records


@st.composite
def record_dtypes(draw):
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    shapes = [draw(st.sampled_from([(), (), (2,), (2, 3)])) for _ in kinds]
    fields = [
        (f"f{i}", kind, shape) for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
    ]
    dtype = np.dtype(fields, align=draw(st.booleans()))
    if draw(st.booleans()):  # something before the first, and behind the last
        at = [8 + dtype.fields[name][1] for name in dtype.names]
        formats = [dtype.fields[name][0] for name in dtype.names]
        parts = {"names": dtype.names, "formats": formats, "offsets": at}
        dtype = np.dtype({**parts, "itemsize": 8 + dtype.itemsize + draw(st.integers(0, 9))})
    return dtype


@given(record_dtypes(), st.integers(0, 4), st.sampled_from([0, 8, 4, 1]), st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_values(dtype, rows, past, step):
    """Whatever the fields are and wherever they lie: what NumPy reads, inside of `jit`."""
    records = filled(rows * step, dtype, past)[::step]
    with jax.enable_x64(True):
        soa = bind(records)
        [leaf] = jax.tree.leaves(soa)
        assert not leaf.size or np.shares_memory(leaf, records)
        spec = Spec({name: name for name in dtype.names})
        made = jax.jit(lambda soa: (arrays(soa, spec), soa))
        for part, expected in ((soa, records), (soa[1:3], records[1:3])):
            found, same = made(part)
            for name, array in zip(dtype.names, found, strict=True):
                np.testing.assert_array_equal(array, expected[name])
                assert array.dtype == expected[name].dtype
                np.testing.assert_array_equal(same[name], expected[name])


@pytest.mark.parametrize("past", [0, 16])
def test_one_leaf(past):
    """It is the memory itself, for one trace wherever it lies; the fields one by one are leaves."""
    traced = []

    @jax.jit
    def total(soa):
        traced.append(soa)
        return sum(array.sum() for array in arrays(soa, Spec(xy=["x", "y"], m="m")))

    records = filled(N, PLAIN, past)
    soa = bind(records)
    for rows in (records, filled(N, PLAIN, 32)):
        assert total(bind(rows)) == sum(rows[name].sum() for name in "xym")
    records["x"] += 1  # each call reads it anew
    assert total(soa) == sum(records[name].sum() for name in "xym")
    assert len(traced) == 1
    [(path, leaf)] = jax.tree_util.tree_leaves_with_path(soa)
    assert (path[0].key, leaf.shape, leaf.dtype) == ("x:m", (N, 4), "uint32")
    assert leaf.ctypes.data == records.ctypes.data
    one_by_one = bind({name: records[name] for name in PLAIN.names})
    assert len(jax.tree.leaves(one_by_one)) == 4
    assert one_by_one.layout != soa.layout
    assert jax.grad(total, allow_int=True)(one_by_one)["x"].tolist() == [1] * N
    verdict = {v.way: v for v in explain(soa, Spec(x="x")).verdicts}["JAX inside jit"]
    assert (verdict.gives, verdict.nbytes) == (("copy", 16 * N) if past else ("view", 0))
    assert ("records that start 16 bytes past" in verdict.why) == (past > 0)
    [verdict] = [v for v in explain(soa[1:], Spec(x="x")).verdicts if v.way == "JAX inside jit"]
    assert f"records that start {16 + past} bytes past" in verdict.why
    found = explain(bind(records[::2]), Spec(x="x")).verdicts
    [verdict] = [v for v in found if v.way == "JAX inside jit"]
    assert "is of records that do not follow each other" in verdict.why


class Exporter:
    """Memory that is no buffer, and says where it is."""

    def __init__(self, memory):
        self.memory = memory
        at = memory.ctypes.data, False
        self.__array_interface__ = {
            "shape": memory.shape,
            "typestr": "|u1",
            "data": at,
            "version": 3,
        }


def test_what_records_begin_and_end_with():
    """What lies before the first field, and behind the last one, goes in with the rest."""
    memory = np.zeros(8 + 20 * N, np.uint8)
    parts = {"names": ["x", "y"], "formats": ["f4", "f4"], "offsets": [8, 12], "itemsize": 20}
    dtype = np.dtype(parts)
    for first in (0, 8):
        part = memory[first : first + 20 * N]
        made = np.asarray(Exporter(part)).view(dtype)
        made["y"] = np.arange(N)
        soa = bind(made)
        [leaf] = jax.tree.leaves(soa)
        assert (leaf.shape, leaf.ctypes.data) == ((N, 5), part.ctypes.data)
        [y] = jax.jit(lambda soa: arrays(soa, Spec(y="y")))(soa)
        assert y.tolist() == [*range(N)]


def test_words_are_as_wide_as_the_fields_allow():
    """Of packed records they are bytes; the form follows from the dtype alone."""
    for fields, size in (
        ([("a", "f8"), ("b", "f8")], 4),
        ([("a", "f4"), ("b", "i2"), ("c", "i2")], 4),
        ([("a", "i2"), ("b", "f4")], 2),
        ([("a", "i1"), ("b", "f4")], 1),
        ([("a", "i1"), ("b", "f4"), ("c", "i1", (3,))], 1),
    ):
        [leaf] = jax.tree.leaves(bind(np.zeros(N, fields)))
        assert leaf.dtype.itemsize == size


def test_64_bits_that_are_off():
    """They pass through as they are, also when these types are switched on later, or off."""
    records = np.zeros(N, [("k", "i8"), ("c", "c16"), ("x", "f4")])
    records["k"], records["c"], records["x"] = np.arange(N) + 2**40, 1e300 + 1j, 2
    soa = bind(records)
    with pytest.raises(TypeError, match="tensor 'k' is int64, and JAX has 64-bit types switched"):
        jax.jit(lambda soa: arrays(soa, Spec(k="k")))(soa)
    changed = jax.jit(lambda soa: update(soa, Spec(x="x"), [jnp.ones(soa.rows)]))(soa)
    same = jax.jit(lambda soa: soa)(soa)
    for made in (changed, same):
        assert made["k"].tolist() == records["k"].tolist()
        assert made["c"].tolist() == records["c"].tolist()
    assert changed["x"].tolist() == [1] * N
    with jax.enable_x64(True):
        [k] = jax.jit(lambda soa: arrays(soa, Spec(k="k")))(same)
        assert k.tolist() == records["k"].tolist()
        assert same["c"].tolist() == records["c"].tolist()


def test_the_tree():
    """It goes apart and together again, whatever its leaf is; stacks are mapped over."""
    soa = bind(filled(N, PLAIN))
    leaves, tree = jax.tree.flatten(soa)
    for thing in (object(), None, jax.ShapeDtypeStruct((N, 4), "uint32"), *leaves):
        again = jax.tree.unflatten(tree, [thing])
        [same] = jax.tree.leaves(again, is_leaf=lambda leaf: leaf is None)
        assert same is thing
    stacked = jax.tree.map(lambda *x: jnp.stack(x), soa, soa)
    found = jax.vmap(lambda soa: arrays(soa, Spec(m="m"))[0])(stacked)
    assert found.tolist() == [soa["m"].tolist()] * 2
    with pytest.raises(ValueError, match="the leaf of 'x:m' has the leading axes"):
        stacked["x"]
    with pytest.raises(ValueError, match="the leaf of 'x:m' has lost its axis of rows"):
        jax.vmap(lambda soa: arrays(soa, Spec(m="m"))[0])(soa)
    _, found = jax.lax.scan(lambda c, soa: (c, arrays(soa, Spec(y="y"))[0]), 0, stacked)
    assert found.tolist() == [soa["y"].tolist()] * 2
    for kept in (jax.device_put(soa), jax.device_get(jax.jit(lambda soa: soa)(soa))):
        for name, array in fields_of(kept).items():
            np.testing.assert_array_equal(array, soa[name])
        assert jax.tree.structure(kept) == tree


def test_functions_of_records_are_not_exported():
    """As those of other bound columns are not."""
    pytest.importorskip("flatbuffers")
    total = jax.jit(lambda soa: arrays(soa, Spec(x="x"))[0].sum())
    made = jax.export.export(total)(bind(filled(N, PLAIN)))
    with pytest.raises(TypeError, match="not exported"):
        made.serialize()


def test_gradients():
    """Words have none, and the message says what has."""
    soa = bind(filled(N, PLAIN))

    def total(soa):
        return arrays(soa, Spec(x="x"))[0].sum()

    with pytest.raises(TypeError, match="got uint32"):
        jax.grad(total)(soa)
    found = jax.grad(total, allow_int=True)(soa)
    with pytest.raises(TypeError, match="is a gradient.*bind their fields one by one"):
        found["x"]


def test_slices_inside():
    """A slice of a traced one goes on as one of columns; so does what was updated."""
    soa = bind(filled(N, PLAIN))

    @jax.jit
    def inner(soa):
        return arrays(soa, Spec(x="x"))[0]

    @jax.jit
    def outer(soa):
        changed = update(soa, Spec(q="q"), [jnp.ones(N, "int8")])
        return inner(soa[1:3]), inner(changed), changed

    part, whole, changed = outer(soa)
    assert part.tolist() == soa["x"][1:3].tolist()
    assert whole.tolist() == soa["x"].tolist()
    assert changed["q"].tolist() == [1] * N
    assert changed["m"].tolist() == soa["m"].tolist()
    assert update(soa, Spec(q="q"), [jnp.ones(N, "int8")])["q"].tolist() == [1] * N


def test_another_device():
    """On another of JAX's devices it is taken from there, and comes back."""
    soa, there = bind(filled(N, PLAIN)), jax.devices()[1]
    put = jax.device_put(soa, there)
    [x] = arrays(put, Spec(x="x"), copy=None)
    assert x.devices() == {there}
    assert x.tolist() == soa["x"].tolist()
    assert to(put, jax.devices()[0])["m"].tolist() == soa["m"].tolist()
    assert put.device == "cpu"
    wide = np.zeros(N, [("k", "i8"), ("x", "f4")])
    wide["k"] = 2**40
    put = jax.device_put(bind(wide), there)
    assert put["k"].tolist() == [2**40] * N
    with jax.enable_x64(True):
        assert arrays(put, Spec(k="k"), copy=None)[0].tolist() == [2**40] * N
    given = jax.tree.map(jnp.array, soa)
    jax.jit(lambda soa: soa, donate_argnums=0)(given)
    with pytest.raises(RuntimeError, match="the SoA was donated"):
        given["x"]


def test_writes_and_functions():
    """Results are written into the records; other fields stay as they are."""
    records = filled(N, PLAIN)
    before, soa = records.copy(), bind(records)
    for options in ({}, {"batch_size": 2}, {"row_wise": True}):
        records["y"] = 0
        forward(lambda x: x + 1, (soa, Spec(x="x")), (soa, Spec(y="y")), **options)
        assert records["y"].tolist() == (before["x"] + 1).tolist()
    write(soa, Spec(m="m"), [jnp.arange(N, dtype="int32")])
    assert records["m"].tolist() == [*range(N)]
    for name in ("x", "q"):
        assert (records[name] == before[name]).all()


def test_records_within_records():
    """Their fields are cut from the words, too; records side by side in one are not bound whole."""
    inner = np.dtype([("eta", "f4"), ("q", "i2")])
    records = np.ones(N, [("pt", "f8"), ("track", inner), ("n", "i2")])
    records["track"]["eta"] = np.arange(N)
    soa = bind(records)
    [leaf] = jax.tree.leaves(soa)
    assert leaf.shape == (N, 4)
    [eta] = jax.jit(lambda soa: arrays(soa, Spec(e="track.eta")))(soa)
    assert eta.tolist() == [*range(N)]
    deep = np.ones(N, [("pt", "f8"), ("event", [("id", "i4"), ("track", inner)])])
    deep["event"]["track"]["eta"] = np.arange(N)
    [eta] = jax.jit(lambda soa: arrays(soa, Spec(e="event.track.eta")))(bind(deep))
    assert eta.tolist() == [*range(N)]
    apart = bind(np.ones(N, [("pt", "f8"), ("tracks", inner, (2,))]))
    assert len(jax.tree.leaves(apart)) == 3

    class Hit(ctypes.Structure):
        _fields_ = (("x", ctypes.c_float), ("id", ctypes.c_int))

    hits = (Hit * N)(*[(i, 10 * i) for i in range(N)])
    assert len(jax.tree.leaves(bind(hits))) == 1
    [number] = jax.jit(lambda soa: arrays(soa, Spec(i="id")))(bind(hits))
    assert number.tolist() == [10 * i for i in range(N)]
