"""Functions of JAX's on an event's memory, by what is made for it, and by the long way."""

from __future__ import annotations

import contextlib
import gc
import weakref
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
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

import soaview_jax
from soaview import Column, Layout, Spec, Value
from soaview.adapter import MOST_OUTPUTS, writable_views
from soaview_jax import _event, _forward, forward, prepare

NEEDS = ["torch", "jax"]


@pytest.fixture
def ways(monkeypatch):
    """Run a scenario both ways, from the start; what comes of it, and whether it was at once."""
    return both_ways(monkeypatch, _forward._at_once, [(_forward, "_at_once")])


def run(fn, spec=X, out_spec=A):
    return lambda soa, out: forward(fn, (soa, spec), (out, out_spec))


WRITTEN = {
    "a matrix": run(lambda x: x * 2),
    "a column": run(lambda x: x.sum(1), out_spec=ONE),
    "a list of one": run(lambda x: [x.sum(1)], out_spec=ONE),
    "a dict": run(lambda x: {"b": x[:, 1], "a": x[:, 0]}, out_spec=Spec(a="a", b="b")),
    "a tuple": run(lambda x: (x[:, 1], x[:, 0]), out_spec=Spec(a="a", b="b")),
    "the input": run(lambda x: x),
    "a scalar for all rows": run(lambda s: s + 1, Spec(s="s"), ONE),
    "one value": run(lambda s: s + 1, Spec(s=Value("s")), Spec(n=Value("n"))),
    "columns apart": run(lambda x: x + 1, Spec(x=["x", "z"])),
    "a pytree": run(jax.tree_util.Partial(lambda w, x: x + w, jnp.ones(2))),
}
REFUSED = {
    "another shape": (run(lambda x: x[:5]), "got shape"),
    "another dtype": (run(lambda x: x.astype("int32")), "got dtype int32"),
    "nothing": (run(lambda x: None), "got NoneType"),
    "too many": (run(lambda x: (x, x)), "gave 2 tensors"),
    "three of two": (run(lambda x: (x[:, 0],) * 3, out_spec=Spec(a="a", b="b")), "gave 3 tensors"),
    "an error": (run(lambda x: x @ x), "dot_general"),
    "made read-only": (lambda soa, out: forward(frozen(out), (soa, X), (out, A)), "read-only"),
    "a key": (run(lambda x: jax.random.key(0), out_spec=ONE), "got dtype key<fry>"),
    "inside of jit": (
        lambda soa, out: jax.jit(lambda w: run(lambda x: x * w)(soa, out))(jnp.ones(2)),
        "is traced: write outside of jit",
    ),
    "inside of grad": (
        lambda soa, out: jax.grad(lambda w: run(lambda x: x * w)(soa, out))(jnp.ones(2)),
        "is traced: write outside of jit",
    ),
    "64 bits": (run(lambda m: m, Spec(m="m"), ONE), "64-bit types switched off"),
}


def frozen(out):
    def fn(x):
        out.buffer.root.flags.writeable = False
        return x

    return fn


@pytest.mark.parametrize("what", WRITTEN)
def test_results_are_the_same(ways, what):
    """Whatever the function gives that fits is written, at once."""
    assert ways(WRITTEN[what]) == (None, True)


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_are_the_same(ways, what):
    """What does not fit is refused by the same words, and nothing has been written."""
    refused(ways, *REFUSED[what])


@pytest.mark.slow
def test_64_bit_types(ways):
    """Where they are switched on they go at once, and where they are not the long way knows why."""
    everything = run(
        lambda x, k, m, s: ((x * k[:, None] + s).astype("f4"), m.sum(2), x.sum()),
        Spec(x=["x", "z"], k="k", m="m", s=Value("s")),
        Spec(a=["a", "b"], w="w", n=Value("n")),
    )
    with jax.enable_x64(True):
        assert ways(everything) == (None, True)
    error, at_once = ways(everything)
    assert error[0] is TypeError
    assert not at_once
    assert "64-bit types switched off" in error[1]


