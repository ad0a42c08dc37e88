"""Models from SoA to SoA, by torch and by JAX."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import OrderedDict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import Blocks, Column, Layout, Scalar, Spec, Value, _views
from soaview._device import DeviceBuffer, Memory
from soaview._soa import SoA
from soaview_jax._forward import _Call, _run
from soaview_torch import _forward as torch_forward

IN = Layout(
    [
        Column("x", "float32"),
        Column("gap", "int32"),
        Column("y", "float32"),
        Column("v", "float32", (3,)),
        Scalar("scale", "float32"),
    ]
)
OUT = Layout(
    [
        Column("sum", "float32"),
        Column("a", "float32"),
        Column("b", "float32"),
        Column("c", "float32"),
        Column("total", "float64"),
        Scalar("mean", "float32"),
    ]
)
X, Y = Spec(x=["x", "y"], v="v", scale="scale"), Spec(sum="sum", cb=["c", "b"])

FRAMEWORKS = {
    "torch": SimpleNamespace(forward=soaview_torch.forward, np=torch, cat=torch.concat),
    "jax": SimpleNamespace(forward=soaview_jax.forward, np=jnp, cat=jnp.concatenate),
}


@pytest.fixture(params=list(FRAMEWORKS))
def framework(request):
    return FRAMEWORKS[request.param]


def filled(rows):
    """An SoA of inputs, a zeroed one of outputs."""
    soa, random = IN.allocate(rows), np.random.default_rng(rows)
    for name in ("x", "y", "v"):
        soa[name][...] = random.normal(size=soa[name].shape)
    soa[Value("scale")][...] = 2
    return soa, OUT.allocate(rows)


def model(x, v, scale):
    """Of each row on its own: the scaled sum, and two columns."""
    return (x.sum(1) + v.sum(1)) * scale, x * 2


def expected(soa):
    x = np.stack([soa["x"], soa["y"]], axis=1)
    return (x.sum(1) + soa["v"].sum(1)) * 2, x * 2


def check(soa, out):
    total, double = expected(soa)
    np.testing.assert_allclose(out["sum"], total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["c"], double[:, 0])
    np.testing.assert_array_equal(out["b"], double[:, 1])
    assert not out["a"].any()


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


@pytest.mark.parametrize("rows", [7, 50])
@pytest.mark.parametrize("batch_size", [None, [8, None], [100, None], (None, None)])
def test_an_soa_that_goes_whole(framework, rows, batch_size):
    """An input whose entry is None is given whole, in every batch, whatever its row count is."""
    soa, out = filled(50)
    other = Layout([Column("w", "float32")]).pack({"w": np.arange(rows, dtype="f4")})

    def total(x, v, scale, w):
        return x.sum(1) + w.sum(), x

    inputs = [(soa, X), (other, Spec(w="w"))]
    framework.forward(total, inputs, (out, Y), batch_size=batch_size)
    wanted = soa["x"] + soa["y"] + sum(range(rows))
    np.testing.assert_allclose(out["sum"], wanted, rtol=1e-5)


@pytest.mark.parametrize("events", [1, 2, 5, 6])
def test_inputs_split_by_sizes_of_their_own(framework, events):
    """A batch has so many rows of each SoA as is said, the last one what is left."""
    hits = Layout([Column("h", "float32"), Column("s", "float32")]).allocate(4 * events - 1)
    soas = Layout([Column("e", "float32"), Column("t", "float32")]).allocate(events)
    hits["h"][:] = np.arange(len(hits))
    soas["e"][:] = 100 * np.arange(events)
    shapes = []

    def model(h, e, again):
        shapes.append((h.shape[0], e.shape[0]))
        return h + again.sum(), h.sum() + e + 0 * again

    inputs = [(hits, Spec(h="h")), (soas, Spec(e="e")), (soas, Spec(again="e"))]
    outputs = [(hits, Spec(s="s")), (soas, Spec(t="t"))]
    framework.forward(model, inputs, outputs, batch_size=[8, 2, 2])
    for first in range(0, events, 2):
        h, e = hits["h"][4 * first : 4 * first + 8], soas["e"][first : first + 2]
        np.testing.assert_array_equal(hits["s"][4 * first : 4 * first + 8], h + e.sum())
        np.testing.assert_array_equal(soas["t"][first : first + 2], h.sum() + e)
    assert set(shapes) <= {(8, 2), (7, 2), (3, 1)}


def test_an_output_is_split_as_the_input_that_it_is(framework):
    """One of another size, which is no input, is split as the first input that is."""
    soa, out = filled(6)
    wide = Layout([Column("w", "float32"), Column("t", "float32")]).allocate(12)
    wide["w"][:] = np.arange(12)

    def model(w, x, v, scale):
        return w * 2, w[: len(x)] + x[:, 0] * 0

    pairs = [(wide, Spec(w="w")), (soa, X)]
    framework.forward(model, pairs, [(wide, Spec(t="t")), (soa, Spec(y="y"))], batch_size=[4, 2])
    np.testing.assert_array_equal(wide["t"], 2 * wide["w"])
    np.testing.assert_array_equal(soa["y"], [0, 1, 4, 5, 8, 9])
    with pytest.raises(ValueError, match=r"has 12 rows, but one has 6: SoA\(6 rows"):
        framework.forward(
            never, pairs, [(wide, Spec(t="t")), (out, Spec(a="a"))], batch_size=[4, 2]
        )
    for entries in ([None, 2], [4, None]):
        with pytest.raises(
            ValueError, match="also an input that goes whole.*give that input a size"
        ):
            framework.forward(
                never, pairs, [(wide, Spec(t="t")), (soa, Spec(y="y"))], batch_size=entries
            )


@pytest.mark.parametrize("rows", [33, 7, 0])
def test_one_number_for_several_soas(framework, rows):
    """It is refused, whatever their row counts are, and what is shown instead works."""
    soa, out = filled(33)
    other, _ = filled(rows)
    inputs = [(other, Spec(w="x")), (soa, Spec(x="x")), (other, Spec(u="y"))]

    def model(w, x, u):
        return x + w.sum() + u.sum() * 0

    into = (soa, Spec(y="y"))
    with pytest.raises(
        ValueError, match=r"None for an SoA that goes whole, as in batch_size="
    ) as e:
        framework.forward(never, inputs, into, batch_size=8)
    assert str(e.value).endswith("batch_size=[None, 8, None]")
    framework.forward(model, inputs, into, batch_size=[None, 8, None])
    np.testing.assert_allclose(soa["y"], soa["x"] + other["x"].sum(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"batch_size=\[8, None\]$"):
        framework.forward(never, [(soa, X), (soa[:], X)], (out, Y), batch_size=8)
    framework.forward(lambda x, v, s, w: (x.sum(1), x), [(soa, X), (soa, Spec(w="x"))], (out, Y))


BAD_SIZES = {
    "too few": ([8], ValueError, "batch_size= has 1 entries, and the inputs are 3 pairs"),
    "too many": ([8, 8, None, None], ValueError, "has 4 entries, and the inputs are 3 pairs"),
    "none": ([], ValueError, "has 0 entries"),
    "zero": ([0, 0, None], ValueError, "batch_size must be positive, got 0"),
    "negative": ([8, 8, -1], ValueError, "batch_size must be positive, got -1"),
    "a bool": ([8, 8, False], TypeError, "batch_size must be an integer, got False"),
    "a float": ([8.0, 8, None], TypeError, "batch_size must be an integer, got 8.0"),
    "text": ("8", TypeError, "batch_size must be an integer, got '8'"),
    "a dict": ({0: 8}, TypeError, "batch_size must be an integer, got {0: 8}"),
    "one SoA, two sizes": (
        [8, 4, None],
        ValueError,
        r"has 8 and 4 for pairs of one SoA, SoA\(33 r",
    ),
    "one SoA, half whole": ([None, 8, None], ValueError, "has None and 8 for pairs of one SoA"),
    "numbers of batches": (
        [8, 8, 8],
        ValueError,
        "makes 5 batches of 33 rows by 8, but 2 of 9 rows by 8; let these be as many",
    ),
}


@pytest.mark.parametrize("bad", BAD_SIZES, ids=str)
def test_bad_batch_sizes(framework, bad):
    """What does not say for each pair how it is split is refused before the model runs."""
    soa, out = filled(33)
    other, _ = filled(9)
    sizes, error, match = BAD_SIZES[bad]
    inputs = [(soa, X), (soa, Spec(w="x")), (other, Spec(u="x"))]
    with pytest.raises(error, match=match):
        framework.forward(never, inputs, (out, Y), batch_size=sizes)


def test_other_inputs_are_not_batched_by_accident(framework):
    """Nothing that is given whole is cut, though its rows would make as many batches."""
    soa, out = filled(12)
    other, _ = filled(12)
    seen = []

    def model(x, w):
        seen.append((x.shape[0], w.shape[0]))
        return x

    inputs = [(soa, Spec(x="x")), (other, Spec(w="x"))]
    framework.forward(model, inputs, (out, Spec(a="a")), batch_size=[5, None])
    assert set(seen) == {(5, 12), (2, 12)}


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
    "no tensor": (lambda x: (x.sum(1), "x"), TypeError, "got str|not a valid JAX type"),
}


@pytest.mark.parametrize("bad", BAD_RESULTS, ids=str)
def test_bad_results_write_nothing(framework, bad):
    """Results are checked, all of them, before any is written."""
    soa, out = filled(33)
    fn, error, match = BAD_RESULTS[bad]
    with pytest.raises(error, match=match):
        framework.forward(fn, (soa, Spec(x=["x", "y"])), (out, Y))
    assert not out.buffer.root.any()


def never(*tensors):
    raise AssertionError("the model ran")


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
    memory = Memory(4096, IN.nbytes(33), False, 2, 0)
    there = SoA(IN, DeviceBuffer(memory, None, IN.nbytes(33), 4), 33, 0, 33)
    for inputs, outputs in (((there, X), (out, Y)), ((soa, X), (there, Spec(x="x", y="y")))):
        with pytest.raises(ValueError, match=r"one device: .*cuda:0.*move one of them with `to`"):
            framework.forward(never, inputs, outputs)


def test_read_only_inputs():
    """JAX reads them where they lie; torch refuses them, and copies if it is told."""
    soa, out = filled(33)
    soa = IN.wrap(np.frombuffer(bytes(soa.buffer.root), np.uint8), 33)
    soaview_jax.forward(model, (soa, X), (out, Y))
    check(soa, out)
    with pytest.raises(BufferError, match="read-only.*copy=None"):
        soaview_torch.forward(never, (soa, X), (out, Y))
    out.buffer.root[:] = 0
    soaview_torch.forward(model, (soa, X), (out, Y), copy=None, batch_size=5)
    check(soa, out)


def test_a_model_that_writes_into_its_inputs():
    """It is told of: the memory has changed. With copies it has not."""
    soa, out = filled(33)
    to = (out, Spec(ab=["a", "b"]))
    inputs = (soa, Spec(x=["x", "y"]))
    before = soa["x"].copy()
    relu = torch.nn.ReLU(inplace=True)
    for options in ({"copy": True}, {"copy": True, "batch_size": 4}):
        soaview_torch.forward(relu, inputs, to, **options)
        np.testing.assert_array_equal(soa["x"], before)
    assert out["a"].any()
    out.buffer.root[:] = 0
    with pytest.raises(RuntimeError, match="changed its inputs in place.*inplace=True.*copy=True"):
        soaview_torch.forward(relu, inputs, to)
    assert not out.buffer.root.any()


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize(
    ("entries", "changed"),
    [
        ({"c": ["y", "x"], "v": "v"}, 1),
        ({"v": "v", "c": ["y", "x"]}, 0),
        ({"c": ["y", "x"], "d": ["x", "y", "x"], "s": Value("scale")}, 2),
        ({"s": "scale", "c": ["y", "x"]}, 0),
    ],
    ids=str,
)
def test_a_model_that_writes_beside_a_gathered_tensor(entries, changed, batch_size):
    """With `copy=None` the views among its inputs are watched, and copies are its own."""
    soa, out = filled(33)
    before = soa.buffer.root.copy()
    names = list(entries)

    def writes(into):
        def model(*given):
            given[names.index(into)].fill_(7)
            return given[names.index("c")][:, 0]

        return model

    pairs = (soa, Spec(entries)), (out, Spec(a="a"))
    options = {"copy": None, "batch_size": batch_size}
    for _ in range(2):
        soaview_torch.forward(writes("c"), *pairs, **options)
        assert (soa.buffer.root == before).all()
        with pytest.raises(RuntimeError, match="changed its inputs in place"):
            soaview_torch.forward(writes(names[changed]), *pairs, **options)
        soa.buffer.root[:] = before
    others = [(soa, Spec(x="x")), (filled(33)[0], Spec(entries))]
    with pytest.raises(RuntimeError, match="changed its inputs in place"):
        soaview_torch.forward(lambda x, *_: x.fill_(7), others, (out, Spec(a="a")), copy=None)


def test_a_model_that_reuses_its_memory():
    """Results of a batch are safe from the next one."""
    soa, out = filled(30)
    buffer = torch.empty(10)

    def reuses(x):
        return buffer.copy_(x)

    soaview_torch.forward(reuses, (soa, Spec(x="x")), (out, Spec(a="a")), batch_size=10)
    np.testing.assert_array_equal(out["a"], soa["x"])


def test_inference_mode():
    """The model runs in inference mode, and the memory can take part in training afterwards."""
    soa, out = filled(33)
    layer = torch.nn.Linear(2, 1)
    seen = []

    def watch(x):
        seen.append(torch.is_inference_mode_enabled())
        return layer(x)

    with torch.inference_mode():
        soaview_torch.forward(watch, (soa, Spec(x=["x", "y"])), (out, Spec(a=["a"])))
    soaview_torch.forward(watch, (soa, Spec(x=["x", "y"])), (out, Spec(a=["a"])), batch_size=20)
    assert seen == [True] * 3
    [x] = soaview_torch.tensors(soa, Spec(x=["x", "y"]))
    [a] = soaview_torch.tensors(out, Spec(a=["a"]))
    ((layer(x) - a) ** 2).sum().backward()
    assert layer.weight.grad is not None
    # Results that require gradients bring no graph into the memory.
    parameter = torch.nn.Parameter(torch.ones(33))
    soaview_torch.forward(lambda x: parameter, (soa, Spec(x="x")), (out, Spec(a="a")))
    assert not any(flat.requires_grad for flat in out.buffer.imports["torch"].values())
    assert not soaview_torch.tensors(out, Spec(a="a"))[0].requires_grad
    assert out["a"].tolist() == [1] * 33


def test_the_device_is_the_current_one(monkeypatch):
    """On a GPU the SoAs' device is the current one while the model runs."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda number: entered.append(number) or "guard")
    assert torch_forward._current("cuda:3") == "guard"
    assert torch_forward._current("rocm:1") == "guard"
    assert entered == [3, 1]
    with torch_forward._current("cpu"):
        pass


