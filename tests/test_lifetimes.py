"""Views in every order of deletion, in many threads, and a hundred thousand times over."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import places
import pytest
from cases import layout_of, wrapped

from soaview import Spec, views

PROGRAM = str(Path(__file__).parent / "leaks.py")
LAYOUT = layout_of("float32", "int8")
X = Spec(x="x")


def kinds_of(adapter):
    """What can alias an SoA's memory, each with the way to read `x` from it."""

    def taken(soa, spec=X):
        return adapter.tensors(soa, spec)

    return {
        "soa": (lambda soa: soa[:], lambda held: held["x"]),
        "slice": (lambda soa: soa[5:], lambda held: held["x"]),
        "batch": (lambda soa: list(soa.batches(10))[-1], lambda held: held["x"]),
        "NumPy": (lambda soa: soa["x"], np.asarray),
        "View": (lambda soa: views(soa, X)[0], lambda held: held.numpy()),
        "import of a View": (lambda soa: np.from_dlpack(views(soa, X)[0]), np.asarray),
        "capsule": (lambda soa: (soa, views(soa, X)[0].__dlpack__()), lambda held: held[0]["x"]),
        "tensor": (lambda soa: taken(soa)[0], adapter.to_numpy),
        "tensor of a slice": (lambda soa: taken(soa[16:])[0], adapter.to_numpy),
        "tensors": (lambda soa: taken(soa, Spec(x="x", z="z")), lambda held: held[0]),
        "import of a tensor": (lambda soa: np.from_dlpack(taken(soa)[0]), np.asarray),
        "NumPy's of a tensor": (lambda soa: np.asarray(taken(soa)[0]), np.asarray),
    }


def delete(kinds, names):
    """Delete the SoA and then its views, in this order; read what is left each time."""
    soa, expected = wrapped(LAYOUT, 33)
    gone = weakref.ref(soa.buffer.root.base)
    expected = expected["x"]
    held = {name: kinds[name][0](soa) for name in sorted(names)}
    del soa
    for name in names:
        assert gone() is not None
        for other, value in held.items():
            found = np.asarray(kinds[other][1](value))
            np.testing.assert_array_equal(found, expected[-len(found) :])
            del found, value
        del held[name]
    if gone() is not None:
        gc.collect(0)  # JAX lets go of what it holds in any collection
    # Worked out before, for an assertion keeps what it has compared until it is over.
    freed = gone() is None or places.soon(lambda: gone() is None)
    assert freed, names


@pytest.mark.slow
@pytest.mark.aliasing
@pytest.mark.x64
def test_every_order_of_deletion(adapter):
    """Whichever view goes first, the rest read what they did; with the last goes the memory."""
    kinds = kinds_of(adapter)
    orders = list(itertools.permutations(kinds, 3))
    assert len(orders) > 1000
    for names in orders:
        delete(kinds, names)


@pytest.mark.parametrize("wrong", ["kept", "another's", "copied"])
def test_a_wrong_lifetime_is_seen(wrong, monkeypatch):
    """A view that is kept, reads something else, or holds nothing fails the test above."""
    monkeypatch.setattr(places, "soon", lambda comes_true: comes_true())
    kept = []

    def make(soa):
        if wrong == "kept":
            kept.append(soa)
        return {"kept": soa["x"], "another's": soa["y"], "copied": soa["x"].copy()}[wrong]

    with pytest.raises(AssertionError):
        delete({"wrong": (make, np.asarray)}, ["wrong"])


@pytest.mark.slow
@pytest.mark.x64
def test_threads(adapter):
    """Eight threads take tensors at once, half of them of one SoA: all right, all let go."""
    rounds = 3_000
    soa, expected = wrapped(LAYOUT, 33)
    gone = weakref.ref(soa.buffer.root.base)
    specs = [Spec({f"t{n}": "x", "y": "y"} if n % 2 else {"x": ["x"]}) for n in range(8)]
    barrier, wrong = threading.Barrier(8), []
    wanted = expected["x"].reshape(-1)[7]

    def work(soa, spec):
        try:
            with adapter.settings():
                barrier.wait()
                for number in range(rounds):
                    found = adapter.tensors(soa, spec)
                    if number % 50 == 0:
                        assert adapter.to_numpy(found[0]).reshape(-1)[7] == wanted
        except BaseException as error:
            wrong.append(error)
            barrier.abort()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        own = [LAYOUT.wrap(soa.buffer.root, 33) for _ in specs[4:]]
        given = zip([soa, soa, soa, soa, *own], specs, strict=True)
        threads = [threading.Thread(target=work, args=both) for both in given]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong
    del soa, own, given, threads
    assert places.soon(lambda: gone() is None)


@pytest.mark.slow
@pytest.mark.x64
def test_nothing_leaks(adapter, request, run_python):
    """Views, new SoAs, views without rows, events and refusals leave no memory behind."""
    name = request.node.callspec.params["adapter"]
    *grown, end = run_python(PROGRAM, name).stdout.splitlines()
    assert end == "end"
    # Errors leave more until a collection, but far less than one block each.
    for line, most in zip(grown, (1000, 1000, 1000, 1000, 5000), strict=True):
        kept, kilobytes = map(int, line.split())
        assert kept < most, grown
        assert kilobytes < 1024, grown


@pytest.mark.slow
@pytest.mark.x64
def test_a_leak_is_seen(adapter, request, run_python):
    """Memory that stays behind for each view fails the test above, in a tenth of its calls."""
    name = request.node.callspec.params["adapter"]
    kept, kilobytes = run_python(PROGRAM, f"leaky-{name}").stdout.split()
    assert int(kept) > 1000
    assert int(kilobytes) > 1024
