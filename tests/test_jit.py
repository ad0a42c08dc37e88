"""The SoA as an argument of JAX's transformations, beyond what the suite asks of every adapter."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import weakref
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from adapters import is_dense
from cases import CASES, SCATTERED, layout_of, padded_rows, read, wrapped
from jax import lax

from soaview import Column, Layout, Scalar, Spec, Value, views
from soaview_jax import _tree, arrays, mask, segments, to, update, write

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("k", "int32"),
        Column("d", "float64"),
        Scalar("n", "int32"),
    ]
)
XY = Spec(xy=["x", "y"])

one_by_one = pytest.mark.parametrize(
    "case", [c for c in CASES if c.dtype == "float32"], ids=lambda c: c.name
)


def filled(rows, layout=LAYOUT):
    soa = layout.allocate(rows)
    for number, field in enumerate(layout.fields):
        target = soa[field.name] if field.per_row else soa[Value(field.name)]
        target[...] = np.arange(target.size).reshape(target.shape) + number
    return soa


def owned(soa):
    """The same SoA in memory of XLA's."""
    return jax.block_until_ready(jax.tree.map(jnp.array, soa))


def addresses(soa):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(soa)]


def stacked(*soas):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *soas)


def total(soa):
    [xy] = arrays(soa, XY)
    return xy.sum()


STEP = Spec(x="x")


def step(soa):
    return update(soa, STEP, [arrays(soa, STEP)[0] + 1])


# The pytree


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
        if case.name == "float32-scalars-apart":
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
    with pytest.raises(BufferError, match="read-only"):
        write(made, Spec(x="x"), [jnp.zeros(33)])
    with pytest.raises(BufferError, match="JAX made this SoA.*not in one buffer"):
        _ = made.buffer.root


def test_copies_stay_on_the_device(monkeypatch):
    """What JAX has elsewhere is not copied by way of the host."""
    made = owned(filled(33))
    monkeypatch.setattr(_tree.Leaves, "elsewhere", True)  # as it is on a GPU
    monkeypatch.setattr(_tree.Leaves, "locate", None)  # which leads to the host
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


# jit


def test_compiles_once_per_layout_and_row_count():
    """Another buffer with the same layout and row count meets the compiled function."""
    function = jax.jit(lambda s: total(s))
    for _ in range(3):
        assert function(filled(33)) == total_of(filled(33))
        assert function(Layout(LAYOUT.fields).wrap(filled(33).buffer.root, 33)) > 0
    assert function._cache_size() == 1
    function(filled(34))
    assert function._cache_size() == 2


def total_of(soa):
    return soa["x"].sum() + soa["y"].sum()


@pytest.mark.parametrize(
    "entry", [list("zyx"), ["x", "z", "y"], ["x", "x"], ["x", "n"], ["m", "k"]]
)
def test_columns_that_no_view_covers_are_cut_inside_jit(entry):
    """Reversed, uneven, repeated and mixed columns are no copy of ours inside XLA."""
    soa, expected = wrapped(layout_of("float32", "int8"), 33)
    [t] = jax.jit(lambda s: arrays(s, Spec(t=entry), copy=False))(soa)
    np.testing.assert_array_equal(t, read(entry, expected, 33))


@one_by_one
def test_what_a_view_covers_is_cut_in_one_piece(case):
    """Components at an even distance, in any order of the axes, are one slice."""
    soa, _ = wrapped(case.layout, 33)
    entry = list(case.entry) if isinstance(case.entry, tuple) else case.entry
    cut = str(jax.make_jaxpr(lambda s: arrays(s, Spec(t=entry)))(soa))
    runs = 2 if case.name == "float32-scalars-apart" else 1
    assert cut.count(" slice[") == runs
    assert "gather" not in cut
    assert ("concatenate" in cut) == (runs > 1)


def test_slices_go_as_their_own_rows():
    """A batch is an argument like an SoA of that many rows: two compilations for any number."""
    soa, function = filled(1000), jax.jit(lambda s: total(s))
    sums = [function(batch) for batch in soa.batches(96)]
    assert sums == [total_of(batch) for batch in soa.batches(96)]
    assert function._cache_size() == 2
    assert jax.tree.structure(soa[3:36]) == jax.tree.structure(filled(33))
    assert jax.jit(total)(soa[:0]) == 0
    same = jax.jit(lambda s: s)(soa[3:36])
    np.testing.assert_array_equal(same["d"], soa["d"][3:36])
    assert same[Value("n")] == soa[Value("n")]


