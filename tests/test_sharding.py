"""An SoA whose rows are split over many devices."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SCATTERED, layout_of, read, wrapped
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, to, update

LAYOUT = layout_of("float32", "int8")
ENTRIES = [
    *(
        list(c.entry) if isinstance(c.entry, tuple) else c.entry
        for c in CASES
        if c.dtype == "float32"
    ),
    *map(list, SCATTERED),
]


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def sharding(request):
    """Rows over eight devices."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(request.param,))
    return NamedSharding(mesh, PartitionSpec("rows"))


def explicit(sharding):
    return sharding.mesh.axis_types == (AxisType.Explicit,)


def test_rows_are_split_and_scalars_are_everywhere(sharding):
    """Each device holds its part of the rows; there is one leaf per run, as on one device."""
    soa, _ = wrapped(LAYOUT, 1000)
    placed = to(soa, sharding)
    assert (placed.layout, placed.rows) == (LAYOUT, 1000)
    runs, leaves = jax.tree.leaves(soa), jax.tree.leaves(placed)
    for one, leaf in zip(runs, leaves, strict=True):
        parts = leaf.addressable_shards
        assert len({part.device for part in parts}) == 8
        per_device = leaf.shape if one.shape == (1, 32) else (leaf.shape[0], leaf.shape[1] // 8)
        assert {part.data.shape for part in parts} <= {per_device, (2, 32)}
        np.testing.assert_array_equal(leaf, one)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
def test_jit_under_the_mesh(sharding, entry, rows):
    """Jitted functions give the same values over the mesh, for even and uneven row counts."""
    soa, expected = wrapped(LAYOUT, rows)
    placed, spec = to(soa, sharding), Spec(t=entry)
    wanted = read(entry, expected, rows)
    split = not isinstance(entry, Value) and any(name in "xyzuvmk" for name in entry)
    if explicit(sharding) and rows % 8 and split:
        with pytest.raises(ValueError, match=f"{rows} rows do not split evenly over 8 devices"):
            jax.jit(lambda s: arrays(s, spec))(placed)
        if entry != ["x", "n"]:
            [t] = jax.jit(lambda s: arrays(s, spec, padded=True))(placed)
            np.testing.assert_array_equal(np.asarray(t)[:rows], wanted)
        return
    if explicit(sharding) and rows and entry == ["x", "n"]:
        return  # JAX does not join what is split and what is not, and says so
    [t] = jax.jit(lambda s: arrays(s, spec))(placed)
    np.testing.assert_array_equal(t, wanted)
    if t.size and split:
        assert len(t.devices()) == 8


@pytest.mark.parametrize("entry", ["x", "u", "m", ["x", "z"], ["x", "y"], Value("n")], ids=str)
def test_update_under_the_mesh(sharding, entry):
    """An updated SoA is split as it was, and comes to the host with `jax.device_get`."""
    soa, expected = wrapped(LAYOUT, 1000)
    spec = Spec(t=entry)
    add = jax.jit(lambda s: update(s, spec, [arrays(s, spec)[0] + 1]))
    made = add(to(soa, sharding))
    assert len(jax.tree.leaves(made)[0].devices()) == 8
    with pytest.raises(
        BufferError, match="the SoA is on .*cpu.*give it to a jitted function.*device_get"
    ):
        made[entry]
    for copy in (False, None, True):
        [t] = arrays(made, spec, copy=copy)
        np.testing.assert_array_equal(t, read(entry, expected, 1000) + 1)
        assert len(t.devices()) == 8
    host = jax.device_get(made)
    np.testing.assert_array_equal(host[entry], read(entry, expected, 1000) + 1)
    np.testing.assert_array_equal(host["v"], expected["v"])


def test_64_bit_columns_are_carried(sharding):
    """Unused 64-bit columns are split bit by bit while those types are off."""
    layout = Layout([Column("x", "float32"), Column("d", "float64"), Scalar("w", "int64")])
    soa = layout.pack({"x": np.zeros(64, "f4"), "d": np.pi * np.arange(64), "w": -1})
    made = jax.jit(lambda s: update(s, Spec(x="x"), [arrays(s, Spec(x="x"))[0] + 1]))
    host = jax.device_get(made(to(soa, sharding)))
    assert (host["x"] == 1).all()
    np.testing.assert_array_equal(host["d"], soa["d"])
    assert host[Value("w")] == -1


def test_rows_that_devices_do_not_divide():
    """Padded rows that do not split evenly are refused with a row count that does."""
    mesh = jax.make_mesh((3,), ("rows",), devices=jax.devices()[:3])
    soa, sharding = LAYOUT.allocate(1000), NamedSharding(mesh, PartitionSpec("rows"))
    with pytest.raises(
        ValueError, match="3 devices do not divide the 1024 padded .*'x'.* 1152 rows"
    ):
        to(soa, sharding)
    assert len(jax.tree.leaves(to(LAYOUT.allocate(1152), sharding))[0].devices()) == 3


@pytest.mark.parametrize("devices", [3, 5, 7])
@pytest.mark.parametrize(
    ("layout", "step"),
    [
        (Layout([Column("x", "float32")]), 32),
        (Layout([Column("k", "int8"), Column("d", "float32")]), 128),
        (Layout([Column("x", "float32", (2,)), Scalar("n", "int32")], alignment=16), 4),
        (Layout([Column("x", "float32")], alignment=4), 1),
    ],
    ids=["a column", "two dtypes", "a vector", "no padding"],
)
def test_the_row_count_that_is_suggested_works(devices, layout, step):
    """It is the next one of which each device gets as many rows, without padding."""
    mesh = jax.make_mesh((devices,), ("rows",), devices=jax.devices()[:devices])
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    refused = 0
    for rows in (1, step * devices - 1, step * devices, step * (devices + 1), step * 70 + 1):
        try:
            to(layout.allocate(rows), sharding)
        except ValueError as error:
            [found] = re.findall(r"lay the SoA out for (\d+) rows", str(error))
            assert int(found) == -(-rows // (step * devices)) * step * devices
            to(layout.allocate(int(found)), sharding)
            refused += 1
    assert refused


def test_to_one_device():
    """A device takes the whole SoA, a leaf at a time; the functions given it run there."""
    soa, expected = wrapped(LAYOUT, 1000)
    second = jax.devices()[1]
    for part, rows in ((soa, slice(None)), (soa[3:40], slice(3, 40))):
        moved = to(part, second)
        assert {d for leaf in jax.tree.leaves(moved) for d in leaf.devices()} == {second}
        [t] = jax.jit(lambda s: arrays(s, Spec(t=["z", "x"])))(moved)
        assert t.devices() == {second}
        np.testing.assert_array_equal(t, np.stack([expected["z"], expected["x"]], 1)[rows])


def test_only_one_soa_is_placed(sharding):
    """Neither stacked SoAs nor something else is split over the devices."""
    soa = LAYOUT.allocate(1000)
    with pytest.raises(ValueError, match=r"has the leading axes \(2,\).*stacked"):
        to(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), soa), sharding)
    with pytest.raises(TypeError, match="soa must be an SoA, got ndarray"):
        to(soa["x"], sharding)
    placed = to(soa, sharding)
    with jax.set_mesh(sharding.mesh):  # a constant of the function
        assert jax.jit(lambda: arrays(placed, Spec(x="x"))[0].sum())() == 0


