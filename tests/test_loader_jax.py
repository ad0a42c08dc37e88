"""JAX's loader over an SoA, and rows that are taken and concatenated where JAX has them."""

from __future__ import annotations

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from bound import of_a_device
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import soaview
from soaview import Column, Layout, Scalar, Spec, Value, bind
from soaview_jax import _loader, arrays, concatenate, loader, take, to

NEEDS = ["jax", "torch"]

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("cov", "float32", (2, 3)),
        Column("hit", "float32", (3,), interleaved=True),
        Column("k", "int16"),
        Scalar("n", "int32"),
        Scalar("beam", "float32", (2,)),
        Column("d", "float64"),
    ]
)
SPEC = Spec(yx=["y", "x"], cov="cov", hit="hit", k="k", n="n", same=Value("beam"))


def filled(rows):
    soa = LAYOUT.allocate(rows)
    for number, field in enumerate(LAYOUT.fields):
        target = soa[field.name if field.per_row else Value(field.name)]
        target[...] = np.arange(target.size).reshape(target.shape) + 10 * number
    return soa


def wanted(soa, order):
    yx = np.stack([soa["y"][order], soa["x"][order]], 1)
    rest = soa["cov"][order], soa["hit"][order], soa["k"][order]
    return [yx, *rest, np.full(len(order), soa[Value("n")]), soa[Value("beam")]]


def check(batch, expected):
    assert len(batch) == len(expected)
    for array, values in zip(batch, expected, strict=True):
        assert array.dtype == values.dtype
        np.testing.assert_array_equal(array, values)


def on_a_device(rows):
    memory = places.aligned(filled(rows).buffer.root)
    return places.PretendedMemory().wrap(LAYOUT, memory, rows)


MAKERS = {
    "host": filled,
    "slice": lambda rows: filled(rows + 3)[1:-2],
    "JAX's": lambda rows: jax.device_put(filled(rows)),
    "device": on_a_device,
}


@pytest.mark.slow_but_every(3)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_epochs(make):
    """Every epoch has each row once; what fills the last batch up is marked, or left out."""
    rows = 10
    soa, host = make(rows), filled(rows + 3)[1:-2] if make is MAKERS["slice"] else filled(rows)
    batches = loader(soa, SPEC, 4, shuffle=True, seed=7)
    assert len(batches) == 3
    for number in range(2):
        order = np.arange(rows)
        np.random.default_rng((7, number)).shuffle(order)
        for first, (*batch, valid) in zip((0, 4, 8), batches, strict=True):
            check(batch, wanted(host, np.resize(order, 12)[first : first + 4]))
            assert valid.tolist() == [first + i < rows for i in range(4)]
    dropped = loader(soa, SPEC, 4, drop_last=True)
    assert len(dropped) == 2
    for first, batch in zip((0, 4), dropped, strict=True):
        check(batch, wanted(host, np.arange(first, first + 4)))


def test_an_epoch_compiles_once():
    """All batches of all epochs, the last one too, are made by one compiled function."""
    soa = filled(33)
    before = _loader._batch._cache_size()
    spec = Spec(only_here=["x", "y"])
    batches = loader(soa, spec, 8, shuffle=True)
    step = jax.jit(lambda x, valid: (x * valid[:, None]).sum())
    for _ in range(2):
        for x, valid in batches:
            step(x, valid)
    assert _loader._batch._cache_size() == before + 1
    assert step._cache_size() == 1
    assert len(list(loader(filled(3), spec, 8))) == 1
    assert list(loader(filled(0), spec, 8)) == []


def test_an_epoch_comes_again():
    """An epoch is its seed and number, and iterating counts them."""
    batches = loader(filled(20), Spec(k="k"), 3, shuffle=True, seed=1)
    first, second = ([k.tolist() for k, _ in batches] for _ in range(2))
    assert first != second
    assert [k.tolist() for k, _ in batches.epoch(1)] == second
    rest = itertools.islice(batches.epoch(0), 4, None)
    assert [k.tolist() for k, _ in rest] == first[4:]
    other = loader(filled(20), Spec(k="k"), 3, shuffle=True, seed=2)
    assert [k.tolist() for k, _ in other] != first


def test_batches_that_are_kept_do_not_change():
    """What is written into the SoA, or given by donation, touches no batch but the next ones."""
    soa = filled(8)
    batches = loader(soa, Spec(x="x"), 4, drop_last=True)
    kept = [x for [x] in batches]
    before = copy.deepcopy([np.array(x) for x in kept])
    soa["x"][:] = -1
    jax.jit(lambda x: x + 1, donate_argnums=0)(next(iter(batches))[0])
    np.testing.assert_array_equal(kept, before)
    assert next(iter(batches))[0].tolist() == [-1] * 4
    assert (soa["x"] == -1).all()