@pytest.mark.parametrize(
    "odd",
    [
        lambda soa, out: (soa[3:], out[3:]),
        lambda soa, out: (soa[:0], out[:0]),
        lambda soa, out: (IN.allocate(0), OUT.allocate(0)),
        lambda soa, out: (IN.wrap(bytes(soa.buffer.root), 33), out),
        lambda soa, out: (soa, OUT.wrap(bytes(out.buffer.root), 33)),
        lambda soa, out: (pretended(soa), pretended(out)),
        lambda soa, out: (short_of(soa), out),
        lambda soa, out: (soa, short_of(out)),
    ],
)
def test_memory_of_other_kinds(ways, odd):
    """Slices, no rows, read-only memory, a device's, and what reaches past its buffer."""

    def scenario(soa, out):
        odd_soa, odd_out = odd(soa, out)
        forward(lambda x: x + 1, (odd_soa, X), (odd_out, A))

    ways(scenario)


def test_read_only_inputs_are_read(ways):
    """JAX does not write into them, and so they need not be writable."""
    assert ways(lambda soa, out: run(lambda x: x)(IN.wrap(bytes(soa.buffer.root), 33), out)) == (
        None,
        True,
    )


def test_what_shares_the_memory(ways):
    """Results that lie over what is written are put aside before that."""
    layout = Layout([Column(name, "float32") for name in "abcd"])

    def swapped(soa, out):
        both = filled(32, layout)
        pair = (both, Spec(a="a", b="b", c=["c", "d"]))
        forward(lambda a, b, c: (b, a, c[:, ::-1]), pair, pair)
        assert both["a"].tolist() == [1 + n for n in range(32)]
        assert both["b"].tolist() == list(range(32))
        assert both["d"].tolist() == [2 + n for n in range(32)]
        one = filled(32, layout)
        forward(lambda a: a, (one, Spec(a="a")), (one, Spec(b="b")))
        assert one["b"].tolist() == one["a"].tolist()

    assert ways(swapped) == (None, True)


def test_xla_is_given_what_the_spec_needs(monkeypatch):
    """Of many runs of fields only those go in, each as one matrix where it lies."""
    layout = Layout([Column(f"c{i}", ("float32", "int32")[i % 2]) for i in range(100)])
    soa, shapes = layout.allocate(40), []
    real = _event.Event.given
    monkeypatch.setattr(
        _event.Event,
        "given",
        lambda self, rows, given: shapes.extend(m.shape for m in given) or real(self, rows, given),
    )
    forward(lambda x, y: x + y, (soa, Spec(x="c10", y="c90")), (soa, Spec(z="c4")))
    assert shapes == [(1, 64), (1, 64)]


@pytest.mark.slow
def test_without_compiling(ways):
    """Where JAX is told to run operations one by one, the same comes out."""
    layout = Layout([Column(name, "float32") for name in "abcd"])

    def swapped(soa, out):
        both = filled(32, layout)
        forward(lambda a, b: (b, a), (both, Spec(a="a", b="b")), (both, Spec(a="a", b="b")))
        assert both["a"].tolist() == [1 + n for n in range(32)]
        assert both["b"].tolist() == list(range(32))

    for setting in (jax.disable_jit, lambda: jax.debug_nans(True)):
        with setting():
            for scenario in (*(WRITTEN[w] for w in ("a matrix", "columns apart")), swapped):
                assert ways(scenario) == (None, True)
    with jax.disable_jit():
        error, _ = ways(run(lambda x: (np.ones(33, "f4"), x[:, 1]), out_spec=Spec(a="a", b="b")))
        assert "got ndarray" in error[1]


def never(*x):
    pytest.fail("the function ran")


@pytest.mark.parametrize("spec", [Spec(a="q"), Spec(a=["a", "a"]), Spec(a="n"), Spec(a="a", b="a")])
def test_what_cannot_be_written(ways, spec):
    """It is refused before the function runs; without rows none runs at all."""
    error, _ = ways(run(never, out_spec=spec))
    assert error[0] in (KeyError, ValueError)
    assert "no column 'q'" in ways(run(never, spec=Spec(x="x", y="q")))[0][1]
    read_only = OUT.wrap(bytes(OUT.nbytes(33)), 33)
    with pytest.raises(BufferError, match="read-only"):
        run(never)(filled(33), read_only)
    with pytest.raises(BufferError, match="read-only"):
        prepare(never, (IN, X), (OUT, A))(
            (np.zeros(9999, "u1"), 33), (locked(np.zeros(9999, "u1")), 33)
        )
    run(never)(IN.allocate(0), OUT.allocate(0))
    prepare(never, (IN, X), (OUT, A))((np.zeros(999, "u1"), 0), (np.zeros(999, "u1"), 0))