def test_jax_compiles_each_size_once():
    """Of several SoAs, too: starts are traced, and only the last batch has sizes of its own."""
    traced = []

    def model(x, w, u):
        traced.append((x.shape, w.shape, u.shape))
        return x + w.sum() + u.sum()

    for rows in (20, 20):
        soa, out = filled(rows)
        wide = IN.allocate(2 * rows)
        pairs = [(soa, Spec(x="x")), (wide, Spec(w="x")), (wide[:3], Spec(u="y"))]
        soaview_jax.forward(model, pairs, (out, Spec(a="a")), batch_size=[3, 6, None])
    assert traced == [((3,), (6,), (3,)), ((2,), (4,), (3,))]


def test_jax_compiles_once():
    """For each row count and batch size once; weights in a callable pytree are arguments."""
    traced = []

    def apply(weights, x):
        traced.append(x.shape)
        return x * weights["w"]

    for number in range(4):
        soa, out = filled(50)
        fn = jax.tree_util.Partial(apply, {"w": jnp.full((), number, "float32")})
        for batch_size in (None, 20):
            pairs = (soa, Spec(x="x")), (out, Spec(a="a"))
            soaview_jax.forward(fn, *pairs, batch_size=batch_size)
            np.testing.assert_array_equal(out["a"], number * soa["x"])
    assert traced == [(50,), (20,), (10,)]


