"""`update`, inside of `jit` and outside; padding; donation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import layout_of, read, wrapped
from soas import STEP, filled, one_by_one, owned, slow, stacked, step, total

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, update, write

NEEDS = ["jit"]

# update


@pytest.mark.slow_but_every(16)
@one_by_one
@pytest.mark.parametrize("jitted", [True, False])
def test_update(case, jitted):
    """The named columns are replaced, and nothing else; the SoA is untouched."""
    if "scalar" in case.name:
        return  # `write` refuses them too; their value is `Value(name)`
    spec = Spec(t=list(case.entry) if isinstance(case.entry, tuple) else case.entry)
    with jax.enable_x64(True):
        for rows in (0, 1, 33):
            soa, expected = wrapped(case.layout, rows)
            before = soa.buffer.root.copy()
            value = jnp.asarray(read(case.entry, expected, rows) + 1)
            change = lambda s, v: update(s, spec, [v])  # noqa: E731
            made = (jax.jit(change) if jitted else change)(soa, value)
            np.testing.assert_array_equal(soa.buffer.root, before)
            write(soa, spec, [value])
            for field in case.layout.fields:
                key = field.name if field.per_row else Value(field.name)
                assert made[key].tobytes() == soa[key].tobytes()


MIXED = Layout(
    [
        Column("x", "float32"),
        Column("v", "float32", (2,)),
        Column("b", "bool"),
        Column("h", "bfloat16"),
        Column("i", "int8"),
        Column("d", "float64"),
        Column("w", "uint64"),
        Scalar("n", "int32"),
        Scalar("s", "float32"),
        Scalar("t", "float32"),
    ]
)


def padding(soa):
    """Of each leaf, by its first field, whatever lies beyond its rows."""
    found = {}
    firsts = ("x", "b", "h", "i", "d", "w", "n", "s")
    for leaf, name in zip(jax.tree.leaves(soa), firsts, strict=True):
        field, width = soa.layout[name], soa.layout.pitch(name, soa.capacity)
        host = np.ascontiguousarray(leaf).view(np.uint8).reshape(leaf.shape[0], width)
        found[name] = host[:, field.itemsize * (soa.capacity if field.per_row else 1) :]
    return found


def garbage(rows):
    """All bits set: NaNs, and no bools."""
    soa = MIXED.allocate(rows)
    soa.buffer.root[:] = 0xFF
    for field in MIXED.fields:
        soa[field.name if field.per_row else Value(field.name)][...] = 1
    return soa


CHANGES = {"x": Spec(t="x"), "b": Spec(t="b"), "h": Spec(t="h"), "i": Spec(t="i")}
CHANGES |= {"n": Spec(t=Value("n")), "s": Spec(t=Value("t"))}


@pytest.mark.slow_but_every(32)
@pytest.mark.parametrize("name", [*CHANGES, "d", "w"])
@pytest.mark.parametrize("jitted", ["jit", "donated", "vmap", "eagerly"])
def test_padding_is_no_value(name, jitted):
    """It is zero in the leaf that changes, outside of jit in all of them; others keep theirs."""
    wide = name in "dw"
    spec = CHANGES.get(name, Spec(t=name))

    def change(soa):
        return update(soa, spec, arrays(soa, spec))

    with jax.enable_x64(wide):
        for rows in (1, 33):
            soa = garbage(rows)
            before = soa.buffer.root.copy()
            if jitted == "donated":
                made = jax.jit(change, donate_argnums=0)(owned(soa))
            elif jitted == "vmap":
                made = jax.tree.map(lambda leaf: leaf[1], jax.vmap(change)(stacked(soa, soa)))
            else:
                made = (jax.jit(change) if jitted == "jit" else change)(soa)
            for first, bytes_beyond in padding(made).items():
                if first == name or jitted == "eagerly":
                    assert not bytes_beyond.any()
                elif jitted != "vmap":  # whose stacking makes other NaNs of them
                    assert (bytes_beyond == 0xFF).all()
            for field in MIXED.fields:
                key = field.name if field.per_row else Value(field.name)
                assert (made[key] == 1).all()
            np.testing.assert_array_equal(soa.buffer.root, before)


@pytest.mark.slow
def test_padding_of_slices():
    """Zero is what lies beyond the memory's rows, not beyond the slice's, which are values."""
    soa = garbage(33)
    spec = CHANGES["x"]
    [part] = [jax.jit(lambda s: update(s[3:9], spec, [jnp.zeros(6)]))(soa)]
    assert (part.rows, part["x"].tolist(), part["v"].min()) == (6, [0] * 6, 1)
    made = jax.jit(lambda s: update(s[3:9], spec, [jnp.zeros(6)]).buffer.leaves[0])(soa)
    wanted = np.ones((3, 64), "f4")
    wanted[0, 3:9] = wanted[:, 33:] = 0
    np.testing.assert_array_equal(made, wanted)
    eager = update(soa[3:9], spec, [jnp.zeros(6)])
    assert (eager.rows, eager.capacity, eager["i"].tolist()) == (6, 6, [1] * 6)
    assert not any(beyond.any() for beyond in padding(eager).values())


@pytest.mark.slow
def test_sums_over_padded_rows_are_finite():
    """What update gave is taken for values as it is: by tree.map, norms, and JAX's alarms."""
    soa = garbage(33)
    spec = Spec(x="x", v="v", n=Value("s"), t=Value("t"))
    made = jax.jit(lambda s: update(s, spec, arrays(s, spec)))(soa)
    with jax.debug_nans(True):
        twice = jax.tree.map(lambda leaf: leaf + leaf if leaf.dtype == "float32" else leaf, made)
        assert jnp.abs(jax.tree.leaves(twice)[0]).sum() == 2 * 3 * 33
        assert jnp.abs(jax.tree.leaves(twice)[-1]).sum() == 2 * 2
        update(soa, spec, [jnp.ones(33), jnp.ones((33, 2)), jnp.float32(1), jnp.float32(1)])
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    soa = layout.wrap(np.full(layout.nbytes(33), 0xFF, np.uint8), 33)
    soa["x"][:] = soa["y"][:] = 1
    both = stacked(soa, soa)
    with jax.debug_nans(True):
        assert jax.vmap(lambda s: jax.tree.leaves(step(s))[0].sum())(both).tolist() == [99, 99]