def test_slices_inside_jit():
    """A traced SoA is sliced and batched like any other, and slices of results can be passed."""
    soa = filled(1000)

    @jax.jit
    def sums(soa):
        assert len(soa[10:20]) == 10
        return [total(batch) for batch in soa[100:].batches(400)]

    assert sums(soa) == [total_of(batch) for batch in soa[100:].batches(400)]
    made = owned(soa)
    assert jax.jit(total)(made[5:10]) == total_of(soa[5:10])
    back = jax.jit(lambda s: s[5:10])(soa)
    assert (back.rows, back["y"].tolist()) == (5, soa["y"][5:10].tolist())
    with pytest.raises(ValueError, match="padded=True: rows 10:20 are a slice of 1000"):
        jax.jit(lambda s: arrays(s[10:20], XY, padded=True))(soa)


def test_scalars_alone_and_no_rows():
    """A layout without columns, and an SoA without rows, pass through jit."""
    soa = Layout([Scalar("n", "int32"), Scalar("s", "float32")]).pack({"n": 3, "s": 0.5}, rows=4)
    n, s = jax.jit(lambda s: arrays(s, Spec(n=Value("n"), s="s")))(soa)
    assert (n, s.tolist()) == (3, [0.5] * 4)
    assert jax.jit(total)(filled(0)) == 0
    assert jax.jit(lambda s: update(s, Spec(x="x"), [jnp.ones(0)]))(filled(0)).rows == 0


def test_misaligned_and_read_only_memory():
    """Memory that JAX cannot alias is copied by JAX on the way in; read-only memory is read."""
    soa = filled(33)
    raw = np.zeros(soa.buffer.nbytes + 8, np.uint8)
    moved = LAYOUT.wrap(raw[8:], 33)
    moved.buffer.root[:] = soa.buffer.root
    frozen = LAYOUT.wrap(soa.buffer.root.tobytes(), 33)
    assert frozen.readonly
    assert jax.jit(total)(moved) == jax.jit(total)(frozen) == total_of(soa)


def test_mistakes_inside_jit():
    """A traced SoA has no values, and says what to take instead."""
    soa = filled(33)
    for bad in (lambda s: s["x"], lambda s: views(s, XY)[0].numpy()):
        with pytest.raises(TypeError, match="a traced SoA has no values yet.*soaview_jax.arrays"):
            jax.jit(bad)(soa)
    with pytest.raises(KeyError, match="no column 'z'"):
        jax.jit(lambda s: arrays(s, Spec(t="z")))(soa)
    assert jax.jit(lambda s: jnp.zeros(s.rows) + len(s.layout.fields))(soa)[0] == 5
    with pytest.raises(TypeError, match="is traced: write outside of jit.*soaview_jax.update"):
        jax.jit(lambda s: write(s, Spec(x="x"), arrays(s, Spec(x="x"))))(soa)


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


def test_gradients_of_every_kind_of_entry():
    """Views, gathers, broadcasts and padding transpose to sums over where each value went."""
    layout = Layout([f for f in layout_of("float32", "int8").fields if f.dtype == "float32"])
    soa, _ = wrapped(layout, 33)
    for entry in [c.entry for c in CASES if c.dtype == "float32"] + [list(e) for e in SCATTERED]:
        entry = list(entry) if isinstance(entry, tuple) else entry
        found = jax.grad(lambda s, e=entry: (arrays(s, Spec(t=e))[0] * 2).sum())(soa)
        names = [entry.name] if isinstance(entry, Value) else entry
        names = [names] if isinstance(names, str) else names
        for name in layout.starts:
            each = 1 if layout[name].per_row or isinstance(entry, Value) else 33
            wanted = 2.0 * each * names.count(name)
            field = found[name] if layout[name].per_row else found[Value(name)]
            assert (field == wanted).all(), (entry, name)