def doubled(*given):
    return [x * 2 for x in given]


def test_jax_reads_only_the_batch():
    """Whatever the columns' order, nothing that is computed for a batch is as long as the SoA."""
    soa, _ = filled(1000)
    for spec in (Spec(x=["x", "y"]), Spec(x=["y", "x"]), Spec(v="v"), Spec(s=["scale"])):
        for specs, sizes, cast in (((spec,), (10,), None), ((spec, spec), (10, 7), "float16")):
            call, soas = _Call(None, specs, sizes, cast), [soa] * len(specs)
            run = lambda soas, starts, call=call: _run(doubled, call, soas, starts)  # noqa: E731
            jaxpr = jax.make_jaxpr(run)(soas, [5] * len(specs))
            made = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
            assert 10 <= max(made) <= 10 * len(jax.tree.leaves(soa)) * 2


def test_jax_wants_64_bit_types_switched_on():
    """A 64-bit column is refused by name, in batches, too; nothing is narrowed."""
    soa, out = filled(33)
    with jax.enable_x64(False):
        for batch_size in (None, 8):
            pairs = (out, Spec(t="total")), (soa, Spec(x="x"))
            with pytest.raises(TypeError, match="'t' is float64.*jax_enable_x64"):
                soaview_jax.forward(lambda t: t.astype("f4"), *pairs, batch_size=batch_size)
            with pytest.raises(TypeError, match="'t': got dtype float32, expected float64"):
                soaview_jax.forward(lambda x: x, *pairs[::-1], batch_size=batch_size)
    with jax.enable_x64(True):
        pairs = (soa, Spec(x="x")), (out, Spec(t="total"))
        soaview_jax.forward(lambda x: x.astype("float64"), *pairs, batch_size=8)
    np.testing.assert_array_equal(out["total"], soa["x"])