@pytest.mark.parametrize("rows", [100_000, 100_001])
def test_a_donated_leaf_is_not_copied(rows):
    """XLA changes a column in its place, and the padding: it takes no memory as large as a leaf."""
    soa = owned(filled(rows, Layout([Column(f"c{i}", "float32") for i in range(20)])))
    spec = Spec(c="c3")

    def change(soa):
        return update(soa, spec, [arrays(soa, spec)[0] + 1])

    compiled = jax.jit(change, donate_argnums=0).lower(soa).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < soa.buffer.nbytes / 10


def test_where_there_is_no_padding_there_is_nothing_to_do():
    """The function is as large as without it."""
    layout = Layout([Column("x", "float32"), Column("y", "float32")])
    counts = [
        str(
            jax.make_jaxpr(lambda s: update(s, Spec(x="x"), [jnp.ones(s.rows)]))(layout.allocate(n))
        ).count("dynamic_update_slice")
        for n in (32, 33)
    ]
    assert counts == [1, 2]


def test_update_of_several_and_scattered_columns():
    """One call replaces several tensors, reversed and far apart; a slice keeps its rows."""
    soa, expected = wrapped(layout_of("float32", "float64"), 33)
    spec = Spec(a=["z", "x"], b="u", c=Value("t"))
    values = [jnp.full((33, 2), 7.0).at[:, 1].set(8), jnp.full((33, 3), 9.0), jnp.float32(5)]
    made = jax.jit(lambda s: update(s, spec, values))(soa)
    for name, wanted in (("z", 7), ("x", 8), ("u", 9), ("y", expected["y"]), ("v", expected["v"])):
        assert (made[name] == wanted).all(), name
    assert (made[Value("t")], made[Value("s")]) == (5, expected["s"])
    part = jax.jit(lambda s: update(s[3:9], Spec(y="y"), [jnp.zeros(6)]))(soa)
    assert (part.rows, part["y"].tolist(), part["x"].tolist()) == (
        6,
        [0] * 6,
        expected["x"][3:9].tolist(),
    )