def test_gradients_in_64_bits():
    """With 64-bit types on, their columns have gradients too."""
    with jax.enable_x64(True):
        soa = filled(33)
        found = jax.grad(lambda s: (arrays(s, Spec(d="d"))[0] ** 2).sum(), allow_int=True)(soa)
        np.testing.assert_array_equal(found["d"], 2 * soa["d"])


# A fixed capacity with a count


def test_one_compilation_for_every_count(compilations):
    """1000 events of 0 to 4000 rows at capacity 4096 compile once."""
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
    random = np.random.default_rng(0)
    counts = [0, 4000, *random.integers(0, 4001, 998).tolist()]

    @jax.jit
    def run(soa, count):
        [xy, n] = arrays(soa, Spec(xy=["x", "y"], n=Value("n")))
        valid = mask(soa, count)
        assert (valid.shape, valid.dtype) == ((4096,), bool)
        inside = mask(soa, n)  # the count may also be a scalar of the SoA
        return jnp.where(valid[:, None], xy, 0).sum(0), (inside == valid).all()

    events = [layout.wrap(random.integers(0, 99, layout.nbytes(4096), np.uint8), 4096)]
    events[0]["x"][:] = random.integers(0, 9, 4096)
    events[0]["y"][:] = 1
    with compilations() as compiled:
        for count in counts:
            soa = layout.wrap(events[0].buffer.root.copy(), 4096)
            soa[Value("n")][...] = count
            sums, same = jax.device_get(run(soa, count))
            assert (*sums, same) == (soa["x"][:count].sum(), count, True)
    assert len(compiled) == 1


@pytest.fixture
def compilations():
    """Counts what XLA compiles."""

    @contextmanager
    def counting():
        seen = []

        def listen(event, duration, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                seen.append(duration)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield seen
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting


def test_rows_beyond_what_jax_counts():
    """Past 2**31 rows, what needs a row's number wants 64-bit types."""
    rows = 2**31 + 64
    layout = Layout([Column("a", "int8")])
    soa = layout.wrap(np.zeros(layout.nbytes(rows), np.uint8), rows)
    late = lambda s: update(s[2**31 + 3 :], Spec(a="a"), [jnp.ones(61, "int8")])  # noqa: E731
    for bad in (lambda s: mask(s, 3), late):
        with pytest.raises(ValueError, match="JAX does not count to .*64-bit types .*switch"):
            jax.eval_shape(bad, soa)
        with jax.enable_x64(True):
            jax.eval_shape(bad, soa)
    [t] = jax.jit(lambda s: arrays(s[: 2**31 - 1][-3:], Spec(a="a")))(soa)
    assert t.shape == (3,)


def test_no_soa():
    """What is no SoA is refused by its type."""
    for bad in (lambda s: mask(s, 3), lambda s: arrays(s, XY), lambda s: update(s, XY, [])):
        with pytest.raises(TypeError, match="soa must be an SoA, got list"):
            bad([1, 2])


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (34, ValueError, "count must be between 0 and the SoA's 33 rows, got 34"),
        (-1, ValueError, "count must be between 0"),
        (1.0, TypeError, "count must be an integer, got 1.0"),
        (True, TypeError, "count must be an integer, got True"),
        (np.arange(2), TypeError, "count must be an integer"),
    ],
)
def test_bad_counts(count, error, message):
    """A count is one integer within the rows."""
    with pytest.raises(error, match=message):
        mask(filled(33), count)


def test_counts_of_other_libraries():
    """Whatever counts as an integer is one."""

    class Count:
        def __index__(self):
            return 7

    assert mask(filled(33), Count()).sum() == 7


def test_bad_traced_counts():
    """A traced count is one integer."""
    for count in (jnp.float32(1), jnp.arange(3), jnp.bool(True)):
        with pytest.raises(TypeError, match="count must be one integer, got "):
            jax.jit(mask)(filled(33), count)
    assert jax.jit(mask)(filled(33), np.uint8(7)).sum() == 7
    assert mask(filled(33), jnp.int32(7)).sum() == 7


