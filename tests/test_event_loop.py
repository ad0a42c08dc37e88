"""Models on an event's memory, by the function that is made for it, and by the long way.

The two are one: the same results, and the same errors, whatever comes.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch._subclasses.fake_tensor import FakeTensorMode
from ways import (
    IN,
    ONE,
    OUT,
    A,
    X,
    both_ways,
    filled,
    locked,
    own_of_each,
    pretended,
    refused,
    short_of,
    threads,
    works,
)

import soaview_torch
from soaview import Column, Layout, Spec, Value
from soaview.adapter import MOST_OUTPUTS
from soaview_torch import _event, _forward, _prepare, forward, prepare, tensors

NEEDS = ["torch"]


@pytest.fixture
def ways(monkeypatch):
    """Run a scenario both ways, from the start; what comes of it, and whether it was at once."""
    return both_ways(monkeypatch, _event.at_once, [(_forward, "at_once"), (_prepare, "at_once")])


def run(model, spec=X, out_spec=A):
    return lambda soa, out: forward(model, (soa, spec), (out, out_spec))


WRITTEN = {
    "a matrix": run(lambda x: x * 2),
    "a column": run(lambda x: x.sum(1), out_spec=ONE),
    "a list of one": run(lambda x: [x.sum(1)], out_spec=ONE),
    "a dict": run(lambda x: {"b": x[:, 1], "a": x[:, 0]}, out_spec=Spec(a="a", b="b")),
    "a tuple": run(lambda x: (x[:, 1], x[:, 0]), out_spec=Spec(a="a", b="b")),
    "everything": run(
        lambda x, k, m, s: (x * k[:, None] + s, m.sum(2), x.sum()),
        Spec(x=["x", "z"], k="k", m="m", s=Value("s")),
        Spec(a=["a", "b"], w="w", n=Value("n")),
    ),
    "a scalar for all rows": run(lambda s: s + 1, Spec(s="s"), ONE),
    "a transpose": run(lambda x: x.T.contiguous().T),
    "an expanded row": run(lambda x: x[:1].expand(33, 2)),
    "a part of more": run(lambda x: torch.cat([x, x])[5:38]),
    "conjugated": run(lambda x: torch.complex(x, x).conj().real),
    "with a graph": run(lambda x: torch.ones(33, 2, requires_grad=True)),
    "a parameter": run(lambda x: torch.nn.Parameter(torch.ones(33, 2))),
    "a zero tensor's copy": run(lambda x: torch._efficientzerotensor((33, 2)).clone()),
}
REFUSED = {
    "another shape": (run(lambda x: x[:5]), "got shape"),
    "another dtype": (run(lambda x: x.double()), "float64"),
    "another device": (run(lambda x: x.to("meta")), "meta"),
    "sparse": (run(lambda x: x.to_sparse()), "sparse"),
    "nested": (run(lambda x: nested(x)), "plain dense"),
    "a zero tensor": (run(lambda x: torch._efficientzerotensor((33, 2))), "zeros without memory"),
    "an array": (run(lambda x: np.ones((33, 2), "f4")), "got ndarray"),
    "nothing": (run(lambda x: None), "got NoneType"),
    "too many": (run(lambda x: (x, x)), "gave 2 tensors"),
    "in place": (run(lambda x: x.add_(1)), "changed its inputs in place"),
    "an error": (run(lambda x: x @ x), "mat1 and mat2"),
    "a storage that is gone": (run(lambda x: gone(x * 2)), "resized to 0 bytes"),
    "a storage that is short": (run(lambda x: short(torch.ones(33, 2))), "resized to 12 bytes"),
    "a part of it that is": (run(lambda x: short(torch.ones(33, 4)[:, :2], 300)), "to 300 bytes"),
    "three of two": (run(lambda x: (x[:, 0],) * 3, out_spec=Spec(a="a", b="b")), "gave 3 tensors"),
    "made read-only": (lambda soa, out: forward(frozen(out), (soa, X), (out, A)), "read-only"),
}


def nested(x):
    with warnings.catch_warnings():  # torch calls it a prototype
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([x, x])


def gone(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


def short(tensor, nbytes=12):
    tensor.untyped_storage().resize_(nbytes)
    return tensor


def frozen(out):
    def model(x):
        out.buffer.root.flags.writeable = False
        return x

    return model


def in_fake_tensors(soa, out):
    with FakeTensorMode():
        run(lambda x: x)(soa, out)


def in_transform(transform):
    def scenario(soa, out):
        transform(lambda w: (run(lambda x: x * w)(soa, out), w.sum())[1])(torch.ones(2))

    return scenario


REFUSED |= {
    "in fake tensors": (in_fake_tensors, "no tensor of real memory"),
    "in torch.func.grad": (in_transform(torch.func.grad), "no tensor of real memory"),
    "in torch.func.functionalize": (in_transform(torch.func.functionalize), "of real memory"),
    "in torch.func.vmap": (in_transform(torch.func.vmap), "outside of torch.func transforms"),
}


@pytest.mark.parametrize("what", WRITTEN)
def test_results_are_the_same(ways, what):
    """Whatever the model gives that fits is written, and it is by the function that was made."""
    error, at_once = ways(WRITTEN[what])
    assert error is None
    assert at_once


@pytest.mark.parametrize(
    "what",
    # Fake tensors take 2 s to import.
    [pytest.param(name, marks=[pytest.mark.slow] * ("fake" in name)) for name in REFUSED],
)
def test_refusals_are_the_same(ways, what):
    """What does not fit is refused by the same words, and nothing has been written."""
    refused(ways, *REFUSED[what])


def test_what_shares_the_memory(ways):
    """Results that lie over what is written are put aside before that."""
    layout = Layout([Column(name, "float32") for name in "abcd"])

    def swapped(soa, out):
        both = filled(33, layout)
        pair = (both, Spec(a="a", b="b", c=["c", "d"]))
        forward(lambda a, b, c: (b, a, c.flip(1)), pair, pair)
        out.buffer.root[:512] = both.buffer.root[:512]
        assert both["a"].tolist() == [1 + n for n in range(33)]
        assert both["d"].tolist() == [2 + n for n in range(33)]

    assert ways(swapped) == (None, True)
    memory = torch.zeros(2 * layout.nbytes(33), dtype=torch.uint8).numpy()
    two = [layout.wrap(memory[first:], 33) for first in (0, 256)]
    with pytest.raises(ValueError, match="the same memory would be written twice"):
        forward(
            lambda a: (a, a), (two[0], Spec(a="a")), [(two[0], Spec(x="c")), (two[1], Spec(y="b"))]
        )


@pytest.mark.parametrize(
    "odd",
    [
        lambda soa, out: (soa[3:], out[3:]),
        lambda soa, out: (soa[:0], out[:0]),
        lambda soa, out: (IN.wrap(bytes(soa.buffer.root), 33), out),
        lambda soa, out: (soa, OUT.wrap(bytes(out.buffer.root), 33)),
        lambda soa, out: (IN.wrap(torch.from_numpy(soa.buffer.root), 33), out),
        lambda soa, out: (pretended(soa), pretended(out)),
        lambda soa, out: (short_of(soa), out),
        lambda soa, out: (soa, short_of(out)),
    ],
)
def test_memory_of_other_kinds(ways, odd):
    """Slices, no rows, read-only memory, tensors, and what reaches past its buffer."""

    def scenario(soa, out):
        odd_soa, odd_out = odd(soa, out)
        forward(lambda x: x + 1, (odd_soa, X), (odd_out, A))

    ways(scenario)


def test_no_model_runs_without_rows(ways):
    """An event without rows is done at once, however it comes."""

    def never(*x):
        pytest.fail("the model ran")

    run(never)(IN.allocate(0), OUT.allocate(0))
    runs = prepare(never, (IN, X), (OUT, A))
    runs((np.zeros(999, "u1"), 0), (np.zeros(999, "u1"), 0))


@pytest.mark.parametrize("spec", [Spec(a="q"), Spec(a=["a", "a"]), Spec(a="n"), Spec(a="a", b="a")])
def test_specs_that_cannot_be_written(ways, spec):
    """They are refused as ever, and before the model runs."""
    error, _ = ways(run(lambda x: pytest.fail("the model ran"), out_spec=spec))
    assert error[0] in (KeyError, ValueError)
    error, _ = ways(run(lambda x: pytest.fail("the model ran"), spec=Spec(x=["x", "z"], y="q")))
    assert "no column 'q'" in error[1]
    error, _ = ways(run(lambda x: pytest.fail("the model ran"), spec=Spec(x=["x", "y", "x"])))
    assert "repeated" in error[1]


def test_tensors_know_of_the_write():
    """What autograd has kept of the outputs is known to have changed."""
    soa, out = filled(33), OUT.allocate(33)
    [b] = tensors(out, Spec(b="b"))
    weight = torch.ones(33, requires_grad=True)
    loss = (weight * b).sum()
    run(lambda x: x)(soa, out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert b.tolist() == soa["y"].tolist()


def test_in_inference_mode(ways):
    """Where it is switched on all is as it is elsewhere, and it is left on."""

    def scenario(soa, out):
        with torch.inference_mode():
            run(lambda x: x * 2)(soa, out)
            assert torch.is_inference_mode_enabled()
        x = tensors(soa, Spec(x="x"))[0]
        assert not x.is_inference()

    assert ways(scenario) == (None, True)


def test_every_layout_has_its_own(ways):
    """What was made for one layout is not used for another that has the same names."""
    own_of_each(ways, forward)


@settings(max_examples=150, deadline=None)
@given(works())
def test_random_work_both_ways(work):
    """A model that gives new values: by the function, by `prepare`, and by the long way."""
    layout, spec, out_spec, rows = work
    given_ = np.frombuffer(np.random.default_rng(rows).bytes(layout.nbytes(rows)), np.uint8) & 1

    def model(*inputs):
        total = sum(float(np.abs(x.numpy().astype(complex)).sum()) for x in inputs)
        return tuple(
            torch.full(view.shape, total % 7).to(view.dtype) for view in tensors(target, out_spec)
        )

    target, found = layout.allocate(rows), []
    out = layout.allocate(rows)
    for way in range(3):
        soa = layout.allocate(rows)
        soa.buffer.root[:], out.buffer.root[:] = given_, 0
        with contextlib.suppress(BufferError):  # columns without a common distance
            written = None
            if way == 0:
                forward(model, (soa, spec), (out, out_spec))
            elif way == 1:
                prepare(model, (layout, spec), (layout, out_spec))(
                    (soa.buffer.root.copy(), rows), (memory := out.buffer.root.copy(), rows)
                )
                out.buffer.root[:] = memory
            else:
                forward(model, (soa, spec), (out, out_spec), copy=None)
            written = out.buffer.root.tobytes()
        found.append(written)
    assert found[0] == found[1]
    assert found[2] is not None
    assert found[0] == found[2] or (found[0] is None and "all" in spec)


# Prepared once


def test_prepared_for_every_event(ways):
    """New memory and row counts in every call; SoAs, and whatever `wrap` takes, all the same."""
    runs = prepare(lambda x: x * 2, (IN, X), (OUT, A))
    for rows in (1, 5, 33, 100, 5, 0):
        soa, out = filled(rows), OUT.allocate(rows)
        wanted = np.stack([soa["x"], soa["y"]], 1) * 2
        larger = np.zeros(OUT.nbytes(rows) + 8, np.uint8)
        own = soa.buffer.root.copy()
        for inputs, outputs, there in (
            ((own, rows), (out.buffer.root, rows), out),
            (soa, out, out),
            ((torch.from_numpy(soa.buffer.root), rows), out, out),
            ([(memoryview(soa.buffer.root), rows)], [out], out),
            ((own, rows), (larger, rows), OUT.wrap(larger, rows)),
        ):
            out.buffer.root[:] = 0
            runs(inputs, outputs)
            np.testing.assert_array_equal(there[["a", "b"]], wanted)
        larger[:] = 0
        with torch.inference_mode():
            runs((own, rows), (larger, rows))
        np.testing.assert_array_equal(there[["a", "b"]], wanted)


def test_prepared_for_several_pairs():
    """Inputs and outputs of several layouts, in the order in which they were prepared."""
    runs = prepare(
        lambda x, k: (k.float(), x[:, 0], x[:, 1]),
        [(IN, X), (IN, Spec(k="k"))],
        [(OUT, Spec(a="a", b="b")), (OUT, ONE)],
    )
    one, other = filled(33), filled(33)
    arrays = [np.zeros(OUT.nbytes(33), np.uint8) for _ in range(2)]
    inputs = [(soa.buffer.root.copy(), 33) for soa in (one, other)]
    runs(inputs, [(array, 33) for array in arrays])
    found = [OUT.wrap(array, 33) for array in arrays]
    assert found[0]["a"].tolist() == other["k"].tolist()
    assert found[0]["b"].tolist() == one["x"].tolist()
    assert found[1]["a"].tolist() == one["y"].tolist()
    with pytest.raises(ValueError, match="the same memory would be written twice"):
        runs(inputs, [(arrays[0], 33), (arrays[0], 33)])
    with pytest.raises(ValueError, match="inputs: got 1 SoAs or pairs .buffer, rows., and 2 were"):
        runs(inputs[:1], [(array, 33) for array in arrays])


@pytest.mark.parametrize(
    ("inputs", "outputs", "error", "message"),
    [
        ((IN, X), (OUT, Spec(a="q")), KeyError, "no column 'q'"),
        ((IN, Spec(x="q")), (OUT, A), KeyError, "no column 'q'"),
        ((IN, X), (OUT, Spec(a="n")), ValueError, "scalar 'n' has one value"),
        ((IN, X), (OUT, Spec(a="a", b="a")), ValueError, "would be written twice"),
        ((IN, Spec(x=["y", "x"])), (OUT, A), BufferError, "reversed order"),
        ((IN, Spec()), (OUT, A), ValueError, "inputs: a spec has no tensors"),
        ((X, IN), (OUT, A), TypeError, r"inputs must be a pair \(layout, spec\)"),
        ((filled(3), X), (OUT, A), TypeError, "pass soa.layout"),
        ([], (OUT, A), ValueError, "inputs are empty"),
        ((IN, {"x": "x"}), (OUT, A), TypeError, "write Spec"),
    ],
)
def test_what_cannot_be_prepared(inputs, outputs, error, message):
    """All that does not depend on an event is refused before the first one."""
    with pytest.raises(error, match=message):
        prepare(lambda x: x, inputs, outputs)
    with pytest.raises(TypeError, match="the model must be callable"):
        prepare(None, (IN, X), (OUT, A))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((np.zeros(10, "u1"), 33), ValueError, "too small: got 10 bytes"),
        ((np.zeros(9999, "u1"), -1), ValueError, "must not be negative"),
        ((np.zeros(9999, "u1"), 33.0), TypeError, "rows must be an integer"),
        ((np.zeros(9999, "u1"), True), TypeError, "rows must be an integer"),
        ((np.zeros(10000, "u1")[1:], 33), BufferError, "misaligned"),
        ((np.zeros(20000, "u1")[::2], 33), BufferError, "not contiguous"),
        ((bytes(9999), 33), BufferError, "read-only"),
        ((locked(np.zeros(9999, "u1")), 33), BufferError, "read-only"),
        ((np.zeros(9999, bool), 33), TypeError, "holds bool"),
        ((np.zeros((99, 101), "u1", order="F"), 33), BufferError, "not contiguous"),
        ((np.zeros(9999, "f4"), 33), TypeError, "holds float32, but field"),
        (filled(33, OUT), ValueError, "another layout than was prepared"),
        (np.zeros(9999, "u1"), TypeError, "expected an SoA or a pair"),
        ((np.zeros(9999, "u1"),), TypeError, "expected an SoA or a pair"),
        (3, TypeError, "expected an SoA or a pair"),
    ],
)
def test_what_an_event_cannot_be(inputs, error, message):
    """Memory that `wrap` refuses is refused here, by the same words."""
    runs, out = prepare(lambda x: x, (IN, X), (OUT, A)), np.zeros(OUT.nbytes(33), np.uint8)
    with pytest.raises(error, match=message):
        runs(inputs, (out, 33))
    assert not out.any()


def test_which_memory_it_is():
    """Of several the message says which, and of other layouts how they differ."""
    runs = prepare(lambda x, y: x, [(IN, X), (IN, Spec(y="y"))], (OUT, A))
    out = OUT.allocate(33)
    with pytest.raises(ValueError, match=r"inputs\[1\]: the buffer is too small: got 10 bytes"):
        runs([filled(33), (np.zeros(10, "u1"), 33)], out)
    with pytest.raises(TypeError, match=r"inputs\[0\]: rows must be an integer"):
        runs([(np.zeros(9999, "u1"), "33"), filled(33)], out)
    loose, shorter = Layout(IN.fields, alignment=16), Layout(IN.fields[:-1])
    other = Layout([Column("q", "int8"), *IN.fields[1:]])
    for layout, message in (
        (loose, "another alignment than was prepared: 16, expected 128"),
        (shorter, "another layout than was prepared: 5 fields, expected 6"),
        (other, "field 0 is Column('q', 'int8'), expected Column('x', 'float32')"),
    ):
        with pytest.raises(ValueError, match=r"inputs\[1\]: .*" + re.escape(message)):
            runs([filled(33), filled(33, layout)], out)


def test_prepared_with_copies():
    """Events that are read-only, and models that write into what they get."""
    out, read_only = OUT.allocate(33), IN.wrap(bytes(filled(33).buffer.root), 33)
    with pytest.raises(BufferError, match="copy=None copies it"):
        prepare(lambda x: x * 2, (IN, X), (OUT, A))(read_only, out)
    for memory in (read_only, (bytes(filled(33).buffer.root), 33)):
        prepare(lambda x: x * 2, (IN, X), (OUT, A), copy=None)(memory, out)
        assert out["b"].tolist() == [2 * (1 + n) for n in range(33)]
        out["b"][:] = 0
    soa, array = filled(33), np.array(filled(33).buffer.root)
    with pytest.raises(RuntimeError, match="pass copy=True"):
        prepare(lambda x: x.add_(1), (IN, X), (OUT, A))(filled(33), out)
    written = np.array(out.buffer.root)
    for memory, there in ((soa, out), ((array, 33), out), ((array, 33), (written, 33))):
        prepare(lambda x: x.add_(1), (IN, X), (OUT, A), copy=True)(memory, there)
        assert out["b"].tolist() == [2 + n for n in range(33)]
    assert soa["y"].tolist() == IN.wrap(array, 33)["y"].tolist() == [1 + n for n in range(33)]
    reverse = Spec(x=["y", "x"])  # which no view covers
    prepare(lambda x: x * 3, (IN, reverse), (OUT, A), copy=None)((np.array(array), 33), out)
    assert out["a"].tolist() == [3 * (1 + n) for n in range(33)]
    with pytest.raises(TypeError, match="copy must be"):
        prepare(lambda x: x, (IN, X), (OUT, A), copy="yes")


def test_a_result_that_was_shrunk_is_named():
    """Its storage no longer has its elements."""

    def shrunk(x):
        made = x + 1
        made.untyped_storage().resize_(8)
        return made

    out = OUT.allocate(33)
    with pytest.raises(BufferError, match="tensor 'a' reaches to byte 264 of its storage"):
        forward(shrunk, (filled(33), X), (out, A))
    assert not out["a"].any()


def test_many_outputs():
    """What is made of their layouts would grow with the square of their number."""
    assert _event.of_soas([(IN, X)], [(OUT, A)] * MOST_OUTPUTS) is not None
    assert _event.of_soas([(IN, X)], [(OUT, A)] * (MOST_OUTPUTS + 1)) is None
    outs = [OUT.allocate(5) for _ in range(MOST_OUTPUTS + 1)]
    runs = prepare(lambda x: (x,) * len(outs), (IN, X), [(OUT, A)] * len(outs))
    runs(filled(5), outs)
    assert all(out["b"].tolist() == [1, 2, 3, 4, 5] for out in outs)


def test_memory_is_let_go_with_the_tensors():
    """A tensor that a model keeps holds the array; a prepared function holds nothing."""
    kept = []
    runs = prepare(lambda x: kept.append(x) or x * 2, (IN, X), (OUT, A))
    array, out = filled(33).buffer.root.copy(), np.zeros(OUT.nbytes(33), np.uint8)
    alive = weakref.ref(array)
    runs((array, 33), (out, 33))
    del array
    assert alive() is not None
    assert kept[0][5, 1] == 6
    kept.clear()
    assert alive() is None


def test_memory_of_a_mapping_is_held():
    """An array that only points at a mapping is wrapped: closing that raises while it is in use."""
    kept = []
    runs = prepare(lambda x: kept.append(x) or x * 2, (IN, X), (OUT, A))
    with mmap.mmap(-1, IN.nbytes(33)) as mapping:
        runs((np.ndarray(IN.nbytes(33), "u1", mapping), 33), (np.zeros(OUT.nbytes(33), "u1"), 33))
        with pytest.raises(BufferError, match="exported pointers exist"):
            mapping.close()
        kept.clear()


def test_arrays_of_several_axes():
    """Bytes that lie in rows are bytes, as `wrap` takes them."""
    runs = prepare(lambda x: x + 1, (IN, X), (OUT, A))
    inputs, out = (np.zeros((n, 7), "u1") for n in (IN.nbytes(33), OUT.nbytes(33)))
    runs((inputs, 33), (out, 33))
    assert (OUT.wrap(out, 33)["b"] == 1).all()


def test_what_has_no_function_of_its_own():
    """Of complex128 an array is not known to be aligned: it goes the long way."""
    layout = Layout([Column("z", "complex128"), Column("i", "int8"), Column("c", "complex128")])
    sides = [(layout, Spec(z="z"))]
    assert _event.of_arrays(abs, sides, sides, print) is None
    runs = prepare(lambda z: z * 2, sides[0], (layout, Spec(c="c")))
    array = np.ones(layout.nbytes(33) + 128, np.uint8)
    array = array[-array.ctypes.data % 16 :]
    runs((array, 33), (array, 33))
    soa = layout.wrap(array, 33)
    np.testing.assert_array_equal(soa["c"], soa["z"] * 2)


def test_threads_on_one_function():
    """What was made once is used by all of them at a time."""
    threads(prepare(lambda x: x * 2, (IN, X), (OUT, A)))
    assert soaview_torch.prepare is prepare
