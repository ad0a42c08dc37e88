"""The SoA as a pytree of JAX's, and what JAX makes of it."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import is_dense
from cases import layout_of, read, wrapped
from jax.experimental.layout import Format
from jax.experimental.layout import Layout as Order
from soas import LAYOUT, addresses, filled, one_by_one, owned, stacked, step, total, total_of

from soaview import Column, Layout, Spec, Value, views
from soaview_jax import _leaves, arrays, to, update, write
from soaview_jax._pytree import from_leaves

NEEDS = ["jit"]


def test_leaves_are_few_and_the_memory_itself():
    """One leaf per run of equal columns: a matrix of components and padded rows, not copied."""
    soa = filled(1000)
    with jax.enable_x64(True):
        leaves = jax.tree.leaves(soa)
    assert [(leaf.shape, leaf.dtype.name) for leaf in leaves] == [
        ((2, 1024), "float32"),
        ((1, 1024), "int32"),
        ((1, 1008), "float64"),
        ((1, 32), "int32"),
    ]
    starts = [leaf.__array_interface__["data"][0] for leaf in leaves]
    assert starts == [soa.buffer.address + LAYOUT.offset(name, 1000) for name in "xkdn"]
    assert sum(leaf.nbytes for leaf in leaves) == soa.buffer.nbytes


def test_given_to_jax_it_is_still_the_memory():
    """`jax.device_put` of an SoA is no copy on the host: JAX's arrays lie over its columns."""
    soa = filled(1000)
    with jax.enable_x64(True):
        put = jax.device_put(soa)
    starts = [soa.buffer.address + LAYOUT.offset(name, 1000) for name in "xkdn"]
    assert addresses(put) == starts
    assert jax.jit(total)(put) == total_of(soa)
    assert views(put, Spec(k="k"))[0].address == starts[1]


def test_leaves_have_the_names_of_their_fields():
    """JAX's messages and tree paths name the fields."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(filled(3))]
    assert paths == ["['x:y']", "['k']", "['d']", "['n']"]


def test_layout_and_rows_are_static():
    """Equal layouts and row counts are one structure, others are not."""
    same = Layout(LAYOUT.fields)
    structure = jax.tree.structure(LAYOUT.allocate(33))
    assert structure == jax.tree.structure(same.allocate(33))
    assert structure != jax.tree.structure(LAYOUT.allocate(34))
    assert structure != jax.tree.structure(Layout(LAYOUT.fields, alignment=256).allocate(33))


def test_tree_map_gives_an_soa():
    """`jax.tree.map` works on whole columns, and its result reads like any SoA."""
    soa = filled(33)
    mapped = jax.tree.map(lambda leaf: leaf + leaf, soa)
    assert type(mapped) is type(soa)
    assert (mapped.layout, mapped.rows, len(mapped), list(mapped)) == (
        LAYOUT,
        33,
        33,
        list("xykdn"),
    )
    np.testing.assert_array_equal(mapped["y"], 2 * soa["y"])
    np.testing.assert_array_equal(mapped[5:7]["x"], 2 * soa["x"][5:7])
    assert mapped[Value("n")] == 8
    np.testing.assert_array_equal(jax.tree.map(lambda leaf: leaf, soa)["d"], soa["d"])


@one_by_one
@pytest.mark.parametrize("rows", [0, 1, 33, 1024])
def test_what_jax_made_is_read_like_any_soa(case, rows):
    """Every entry over XLA's own memory: NumPy views of it, arrays that alias it or are copies."""
    soa, expected = wrapped(case.layout, rows)
    with jax.enable_x64(True):
        made = owned(soa)
        soa.buffer.root[:] = 0xEE
        wanted = read(case.entry, expected, rows)
        entry = list(case.entry) if isinstance(case.entry, tuple) else case.entry
        spec = Spec(t=entry)
        for copy in (False, None, True):
            [t] = arrays(made, spec, copy=copy)
            np.testing.assert_array_equal(t, wanted)
        if case.name in APART:
            with pytest.raises(BufferError, match="in memory apart, for each run"):
                made[entry]
            return
        np.testing.assert_array_equal(made[entry], wanted)
        [view] = views(made, spec)
        inside = [
            (at, leaf.nbytes)
            for at, leaf in zip(addresses(made), jax.tree.leaves(made), strict=True)
        ]
        assert 0 in view.shape or any(at <= view.address < at + n for at, n in inside)
        np.testing.assert_array_equal(np.from_dlpack(view), wanted)
        [t] = arrays(made, spec)
        assert 0 in view.shape or is_dense(view) == (t.unsafe_buffer_pointer() == view.address)


