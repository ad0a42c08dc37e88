"""An SoA whose rows are split over many devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SCATTERED, first_name, layout_of, list_of, read, wrapped
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, to, update

NEEDS = ["jit"]

WHOLE = layout_of("float32", "int8")
LAYOUT = Layout([f for f in WHOLE.fields if not f.per_row or not f.interleaved])
ENTRIES = [
    *(
        list(c.entry) if isinstance(c.entry, tuple) else c.entry
        for c in CASES
        if c.dtype == "float32" and first_name(c.entry) in LAYOUT
    ),
    *(list(names) for names in SCATTERED if set(names) <= set(LAYOUT)),
]
"""But for interleaved columns, which have no padding that would make an uneven row count even."""


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
        split = leaf.shape[0], leaf.shape[1] // 8
        per_device = split if leaf.shape[1] >= 1000 else leaf.shape
        assert {part.data.shape for part in parts} == {per_device}
        np.testing.assert_array_equal(leaf, one)


def is_split(entry):
    return not isinstance(entry, Value) and any(name in "xyzuvmk" for name in entry)


def is_uneven(sharding, rows, entry):
    return bool(explicit(sharding) and rows % 8 and is_split(entry))


def is_unjoined(sharding, rows, entry):
    """JAX does not join what is split and what is not, and says so."""
    return bool(explicit(sharding) and rows and entry == ["x", "n"])


def test_interleaved_rows_are_split(sharding):
    """Each device holds its part of them; a row count that the devices do not divide is refused."""
    soa, expected = wrapped(WHOLE, 1000)
    placed = to(soa, sharding)
    spec = Spec(p="p", both=["p", "q"], w="w", f="f", joined=["u", "p"], a="a")
    found = jax.jit(lambda s: arrays(s, spec))(placed)
    for (name, entry), t in zip(spec.items(), found, strict=True):
        np.testing.assert_array_equal(t, read(list_of(entry), expected, 1000))
        assert len(t.devices()) == 8, name
    changed = jax.jit(lambda s: update(s, Spec(w="w"), [found[2] + 1]))(placed)
    np.testing.assert_array_equal(jax.device_get(changed)["w"], expected["w"] + 1)
    with pytest.raises(ValueError, match="8 devices do not divide the 33 rows of 'p'"):
        to(wrapped(WHOLE, 33)[0], sharding)


@functools.cache
def taken(sharding, rows, uneven):
    """By the name of each entry its array, with padding where rows are uneven: compiled as one."""
    spec = Spec(
        {
            str(entry): entry
            for entry in ENTRIES
            if is_uneven(sharding, rows, entry) == uneven and not is_unjoined(sharding, rows, entry)
        }
    )
    placed = to(wrapped(LAYOUT, rows)[0], sharding)
    found = jax.jit(lambda s: arrays(s, spec, padded=uneven))(placed)
    return dict(zip(spec, found, strict=True))


@pytest.mark.slow_but_every(92)
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
def test_jit_under_the_mesh(sharding, entry, rows):
    """Jitted functions give the same values over the mesh, for even and uneven row counts."""
    soa, expected = wrapped(LAYOUT, rows)
    uneven = is_uneven(sharding, rows, entry)
    if uneven:
        placed = to(soa, sharding)
        with pytest.raises(ValueError, match=f"{rows} rows do not split evenly over 8 devices"):
            jax.jit(lambda s: arrays(s, Spec(t=entry)))(placed)
    if is_unjoined(sharding, rows, entry):
        return
    t = taken(sharding, rows, uneven)[str(entry)]
    np.testing.assert_array_equal(
        np.asarray(t)[:rows] if uneven else t, read(entry, expected, rows)
    )
    if t.size and is_split(entry) and not uneven:
        assert len(t.devices()) == 8


@pytest.mark.slow_but_every(6)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "b", "n"])
@pytest.mark.parametrize("rows", [1000, 1024, 40])
def test_padding_is_no_value_under_the_mesh(sharding, name, rows):
    """It is zero in the leaf that changes, whatever its parts are; outside of jit in all."""
    layout = Layout(
        [
            Column("x", "float32"),
            Column("y", "float32"),
            Column("b", "bool"),
            Scalar("n", "float32"),
        ]
    )
    soa = layout.allocate(rows)
    soa.buffer.root[:] = 0xFF
    soa["x"][:] = soa["y"][:] = soa["b"][:] = soa[Value("n")][...] = 1
    spec = Spec(t=Value("n") if name == "n" else name)
    placed = to(soa, sharding)

    def change(soa):
        return update(soa, spec, arrays(soa, spec))

    for made in (jax.jit(change)(placed), change(placed)):
        for first, leaf in zip("xbn", jax.device_get(made).buffer.leaves, strict=True):
            valid = 1 if first == "n" else rows
            assert (leaf[:, :valid] == 1).all()
            if first == name:
                assert not leaf[:, valid:].view(np.uint8).any()
        for one, other in zip(made.buffer.leaves, placed.buffer.leaves, strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, 2)
    assert not any(np.isnan(leaf).any() for leaf in jax.device_get(made).buffer.leaves)


@pytest.mark.slow
def test_64_bit_columns_are_copied_as_they_are(sharding):
    """Outside of jit, too, when these types have been switched off since."""
    layout = Layout([Column("x", "float32"), Column("d", "float64")])
    soa = layout.pack({"x": np.ones(40, "f4"), "d": np.pi * np.arange(40)})
    with jax.enable_x64(True):
        placed = to(soa, sharding)
    made = jax.device_get(update(placed, Spec(x="x"), arrays(placed, Spec(x="x"))))
    assert made["d"].tobytes() == soa["d"].tobytes()


def test_padding_that_devices_do_not_divide(sharding):
    """An update of some rows works where the rows that are none do not split evenly."""
    soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(1001)
    soa.buffer.root.view("float32")[:] = np.nan
    soa["x"][:] = soa["y"][:] = np.arange(1001)
    spec = Spec(x="x")

    def change(soa):
        part = soa[8:24]
        return update(part, spec, [arrays(part, spec)[0] + 1]).buffer.leaves[0]

    wanted = np.zeros((2, 1024), "f4")
    wanted[:, :1001] = np.arange(1001)
    wanted[0, 8:24] += 1
    np.testing.assert_array_equal(jax.jit(change)(to(soa, sharding)), wanted)


@pytest.mark.slow
def test_arrays_over_two_devices():
    """Outside of jit they are copies, on the devices over which the SoA is split."""
    mesh = jax.make_mesh((2,), ("rows",), (AxisType.Auto,), devices=jax.devices()[:2])
    soa, expected = wrapped(LAYOUT, 1000)
    placed = to(soa, NamedSharding(mesh, PartitionSpec("rows")))
    [xy] = arrays(placed, Spec(xy=["x", "y"]))
    np.testing.assert_array_equal(xy, np.stack([expected["x"], expected["y"]], axis=1))
    assert len(xy.devices()) == 2


@pytest.mark.slow
def test_op_by_op_under_the_mesh(sharding):
    """Where JAX runs a function as it is, its arrays are split as the SoA is."""
    soa, expected = wrapped(LAYOUT, 1000)
    placed = to(soa, sharding)

    def both(soa):
        [x, m] = arrays(soa, Spec(x=["x", "y"], m="m"))
        return x, update(soa, Spec(m="m"), [m + 1])

    for flag in (jax.disable_jit(), jax.debug_nans(True)):
        with flag:
            x, made = jax.jit(both)(placed)
        np.testing.assert_array_equal(x, np.stack([expected["x"], expected["y"]], 1))
        np.testing.assert_array_equal(jax.device_get(made)["m"], expected["m"] + 1)
        assert len(x.devices()) == len(made.buffer.leaves[0].devices()) == 8

    def wrong(soa):
        return jnp.log(-1 - arrays(soa, Spec(x="x"))[0])

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="in log"):
        jax.jit(wrong)(placed)


def test_copies_of_what_is_split_are_independent(sharding, monkeypatch):
    """Outside of jit, arrays of it are copies, waited for, whatever `copy` is."""
    waited, array = [], type(jnp.ones(1))
    wait = array.block_until_ready
    monkeypatch.setattr(array, "block_until_ready", lambda x: waited.append(id(x)) or wait(x))
    layout = Layout([Column("x", "float32")])
    soa = layout.allocate(1024)
    placed = to(soa, sharding)
    found = [arrays(placed, Spec(x="x"), copy=copy)[0] for copy in (False, None, True)]
    assert waited == [id(x) for x in found]
    soa["x"][:] = 5
    assert not any(x.any() for x in found)


@pytest.mark.slow_but_every(10)
@pytest.mark.parametrize("alignment", [4, 64, 128, 1024])
@pytest.mark.parametrize("parts", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_the_row_count_that_a_refusal_gives_is_taken(alignment, parts, kind):
    """An SoA laid out for so many rows holds the others, and is split, cut and changed."""
    layout = Layout(
        [Column("x", "float32"), Column("b", "int8"), Column("h", "float16")],
        alignment=alignment,
    )
    axes = (AxisType.Auto if kind == "auto" else AxisType.Explicit,)
    mesh = jax.make_mesh((parts,), ("rows",), devices=jax.devices()[:parts], axis_types=axes)
    sharding, refused = NamedSharding(mesh, PartitionSpec("rows")), 0
    spec = Spec(x="x", b="b")

    def unchanged(soa):
        return update(soa, spec, arrays(soa, spec))

    for rows in (1, parts, 33, 1000):
        soa = layout.allocate(rows)
        try:
            placed = to(soa, sharding)
        except ValueError as error:
            refused += 1
            [more] = map(int, re.findall("lay the SoA out for ([0-9]+) rows", str(error)))
            assert more >= rows
            placed = to(layout.allocate(more), sharding)
        try:
            made = jax.eval_shape(unchanged, placed)
        except ValueError as error:
            assert kind == "explicit"
            [more] = map(int, re.findall("lay the SoA out for ([0-9]+) rows", str(error)))
            assert more >= placed.rows
            placed = to(layout.allocate(more), sharding)
            made = jax.jit(unchanged)(placed)
        assert made.rows == placed.rows >= rows
    assert refused or parts in (2, 8)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_rows_of_one_process_are_all_rows(sharding):
    """In one process its own rows are all that there are; a device has no processes."""
    soa, expected = wrapped(LAYOUT, 1000)
    placed, same = to(soa, sharding, local=True), to(soa, sharding)
    assert placed.rows == 1000
    for one, other in zip(jax.tree.leaves(placed), jax.tree.leaves(same), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    [x] = arrays(to(soa, NamedSharding(mesh, PartitionSpec("a")), local=True), Spec(x="x"))
    np.testing.assert_array_equal(x, expected["x"])
    with pytest.raises(TypeError, match="local must be True or False, got 1"):
        to(soa, sharding, local=1)
    with pytest.raises(TypeError, match="local=True is for the devices of several processes"):
        to(soa, jax.devices()[0], local=True)


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
