"""Models from SoA to SoA, by torch and by JAX."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import OrderedDict

import numpy as np
import places
import pytest
import torch
from models import IN, OUT, X, Y, check, filled, model, never

import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, SoA, Spec, Value
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory

NEEDS = ["torch", "jax"]


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("batch_size", [None, 1, 7, 32, 1000, 5000])
def test_every_batch_size(framework, rows, batch_size):
    """Results are the same in batches of any size; scattered outputs are written, too."""
    if batch_size == 1 and rows > 33:
        batch_size = 333
    soa, out = filled(rows)
    before = soa.buffer.root.copy()
    framework.forward(model, (soa, X), (out, Y), batch_size=batch_size)
    check(soa, out)
    np.testing.assert_array_equal(soa.buffer.root, before)


def test_batches_are_views(framework):
    """The model gets slices of the memory itself in torch, and calls of their own sizes in both."""
    soa, out = filled(100)
    shapes, addresses = [], []

    def watch(x, v, scale):
        shapes.append(x.shape[0])
        if framework.np is torch:
            addresses.append(x.data_ptr() - soa.buffer.address)
        return model(x, v, scale)

    framework.forward(watch, (soa, X), (out, Y), batch_size=33)
    if framework.np is torch:
        assert shapes == [33, 33, 33, 1]
        assert addresses == [0, 33 * 4, 66 * 4, 99 * 4]
    else:  # which compiles for each size once
        assert shapes == [33, 1]
    check(soa, out)


def test_slices_of_soas(framework):
    """Rows in the middle of an SoA go to rows in the middle of another."""
    soa, out = filled(100)
    framework.forward(model, (soa[10:50], X), (out[20:60], Y), batch_size=9)
    check(soa[10:50], out[20:60])
    assert not out[:20]["sum"].any()
    assert not out[60:]["sum"].any()


@pytest.mark.parametrize("kind", [tuple, list, dict, OrderedDict])
def test_results_of_every_kind(framework, kind):
    """Several outputs come as a tuple, a list, or a dict by name in any order."""
    soa, out = filled(33)

    def several(x, v, scale):
        total, double = model(x, v, scale)
        if issubclass(kind, dict):
            return kind([("cb", double), ("sum", total)])
        return kind([total, double])

    framework.forward(several, (soa, X), (out, Y), batch_size=10)
    check(soa, out)


def test_several_output_soas(framework):
    """Results go to several SoAs, in the order of their specs, of different row counts."""
    soa, out = filled(33)
    small = Layout([Column("m", "float32")]).allocate(5)

    def three(x, v, scale):
        return (*model(x, v, scale), x[:5, 0])

    framework.forward(three, (soa, X), [(out, Y), (small, Spec(m="m"))])
    check(soa, out)
    np.testing.assert_array_equal(small["m"], soa["x"][:5])
    with pytest.raises(ValueError, match="which has 33 rows, but one has 5"):
        framework.forward(three, (soa, X), [(out, Y), (small, Spec(m="m"))], batch_size=8)


def test_a_scalar_result(framework):
    """A scalar is written as `Value`; in batches it would be written again and again."""
    soa, out = filled(33)
    mean = (out, Spec(mean=Value("mean")))
    framework.forward(lambda x: x.mean(), (soa, Spec(x="x")), mean)
    np.testing.assert_allclose(out["mean"][0], soa["x"].mean(), rtol=1e-4)
    with pytest.raises(ValueError, match="'mean' is one value .*leave batch_size= out"):
        framework.forward(lambda x: x.mean(), (soa, Spec(x="x")), mean, batch_size=8)


def test_results_into_the_inputs(framework):
    """Outputs may be columns of the inputs; every batch reads what stood there before."""
    layout = Layout([Column("a", "float32"), Column("b", "float32")])
    numbers = np.arange(20, dtype="f4")
    for batch_size in (None, 7):
        soa = layout.pack({"a": numbers, "b": -numbers})
        pair = (soa, Spec(ab=["a", "b"]))
        swapped = (soa, Spec(ba=["b", "a"]))
        framework.forward(lambda ab: ab, pair, swapped, batch_size=batch_size)
        np.testing.assert_array_equal(soa["a"], -numbers)
        np.testing.assert_array_equal(soa["b"], numbers)

    def whole(a, b):  # reads rows of other batches
        return a + b.sum()

    soa = layout.pack({"a": numbers, "b": numbers})
    inputs = [(soa[:], Spec(a="a")), (soa[:], Spec(b="b"))]
    framework.forward(whole, inputs, (soa, Spec(b="b")), batch_size=[6, None])
    np.testing.assert_array_equal(soa["b"], numbers + 190)


def test_no_rows(framework):
    """Outputs without rows are done without a call of the model; empty inputs alone are not."""
    soa, out = filled(0)

    def never(*tensors):
        raise AssertionError

    framework.forward(never, (soa, X), (out, Y))
    framework.forward(never, (soa, X), (out, Y), batch_size=8)
    hits = Layout([Column("w", "float32")]).allocate(0)
    soa, out = filled(5)
    pairs = [(soa, Spec(x="x")), (hits, Spec(w="w"))]
    framework.forward(lambda x, w: x + w.sum(), pairs, (out, Spec(sum="sum")), batch_size=[2, None])
    np.testing.assert_array_equal(out["sum"], soa["x"])
    empty = Layout([Scalar("n", "float32")]).allocate(0)
    framework.forward(lambda x: x.sum(), (soa, Spec(x="x")), (empty, Spec(n=Value("n"))))
    assert empty[Value("n")] == pytest.approx(soa["x"].sum(), rel=1e-5)


def raising_in_the_third_batch(framework):
    """A model that fails once it has given results; where it is traced, by what it gives."""
    calls = []

    def raises(x, v, scale):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("third")
        return model(x, v, scale)

    def short(x, v, scale):
        total, double = model(x, v, scale)
        return total, double if x.shape[0] == 10 else double[:-1]

    return (raises, RuntimeError, "third") if framework.np is torch else (short, ValueError, "cb")


def test_nothing_is_written_if_the_model_raises(framework):
    """Not even the batches that it had done."""
    soa, out = filled(35)
    fails, error, match = raising_in_the_third_batch(framework)
    with pytest.raises(error, match=match):
        framework.forward(fails, (soa, X), (out, Y), batch_size=10)
    assert not out.buffer.root.any()


BAD_RESULTS = {
    "too few": (lambda x: x.sum(1), ValueError, r"gave 1 tensors, .* have 2: \['sum', 'cb'\]"),
    "too many": (lambda x: (x.sum(1), x, x), ValueError, "gave 3 tensors"),
    "a shape": (lambda x: (x.sum(1), x[:-1]), ValueError, r"'cb': got shape \(32, 2\)"),
    "an axis too many": (lambda x: (x[:, :1], x), ValueError, "'sum': got shape.*drop the last"),
    "names": (
        lambda x: {"sum": x.sum(1), "bc": x},
        ValueError,
        r"gave tensors \[.*'bc'.*\['sum', 'cb'\]",
    ),
    "a name missing": (lambda x: {"sum": x.sum(1)}, ValueError, "the model gave tensors"),
    "nothing": (lambda x: None, (TypeError, ValueError), "gave 1 tensors"),
    "a dtype": (lambda x: (x.sum(1), x > 0), TypeError, "'cb': got dtype bool, expected float32"),
    "no tensor": (lambda x: (x.sum(1), "x"), TypeError, "(got|gave) str"),
}


@pytest.mark.parametrize("bad", BAD_RESULTS, ids=str)
def test_bad_results_write_nothing(framework, bad):
    """Results are checked, all of them, before any is written."""
    soa, out = filled(33)
    fn, error, match = BAD_RESULTS[bad]
    with pytest.raises(error, match=match):
        framework.forward(fn, (soa, Spec(x=["x", "y"])), (out, Y))
    assert not out.buffer.root.any()


def test_bad_arguments(framework):
    """What cannot go together is said before the model runs."""
    soa, out = filled(33)
    pair, to = (soa, X), (out, Y)
    other, blocks = OUT.allocate(32), Blocks({"in": IN}).allocate({"in": 33})
    for inputs, outputs, options, error, match in (
        (soa, to, {}, TypeError, r"inputs must be a pair \(soa, spec\), or a list.*what to take"),
        ((soa, {"x": "x"}), to, {}, TypeError, r"be a pair.*write Spec\({'x': 'x'}\)"),
        (pair, (Y, out), {}, TypeError, "outputs must be a pair.*the SoA comes first"),
        ((blocks, X), to, {}, TypeError, r"inputs must be a pair.*soas\[name\]"),
        ((soa, X, 3), to, {}, TypeError, "inputs must be a pair"),
        ([], to, {}, ValueError, "inputs are empty"),
        (pair, [], {}, ValueError, "outputs are empty"),
        (pair, (out, Spec()), {}, ValueError, "outputs: a spec has no tensors"),
        (pair, (out, Spec(s="sun")), {}, KeyError, "did you mean 'sum'"),
        (pair, (out, Spec(m="mean")), {}, ValueError, r"write Value\('mean'\)"),
        (pair, (out, Spec(s="sum", t="sum")), {}, ValueError, "written twice"),
        (
            pair,
            [to, (out, Spec(s="sum"))],
            {},
            ValueError,
            "written twice, as columns of pairs 0: 'sum' and 1: 'sum'",
        ),
        (pair, [to, (out[5:9], Spec(s="c"))], {}, ValueError, "written twice.*0: 'c' and 1: 'c'"),
        (pair, [to, (OUT.wrap(out.buffer.root, 33), Spec(s="b"))], {}, ValueError, "1: 'b'"),
        ((soa, ["x"]), to, {}, TypeError, r"be a pair.*write Spec\(x=\['x'\]\)"),
        (pair, to, {"batch_size": 0}, ValueError, "batch_size must be positive, got 0"),
        (pair, to, {"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
        (pair, to, {"batch_size": True}, TypeError, "batch_size must be an integer"),
        (pair, (other, Y), {"batch_size": 8}, ValueError, "which has 33 rows, but one has 32"),
        (pair, (OUT.wrap(bytes(out.buffer.root), 33), Y), {}, BufferError, "read-only"),
    ):
        with pytest.raises(error, match=match):
            framework.forward(never, inputs, outputs, **options)
    twice = Spec(x="x", sum="x")
    with pytest.raises(ValueError, match="'x' stands in two outputs"):
        framework.forward(
            lambda x, y: {"x": x, "sum": x},
            (soa, twice),
            [(out, Spec(x="a")), (OUT.allocate(33), Spec(x="a"))],
        )
    assert not out.buffer.root.any()


def test_one_device(framework):
    """An SoA elsewhere is refused before the model runs."""
    soa, out = filled(33)
    memory = DeviceMemory(4096, IN.nbytes(33), False, 2, 0)
    there = SoA(IN, DeviceBuffer(memory, IN.nbytes(33), 4), 33, 0, 33)
    for inputs, outputs in (((there, X), (out, Y)), ((soa, X), (there, Spec(x="x", y="y")))):
        with pytest.raises(ValueError, match=r"one device: .*cuda:0.*move one of them with `to`"):
            framework.forward(never, inputs, outputs)


def test_progress(framework, monkeypatch, capsys):
    """A bar counts the rows; without tqdm it is said what to install."""
    soa, out = filled(100)
    framework.forward(model, (soa, X), (out, Y), batch_size=30, progress=True)
    check(soa, out)
    assert "100%" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        framework.forward(never, (soa, X), (out, Y), batch_size=30, progress=True)
    framework.forward(model, (soa, X), (out, Y), batch_size=30)


def test_nothing_is_kept_alive(framework):
    """After a call the memory goes with its SoAs."""
    owners = []
    for batch_size in (None, 10):
        soa, out = filled(33)
        framework.forward(model, (soa, X), (out, Y), batch_size=batch_size)
        owners += [weakref.ref(soa), weakref.ref(out), weakref.ref(out.buffer.root.base)]
        del soa, out
    assert places.soon(lambda: all(owner() is None for owner in owners))


def test_outputs_that_do_not_overlap(framework):
    """Slices of one SoA are outputs like any two, if they have no row in common."""
    soa, out = filled(33)
    pairs = [(out[:10], Spec(p="a")), (out[10:], Spec(q="a"))]
    framework.forward(lambda x: (x[:10], x[10:]), (soa, Spec(x="x")), pairs)
    np.testing.assert_array_equal(out["a"], soa["x"])


def test_no_rows_hide_no_mistake(framework):
    """What is wrong with the arguments is said for an event without rows, too."""
    soa, out = filled(0)
    for inputs, outputs, error, match in (
        ((soa, Spec(x="X")), (out, Y), KeyError, "did you mean 'x'"),
        ((soa, X), (out, Spec(s="sun")), KeyError, "did you mean 'sum'"),
        ((soa, X), (out, Spec(s="sum", t="sum")), ValueError, "written twice"),
        ((soa, X), (OUT.wrap(bytes(OUT.nbytes(0)), 0), Y), BufferError, "read-only"),
    ):
        with pytest.raises(error, match=match):
            framework.forward(never, inputs, outputs)
    with pytest.raises(TypeError, match="the model must be callable, got 3"):
        framework.forward(3, (soa, X), (out, Y))
    with pytest.raises(TypeError, match="copy must be False"):
        soaview_torch.forward(never, (soa, X), (out, Y), copy=1)


def test_threads(framework):
    """Slices of one SoA are worked on at once; a write by one thread is no other model's."""
    soa, out = filled(1000)
    errors = []

    def slow(x):
        time.sleep(0.002)
        return x * 2

    def work(rows):
        try:
            for _ in range(20):
                pair = (soa[rows], Spec(x="x"))
                framework.forward(slow, pair, (soa[rows], Spec(y="y")))
                framework.forward(slow, pair, (out[rows], Spec(a="a")))
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(slice(first, first + 250),))
        for first in range(0, 1000, 250)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    np.testing.assert_array_equal(out["a"], soa["x"] * 2)
    np.testing.assert_array_equal(soa["y"], soa["x"] * 2)