def with_both(numbers):
    """A test's dtypes, with what JAX must have switched on for each."""
    return pytest.mark.parametrize(
        ("dtype", "wide"),
        [(d, w) for d in numbers for w in ([True] if "64" in d else [False, True])],
    )


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@with_both(INTEGERS)
def test_counts_of_every_dtype(dtype, wide):
    """Traced or not, in strict promotion, too, a count is the number that it is."""
    soa, info = Layout([Column("x", "int8")]).allocate(300), np.iinfo(dtype)
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        function = jax.jit(mask)
        for count in (0, 1, 99, 127):
            number = np.dtype(dtype).type(count)
            wanted = np.arange(300) < count
            for given in (number, jnp.asarray(number)):
                for found in (function(soa, given), mask(soa, given)):
                    np.testing.assert_array_equal(found, wanted)
        # A traced count is not checked, but does not turn into another one.
        for count in (info.max, info.max - 1, info.min, info.min + 1, -1 if info.min else 5):
            found = function(soa, np.dtype(dtype).type(count))
            np.testing.assert_array_equal(found, [row < count for row in range(300)])
        each = jax.vmap(lambda count: mask(soa, count))(jnp.asarray([3, 5], dtype))
        assert each.sum(1).tolist() == [3, 5]


@with_both(INTEGERS)
def test_offsets_of_every_dtype(dtype, wide):
    """Traced or not, in strict promotion, too, offsets and counts say the same."""
    soa = Layout([Column("x", "int8")]).allocate(120)
    counts, offsets = np.array([5, 0, 100, 10], dtype), np.array([0, 5, 5, 105, 115], dtype)
    wanted = np.repeat([0, 2, 3, 4], [5, 100, 10, 5])
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        by_counts = jax.jit(lambda s, c: segments(s, counts=c))
        for function, given in (
            (jax.jit(segments), offsets),
            (segments, offsets),
            (by_counts, counts),
            (lambda s, c: segments(s, counts=c), counts),
        ):
            for numbers in (given, jnp.asarray(given)):
                found = function(soa, numbers)
                assert found.dtype == np.int32
                np.testing.assert_array_equal(found, wanted)
        most = np.iinfo(
            dtype
        ).max  # beyond the rows, or the sum is: all rows that come belong to it
        late = np.repeat([0, 1], [5, 115])
        found = by_counts(soa, np.array([5, most, most, most], dtype))
        np.testing.assert_array_equal(found, late if most > 200 else late + (np.arange(120) >= 132))
        if dtype.startswith("int"):
            found = jax.jit(segments)(soa, np.array([0, -1, 5], dtype))
            np.testing.assert_array_equal(found, np.repeat([1, 2], [5, 115]))
        if most > 120:
            found = jax.jit(segments)(soa, np.array([0, 5, most, most], dtype))
            np.testing.assert_array_equal(found, late)


def test_traced_counts_whose_sum_is_beyond_32_bits():
    """They are not checked, but no event begins anew among the rows."""
    soa = Layout([Column("x", "int8")]).allocate(1_000_000)
    found = jax.jit(lambda s, c: segments(s, counts=c))(soa, np.full(3000, 1_000_000, "int32"))
    assert not found.any()


def test_segments_of_more_rows_than_64_bits_count():
    """Counts on the host are summed exactly."""
    soa = Layout([Scalar("n", "int8")]).allocate(2**62)
    with jax.enable_x64(True):
        for counts in ([2**62] * 5, np.full(5, 2**62), np.full(4, 2**62, "uint64")):
            with pytest.raises(ValueError, match=f"the events have {len(counts) * 2**62} rows"):
                segments(soa, counts=counts)


# update


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


@jax.jit
def slow(x):
    """Takes long enough to be waited for."""
    return lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), x).sum()


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


def test_an_eager_update_of_gradients():
    """Fields without a gradient stay without one."""
    soa = filled(33)
    found = jax.grad(lambda s: total(s), allow_int=True)(soa)
    made = update(found, Spec(x="x"), [jnp.array(2 * found["x"])])
    np.testing.assert_array_equal(made["x"], 2 * found["x"])
    with pytest.raises(TypeError, match="'k' is a gradient"):
        made["k"]


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


# Donation