@pytest.mark.slow
def test_every_layout_has_its_own(ways):
    """What was made for one layout is not used for another that has the same names."""
    own_of_each(ways, forward)


def test_what_was_compiled_goes_with_the_function():
    """A function is held by nobody here, and what was made for another one is not used for it."""
    soa, out = filled(33), OUT.allocate(33)
    for factor in range(1, 6):
        forward(lambda x, factor=factor: x * factor, (soa, X), (out, A))
        assert out["b"].tolist() == [factor * (1 + n) for n in range(33)]
    counts = []

    def counted(x):
        counts.append(x.shape)
        return x

    for rows in (33, 5, 33, 5, 33):
        run(counted)(filled(rows), OUT.allocate(rows))
    assert counts == [(33, 2), (5, 2)]


def test_what_was_made_is_found_again():
    """A function that is prepared for every event anew is traced once: nothing is kept twice."""
    counts = []

    def counted(x):
        counts.append(x.shape)
        return x

    layout, out = Layout(IN.fields), OUT.allocate(33)  # of its own, whose plans are counted
    array, written = np.array(filled(33, layout).buffer.root), np.array(out.buffer.root)
    for number in range(3):
        prepare(counted, (layout, X), (OUT, A))(filled(33, layout), out)
        prepare(counted, (layout, X), (OUT, A))((array, 33), (written, 33))
        if number == 0:
            plans = len(layout.plans)
        forward(counted, (filled(33, layout), X), (out, A))
    assert len(counts) == 2  # of arrays of bytes, and of SoAs
    assert len(layout.plans) == plans + 1  # `forward` finds its own by pairs


def test_events_go_with_the_function(monkeypatch):
    """What was compiled for a function is let go with it, and with the layout."""
    made = []
    monkeypatch.setattr(_forward, "jitted", lambda fn, *given: made.append(weakref.ref(fn)) or fn)
    layout, other = Layout(IN.fields), Layout(IN.fields)
    fn = lambda x: x + 1  # noqa: E731
    again = lambda x: x + 1  # noqa: E731
    for function, of in ((fn, layout), (again, layout), (again, other)):
        prepare(function, (of, X), (OUT, A))(filled(33, of), OUT.allocate(33))
    assert len(made) == 3
    del fn, function
    gc.collect()
    assert [alive() is None for alive in made] == [True, False, False]
    del layout, of, other
    gc.collect()
    assert [alive() is None for alive in made] == [True, True, True]
    assert again(1) == 2


@pytest.mark.parametrize("how", ["forward", "batches", "row_wise", "verify", "prepare", "pytree"])
def test_nothing_is_traced_without_compiling(how):
    """Under `jax.disable_jit` Python's own `if` sees numbers, and later calls compile again."""
    traced = []

    def branches(x):
        traced.append(isinstance(x, jax.core.Tracer))
        return (x if x.sum() > 0 else -x) if not traced[-1] else x * 2

    def run(out):
        options = {"batches": {"batch_size": 8}, "row_wise": {"row_wise": True}}
        fn = jax.tree_util.Partial(branches) if how == "pytree" else branches
        if how == "prepare":
            prepare(fn, (IN, X), (OUT, A))(filled(33), out)
        elif how == "verify":
            forward(fn, (filled(33), X), (out, A), row_wise="verify")
        else:
            forward(fn, (filled(33), X), (out, A), **options.get(how, {}))

    out = OUT.allocate(33)
    with jax.disable_jit():
        run(out)
    assert traced
    assert not any(traced)
    assert out["b"].tolist() == [1 + n for n in range(33)]
    run(out)
    assert traced[-1]
    assert out["b"].tolist() == [2 + 2 * n for n in range(33)]