def test_memory_made_read_only(framework):
    """A flag that is set later is minded by what was prepared before."""
    soa, out = filled(33)
    framework.forward(lambda x: x, (soa, Spec(x="x")), (out, spec := Spec(a="a")))
    out.buffer.root.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        framework.forward(never, (soa, Spec(x="x")), (out, spec))
    out.buffer.root.flags.writeable = True
    before = out.buffer.root.copy()

    def freezes(x):
        out.buffer.root.flags.writeable = False
        return x + 1

    for batch_size in (None, 10):
        out.buffer.root.flags.writeable = True
        with pytest.raises(BufferError, match="read-only"):
            framework.forward(
                lambda x: freezes(x), (soa, Spec(x="x")), (out, spec), batch_size=batch_size
            )
        assert (out.buffer.root == before).all()


def test_a_bar_of_one_batch(framework, capsys):
    """It is shown for a single call, too."""
    soa, out = filled(100)
    framework.forward(model, (soa, X), (out, Y), progress=True)
    check(soa, out)
    assert "100%" in capsys.readouterr().err


def test_outputs_that_touch(framework):
    """Columns and scalars one right after the other are outputs of several pairs; none overlaps."""
    layout = Layout(
        [
            Scalar("m", "float32"),
            Scalar("n", "float32"),
            Column("a", "float32"),
            Column("v", "float32", (3,)),
            Column("b", "float32"),
            Scalar("l", "float32"),
        ],
        alignment=4,
    )
    soa = layout.allocate(5)
    specs = [Spec(m=Value("m")), Spec(n=Value("n")), Spec(a="a"), Spec(v="v"), Spec(b="b")]
    outputs = [(soa, spec) for spec in [*specs, Spec(l=Value("l"))]]
    made = lambda x: (x[0], x[1], x, framework.np.stack([x, x, x], 1), x * 2, x[2])  # noqa: E731
    source, _ = filled(5)
    framework.forward(made, (source, Spec(x="x")), outputs)
    x = source["x"]
    assert [soa[Value(name)][()] for name in "mnl"] == [x[0], x[1], x[2]]
    np.testing.assert_array_equal(soa["v"], np.stack([x, x, x], axis=1))
    np.testing.assert_array_equal(soa["b"], 2 * x)
    for again in (Spec(n2=Value("n")), Spec(v2="v"), Spec(b2=["b"])):
        [(_, entry)] = again.items()
        name = entry.name if isinstance(entry, Value) else entry[0]
        with pytest.raises(ValueError, match=f"columns of pairs .: '{name}' and .: '{name}'"):
            framework.forward(never, (source, Spec(x="x")), [*outputs, (soa, again)])
    other = Layout([Column("c", "float32")], alignment=4)
    for first, match in ((16, "pairs 1: 'c' and 0: 'v'"), (52, "pairs 0: 'v' and 1: 'c'")):
        shifted = other.wrap(soa.buffer.root[first : first + 16], 4)  # before it, and inside
        with pytest.raises(ValueError, match=match):
            framework.forward(never, (source, Spec(x="x")), [outputs[3], (shifted, Spec(c="c"))])
    pairs = [(soa[1:], Spec(m=Value("m"))), (soa, Spec(n=Value("n")))]
    framework.forward(lambda x: (x[3], x[4]), (source, Spec(x="x")), pairs)
    assert [soa[Value(name)][()] for name in "mn"] == [x[3], x[4]]
