"""SoAs op by op, in `vmap`, `scan` and `export`, and their gradients."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SCATTERED, layout_of, wrapped
from jax import lax
from soas import LAYOUT, XY, filled, stacked, total, total_of

from soaview import Column, Layout, Spec, Value
from soaview_jax import arrays, mask, update

NEEDS = ["jit"]

# Where JAX runs a function as it is


FLAGS = {
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
}


def grown(soa):
    [x] = arrays(soa, Spec(x="x"))
    return update(soa, Spec(x="x"), [x + 1])


RERUN = {
    "jit": lambda soa: total(grown(soa)),
    "padded": lambda soa: arrays(soa, XY, padded=True)[0][: soa.rows].sum() + soa.rows,
    "slices": lambda soa: total(grown(soa[:20])) + total(grown(soa[20:])),
    "scan": lambda soa: lax.scan(lambda s, _: (grown(s), total(s)), soa, length=2)[1][1],
    "while": lambda soa: total(
        lax.while_loop(lambda s: arrays(s, Spec(x="x"))[0][0] < 1, grown, soa)
    ),
    "cond": lambda soa: lax.cond(
        arrays(soa, XY)[0][0, 0] < 1, lambda s: total(grown(s)), total, soa
    ),
    "vmap": lambda soa: jax.vmap(lambda s: total(grown(s)))(stacked(soa, soa))[0],
    "grad": lambda soa: total(jax.grad(lambda s: total(s) ** 2, allow_int=True)(soa)),
    "jit in jit": lambda soa: jax.jit(lambda s: total(grown(s)))(soa),
    "mask": lambda soa: jnp.where(mask(soa, soa.rows), arrays(soa, XY)[0].sum(1) + 1, 0).sum(),
}


@pytest.mark.slow_but_every(60)
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("how", RERUN)
@pytest.mark.parametrize("part", [slice(None), slice(3, 36)], ids=["whole", "slice"])
def test_op_by_op(flag, how, part):
    """A jitted function of any SoA gives the same where JAX runs it as it is, or looks for NaNs."""
    soa = filled(40)[part]
    soas = [soa, jax.device_get(jax.device_put(soa)), jax.jit(lambda s: s)(soa)]
    wanted = jax.jit(RERUN[how])(soa)
    assert wanted >= total_of(soa)

    def wrong(soa):  # for JAX to run it as it is, up to the logarithm
        return jnp.log(RERUN[how](soa) * 0 - (flag == "debug_nans"))

    for one in soas:
        with FLAGS[flag]():
            if flag == "disable_jit":
                assert jax.jit(RERUN[how])(one) == wanted
            else:
                with pytest.raises(FloatingPointError, match="encountered in log"):
                    jax.jit(wrong)(one)


TRANSFORMS = {
    "jit": lambda f: f,
    "vmap": jax.vmap,
    "grad": lambda f: lambda s: jax.value_and_grad(lambda s: f(s).sum(), allow_int=True)(s)[0],
    "scan": lambda f: lambda s: lax.scan(lambda c, s: (c, f(s)), 0, s)[1],
    "map": lambda f: lambda s: lax.map(f, s),
    "cond": lambda f: lambda s: lax.cond(True, f, lambda s: f(s) + 1, s),
    "checkpoint": jax.checkpoint,
    "jit in jit": jax.jit,
}


@pytest.mark.slow_but_every(4)
@pytest.mark.parametrize("how", TRANSFORMS)
@pytest.mark.parametrize("entry", [["x"], ["x", "x"]], ids=str)
def test_a_nan_is_found_where_it_is(how, entry):
    """Where JAX runs a function again to look for it, and not in padding or in other columns."""
    soa = filled(33)
    loops = how in ("scan", "map")  # in which JAX cuts the leaves itself
    if not loops:
        soa.buffer.root.view("float32")[:] = np.nan
    soa["x"][:] = -1
    given = stacked(soa, soa) if loops or how == "vmap" else soa
    # To JAX the others are one operation, of which it says no more.
    whole = loops or how in ("cond", "checkpoint")

    def found(soa):
        [t] = arrays(soa, Spec(t=["x"] if whole else entry))
        return jnp.sqrt(t * 4)

    run = TRANSFORMS[how](found) if whole else jax.jit(TRANSFORMS[how](found))
    with jax.debug_nans(True), jax.disable_jit(whole):  # noqa: SIM117
        with pytest.raises(FloatingPointError, match="in sqrt"):
            run(given)


def test_nothing_is_copied_in_silence_op_by_op():
    """With these flags on, what can be a view still is one."""
    soa = filled(32)
    for flag in FLAGS.values():
        with flag():
            [x, xy] = arrays(soa, Spec(x="x", xy=["x", "y"]))
            assert x.unsafe_buffer_pointer() == xy.unsafe_buffer_pointer() == soa.buffer.address
    with pytest.raises(BufferError, match="padded rows 64"):
        arrays(filled(33), XY)
    with pytest.raises(ValueError, match="padded=True: rows 3:9 are a slice"):
        arrays(soa[3:9], XY, padded=True)
    with jax.debug_nans(True), pytest.raises(ValueError, match="padded=True: rows 3:9 are a sl"):
        jax.jit(lambda s: arrays(s[3:9], XY, padded=True))(soa)


# Other transformations


def test_vmap_over_stacked_soas():
    """SoAs of one layout and row count are stacked by `jax.tree.map`, and mapped over."""
    soas = [filled(33), jax.tree.map(lambda x: x * 2, filled(33))]
    both = stacked(*soas)
    wanted = [total_of(soa) for soa in soas]
    assert jax.vmap(total)(both).tolist() == wanted
    assert jax.jit(jax.vmap(total))(both).tolist() == wanted
    assert lax.map(total, both).tolist() == wanted
    doubled = jax.vmap(lambda s: update(s, Spec(x="x"), [2 * arrays(s, Spec(x="x"))[0]]))(both)
    second = jax.tree.map(lambda leaf: leaf[1], doubled)
    np.testing.assert_array_equal(second["x"], 4 * filled(33)["x"])


def test_stacked_soas_are_not_taken_for_one():
    """Arrays of stacked SoAs, and a map over a single one, are refused with the way out."""
    soa = filled(33, Layout([Column("x", "float32"), Column("y", "float32")]))
    with pytest.raises(ValueError, match=r"'x:y' has the leading axes \(2,\).*vmap"):
        jax.jit(total)(stacked(soa, soa))
    with pytest.raises(ValueError, match=r"'x:y' has the leading axes \(2,\).*vmap"):
        stacked(soa, soa)["x"]
    with pytest.raises(ValueError, match="'x:y' has lost its axis of components.*stack"):
        jax.vmap(total)(soa)


def test_scan_over_batches():
    """Batches are scanned stacked, or cut inside the loop from the whole."""
    soa = filled(1000)

    def step(carry, batch):
        return carry + total(batch), total(batch)

    end, each = lax.scan(step, 0.0, stacked(*soa.batches(100)))
    assert each.tolist() == [total_of(batch) for batch in soa.batches(100)]
    assert end == total_of(soa)

    @jax.jit
    def in_place(soa):
        [xy] = arrays(soa, XY)
        cut = lambda start: lax.dynamic_slice_in_dim(xy, start, 100)  # noqa: E731
        return lax.scan(lambda c, i: (c + cut(i).sum(), None), 0.0, jnp.arange(0, 1000, 100))[0]

    assert in_place(soa) == total_of(soa)


def test_an_soa_is_a_loop_carry():
    """A scan and a while loop carry an SoA whose columns they update."""
    soa = filled(33)

    def add(s, _=None):
        return update(s, Spec(x="x"), [arrays(s, Spec(x="x"))[0] + 1]), None

    end, _ = jax.jit(lambda s: lax.scan(add, s, length=5))(soa)
    np.testing.assert_array_equal(end["x"], soa["x"] + 5)
    end = lax.while_loop(lambda s: arrays(s, Spec(x="x"))[0][0] < 7, lambda s: add(s)[0], soa)
    assert end["x"][0] == 7
    np.testing.assert_array_equal(end["d"], soa["d"])


def test_shapes_alone():
    """`jax.eval_shape` and lowering need no memory; an SoA of shapes has none to read."""
    soa = filled(33)
    shapes = jax.eval_shape(lambda s: s, soa)
    assert jax.eval_shape(lambda s: arrays(s, XY), shapes)[0].shape == (33, 2)
    assert jax.jit(total).lower(shapes).compile()(soa) == total_of(soa)
    with pytest.raises(TypeError, match="ShapeDtypeStruct where its columns should be"):
        shapes["x"]


def test_export():
    """A function of an SoA is exported, and called with another buffer."""
    function = jax.jit(lambda s: update(s, Spec(y="y"), [arrays(s, Spec(x="x"))[0] * 2]))
    exported = jax.export.export(function)(filled(33))
    np.testing.assert_array_equal(exported.call(filled(33))["y"], 2 * filled(33)["x"])
    if importlib.util.find_spec("flatbuffers") is None:
        with pytest.raises(ImportError, match="flatbuffers"):
            exported.serialize()
        return
    loaded = jax.export.deserialize(exported.serialize())
    again = loaded.call(filled(33))
    assert (again.layout, again.rows) == (LAYOUT, 33)
    np.testing.assert_array_equal(again["y"], 2 * filled(33)["x"])
    np.testing.assert_array_equal(again["d"], filled(33)["d"])


def test_other_dtypes_than_the_layouts_are_refused():
    """Leaves that were converted are no longer what the layout says."""
    soa = jax.tree.map(lambda x: x.astype("float16") if x.dtype == "float32" else x, filled(33))
    for read_it in (lambda s: s["x"], lambda s: arrays(s, XY, copy=True), jax.jit(total)):
        with pytest.raises(
            TypeError, match=r"'x:y' is float16 of shape \(2, 64\).*float32.*take arrays .* first"
        ):
            read_it(soa)
    with pytest.raises(TypeError, match="'x:y' is tuple, and no array"):
        jax.tree.map(np.shape, filled(33))["x"]


# Gradients


def test_gradients_are_soas():
    """Float columns have gradients; other fields do not stop it, and have none."""
    soa = filled(33)

    def loss(soa):
        xy, k = arrays(soa, Spec(xy=["y", "x"], k="k"))
        return (xy[:, 0] ** 2 + 3 * xy[:, 1] * k).sum()

    for grad in (jax.grad(loss, allow_int=True), jax.jit(jax.grad(loss, allow_int=True))):
        found = grad(soa)
        assert (type(found), found.layout, found.rows) == (type(soa), LAYOUT, 33)
        np.testing.assert_array_equal(found["y"], 2 * soa["y"])
        np.testing.assert_array_equal(found["x"], 3 * soa["k"])
        assert not np.asarray(jax.tree.leaves(found)[0])[:, 33:].any()
        for name in "kd":  # 64-bit types are off
            off = ", as 64-bit types were switched off" if name == "d" else ""
            with pytest.raises(TypeError, match=f"{name!r} is a gradient, and .* has none{off}$"):
                found[name]
    with pytest.raises(TypeError, match="allow_int"):
        jax.grad(loss)(soa)


@pytest.mark.slow
def test_gradients_of_every_kind_of_entry():
    """Views, gathers, broadcasts and padding transpose to sums over where each value went."""
    layout = Layout([f for f in layout_of("float32", "int8").fields if f.dtype == "float32"])
    soa, _ = wrapped(layout, 33)
    entries = [c.entry for c in CASES if c.dtype == "float32"] + [list(e) for e in SCATTERED]

    @jax.jit  # all of them at once, for each would be compiled operation by operation
    def gradients(soa):
        return [jax.grad(lambda s, e=e: (arrays(s, Spec(t=e))[0] * 2).sum())(soa) for e in entries]

    for entry, found in zip(entries, gradients(soa), strict=True):
        names = [entry.name] if isinstance(entry, Value) else entry
        names = [names] if isinstance(names, str) else names
        for name in layout.starts:
            each = 1 if layout[name].per_row or isinstance(entry, Value) else 33
            wanted = 2.0 * each * names.count(name)
            field = found[name] if layout[name].per_row else found[Value(name)]
            assert (field == wanted).all(), (entry, name)


@pytest.mark.slow
def test_gradients_in_64_bits():
    """With 64-bit types on, their columns have gradients too."""
    with jax.enable_x64(True):
        soa = filled(33)
        found = jax.grad(lambda s: (arrays(s, Spec(d="d"))[0] ** 2).sum(), allow_int=True)(soa)
        np.testing.assert_array_equal(found["d"], 2 * soa["d"])
