"""SoAs inside of `jit`, beyond what the suite asks of every adapter; 64-bit types; lifetimes."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from cases import layout_of, padded_rows, read, wrapped
from jax import lax
from soas import LAYOUT, XY, filled, one_by_one, owned, total, total_of

from soaview import Column, Layout, Scalar, Spec, Value, views
from soaview_jax import arrays, update, write

NEEDS = ["jit"]

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
    apart = "scalars-apart", "interleaved-both", "scalar-arrays"
    runs = 2 if case.name.removeprefix("float32-") in apart else 1
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
