"""Bound columns in torch: views where they lie, gathers, writes, and models."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import places
import pytest
import torch
from bound import bound_columns, of_a_device, specs, view_of, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

import soaview_torch
from soaview import Column, Layout, Spec, Value, bind
from soaview_torch import _jagged, explain, forward, jagged, prepare, tensors, to, write

NEEDS = ["torch"]
N = 5


@given(bound_columns(), st.data())
@settings(max_examples=100, deadline=None)
def test_values_and_addresses(case, data):
    """With every `copy=` what NumPy makes of the same arrays, where they lie or in new memory."""
    rows, arrays = case
    soa, entries = bind(arrays, rows=rows), specs(data.draw, arrays)
    first, last = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    part = data.draw(st.sampled_from([soa, soa[first:last]]))
    for name, entry in entries.items():
        spec = Spec({name: entry})
        right = wanted(arrays, rows, entry)
        if part is not soa and not isinstance(entry, Value):
            right = right[first:last]
        for copy in (None, True):
            [tensor] = tensors(part, spec, copy=copy)
            np.testing.assert_array_equal(tensor.numpy(), right)
            assert tensor.numpy().dtype == right.dtype
            if copy:
                shared = [np.shares_memory(tensor.numpy(), a) for a in arrays.values()]
                assert not any(shared)
        [verdict] = explain(part, spec)
        if verdict.gives == "copy":
            with pytest.raises(BufferError, match=f"^tensor '{name}': "):
                tensors(part, spec)
            continue
        [tensor] = tensors(part, spec)
        np.testing.assert_array_equal(tensor.numpy(), right)
        names = [entry] if isinstance(entry, str) else getattr(entry, "name", None) or entry
        column = arrays[names if isinstance(names, str) else names[0]]
        if right.size and column.ndim:
            assert tensor.data_ptr() == column[first if part is not soa else 0 :].ctypes.data


def test_what_is_written_is_seen():
    """Tensors write the arrays, and so does `write`, whole or not at all."""
    x, y, block = np.zeros(N, "f4"), np.zeros(N, "f4"), np.zeros((3, N), "f4")
    soa = bind({"x": x, "y": y, "a": block[0], "b": block[2], "s": np.float32(1)})
    [ab] = tensors(soa, Spec(t=["a", "b"]))
    ab[:, 1] = 3
    assert block[2].tolist() == [3] * N
    spec = Spec(xy=["y", "x"], s=Value("s"))
    write(soa, spec, [torch.arange(2.0 * N).view(N, 2), torch.tensor(7.0)])
    assert x.tolist() == [1, 3, 5, 7, 9]
    assert y.tolist() == [0, 2, 4, 6, 8]
    assert soa["s"].tolist() == [7] * N
    with pytest.raises(ValueError, match="got shape"):
        write(soa, Spec(y="y", x="x"), [torch.zeros(N), torch.zeros(N + 1)])
    assert y.any()
    write(soa[1:3], Spec(x="x"), [torch.zeros(2)])
    assert x.tolist() == [1, 0, 0, 7, 9]


def test_what_cannot_be_written():
    """Read-only columns, columns that share bytes, and those that are not aligned; by name."""
    x, frozen = np.zeros(N, "f4"), np.zeros(N, "f4")
    frozen.flags.writeable = False
    packed = np.zeros(N, [("i", "i1"), ("a", "f4")])
    soa = bind({"x": x, "same": x[:], "f": frozen, "a": packed["a"]})
    value = torch.ones(N)
    for spec, count, error, match in (
        (Spec(f="f"), 1, BufferError, "column 'f' is read-only"),
        (Spec(x="x", f="f"), 2, BufferError, "column 'f' is read-only"),
        (
            Spec(x="x", s="same"),
            2,
            ValueError,
            "'x' and 's' share bytes, and would be written twice",
        ),
        (Spec(x="x", a="a"), 2, BufferError, r"not on multiples.*soa\[name\]\[...\] = values"),
    ):
        with pytest.raises(error, match=match):
            write(soa, spec, [value] * count)
        with pytest.raises(error, match=match):
            forward(lambda x, n=count: (x + 1,) * n, (soa, Spec(x="x")), (soa, spec))
    assert not x.any()
    soa["a"][...] = np.ones(N)
    assert packed["a"].tolist() == [1] * N
    with pytest.raises(BufferError, match="tensor 'f': its memory is read-only.*readonly=False"):
        tensors(soa, Spec(f="f"))
    assert tensors(soa, Spec(f="f"), copy=None)[0].tolist() == [0] * N
    with pytest.raises(ValueError, match="'x' and 's' share bytes, and would be written twice"):
        forward(
            lambda x: (x + 1, x + 2),
            (soa, Spec(x="x")),
            [(soa, Spec(x="x")), (soa, Spec(s="same"))],
        )
    records = np.zeros(N, [("p", "f4"), ("q", "f4")])
    apart = bind(records)
    forward(
        lambda p: (p + 1, p + 2), (apart, Spec(p="p")), [(apart, Spec(p="p")), (apart, Spec(q="q"))]
    )
    assert records["q"].tolist() == [2] * N


@pytest.mark.parametrize("batch_size", [None, 2])
def test_models(batch_size):
    """From bound columns to bound columns, to laid ones, and back; results that do not fit."""
    data = {"x": np.arange(N, dtype="f4"), "y": np.ones((N, 2), "f4"), "o": np.zeros(N, "f4")}
    soa = bind(data)

    def model(x, y):
        return x + y.sum(1)

    forward(model, (soa, Spec(x="x", y="y")), (soa, Spec(o="o")), batch_size=batch_size)
    assert data["o"].tolist() == [2, 3, 4, 5, 6]
    laid = soa.pack()
    forward(lambda o: o * 2, (soa, Spec(o="o")), (laid, Spec(o="o")), batch_size=batch_size)
    assert laid["o"].tolist() == [4, 6, 8, 10, 12]
    forward(lambda o: o + 1, (laid, Spec(o="o")), (soa, Spec(o="o")), batch_size=batch_size)
    assert data["o"].tolist() == [5, 7, 9, 11, 13]
    with pytest.raises(RuntimeError, match="changed its inputs in place"):
        forward(lambda x: x.add_(1), (soa, Spec(x="x")), (soa, Spec(o="o")), batch_size=batch_size)
    with pytest.raises(ValueError, match="got shape"):
        forward(lambda x: x[:1], (soa, Spec(x="x")), (soa, Spec(o="o")), batch_size=batch_size)
    assert data["o"].tolist() == [5, 7, 9, 11, 13]


def test_gradients_notice_writes():
    """One import for each allocation: all of its views share autograd's count of writes."""
    block = np.ones((2, N), "f4")
    soa = bind({"a": block[0], "b": block[1]})
    [a] = tensors(soa, Spec(a="a"))
    weight = torch.ones(N, requires_grad=True)
    loss = (a * weight).sum()
    write(soa, Spec(a="a"), [torch.zeros(N)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_moved_and_ragged():
    """`to` packs; rows by events are nested tensors of the column."""
    soa = bind({"x": np.arange(N, dtype="f4"), "k": np.arange(N)[::1]})
    assert to(soa, "cpu") is soa
    [nested] = jagged(soa, Spec(x="x"), counts=[2, 0, 3])
    assert nested.sum(1).tolist() == [1, 0, 9]


def test_odd_sizes():
    """Allocations that are no multiple of an item, and items of 16 bytes."""
    memory = bytearray(5 * N + 3)
    floats = np.frombuffer(memory, "f4", N)
    z = np.arange(N, dtype="c16")
    soa = bind({"x": floats, "z": z, "last": np.frombuffer(memory, "u1", N, 4 * N + 3)})
    x, last, z_ = tensors(soa, Spec(x="x", last="last", z="z"), copy=None)
    x[:] = 1
    last[:] = 2
    assert memory[-5:] == b"\2" * 5
    assert floats.tolist() == [1] * N
    np.testing.assert_array_equal(z_.numpy(), z)


def test_on_a_device():
    """Each allocation is imported once; what is gathered, packed and written stays there."""
    soa, one, other = of_a_device(40)
    assert len(soa.buffer.pieces) == 2
    v, y = tensors(soa, Spec(v="v", y="y"))
    assert v.data_ptr() == one["v"].ctypes.data
    assert y.data_ptr() == other["x"].ctypes.data
    with pytest.raises(BufferError, match="in memory apart"):
        tensors(soa, Spec(t=["x", "y"]))
    [both] = tensors(soa, Spec(t=["x", "y"]), copy=None)
    np.testing.assert_array_equal(both.numpy(), np.stack([one["x"], other["x"]], 1))
    layout = Layout([Column(name, "f4") for name in "abc"])
    memory = places.aligned(np.zeros(layout.nbytes(40), np.uint8))
    there = bind(places.PretendedMemory().wrap(layout, memory, 40))
    write(there, Spec(ac=["a", "c"], b="b"), [torch.ones(40, 2), torch.ones(40)])
    assert layout.wrap(memory, 40)["b"].all()
    both = bind({"a": view_of(there, "a"), "b": view_of(there, "a")})
    with pytest.raises(ValueError, match="share bytes"):
        write(both, Spec(a="a", b="b"), [torch.ones(40)] * 2)
    packed = soaview_torch._move._packed(soa[3:])
    for name in soa:
        [tensor] = tensors(packed, Spec(t=name))
        np.testing.assert_array_equal(tensor, tensors(soa[3:], Spec(t=name))[0])
    forward(lambda x, w: x + w.sum(1), (soa, Spec(x="x", w="w")), (soa, Spec(y="y")))
    np.testing.assert_array_equal(other["x"], one["x"] + other["v"].sum(1))
    with pytest.raises(ValueError, match="share bytes|written twice"):
        forward(
            lambda x: (x, x),
            (soa, Spec(x="x")),
            [(soa, Spec(y="y")), (bind({"z": view_of(soa, "y")}), Spec(z="z"))],
        )


def test_torchs_own_memory():
    """Tensors of one storage are in one allocation, and the storage lives as long as they do."""
    block = torch.arange(4.0 * N).view(4, N)
    soa = bind(
        {"a": block[0], "b": block[1], "c": block[3], "g": torch.ones(N, requires_grad=True)}
    )
    assert len(soa.buffer.pieces) == 2
    [ab] = tensors(soa, Spec(t=["a", "b"]))
    assert ab.data_ptr() == block.data_ptr()
    ab[:] = 7
    assert (block[:2] == 7).all()
    del block, ab
    assert soa["c"].tolist() == [15, 16, 17, 18, 19]
    half = torch.arange(N, dtype=torch.bfloat16)
    soa = bind({"h": half})
    [h] = tensors(soa, Spec(h="h"))
    assert (h.dtype, h.data_ptr()) == (half.dtype, half.data_ptr())
    for odd in (torch.arange(3) * 1j, torch.arange(3.0).to_sparse(), torch.zeros(3, device="meta")):
        with pytest.raises((BufferError, TypeError, ValueError), match="column 'x'"):
            bind({"x": odd.conj() if odd.is_complex() else odd})


def test_a_scalar_that_is_not_aligned():
    """Alone it is one value, by its name one for each row."""
    packed = np.zeros((), [("i", "i1"), ("n", "f4"), ("v", "f4", (2,))])
    packed["n"], packed["v"] = 2, (3, 4)
    soa = bind({"x": np.zeros(N, "f4"), "n": packed["n"]})
    one, rows = tensors(soa, Spec(one=Value("n"), rows="n"), copy=None)
    assert (one.shape, one.item(), rows.tolist()) == ((), 2, [2] * N)
    assert [v.nbytes for v in explain(soa, Spec(one=Value("n"), rows="n"))] == [4, 4 * N]


def test_writes_into_some_that_are_views():
    """A model that changes one of its inputs in place is noticed, though another is a copy."""
    x, frozen, o = np.zeros(N, "f4"), np.zeros(N, "f4"), np.zeros(N, "f4")
    frozen.flags.writeable = False
    soa = bind({"x": x, "f": frozen, "o": o})
    spec = Spec(x="x", f="f")
    with pytest.raises(RuntimeError, match="changed its inputs in place"):
        forward(lambda x, f: x.add_(1) + f, (soa, spec), (soa, Spec(o="o")), copy=None)
    assert not o.any()
    forward(lambda x, f: f.add_(1) + 1, (soa, spec), (soa, Spec(o="o")), copy=None)
    assert o.tolist() == [2] * N
    assert not frozen.any()


def test_none_were_prepared():
    """A prepared model is of layouts; the way out is right."""
    soa = bind({"x": np.arange(N, dtype="f4")})
    side = (Layout(soa.layout.fields), Spec(x="x"))
    run = prepare(lambda x: x + 1, side, side)
    with pytest.raises(ValueError, match=r"is of bound columns, and none were prepared.*soa.pack"):
        run(soa, soa)
    packed = soa.pack()
    run(packed, packed)
    assert packed["x"].tolist() == [1, 2, 3, 4, 5]


def test_ragged_rows_of_a_device(monkeypatch):
    """Offsets go where the columns are: all allocations are there."""
    soa, one, _ = of_a_device(40)
    [nested] = jagged(soa, Spec(x="x"), counts=[10, 30])
    np.testing.assert_allclose(nested.sum(1), [one["x"][:10].sum(), one["x"][10:].sum()])
    imported = lambda buffer: SimpleNamespace(base=SimpleNamespace(device=buffer))  # noqa: E731
    monkeypatch.setattr(_jagged, "import_of", imported)
    far = bind(soa.layout.laid().from_pointer(1 << 40, 40, device="cuda:0", owner=soa))
    assert _jagged._device(far) is far.buffer.piece(0)
