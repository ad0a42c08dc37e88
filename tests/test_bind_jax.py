"""Bound columns in JAX: outside of `jit`, as its argument, and from SoA to SoA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from bound import bound_columns, of_a_device, specs, values_of, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Spec, Value, bind
from soaview_jax import arrays, explain, forward, mask, to, update, write

NEEDS = ["jax"]
N = 5


def aligned(shape, dtype):
    """An array that starts on a multiple of 64 bytes."""
    memory = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : memory.size - 64 + first].view(dtype).reshape(shape)


@given(bound_columns(), st.data())
@settings(max_examples=25, deadline=None)
def test_values(case, data):
    """Copied or not, inside of `jit` and outside: what NumPy makes of the same arrays."""
    rows, given_ = case
    with jax.enable_x64(True):
        soa, entries = bind(given_, rows=rows), specs(data.draw, given_)
        spec = Spec(entries)
        right = [wanted(given_, rows, entry) for entry in entries.values()]
        inside = jax.jit(lambda soa: arrays(soa, spec))(soa)
        for found in (arrays(soa, spec, copy=None), arrays(soa, spec, copy=True), inside):
            for array, expected in zip(found, right, strict=True):
                np.testing.assert_array_equal(np.asarray(array), expected)
                assert array.dtype == expected.dtype
        part = soa[1:3]
        for array, (entry, whole) in zip(
            jax.jit(lambda soa: arrays(soa, spec))(part),
            zip(entries.values(), right, strict=True),
            strict=True,
        ):
            np.testing.assert_array_equal(array, whole if isinstance(entry, Value) else whole[1:3])
        outside = [v for v in explain(soa, spec) if v.way == "JAX"]
        for name, verdict, expected in zip(entries, outside, right, strict=True):
            if verdict.gives == "copy":
                with pytest.raises(BufferError, match=f"^tensor '{name}': "):
                    arrays(soa, spec.subset(name))
                continue
            [array] = arrays(soa, spec.subset(name))
            np.testing.assert_array_equal(array, expected)


def test_views_outside():
    """A dense column from an aligned address is where it was."""
    x, block = aligned((N,), "f4"), aligned((4, 16), "f4")
    soa = bind({"x": x, "n": np.arange(N), "s": np.float32(2)})
    [array] = arrays(soa, Spec(x="x"))
    assert array.unsafe_buffer_pointer() == x.ctypes.data
    with pytest.raises(BufferError, match="not next to each other"):
        arrays(bind({"x": aligned((2 * N,), "f4")[::2]}), Spec(x="x"))
    both = bind({name: block[i] for i, name in enumerate("abcd")})
    [array] = arrays(both, Spec(t=["a", "b", "c", "d"]))
    assert array.unsafe_buffer_pointer() == block.ctypes.data
    assert array.shape == (16, 4)


def test_inside_jit():
    """One trace for the same columns; other strides, too; gradients, updates, masks, vmap."""
    traced = []

    @jax.jit
    def total(soa):
        traced.append(soa)
        xy, v = arrays(soa, Spec(xy=["x", "y"], v="v"))
        return xy.sum() + v.sum()

    for step in (1, 2):
        soa = bind({
            "x": np.arange(N * step, dtype="f4")[::step],
            "y": np.ones(N, "f4"),
            "v": np.ones((N, 3), "f4") if step == 1 else np.ones((3, N), "f4").T,
        })  # fmt: skip
        assert total(soa) == sum(range(N)) * step + N + 3 * N
    assert len(traced) == 1
    gradient = jax.grad(total)(soa)
    assert gradient["y"].tolist() == [1] * N
    assert gradient["v"].shape == (N, 3)

    @jax.jit
    def double(soa):
        [x] = arrays(soa, Spec(x="x"))
        return update(soa, Spec(y="y"), [2 * x])

    made = double(soa)
    assert made["y"].tolist() == [4 * n for n in range(N)]
    assert made["v"].tolist() == [[1, 1, 1]] * N
    assert type(made.pack().layout) is Layout
    assert update(soa, Spec(y="y"), [jnp.zeros(N)])["y"].tolist() == [0] * N
    assert soa["y"].tolist() == [1] * N
    assert jax.jit(lambda soa: mask(soa, 2))(soa).tolist() == [True, True, False, False, False]
    with pytest.raises(ValueError, match="has lost its axis|no axis to map"):
        jax.vmap(lambda soa: arrays(soa, Spec(x="x"))[0])(soa)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), soa, soa)
    found = jax.vmap(lambda soa: arrays(soa, Spec(x="x"))[0])(stacked)
    assert found.shape == (2, N)


def test_functions_of_bound_columns_are_not_exported():
    """Where they lie is of no use elsewhere; of the same SoA in one buffer they are."""
    pytest.importorskip("flatbuffers")
    soa = bind({"x": np.ones(N, "f4"), "y": np.ones(N, "f4")})
    total = jax.jit(lambda soa: arrays(soa, Spec(x="x"))[0].sum())
    with pytest.raises(TypeError, match="not exported"):
        jax.export.export(total)(soa).serialize()
    assert jax.export.export(total)(soa.pack()).serialize()


def test_writes_and_functions():
    """Into the arrays themselves, also where XLA copies what it reads."""
    data = {"x": np.arange(N, dtype="f4"), "o": np.zeros(2 * N, "f4")[::2], "r": np.zeros(N, "f4")}
    soa = bind(data)
    write(soa, Spec(ro=["o", "r"]), [jnp.arange(2.0 * N).reshape(N, 2)])
    assert data["o"].tolist() == [0, 2, 4, 6, 8]
    assert data["r"].tolist() == [1, 3, 5, 7, 9]
    for options in ({}, {"batch_size": 2}, {"row_wise": True}, {"row_wise": "verify"}):
        data["o"][:] = 0
        forward(lambda x: x + 1, (soa, Spec(x="x")), (soa, Spec(o="o")), **options)
        assert data["o"].tolist() == [1, 2, 3, 4, 5]
    data["r"].flags.writeable = False
    again = bind(data)
    with pytest.raises(BufferError, match="column 'r' is read-only"):
        write(again, Spec(o="o", r="r"), [jnp.zeros(N)] * 2)
    assert data["o"].any()
    assert to(again, jax.devices()[0])["o"].tolist() == [1, 2, 3, 4, 5]


def test_later_writes_are_seen():
    """Each call of a jitted function reads the arrays anew, where a leaf is a copy, too."""
    turned = np.zeros((2, 3, N), "f4").T  # no matrix of rows and components
    wide = np.zeros((2 * N, 2), "i8")[::2]
    soa = bind({"t": turned, "k": wide, "x": np.zeros(N, "f4")})
    total = jax.jit(lambda soa: sum(a.sum() for a in arrays(soa, Spec(t="t", x="x"))))
    same = jax.jit(lambda soa: soa)
    for value in (1, 2):
        turned[:], wide[:], soa["x"][:] = value, value, value
        assert total(soa) == value * (6 * N + N)
        assert same(soa)["k"].tolist() == [[value] * 2] * N


def test_64_bits_that_are_off():
    """They are carried through `jit` as they are, and refused by name where a spec uses them."""
    records = np.zeros(N, [("x", "f4"), ("k", "i8"), ("d", "f8")])
    records["k"], records["d"] = np.arange(N) + 2**40, 1e300
    soa = bind(records)
    with pytest.raises(TypeError, match="tensor 'k' is int64, and JAX has 64-bit types switched"):
        arrays(soa, Spec(k="k"), copy=None)
    same = jax.jit(lambda soa: update(soa, Spec(x="x"), [jnp.ones(soa.rows)]))(soa)
    assert same["k"].tolist() == records["k"].tolist()
    assert same["d"].tolist() == [1e300] * N
    assert same["x"].tolist() == [1] * N


def test_on_a_device():
    """Columns are imported where they lie, outside of `jit` and as its argument."""
    pytest.importorskip("torch")  # whose memory it is
    soa, one, other = of_a_device(64)
    [x] = arrays(soa, Spec(x="x"))
    assert x.unsafe_buffer_pointer() == one["x"].ctypes.data
    both = np.stack([one["x"], other["x"]], 1)
    for found in (
        arrays(soa, Spec(t=["x", "y"]), copy=None),
        arrays(soa, Spec(t=["x", "y"]), copy=True),
        jax.jit(lambda soa: arrays(soa, Spec(t=["x", "y"])))(soa),
    ):
        np.testing.assert_array_equal(found[0], both)
    assert {(v.way, v.gives) for v in explain(soa, Spec(x="x", w="w"))} == {
        ("JAX", "view"),
        ("JAX inside jit", "view"),
    }
    part = jax.jit(lambda soa: arrays(soa, Spec(w="w", x="x")))(soa[16:20])
    np.testing.assert_array_equal(part[0], other["v"][16:20])
    np.testing.assert_array_equal(part[1], one["x"][16:20])
    forward(lambda x, w: x + w.sum(1), (soa, Spec(x="x", w="w")), (soa, Spec(y="y")))
    np.testing.assert_array_equal(other["x"], one["x"] + other["v"].sum(1))
    write(soa, Spec(x="x", v="v"), [jnp.ones(64), jnp.ones((64, 3))])
    assert (one["x"] == 1).all()
    assert (one["v"] == 1).all()


def test_strided_columns_of_a_device():
    """Copied on their device, by `copy=`, and on the way into `jit`, as the host's are."""
    pytest.importorskip("torch")
    layout = Layout([Column("v", "f4", (3,)), Column("x", "f4"), Column("k", "i8", (2, 2))])
    memory = places.aligned(np.zeros(layout.nbytes(40), np.uint8))
    host, spec = layout.wrap(memory, 40), Spec(v="v", x="x")
    soa = bind(places.PretendedMemory().wrap(layout, memory, 40))
    for start in (1, 2):
        for name in host:
            host[name][:] = values_of(host[name].shape, host[name].dtype, start)
        inside = jax.jit(lambda soa: arrays(soa, spec))
        for found in (arrays(soa, spec, copy=None), arrays(soa, spec, copy=True), inside(soa)):
            for array, name in zip(found, spec, strict=True):
                np.testing.assert_array_equal(array, host[name])
        same = jax.jit(lambda soa: soa)(soa)
        np.testing.assert_array_equal(same["k"], host["k"])
    verdicts = [v for v in explain(soa, spec) if v.way == "JAX inside jit"]
    assert [(v.gives, v.nbytes) for v in verdicts] == [("copy", 480), ("view", 0)]
    assert "column 'v' is strided" in verdicts[0].why


def test_what_goes_into_jit_as_it_is():
    """A column in rows from a multiple of 64 bytes; all others are copied, wherever they start."""
    data = {
        "plain": aligned((64,), "f4"),
        "rows": aligned((64, 3), "f4"),
        "turned": aligned((2, 3, 64), "f4").T,
        "stepped": aligned((128,), "f4")[::2],
        "late": aligned((80,), "f4")[1:65],
    }
    soa = bind(data)
    verdicts = explain(soa, Spec({name: name for name in data}))
    found = {v.tensor: v.gives for v in verdicts if v.way == "JAX inside jit"}
    copied = {"turned": "copy", "stepped": "copy", "late": "copy"}
    assert found == {"plain": "view", "rows": "view"} | copied