APART = ["float32-scalars-apart", "float32-interleaved-both", "float32-scalar-arrays"]
"""Columns of several leaves."""


def by_columns(soa):
    """The same SoA in leaves whose first axis is the fastest, which JAX allows."""
    [device] = jax.devices()[:1]
    order = Format(Order((1, 0)), jax.sharding.SingleDeviceSharding(device))
    return jax.block_until_ready(jax.jit(lambda s: s, out_shardings=order)(soa))


IN_ANY_ORDER = {
    "XLA's": by_columns,
    "NumPy's": lambda soa: jax.tree.map(np.asfortranarray, soa),
    "with gaps": lambda soa: jax.tree.map(lambda x: np.repeat(x, 2, axis=1)[:, ::2], soa),
}


@one_by_one
@pytest.mark.parametrize("made", IN_ANY_ORDER.values(), ids=IN_ANY_ORDER.keys())
def test_leaves_in_any_order(case, made):
    """JAX, and who maps over the tree, may give the leaves another order in memory."""
    soa, expected = wrapped(case.layout, 33)
    entry = list(case.entry) if isinstance(case.entry, tuple) else case.entry
    with jax.enable_x64(True):
        made = made(soa)
        wanted = read(case.entry, expected, 33)
        for copied in (False, None, True):
            [t] = arrays(made, Spec(t=entry), copy=copied)
            np.testing.assert_array_equal(t, wanted)
        [t] = jax.jit(lambda s: arrays(s, Spec(t=entry)))(made)
        np.testing.assert_array_equal(t, wanted)
        for again in (copy.deepcopy(made), jax.device_get(made), pickle.loads(pickle.dumps(made))):
            if case.name not in APART or not again.buffer.piecewise:
                np.testing.assert_array_equal(again[entry], wanted)
        if case.name not in APART:
            [view] = views(made, Spec(t=entry))
            np.testing.assert_array_equal(np.from_dlpack(view), wanted)
            assert not made[entry].flags.writeable


@pytest.mark.parametrize("x64", [False, True])
def test_64_bits_in_another_order(x64):
    """They go to JAX, and come back, whatever their order."""
    layout = Layout([Column("d", "float64"), Column("e", "float64")])
    soa = filled(33, layout)
    with jax.enable_x64(x64):
        made = (
            jax.tree.map(np.asfortranarray, soa)
            if x64
            else from_leaves(
                layout, 33, [np.asfortranarray(soa.buffer.root.view("float64").reshape(2, 48))]
            )
        )
        np.testing.assert_array_equal(made["e"], soa["e"])
        back = jax.jit(lambda s: s)(made)
    np.testing.assert_array_equal(jax.device_get(back)["e"], soa["e"])
    pairs = from_leaves(layout, 33, [np.asfortranarray(soa.buffer.root.view("u4").reshape(2, 96))])
    np.testing.assert_array_equal(pairs["e"], soa["e"])


@pytest.mark.slow_but_every(4)
@pytest.mark.parametrize("rows", [0, 1, 32, 33])
def test_no_rows_of_what_jax_made(rows):
    """Every entry of an SoA without rows, and of empty slices at every place, reads as empty."""
    layout = Layout([*layout_of("float32", "float64").fields, Column("last", "int8")])
    with jax.enable_x64(True):
        for made in (owned(layout.allocate(rows)), jax.device_get(owned(layout.allocate(rows)))):
            for part in (made[:0], made[rows:], *([made] if rows == 0 else [])):
                for field in layout.fields:
                    assert part[field.name].shape == (0, *field.shape)
                    [t] = arrays(part, Spec(t=field.name))
                    assert t.shape == (0, *field.shape)
                assert len(jax.jit(lambda s: arrays(s, Spec(t="last")))(part)[0]) == 0
                assert update(part, Spec(t="last"), [jnp.zeros(0, "int8")]).rows == 0


HANDED_BACK = {
    "jit": lambda soa: jax.jit(lambda s: s)(soa),
    "jit with update": lambda soa: jax.jit(step)(soa),
    "eager update": step,
    "device_put": jax.device_put,
    "device_put on the second": lambda soa: jax.device_put(soa, jax.devices()[1]),
    "to": lambda soa: to(soa, jax.devices()[1]),
    "tree.map": lambda soa: jax.tree.map(lambda leaf: leaf, soa),
    "tree.map to arrays": lambda soa: jax.tree.map(jnp.asarray, soa),
    "vmap": lambda soa: jax.tree.map(
        lambda leaf: leaf[0], jax.vmap(lambda s: s)(stacked(soa, soa))
    ),
    "device_get": lambda soa: jax.device_get(jax.jit(lambda s: s)(soa)),
    "grad": lambda soa: jax.grad(total, allow_int=True)(soa),
    "slice": lambda soa: jax.jit(lambda s: s)(soa)[:33],
}