def test_jax_counts_rows_in_32_bits():
    """Without 64-bit types JAX cannot find the rows of batches that begin past 2^31."""
    soa = Layout([Column("k", "int8")]).allocate(2**31 + 1)
    out = Layout([Column("k", "int8")]).allocate(2**31 + 1)
    pairs = (soa, Spec(k="k")), (out, Spec(k="k"))
    with pytest.raises(ValueError, match="does not count to 2147483649 rows.*switch them on"):
        soaview_jax.forward(never, *pairs, batch_size=2**30)


def test_what_jax_made_goes_in():
    """An SoA that a jitted function returned is an input of JAX's, and of torch's with a copy."""
    soa, out = filled(33)
    made = jax.jit(lambda s: soaview_jax.update(s, Spec(x="x"), [jnp.ones(33)]))(soa)
    for forward, options in ((soaview_jax.forward, {}), (soaview_torch.forward, {"copy": None})):
        out.buffer.root[:] = 0
        for batch_size in (None, 10):
            forward(model, (made, X), (out, Y), batch_size=batch_size, **options)
            check(made, out)
    with pytest.raises(BufferError, match="read-only"):
        soaview_jax.forward(never, (soa, X), (made, Spec(x="x", y="y")))


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


def test_from_torch_to_jax_without_a_copy():
    """One model's output columns are read by a jitted function of the other framework in place."""
    soa, out = filled(64)
    net = torch.nn.Linear(2, 2)
    soaview_torch.forward(net, (soa, Spec(x=["x", "y"])), (out, Spec(h=["a", "b"])))
    leaves = jax.tree.leaves(jax.device_put(out))
    assert leaves[0].unsafe_buffer_pointer() == out.buffer.address
    soaview_jax.forward(lambda h: jnp.tanh(h).sum(1), (out, Spec(h=["a", "b"])), (out, Spec(c="c")))
    with torch.no_grad():
        [x] = soaview_torch.tensors(soa, Spec(x=["x", "y"]))
        wanted = torch.tanh(net(x)).sum(1)
    np.testing.assert_allclose(out["c"], wanted.numpy(), rtol=1e-5, atol=1e-6)


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