def test_donated_memory_of_xla_changes_in_place():
    """A donated SoA that XLA owns keeps its addresses, also after the host has read it."""
    soa = jax.jit(step)(filled(1000))
    advance = jax.jit(step, donate_argnums=0)
    before = addresses(soa)
    for count in range(2, 6):
        previous, soa = soa, advance(soa)
        assert addresses(soa) == before
        assert soa["x"][0] == arrays(soa, STEP)[0][0] == count
        np.testing.assert_array_equal(soa["d"], filled(1000)["d"])
        assert "on no device: it was donated" in repr(previous)
        for late in (
            lambda s: s["x"],
            lambda s: arrays(s, STEP),
            lambda s: update(s, STEP, [jnp.ones(1000)]),
        ):
            with pytest.raises(RuntimeError, match="'x:y' is deleted: the SoA was donated"):
                late(previous)


def test_what_is_being_read_is_not_changed():
    """While a NumPy view of XLA's memory lives, donation makes new memory."""
    soa = jax.jit(step)(filled(1000))
    kept, eager = soa["x"], arrays(soa, Spec(y="y"))
    soa = jax.jit(step, donate_argnums=0)(soa)
    assert (kept[0], soa["x"][0], eager[0][3]) == (1, 2, 4)


@pytest.mark.parametrize("make", ["itself", "slice", "device_put", "read-only", "forwarded"])
def test_donation_never_writes_the_users_memory(make):
    """Whatever way it went into JAX, no byte of a user's buffer changes."""
    mine = filled(1024)
    if make == "read-only":
        mine.buffer.root.flags.writeable = False
        mine = LAYOUT.wrap(mine.buffer.root, 1024)
    before = mine.buffer.root.copy()
    soa = {
        "itself": lambda: mine,
        "slice": lambda: mine[:512],
        "device_put": lambda: jax.device_put(mine),
        "read-only": lambda: mine,
        "forwarded": lambda: jax.jit(lambda s, y: (s, y + 1))(mine, 1)[0],
    }[make]()
    advance = jax.jit(step, donate_argnums=0)
    for count in range(1, 4):
        soa = jax.block_until_ready(advance(soa))
        assert soa["x"][0] == count
        np.testing.assert_array_equal(mine.buffer.root, before)
    assert arrays(mine, Spec(x="x"))[0][1] == 1


# 64-bit types


def test_unused_64_bit_columns_do_no_harm():
    """With 64-bit types off, they pass through bit by bit, and used ones are refused by name."""
    layout = Layout([Column("x", "float32"), *wide_columns(), Scalar("w", "uint64")])
    soa = layout.allocate(33)
    random = np.random.default_rng(0)
    soa.buffer.root[:] = random.integers(0, 256, soa.buffer.nbytes, np.uint8)
    before = soa.buffer.root.copy()
    soa["x"][:] = 1
    made = jax.jit(lambda s: update(s, Spec(x="x"), [arrays(s, Spec(x="x"))[0] + 1]))(soa)
    assert (made["x"] == 2).all()
    for field in wide_columns():
        assert made[field.name].dtype == field.dtype
        assert made[field.name].tobytes() == soa[field.name].tobytes()
        for bad in (arrays, lambda s, spec: update(s, spec, [jnp.zeros(33)])):
            with pytest.raises(TypeError, match=f"'t' is {field.dtype}, .*narrow.*jax_enable_x64"):
                jax.jit(lambda s, b=bad, f=field: b(s, Spec(t=f.name)))(soa)
    assert made[Value("w")] == soa[Value("w")]
    np.testing.assert_array_equal(soa.buffer.root[256:], before[256:])
    part = jax.jit(lambda s: s)(soa[3:9])
    assert part["complex128"].tobytes() == soa["complex128"][3:9].tobytes()


def wide_columns():
    return [Column(dtype, dtype) for dtype in ("int64", "uint64", "float64", "complex128")]