@pytest.mark.parametrize("row_wise", [False, True, "verify"])
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: "no", "the model gave str, expected arrays"),
        (lambda x: {"a": object()}, "the model gave object, expected arrays"),
        (lambda x: None, "tensor 'a': got NoneType, expected a jax.Array"),
        (lambda x: jax.random.split(jax.random.key(0), x.shape), "got dtype key<fry>"),
    ],
)
def test_no_arrays(fn, message, row_wise):
    """What is no array is named."""
    out = OUT.allocate(33)
    with pytest.raises(TypeError, match=message):
        forward(fn, (filled(33), Spec(x="x")), (out, ONE), row_wise=row_wise)
    assert not out["a"].any()


def test_many_outputs():
    """What is made of their layouts would grow with the square of their number."""
    assert _event.event_of_soas([(IN, X)], [(OUT, A)] * MOST_OUTPUTS) is not None
    assert _event.event_of_soas([(IN, X)], [(OUT, A)] * (MOST_OUTPUTS + 1)) is None
    outs = [OUT.allocate(5) for _ in range(MOST_OUTPUTS + 1)]
    runs = prepare(lambda x: (x,) * len(outs), (IN, X), [(OUT, A)] * len(outs))
    runs(filled(5), outs)
    assert all(out["b"].tolist() == [1, 2, 3, 4, 5] for out in outs)


def test_many_row_counts(monkeypatch):
    """Only so many of them are kept for a function; one that was forgotten is compiled again."""
    monkeypatch.setattr(_forward, "MOST", 2)
    counts = []

    def counted(x):
        counts.append(len(x))
        return x

    for rows in (1, 2, 3, 3, 1):
        run(counted)(filled(rows), OUT.allocate(rows))
    assert counts == [1, 2, 3, 1]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(works())
def test_random_work_both_ways(work):
    """A function that gives new values: at once, by `prepare`, and by the long way."""
    layout, spec, out_spec, rows = work
    given_ = np.frombuffer(np.random.default_rng(rows).bytes(layout.nbytes(rows)), np.uint8) & 1
    places = [there for there, _ in writable_views(layout.allocate(rows), out_spec)]

    def fn(*inputs):
        total = sum(jnp.abs(x.astype("complex128")).sum() for x in inputs)
        return tuple(jnp.full(p.shape, total % 7).astype(p.dtype_name) for p in places)

    found, out = [], layout.allocate(rows)
    with jax.enable_x64(True):
        for way in range(3):
            soa = layout.allocate(rows)
            soa.buffer.root[:], out.buffer.root[:] = given_, 0
            written = None
            with contextlib.suppress(BufferError):  # columns without a common distance
                if way == 0:
                    forward(fn, (soa, spec), (out, out_spec))
                elif way == 1:
                    memory = out.buffer.root.copy()
                    runs = prepare(fn, (layout, spec), (layout, out_spec))
                    runs((soa.buffer.root.copy(), rows), (memory, rows))
                    out.buffer.root[:] = memory
                else:
                    with mock.patch.object(_forward, "_at_once", return_value=False):
                        forward(fn, (soa, spec), (out, out_spec))
                written = out.buffer.root.tobytes()
            found.append(written)
    assert found[0] == found[2] is not None
    assert found[1] == found[0] or (found[1] is None and "all" in spec)


def test_prepared_for_every_event():
    """New memory and row counts in every call; SoAs, and whatever `wrap` takes, all the same."""
    for fn in (lambda x: x * 2, jax.tree_util.Partial(lambda w, x: x * w, jnp.full(2, 2.0))):
        runs = prepare(fn, (IN, X), (OUT, A))
        for rows in (1, 5, 33, 5, 0):
            soa, out = filled(rows), OUT.allocate(rows)
            wanted = np.stack([soa["x"], soa["y"]], 1) * 2
            larger, own = np.zeros(OUT.nbytes(rows) + 8, np.uint8), soa.buffer.root.copy()
            for inputs, outputs, there in (
                ((own, rows), (out.buffer.root, rows), out),
                ((bytes(own), rows), (out.buffer.root, rows), out),
                (soa, out, out),
                ([(memoryview(soa.buffer.root), rows)], [out], out),
                ((own, rows), (larger, rows), OUT.wrap(larger, rows)),
                ((np.stack([own, own], 1)[:, 0].copy(), rows), out, out),
            ):
                out.buffer.root[:] = 0
                runs(inputs, outputs)
                np.testing.assert_array_equal(there[["a", "b"]], wanted)