def test_a_model_that_writes_another_column():
    """Only what is written through its inputs is told of."""
    soa, out = filled(33)

    def writes(x):
        soaview_torch.write(soa, Spec(y="y"), [torch.ones(33)])
        return x

    soaview_torch.forward(writes, (soa, Spec(x="x")), (out, Spec(a="a")))
    assert soa["y"].tolist() == [1] * 33


@pytest.mark.parametrize("copy", [False, None])
def test_a_model_that_moves_the_memory_away(copy):
    """`share_memory_` of a tensor of the outputs' memory: nothing is written, and it is said."""
    soa, out = filled(33)
    [b] = soaview_torch.tensors(out, Spec(b="b"))

    def moves(x):
        b.share_memory_()
        return x

    with pytest.raises(RuntimeError, match="was moved away meanwhile, by share_memory_"):
        soaview_torch.forward(moves, (soa, Spec(x="x")), (out, Spec(a="a")), copy=copy)
    assert not out.buffer.root.any()
    soaview_torch.forward(lambda x: x, (soa, Spec(x="x")), (out, Spec(a="a")), copy=copy)
    np.testing.assert_array_equal(out["a"], soa["x"])


def test_a_storage_that_was_taken_away():
    """A tensor whose storage was freed under it is refused, where reading it would crash."""
    soa, out = filled(33)

    def freed(x):
        y = x * 2
        y.untyped_storage().resize_(0)
        return y

    with pytest.raises(BufferError, match="storage, which was resized to 0 bytes"):
        soaview_torch.forward(freed, (soa, Spec(x="x")), (out, Spec(a="a")))