def test_update_of_columns_in_several_leaves():
    """Columns of one tensor that lie in several leaves each get their own values."""
    layout = Layout([Column(name, "int32" if name == "k" else "float32") for name in "abkcde"])
    spec = Spec(t=list("baced"))
    value = jnp.arange(33 * 5, dtype="float32").reshape(33, 5)
    made = jax.jit(lambda s: update(s, spec, [value]))(layout.allocate(33))
    for number, name in enumerate(spec["t"]):
        np.testing.assert_array_equal(made[name], value[:, number])


@pytest.mark.slow
def test_many_scattered_columns():
    """Hundreds of columns in any order are one gather, and put back by few updates."""
    names = [f"c{i}" for i in range(400)]
    soa = filled(32, Layout([Column(name, "float32") for name in names]))
    order = names[::-1]
    spec = Spec(t=order)
    cut = str(jax.make_jaxpr(lambda s: arrays(s, spec))(soa))
    assert (cut.count("gather["), cut.count(" slice[")) == (1, 1)
    [t] = jax.jit(lambda s: arrays(s, spec))(soa)
    np.testing.assert_array_equal(t, np.stack([soa[name] for name in order], axis=1))
    change = lambda s: update(s, spec, [arrays(s, spec)[0] + 1])  # noqa: E731
    assert str(jax.make_jaxpr(change)(soa)).count("dynamic_update_slice") == 1
    made = jax.jit(change)(soa)
    for name in names:
        np.testing.assert_array_equal(made[name], soa[name] + 1)


def ways_into_jax(soa):
    """The same rows as JAX has them, over the same memory where it aliases that."""
    with jax.enable_x64(True):
        native = jax.device_put(soa)
    return {
        "itself": soa,
        "slice": soa[1:30],
        "device_put": jax.device_put(soa),
        "device_put with 64 bits": native,
        "slice of device_put": jax.device_put(soa)[1:30],
        "mapped": jax.tree.map(lambda leaf: leaf, soa),
        "fetched": jax.device_get(native),
    }


@pytest.mark.parametrize("way", ways_into_jax(filled(32)))
def test_an_eager_update_is_a_snapshot(way):
    """Whoever holds the memory that the SoA lies over may write it as soon as update returns."""
    soa = filled(32)
    given = ways_into_jax(soa)[way]
    wanted = {name: given[name].copy() for name in "xykd"} | {"x": np.full(len(given), 7.0)}
    n = soa[Value("n")].copy()
    made = update(given, Spec(x="x"), [jnp.full(len(given), 7.0)])
    soa.buffer.root[:] = 0xEE
    for name, column in wanted.items():
        assert made[name].dtype == given[name].dtype
        np.testing.assert_array_equal(made[name], column)
    assert made[Value("n")] == n


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("way", ways_into_jax(filled(32)))
@pytest.mark.parametrize("wide", [False, True])
def test_an_eager_update_is_an_argument_like_any(way, wide):
    """What it gives goes on into jit, with 64-bit types on or off, and loses nothing."""
    with jax.enable_x64(wide):
        given = ways_into_jax(filled(32))[way]
        made = update(given, STEP, [jnp.asarray(given["x"] + 1)])
        if way in ("itself", "slice", "fetched"):  # what the host has goes in as jit has it
            for one, other in zip(made.buffer.leaves, jax.tree.leaves(given), strict=True):
                assert one.dtype == other.dtype
        made = jax.jit(step)(step(jax.jit(step)(made)))
    np.testing.assert_array_equal(made["x"], given["x"] + 4)
    assert made["d"].tobytes() == given["d"].tobytes()


def test_an_eager_update_does_not_alias_what_it_was_given():
    """An array over memory of somebody's is copied, too, when it is as large as the leaf."""
    layout = Layout([Column("x", "float32")])
    memory = layout.allocate(32)
    [x] = arrays(memory, Spec(x="x"))
    made = update(layout.allocate(32), Spec(x="x"), [x])
    memory["x"][:] = 5
    assert not made["x"].any()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["itself", "device_put"])