def test_two_axes_of_a_mesh():
    """Rows may be split over several axes of a mesh, or over one of them, or none."""
    soa, expected = wrapped(LAYOUT, 1000)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    for spec, parts in ((("a", "b"), 8), ("a", 4), (None, 1)):
        placed = to(soa, NamedSharding(mesh, PartitionSpec(spec)))
        shapes = {part.data.shape for part in jax.tree.leaves(placed)[0].addressable_shards}
        assert shapes == {(3, 1024 // parts)}
        [x] = jax.jit(lambda s: arrays(s, Spec(x="x")))(placed)
        np.testing.assert_array_equal(x, expected["x"])


@pytest.mark.parametrize(
    "bad", [None, jax.P("rows"), jax.P(None, "rows"), jax.P(jax.P.UNCONSTRAINED), "cpu"], ids=str
)
def test_bad_shardings(bad):
    """Only a sharding of the row axis is taken."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    if isinstance(bad, jax.P) and bad != jax.P("rows"):
        bad = NamedSharding(mesh, bad)
    with pytest.raises(TypeError, match="must be a .*NamedSharding of one axis, that of the rows"):
        to(LAYOUT.allocate(10), bad)


def test_the_memory_is_not_written(sharding):
    """Donating a placed SoA does not change the user's memory."""
    soa = Layout([Column("x", "float32")]).allocate(1024)
    spec = Spec(x="x")
    add = jax.jit(lambda s: update(s, spec, [arrays(s, spec)[0] + 1]), donate_argnums=0)
    placed = to(soa, sharding)
    for count in (1, 2, 3):
        placed = jax.block_until_ready(add(placed))
        assert (jax.device_get(placed)["x"] == count).all()
    assert not soa.buffer.root.any()
    assert jnp.all(arrays(soa, spec)[0] == 0)
