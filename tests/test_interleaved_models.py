"""Interleaved columns and array scalars in models, on their ways in and out."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import PretendedMemory

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value

NEEDS = ["torch", "jax"]

LAYOUT = Layout(
    [
        Column("p", "float32", (3,), interleaved=True),
        Column("m", "float32", (2, 2), interleaved=True),
        Scalar("w", "float32", (3,)),
        Column("y", "float32", (3,), interleaved=True),
        Column("z", "float32"),
        Scalar("s", "float32", (2, 2)),
    ]
)
INS, OUTS = Spec(p="p", m="m", w=Value("w"), each="w"), Spec(y="y", z="z")


def filled(rows):
    soa = LAYOUT.allocate(rows)
    soa["p"][...] = np.arange(3 * rows).reshape(rows, 3) % 53
    soa["m"][...] = np.arange(4 * rows).reshape(rows, 2, 2) % 31
    soa[Value("w")][...] = [1, 2, 3]
    return soa


def model(p, m, w, each):
    return p * w + each, m[:, 0, 1] + p[:, 2]


def check(soa):
    y, z = model(soa["p"], soa["m"], soa[Value("w")], soa["w"])
    np.testing.assert_array_equal(soa["y"], y)
    np.testing.assert_array_equal(soa["z"], z)


@pytest.mark.parametrize("package", ["soaview_torch", "soaview_jax"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 7}, {"dtype": "float32"}], ids=str)
def test_forward(package, options):
    """At once, in batches and with a dtype; three rows, which an array of three is not."""
    adapter = importlib.import_module(package)
    for rows in (0, 1, 3, 33):
        soa = filled(rows)
        adapter.forward(model, (soa, INS), (soa, OUTS), **options)
        check(soa)
        part = filled(rows + 9)[4 : rows + 4]
        adapter.forward(model, (part, INS), (part, OUTS), **options)
        check(part)


@pytest.mark.parametrize("package", ["soaview_torch", "soaview_jax"])
def test_prepared(package):
    """An event loop's function, on SoAs and on memory with a row count."""
    run = importlib.import_module(package).prepare(model, (LAYOUT, INS), (LAYOUT, OUTS))
    for rows in (1, 3, 33, 3):
        soa = filled(rows)
        run(soa, soa)
        check(soa)
        memory = np.array(filled(rows).buffer.root)
        run((memory, rows), (memory, rows))
        check(LAYOUT.wrap(memory, rows))


@pytest.mark.parametrize("mode", [True, "verify"])
def test_row_wise(mode):
    """The rows of a capacity; an array scalar has none, and is given as it is."""
    for rows in (1, 3, 33):
        soa = filled(rows)
        soaview_jax.forward(model, (soa, INS), (soa, OUTS), row_wise=mode)
        check(soa)
    with pytest.raises(ValueError, match="tensor 's' is one value for the whole SoA"):
        soaview_jax.forward(
            lambda m: m[0], (soa, Spec(m="m")), (soa, Spec(s=Value("s"))), row_wise=True
        )


@pytest.mark.parametrize("package", ["soaview_torch", "soaview_jax"])
def test_an_array_is_written(package):
    """`Value(name)` takes all of it at once, also as a model's result."""
    soa = filled(3)
    importlib.import_module(package).forward(
        lambda m: m[1], (soa, Spec(m="m")), (soa, Spec(s=Value("s")))
    )
    np.testing.assert_array_equal(soa[Value("s")], soa["m"][1])
    with pytest.raises(ValueError, match=r"got shape \(3, 2\), expected \(2, 2\); .* no rows"):
        importlib.import_module(package).forward(
            lambda m: m[:, 0], (soa, Spec(m="m")), (soa, Spec(s=Value("s")))
        )


def test_jagged():
    """Rows of events; one array for the whole SoA has none, though it is as long."""
    soa = filled(3)
    [p] = soaview_torch.jagged(soa, Spec(p="p"), counts=[2, 0, 1])
    assert p.values().data_ptr() == soa.buffer.address
    with pytest.raises(ValueError, match="tensor 'w' is one value, and has no rows"):
        soaview_torch.jagged(soa, Spec(w=Value("w")), counts=[2, 0, 1])


def test_jax_takes_it_as_it_is():
    """An interleaved column is dense at every row count, and so is a slice that is aligned."""
    soa = filled(33)
    p, m, w = soaview_jax.arrays(soa, Spec(p="p", m="m", w=Value("w")))
    assert (p.shape, m.shape, w.shape) == ((33, 3), (33, 2, 2), (3,))
    [part] = soaview_jax.arrays(soa[16:20], Spec(p="p"))
    assert part.unsafe_buffer_pointer() == soa.buffer.address + 16 * 12
    with pytest.raises(BufferError, match="several interleaved columns.*copy=None"):
        soaview_jax.arrays(soa, Spec(py=["p", "y"]))
    assert [leaf.shape for leaf in jax.tree.leaves(soa)] == [
        (33, 3), (33, 4), (1, 3), (33, 3), (1, 64), (1, 4),
    ]  # fmt: skip


def test_one_soa_is_not_mapped_over():
    """`vmap` of a single SoA would take its rows for SoAs; stacked ones it maps."""
    layout = Layout([LAYOUT["p"], LAYOUT["m"]])
    soa = layout.allocate(4)
    soa["p"][...] = 1
    take = lambda soa: soaview_jax.arrays(soa, Spec(p="p"))[0].sum()  # noqa: E731
    with pytest.raises(ValueError, match="'p' has lost its axis of rows"):
        jax.vmap(take)(soa)
    both = jax.tree.map(lambda *x: jnp.stack(x), soa, soa)
    np.testing.assert_array_equal(jax.vmap(take)(both), [12, 12])


def test_gradients():
    """With respect to an SoA they have its form."""
    soa = filled(3)

    def loss(soa):
        p, w = soaview_jax.arrays(soa, Spec(p="p", w=Value("w")))
        return ((p * w) ** 2).sum()

    found = jax.grad(loss)(soa)
    np.testing.assert_allclose(found["p"], 2 * soa["p"] * np.array([1, 4, 9]))
    assert found[Value("w")].shape == (3,)


def test_64_bits_that_are_switched_off():
    """They go through `jit` as pairs of words, and come back."""
    layout = Layout(
        [Column("p", "float64", (3,), interleaved=True), Scalar("n", "int64", (5,)), LAYOUT["z"]]
    )
    soa = layout.allocate(7)
    soa["p"][...] = np.pi
    soa[Value("n")][...] = 1 << 40
    made = jax.jit(lambda s: s)(soa[2:5])
    assert (made["p"] == np.pi).all()
    assert (made[Value("n")] == 1 << 40).all()


def test_counted_on_a_device():
    """The count is fetched from where it is; in `jit` there is none."""
    layout = Layout([LAYOUT["p"], Scalar("m", "int64"), Scalar("n", "int64"), LAYOUT["w"]])
    soa = layout.allocate(100)
    soa[Value("m")], soa[Value("n")] = 7, 33
    pretended = PretendedMemory(1).wrap(layout, soa.buffer.root, 100)
    assert [len(pretended.counted(name)) for name in "mn"] == [7, 33]
    for x64 in (False, True):
        with jax.enable_x64(x64):
            for device in (jax.devices()[0], jax.devices()[-1]):
                assert len(soaview_jax.to(soa, device).counted("m")) == 7
            assert len(jax.jit(lambda s: s)(soa).counted("n")) == 33
            with pytest.raises(TypeError, match="a traced SoA has no values yet"):
                jax.jit(lambda s: s.counted("n"))(soa)