def test_64_bit_types_switched_between():
    """What the host got keeps its 64-bit values, whole and in slices, however it goes back in."""
    soa = filled(33)
    soa["d"][:] = np.pi * np.arange(33)
    with jax.enable_x64(True):
        native = jax.device_get(jax.device_put(soa))
    bits = jax.device_get(jax.device_put(soa))
    assert [jax.tree.leaves(one.buffer.leaves)[2].dtype.name for one in (native, bits)] == [
        "float64",
        "uint32",
    ]
    for made in (soa, native, bits):
        for mode in (False, True):
            with jax.enable_x64(mode):
                for part in (slice(None), slice(3, 9), slice(33, 33)):
                    passed = jax.jit(lambda s: s)(made[part])
                    assert passed["d"].tobytes() == soa[part]["d"].tobytes()
                    assert passed["x"].tobytes() == soa[part]["x"].tobytes()
                    assert passed[Value("n")] == soa[Value("n")]
                    if mode:
                        [d] = jax.jit(lambda s: arrays(s, Spec(d="d")))(made[part])
                        np.testing.assert_array_equal(d, soa[part]["d"])
    with jax.enable_x64(True):
        native = jax.device_put(soa)
    for part in (native[3:9], jax.jit(lambda s: s)(native)[3:9]):  # of JAX's own arrays
        assert part["d"].tobytes() == soa[3:9]["d"].tobytes()
        leaf = jax.tree.leaves(part)[2]
        assert (leaf.shape, leaf.dtype) == ((1, 16), np.float64)


def test_64_bit_types_on():
    """Switched on, the same SoA gives them inside jit; what went in without is told apart."""
    soa = filled(33)
    with jax.enable_x64(True):
        assert jax.jit(lambda s: arrays(s, Spec(d="d")))(soa)[0].dtype == np.float64
    assert jax.jit(total)(soa) == total_of(soa)
    made = jax.jit(lambda s: s)(soa)
    with (
        jax.enable_x64(True),
        pytest.raises(TypeError, match="'d' is float64.*while 64-bit types were switched off"),
    ):
        jax.jit(lambda s: arrays(s, Spec(d="d")))(made)


# Lifetime and mutation


def test_arguments_are_live_and_closures_are_not():
    """An argument is read in every call; what a jitted function closed over is a constant."""
    soa = filled(32)
    closed, given = jax.jit(lambda y: total(soa) + y), jax.jit(lambda s, y: total(s) + y)
    first = total_of(soa)
    assert closed(0.0) == given(soa, 0.0) == first
    soa["x"][:] = 0
    assert given(soa, 0.0) == total_of(soa) != first
    assert closed(0.0) == first


def test_a_running_computation_sees_what_is_written():
    """The memory is read where it lies, when the computation gets there, and not before."""
    soa = filled(1024)
    function = jax.jit(lambda s, wait: total(s) + 0 * wait)
    function(soa, 0.0).block_until_ready()

    @jax.jit
    def slow(x):
        return lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x), x).sum()

    before = total_of(soa)
    result = function(soa, slow(jnp.ones((500, 500))))
    soa["x"][:] = 0
    assert not result.is_ready()
    assert result == total_of(soa) != before


def test_memory_may_be_written_once_the_result_is_there():
    """After `block_until_ready`, a result does not change with the memory it came from."""
    soa, function = filled(100_000), jax.jit(lambda s: arrays(s, XY)[0] + 0)
    for count in range(20):
        soa["x"][:] = soa["y"][:] = count
        result = function(soa).block_until_ready()
        soa["x"][:] = soa["y"][:] = -1
        assert (np.asarray(result) == count).all()


def test_a_running_computation_keeps_the_memory():
    """The memory outlives a computation that was started on it, and nothing holds it longer."""
    soa = filled(1 << 20, Layout([Column("x", "float32"), Column("y", "float32")]))
    gone = weakref.ref(soa.buffer.root.base)
    result = jax.jit(lambda s: jnp.sort(arrays(s, XY)[0], axis=0).sum())(soa)
    del soa
    assert result > 0
    assert places.soon(lambda: gone() is None)


def test_padded_rows_inside_jit():
    """`padded=True` gives the padded rows of each tensor's own dtype."""
    layout = Layout([Column("x", "float32"), Column("b", "int8")])
    x, b = jax.jit(lambda s: arrays(s, Spec(x="x", b="b"), padded=True))(layout.allocate(33))
    assert (len(x), len(b)) == (padded_rows("float32", 33), padded_rows("int8", 33)) == (64, 128)