def test_an_eager_update_is_finished(way):
    """Every leaf is there when it returns, also those that come of an array that is not yet."""
    given = ways_into_jax(filled(33))[way]
    ones, pending = jnp.ones(33), slow(jnp.ones((500, 500)))
    values = [ones + 0 * pending, ones * 2 + 0 * pending]
    assert not any(value.is_ready() for value in values)
    made = update(given, XY_APART, values)
    assert all(leaf.is_ready() for leaf in made.buffer.leaves)


XY_APART = Spec(x="x", y="y")


def test_all_copies_of_an_eager_update_are_waited_for(monkeypatch):
    """Copies that JAX has not made yet would still read the memory."""
    copied, waited = [], []
    array, wait = jnp.array, type(jnp.ones(1)).block_until_ready
    monkeypatch.setattr(jnp, "array", lambda leaf: copied.append(array(leaf)) or copied[-1])
    monkeypatch.setattr(
        type(jnp.ones(1)), "block_until_ready", lambda leaf: waited.append(id(leaf)) or wait(leaf)
    )
    made = update(filled(32), Spec(x="x"), [jnp.ones(32)])
    assert len(copied) == 4
    assert {id(leaf) for leaf in (*copied[:1], *made.buffer.leaves)} <= set(waited)


@pytest.mark.slow
def test_an_eager_update_of_gradients():
    """Fields without a gradient stay without one."""
    soa = filled(33)
    found = jax.grad(lambda s: total(s), allow_int=True)(soa)
    made = update(found, Spec(x="x"), [jnp.array(2 * found["x"])])
    np.testing.assert_array_equal(made["x"], 2 * found["x"])
    with pytest.raises(TypeError, match="'k' is a gradient"):
        made["k"]


@pytest.mark.slow
def test_an_eager_update_with_traced_values():
    """Inside jit, of an SoA that the function has closed over, it is one of that time."""
    soa = filled(33)

    @jax.jit
    def change(y):
        return update(soa, Spec(y="y"), [y])

    made = change(jnp.ones(33))
    np.testing.assert_array_equal(made["x"], filled(33)["x"])
    np.testing.assert_array_equal(made["d"], filled(33)["d"])
    assert (made["y"] == 1).all()


@pytest.mark.parametrize(
    ("spec", "value", "error", "message"),
    [
        (Spec(a="x"), jnp.zeros(34), ValueError, r"'a': got shape \(34,\), expected \(33,\)"),
        (Spec(a="x"), jnp.zeros(64), ValueError, "got 64 padded rows, expected 33"),
        (Spec(a=["x", "y"]), jnp.zeros((2, 33)), ValueError, "transpose"),
        (Spec(a="x"), jnp.zeros(33, int), TypeError, "got dtype int32, expected float32"),
        (Spec(a=["x", "x"]), jnp.zeros((33, 2)), ValueError, "'x' would be written twice"),
        (Spec(a="n"), jnp.zeros(33, int), ValueError, r"scalar 'n' has one value.*Value"),
        (Spec(a="x"), np.zeros(33, "f4"), TypeError, "got ndarray, expected a jax.Array"),
        (Spec(a="x", b="y"), jnp.zeros(33), ValueError, "got 1 tensors, but the spec has 2"),
        (Spec(a="d"), jnp.zeros(33), TypeError, "'a' is float64, .*narrow.*jax_enable_x64"),
        (Spec(a="q"), jnp.zeros(33), KeyError, "no column 'q'"),
    ],
)
def test_bad_updates(spec, value, error, message):
    """What `write` refuses, `update` refuses in the same words, inside jit and outside."""
    soa = filled(33)
    with pytest.raises(error, match=message):
        update(soa, spec, [value])
    with pytest.raises(error, match=message):
        jax.jit(lambda s: update(s, spec, [value]))(soa)
    with pytest.raises(TypeError, match="arrays must be a list in spec order"):
        update(soa, spec, value)