def test_several_pairs_at_once(ways):
    """Lists of pairs, of which one function is made, too."""
    seen = []

    def scenario(soa, out):
        other = filled(33)
        pairs = [(soa, X), (other, Spec(z="z"))]
        forward(
            lambda x, z: seen.append(1) or (z, x[:, 0]), pairs, [(out, ONE), (out, Spec(b="b"))]
        )
        forward(lambda x, z: z * x[:, 0], pairs, (OUT.allocate(33), ONE))
        assert out["a"].tolist() == other["z"].tolist()

    ways(scenario)
    fresh = filled(33)
    forward(
        lambda x, z: x[:, 0] + z, [(fresh, X), (fresh, Spec(z="z"))], (out := OUT.allocate(33), ONE)
    )
    assert out["a"].tolist() == (fresh["x"] + fresh["z"]).tolist()
    [event] = [
        v
        for k, v in IN.plans.items()
        if k[0] == "jax.events" and len(k[1]) == 2 and len(k[2]) == 1 and v
    ][:1]
    assert event is not None


def test_prepared_for_several_pairs():
    """Inputs and outputs of several layouts, in the order in which they were prepared."""
    layout = Layout([Column("i", "int32"), Column("x", "float32")])
    runs = prepare(
        lambda x, i: (i.astype("f4"), x[:, 0], x[:, 1]),
        [(IN, X), (layout, Spec(i="i"))],
        [(OUT, Spec(a="a", b="b")), (OUT, ONE)],
    )
    one, other = filled(33), filled(33, layout)
    arrays = [np.zeros(OUT.nbytes(33), np.uint8) for _ in range(2)]
    inputs = [(soa.buffer.root.copy(), 33) for soa in (one, other)]
    runs(inputs, [(array, 33) for array in arrays])
    found = [OUT.wrap(array, 33) for array in arrays]
    assert found[0]["a"].tolist() == other["i"].tolist()
    assert found[0]["b"].tolist() == one["x"].tolist()
    assert found[1]["a"].tolist() == one["y"].tolist()
    with pytest.raises(ValueError, match="the same memory would be written twice"):
        runs(inputs, [(arrays[0], 33), (arrays[0], 33)])
    with pytest.raises(ValueError, match="inputs: got 1 SoAs or pairs .buffer, rows., and 2 were"):
        runs(inputs[:1], [(array, 33) for array in arrays])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((np.zeros(10, "u1"), 33), ValueError, "too small: got 10 bytes"),
        ((np.zeros(9999, "u1"), -1), ValueError, "must not be negative"),
        ((np.zeros(9999, "u1"), 33.0), TypeError, "rows must be an integer"),
        ((np.zeros(9999, "u1"), True), TypeError, "rows must be an integer"),
        ((np.zeros(20000, "u1")[::2], 33), BufferError, "not contiguous"),
        ((np.zeros(9999, bool), 33), TypeError, "holds bool"),
        ((np.zeros((99, 101), "u1", order="F"), 33), BufferError, "not contiguous"),
        (filled(33, OUT), ValueError, "another layout than was prepared"),
        ((np.zeros(9999, "u1"),), TypeError, "expected an SoA or a pair"),
        (3, TypeError, "expected an SoA or a pair"),
        ([], ValueError, "inputs: got 0 SoAs or pairs"),
    ],
)
def test_what_an_event_cannot_be(inputs, error, message):
    """Memory that `wrap` refuses is refused here, by the same words; so are read-only outputs."""
    runs, out = prepare(lambda x: x, (IN, X), (OUT, A)), np.zeros(OUT.nbytes(33), np.uint8)
    with pytest.raises(error, match=message):
        runs(inputs, (out, 33))
    assert not out.any()
    with pytest.raises(BufferError, match="read-only"):
        runs(filled(33), (locked(np.zeros(9999, "u1")), 33))
    with pytest.raises(TypeError, match="the model must be callable"):
        prepare(None, (IN, X), (OUT, A))
    with pytest.raises(KeyError, match="no column 'q'"):
        prepare(lambda x: x, (IN, Spec(x="q")), (OUT, A))


def test_threads_on_one_function():
    """What was made once is used by all of them at a time."""
    threads(prepare(lambda x: x * 2, (IN, X), (OUT, A)))
    assert soaview_jax.prepare is prepare