@pytest.mark.parametrize("how", HANDED_BACK)
def test_what_jax_hands_back_says_what_it_is(how):
    """Where it is, that it is read-only, how many bytes its layout takes."""
    with jax.enable_x64(how != "grad"):
        soa = filled(33)
        made = HANDED_BACK[how](soa)
    assert type(made) is type(soa)
    assert (made.device, made.readonly, made.rows, made.capacity) == ("cpu", True, 33, 33)
    assert (made.layout, made.buffer.nbytes) == (LAYOUT, soa.buffer.nbytes)
    assert repr(made) == repr(soa).replace("on cpu:", "on cpu, read-only:")


def test_what_is_traced_says_so():
    """Inside a transformation it is on no device."""
    seen = []
    jax.jit(lambda s: seen.append((s.device, s.readonly, repr(s))))(filled(33))
    ((device, readonly, text),) = seen
    assert (device, readonly) == ("no device: it is traced", True)
    assert text.startswith("SoA(33 rows, 1280 bytes on no device: it is traced, read-only: x")
    both = jax.vmap(lambda s: seen.append(s.device) or s)(stacked(filled(33), filled(33)))
    assert (seen[-1], both.device) == (device, "cpu")


def test_what_jax_made_is_immutable():
    """Its views are read-only, and `write` refuses it."""
    made = owned(filled(33))
    assert made.readonly
    assert repr(made).startswith("SoA(33 rows, 1280 bytes on cpu, read-only: x")
    for soa in (made, jax.device_get(made), jax.tree.map(lambda leaf: leaf, filled(33))):
        with pytest.raises(ValueError, match="read-only"):
            soa["x"][0] = 1
    with pytest.raises(BufferError, match=r"read-only.*copy.deepcopy\(soa\) is one that can"):
        write(made, Spec(x="x"), [jnp.zeros(33)])
    with pytest.raises(BufferError, match="JAX made this SoA"):
        made["x"] = np.zeros(33, "f4")
    copy.deepcopy(made)["x"] = np.zeros(33, "f4")
    with pytest.raises(BufferError, match="JAX made this SoA.*not in one buffer"):
        _ = made.buffer.root


def test_copies_stay_on_the_device(monkeypatch):
    """What JAX has elsewhere is not copied by way of the host."""
    made = owned(filled(33))
    monkeypatch.setattr(_leaves.Leaves, "elsewhere", True)  # as it is on a GPU
    monkeypatch.setattr(_leaves.Leaves, "locate", None)  # which leads to the host
    for copied in (False, None, True):
        xy, n = arrays(made, Spec(xy=["y", "x"], n="n"), copy=copied)
        np.testing.assert_array_equal(xy[:, 0], filled(33)["y"])
        np.testing.assert_array_equal(n, filled(33)["n"])


def test_it_is_copied_into_one_buffer():
    """A deep or pickled copy has memory of its own, of the user's kind; a shallow one does not."""
    made = owned(filled(33))
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made[:])), copy.deepcopy(made[3:])):
        assert not twin.readonly
        assert twin.buffer.root.nbytes == LAYOUT.nbytes(twin.rows)
        for name in LAYOUT.starts:
            np.testing.assert_array_equal(twin[name], made[33 - twin.rows :][name])
    assert copy.copy(made).buffer is made.buffer
    with pytest.raises(TypeError, match="a traced SoA has no values yet"):
        jax.jit(copy.deepcopy)(filled(33))


def test_it_goes_back_into_a_buffer():
    """What a jitted function returns is written into an SoA of the user's."""
    soa = filled(33)
    made = jax.jit(lambda s: update(s, Spec(y="y"), [arrays(s, Spec(x="x"))[0] * 2]))(soa)
    write(soa, Spec(y="y"), arrays(made, Spec(y="y")))
    np.testing.assert_array_equal(soa["y"], 2 * soa["x"])


def test_what_jax_has_made_is_drawn_without_its_values(monkeypatch):
    """A notebook shows the map of an SoA that JAX has, also while it traces, and reads nothing."""
    seen = []

    @jax.jit
    def look(soa):
        seen.append(soa._repr_html_())
        return soa

    monkeypatch.setattr(_leaves.Leaves, "array", lambda leaves, at: 1 / 0)
    with jax.enable_x64(True):
        found = look(filled(33))
    seen.append(found._repr_html_())
    with pytest.raises(ZeroDivisionError):
        found["x"]
    for html in seen:
        assert "drawn as one buffer, and lies in pieces" in html
        assert "first values" not in html
    assert "it is traced" in seen[0]