def test_memory_made_read_only(framework):
    """A flag that is set later is minded by what was prepared before."""
    soa, out = filled(33)
    framework.forward(lambda x: x, (soa, Spec(x="x")), (out, spec := Spec(a="a")))
    out.buffer.root.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        framework.forward(never, (soa, Spec(x="x")), (out, spec))


def test_jax_tells_numbers_apart():
    """1, 1.0 and True in a callable pytree are functions of their own."""
    _, out = filled(5)
    ints = Layout([Column("i", "int32")]).pack({"i": [1, 2, 3, 4, 5]})

    def half(k, i):
        return (i / k if isinstance(k, float) else i // k).astype("float32")

    for k, wanted in ((2, [0, 1, 1, 2, 2]), (2.0, [0.5, 1, 1.5, 2, 2.5]), (True, [1, 2, 3, 4, 5])):
        fn = jax.tree_util.Partial(half, k)
        soaview_jax.forward(fn, (ints, Spec(i="i")), (out, Spec(a="a")))
        assert out["a"].tolist() == wanted


def test_jax_tells_signs_of_zero_apart():
    """0.0 and -0.0 are equal, and functions of their own all the same."""
    soa, out = filled(5)
    signed = lambda k, x: x * 0 + np.copysign(np.float32(1), np.float32(k))  # noqa: E731
    for k in (0.0, -0.0):
        fn = jax.tree_util.Partial(signed, k)
        soaview_jax.forward(fn, (soa, Spec(x="x")), (out, Spec(a="a")))
        assert (out["a"] == np.copysign(1, k)).all()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_jax_narrows_no_results(batch_size):
    """64-bit NumPy arrays that the model gives are refused while JAX would narrow them."""
    soa, out = filled(5)

    def model(x):
        return np.full(x.shape, 1e300)

    with pytest.raises(TypeError, match="the model gave a NumPy array of float64 and shape"):
        soaview_jax.forward(model, (soa, Spec(x="x")), (out, Spec(a="a")), batch_size=batch_size)
    assert not out["a"].any()


def test_jax_narrows_no_weights():
    """64-bit NumPy arrays of a callable pytree are refused while JAX would narrow them."""
    soa, out = filled(5)
    pairs = (soa, Spec(x="x")), (out, Spec(t="total"))
    fn = jax.tree_util.Partial(lambda w, x: x * w, np.full(5, 1e300))
    with pytest.raises(TypeError, match=r"fn holds a NumPy array of float64 and shape \(5,\)"):
        soaview_jax.forward(fn, *pairs)
    with jax.enable_x64(True):
        soaview_jax.forward(fn, *pairs)
    np.testing.assert_allclose(out["total"], soa["x"].astype("float64") * 1e300)


def test_jax_keeps_no_plain_function():
    """What was compiled for a function goes with it, and so does what it has closed over."""
    soa, out = filled(5)
    gone = []
    for _ in range(3):
        weights = jnp.ones(5)
        fn = lambda x, weights=weights: x * weights  # noqa: E731
        soaview_jax.forward(fn, (soa, Spec(x="x")), (out, Spec(a="a")))
        gone.append(weakref.ref(weights))
        del fn, weights
    assert places.soon(lambda: all(weights() is None for weights in gone))

    class Callable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(TypeError, match="fn cannot be told from others.*pass a function, or a"):
        soaview_jax.forward(Callable(), (soa, Spec(x="x")), (out, Spec(a="a")))


def test_jax_without_compilation():
    """Where JAX is told not to compile, the columns that it cannot view are copied."""
    soa, out = filled(33)
    for batch_size in (None, 10):
        out.buffer.root[:] = 0
        with jax.disable_jit():
            soaview_jax.forward(model, (soa, X), (out, Y), batch_size=batch_size)
        check(soa, out)


def test_a_bar_of_one_batch(framework, capsys):
    """It is shown for a single call, too."""
    soa, out = filled(100)
    framework.forward(model, (soa, X), (out, Y), progress=True)
    check(soa, out)
    assert "100%" in capsys.readouterr().err


MIXED = Layout(
    [
        Column("f", "float32", (2,)),
        Column("h", "bfloat16"),
        Column("i", "int32"),
        Column("b", "bool"),
        Column("z", "complex64"),
        Scalar("s", "float32"),
        Column("o", "float32"),
        Column("k", "int32"),
        Column("w", "bfloat16"),
        Column("q", "complex64"),
    ]
)
TAKEN = Spec(f="f", h="h", i="i", b="b", z="z", s=Value("s"))


def mixed(rows=10):
    soa = MIXED.allocate(rows)
    soa["f"][...] = np.arange(2 * rows).reshape(rows, 2) / 8
    soa["h"][:], soa["i"][:], soa["b"][:], soa["z"][:] = 2, np.arange(rows), True, 1j
    soa[Value("s")][...] = 0.5
    return soa


def names_of(given):
    return [str(x.dtype).removeprefix("torch.") for x in given]


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize(
    "dtype",
    ["float16", "bfloat16", np.float16, np.dtype("f2"), torch.bfloat16, jnp.float16],
    ids=str,
)
def test_a_dtype_for_the_model(framework, dtype, batch_size):
    """Floating inputs are converted on the way in, and floating results on the way out."""
    name, seen = Column("x", dtype).dtype, []

    def model(f, h, i, b, z, s):
        seen.append(names_of([f, h, i, b, z, s]))
        return f[:, 0] + f[:, 1] * s, i + 1, h, z * 2

    soa = mixed()
    into = (soa, Spec(o="o", k="k", w="w", q="q"))
    framework.forward(model, (soa, TAKEN), into, dtype=dtype, batch_size=batch_size)
    assert seen[0] == [name, name, "int32", "bool", "complex64", name]
    wanted = soa["f"][:, 0] + soa["f"][:, 1] * 0.5
    np.testing.assert_allclose(soa["o"], wanted, rtol=0.01)
    assert (soa["k"] == soa["i"] + 1).all()
    assert (soa["w"] == 2).all()
    assert (soa["q"] == 2j).all()


def test_without_a_dtype_nothing_is_converted(framework):
    """Not on the way in, and a result of another floating dtype than its column's is refused."""
    soa, seen = mixed(), []

    def model(f, h, i, b, z, s):
        seen.append(names_of([f, h, i, b, z, s]))
        return h

    with pytest.raises(TypeError, match="'o': got dtype bfloat16, expected float32"):
        framework.forward(model, (soa, TAKEN), (soa, Spec(o="o")))
    assert seen == [["float32", "bfloat16", "int32", "bool", "complex64", "float32"]]
    assert not soa["o"].any()


@pytest.mark.parametrize(
    ("given", "column", "message"),
    [
        ("i", "o", "'o': got dtype int32, expected float32"),
        ("b", "o", "'o': got dtype bool, expected float32"),
        ("z", "o", "'o': got dtype complex64, expected float32"),
        ("f", "k", "'k': got dtype float16, expected int32"),
        ("f", "q", "'q': got dtype float16, expected complex64"),
    ],
)
def test_a_dtype_converts_floating_results_alone(framework, given, column, message):
    """Others must have their columns' dtypes; nothing is written where one has not."""
    soa = mixed()
    before = soa.buffer.root.copy()
    model = lambda x: x[:, 0] if x.ndim > 1 else x  # noqa: E731
    with pytest.raises(TypeError, match=message):
        framework.forward(model, (soa, Spec(x=given)), (soa, Spec({column: column})), dtype="f2")
    assert (soa.buffer.root == before).all()


@pytest.mark.parametrize(
    "dtype",
    ["int32", "bool", bool, "complex64", "float8", 3, "", ("f4", (3,)), np.int8, [2]],
    ids=str,
)
def test_a_dtype_must_be_floating(framework, dtype):
    """Any other is refused, with those that there are, before the model runs."""
    soa, out = filled(5)
    with pytest.raises(ValueError, match="dtype= must be a floating dtype .*bfloat16.*, got"):
        framework.forward(never, (soa, X), (out, Y), dtype=dtype)


def test_converted_inputs_are_copies():
    """A model may write into them; into those that have the dtype already, and others, not."""
    soa = mixed()
    before, into = soa.buffer.root.copy(), (soa, Spec(o="o"))
    writes = lambda x: x.fill_(7)  # noqa: E731
    soaview_torch.forward(lambda f: f.fill_(7)[:, 0], (soa, Spec(f="f")), into, dtype="float16")
    soaview_torch.forward(writes, (soa, Spec(h="h")), into, dtype="float64")
    assert (soa["o"] == 7).all()
    soa["o"][:] = 0
    assert (soa.buffer.root == before).all()
    seen = []
    look = lambda o: seen.append(o.data_ptr()) or o  # noqa: E731
    soaview_torch.forward(look, (soa, Spec(o="o")), into, dtype="float32")
    assert seen == [soa["o"].ctypes.data]
    for name, dtype in (("o", "float32"), ("i", "float16")):
        to = (soa, Spec({name: name}))
        with pytest.raises(RuntimeError, match="changed its inputs in place"):
            soaview_torch.forward(writes, to, to, dtype=dtype)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_jax_narrows_nothing_before_a_conversion(batch_size):
    """64-bit columns are refused by name while 64-bit types are switched off."""
    _, out = filled(5)
    options = {"batch_size": batch_size}
    wide, narrow = (out, Spec(t="total")), (out, Spec(a="a"))
    with jax.enable_x64(False):
        for dtype, inputs, outputs, match in (
            ("float16", wide, narrow, "tensor 't' is float64, and JAX has 64-bit types switched"),
            ("float16", narrow, wide, "tensor 't' is float64, and JAX has 64-bit types switched"),
            ("float64", narrow, (out, Spec(b="b")), "dtype= is float64, and JAX has 64-bit"),
        ):
            with pytest.raises(TypeError, match=match):
                soaview_jax.forward(lambda x: x, inputs, outputs, dtype=dtype, **options)
    out["total"][:] = np.arange(5) / 4
    with jax.enable_x64(True):
        soaview_jax.forward(lambda t: t, wide, narrow, dtype="float16", **options)
        soaview_jax.forward(lambda a: a * 2, narrow, wide, dtype="float64", **options)
    assert out["a"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert out["total"].tolist() == [0, 0.5, 1, 1.5, 2]


def test_jax_waits_for_each_batch_that_a_bar_counts(monkeypatch):
    """So that the bar tells what has been done; without one, nothing is waited for in between."""
    soa, out = filled(50)
    waited, real = [], jax.block_until_ready
    monkeypatch.setattr(
        jax, "block_until_ready", lambda made: waited.append(made.shape) or real(made)
    )
    for progress, shapes in ((False, []), (True, [(20,), (20,), (10,)])):
        pairs = (soa, Spec(x="x")), (out, Spec(a="a"))
        soaview_jax.forward(lambda x: x * 2, *pairs, batch_size=20, progress=progress)
        assert waited == shapes


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


def test_many_outputs_compile_no_specs_of_their_own(monkeypatch):
    """Whether memory is written twice is seen from the layout, whatever the number of columns."""
    layout = Layout([Column(f"c{i}", "float32") for i in range(300)])
    soa, source = layout.allocate(3), IN.allocate(3)
    halves = [Spec({f"{k}{i}": f"c{i + k}" for i in range(0, 300, 2)}) for k in (0, 1)]
    compiled, real = [], _views.compile_spec
    monkeypatch.setattr(_views, "compile_spec", lambda *a: compiled.append(1) or real(*a))
    soaview_torch.forward(
        lambda x: (x,) * 300, (source, Spec(x="x")), [(soa, half) for half in halves]
    )
    assert len(compiled) <= 3  # for each pair once


@pytest.mark.parametrize("batch_size", [None, 10])
def test_what_jax_brought_to_the_host_goes_in(batch_size):
    """`jax.device_get` of what a jitted function returned is an input of both."""
    soa, out = filled(33)
    made = jax.jit(lambda s: soaview_jax.update(s, Spec(x="x"), [jnp.ones(33)]))(soa)
    brought = jax.device_get(made)
    assert (brought["x"] == 1).all()
    options = {"batch_size": batch_size}
    soaview_jax.forward(model, (brought, X), (out, Y), **options)
    check(brought, out)
    out.buffer.root[:] = 0
    with pytest.raises(BufferError):
        soaview_torch.forward(never, (brought, X), (out, Y), **options)
    soaview_torch.forward(model, (brought, X), (out, Y), copy=None, **options)
    check(brought, out)
    assert (brought["x"] == 1).all()