def test_bound_columns_are_loaded():
    """Columns in memory apart, aligned or not, are copied as an epoch begins, and chosen."""
    records = np.zeros(5, [("i", "i1"), ("a", "f4")])
    records["a"] = np.arange(5)
    soa = bind({"a": records["a"], "b": np.arange(5, dtype="f4") * 2})
    batches = loader(soa, Spec(t=["a", "b"]), 5, shuffle=True, drop_last=True)
    [[t]] = batches
    assert sorted(t[:, 0].tolist()) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(t[:, 1], 2 * t[:, 0])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch size must be positive"),
        ({"shuffle": None}, TypeError, "shuffle must be True or False"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"spec": Spec(d="d")}, TypeError, "is float64, and JAX has 64-bit types switched off"),
        ({"spec": Spec(z="z")}, KeyError, "no column 'z'"),
        ({"spec": Spec()}, ValueError, "the spec has no tensors"),
        ({"soa": []}, TypeError, "soa must be an SoA"),
    ],
)
def test_what_is_refused(change, kind, message):
    """A loader that cannot be is refused when it is made."""
    arguments = {"soa": filled(3), "spec": Spec(x="x"), "batch_size": 2, **change}
    with pytest.raises(kind, match=message):
        loader(**arguments)
    with pytest.raises(TypeError, match="a loader is made outside of jit"):
        jax.jit(lambda soa: list(loader(soa, Spec(x="x"), 2)))(filled(3))


def as_host(soa):
    return jax.device_get(soa)


def check_alike(made, host):
    assert made.rows == host.rows
    assert made.layout == host.layout
    for field in LAYOUT.fields:
        key = field.name if field.per_row else Value(field.name)
        np.testing.assert_array_equal(as_host(made)[key], host[key])


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("rows", [[3, 0, -1], [], [True, False, True, False]], ids=str)
@pytest.mark.parametrize("x64", [False, True])
def test_take(make, rows, x64):
    """Chosen rows are those of the host, of all kinds of columns, with and without 64 bits."""
    with jax.enable_x64(x64):
        soa = make(4)
        host = (filled(7)[1:-2] if make is MAKERS["slice"] else filled(4)).take(rows)
        check_alike(take(soa, rows), host)
        if len(rows) == 3:
            check_alike(jax.jit(take)(soa, jnp.array(rows)), host)


def test_rows_that_are_not_there():
    """Numbers that are known are checked; those that are traced are kept inside of the memory."""
    soa = jax.device_put(filled(3))
    with pytest.raises(IndexError, match="row 3 is not there"):
        take(soa, jnp.array([3]))
    made = jax.jit(take)(soa, jnp.array([5, -9, 1]))
    assert made["x"].tolist() == [2, 0, 1]
    many = jax.device_put(filled(300))
    for rows in (np.array([-1, -128], "i1"), np.array([2**32 - 1, 172], "u4")):
        assert jax.jit(take)(many, jnp.array(rows))["x"].tolist() == [299, 172]
    assert jax.jit(take)(soa, jnp.array([255], "u1"))["x"].tolist() == [2]
    with pytest.raises(TypeError, match="of a mask nobody knows"):
        jax.jit(take)(soa, jnp.array([True, False, True]))
    with pytest.raises(IndexError, match="there is no row to take"):
        jax.jit(take)(filled(0), jnp.array([0]))


@pytest.mark.slow_but_every(3)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("x64", [False, True])
def test_concatenate(make, x64):
    """Rows follow each other as on the host; a scalar that differs is refused, by its values."""
    with jax.enable_x64(x64):
        soas = [make(3), make(0), make(33)]
        host = soaview.concatenate([as_host(soa) for soa in soas])
        made = concatenate(soas)
        check_alike(made, host)
        check_alike(jax.jit(lambda *soas: concatenate(soas))(*soas), host)
        wrong = filled(2)
        wrong["n"] = 7
        with pytest.raises(ValueError, match="scalar 'n' is 50 .* and 7 in soas\\[1\\]"):
            concatenate([soas[0], jax.device_put(wrong)])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_rows_that_are_split_over_devices(kind):
    """An SoA of a mesh is loaded there, taken from and concatenated; batches are whole."""
    layout = Layout([Column("x", "float32"), Column("h", "float32", (2,), interleaved=True)])
    soa = layout.pack({"x": np.arange(256, dtype="f4"), "h": np.zeros((256, 2), "f4")})
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(kind,))
    placed = to(soa, NamedSharding(mesh, PartitionSpec("rows")))
    batches = loader(placed, Spec(x="x", h="h"), 32, shuffle=True, drop_last=True)
    seen = np.concatenate([np.asarray(x) for x, h in batches])
    assert sorted(seen) == list(range(256))
    [x] = jax.jit(lambda soa: arrays(take(soa, [5, -1]), Spec(x="x")))(placed)
    assert x.tolist() == [5, 255]
    both = jax.device_get(concatenate([placed, placed]))
    np.testing.assert_array_equal(both["x"], np.tile(soa["x"], 2))


def test_fields_that_lie_otherwise():
    """JAX's SoAs are concatenated if their memory is alike, and the way out is right."""
    one = jax.device_put(Layout([Column("m", "float32", (2, 3))]).allocate(2))
    other = jax.device_put(Layout([Column("m", "float32", (2, 3), order="C")]).allocate(2))
    with pytest.raises(ValueError, match="fields of soas\\[1\\] lie otherwise.*device_get"):
        concatenate([one, other])
    assert soaview.concatenate(jax.device_get([one, other])).rows == 4


def test_bound_columns_of_a_device_are_taken():
    """Several allocations of a device give one new SoA."""
    soa, one, _ = of_a_device(5)
    made = take(soa, [4, 0])
    [x] = arrays(made, Spec(x="x"))
    np.testing.assert_array_equal(x, one["x"][[4, 0]])
    assert concatenate([soa, soa[1:3]]).rows == 7
