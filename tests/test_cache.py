"""What is worked out once for an SoA: kept by value, bounded, and never after it is wrong."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest

from soaview import Column, Layout, Scalar, SoA, Spec, Value
from soaview._soa import MOST
from soaview.adapter import keep

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("y", "float32"),
        Column("c", "float64", (2, 3)),
        Scalar("n", "i4"),
    ]
)


def soa_of(rows=33):
    soa = LAYOUT.allocate(rows)
    soa["x"][:], soa["y"][:] = np.arange(rows), -np.arange(rows)
    return soa


@pytest.mark.parametrize("name", ["layout", "buffer", "capacity", "start", "rows", "adapter_cache"])
def test_an_soa_is_immutable(name):
    """No attribute can be set or deleted, and none added; the message says what to do instead."""
    soa = soa_of()
    for change in (
        lambda: setattr(soa, name, getattr(soa, name)),
        lambda: delattr(soa, name),
        lambda: setattr(soa, "other", 1),
    ):
        with pytest.raises(AttributeError, match="an SoA is immutable"):
            change()
    for other in (copy.copy(soa), copy.deepcopy(soa), pickle.loads(pickle.dumps(soa)), soa[1:]):
        with pytest.raises(AttributeError, match="is immutable.*rows.*soa.name.*= values"):
            other.rows = 3


def test_an_soa_is_final():
    """A class of one's own holds an SoA; and a live one takes no pickled state."""
    with pytest.raises(TypeError, match="final; hold one in an object of your own"):
        type("Mine", (SoA,), {})
    soa = soa_of(3)
    state = {"layout": LAYOUT, "rows": 2, "bytes": bytes(LAYOUT.nbytes(2))}
    with pytest.raises(AttributeError, match="immutable, and its state"):
        soa.__setstate__(state)
    assert (soa.rows, soa["x"].tolist()) == (3, [0, 1, 2])


def calls(function):
    """How many calls of Python's and C's functions it takes."""
    found = 0

    def count(_, event, __):
        nonlocal found
        found += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found - 2  # the function itself, and the end


@pytest.mark.parametrize("entry", ["x", "c"])
def test_a_field_is_resolved_and_checked_once(entry):
    """A field's view that was taken before is one lookup and one call of NumPy's."""
    soa = LAYOUT.allocate(33)
    first, again = calls(lambda: soa[entry]), calls(lambda: soa[entry])
    assert again <= 4 < first  # __getitem__, type, get, ndarray
    assert soa[entry] is not soa[entry]


@pytest.mark.parametrize("entry", ["x", "n", "c", ["x", "y"], ["n"], Value("n")])
def test_views_that_were_taken_before_are_the_same(entry):
    """Shape, strides, flags and memory are those of the first time, read-only scalars included."""
    soa = soa_of()
    one, other = soa[entry], soa[entry]
    assert one.__array_interface__ == other.__array_interface__
    assert one.flags.writeable is other.flags.writeable is (entry not in ("n", ["n"]))
    assert one.dtype is other.dtype


def test_what_was_resolved_does_not_outlive_a_flag():
    """Memory that is made read-only later gives views that are."""
    soa = soa_of()
    assert soa["x"].flags.writeable
    soa.buffer.root.flags.writeable = False
    assert not soa["x"].flags.writeable


def test_the_cache_is_bounded():
    """Entries beside those of single fields come to no more than a program uses in turn."""
    soa = soa_of()
    for number in range(10 * MOST):
        keep(soa, ("adapter", Spec({f"t{number}": "x"}).key), number)
        assert len(soa.adapter_cache) <= MOST + len(LAYOUT)
    assert soa.adapter_cache[("adapter", Spec({f"t{10 * MOST - 1}": "x"}).key)] == 10 * MOST - 1


def test_fields_do_not_push_out_specs():
    """An SoA of more fields than the cache has entries keeps what adapters have made of it."""
    layout = Layout([Column(f"c{number}", "int8") for number in range(3 * MOST)])
    soa = layout.allocate(1)
    keep(soa, "mine", 1)
    for _ in range(2):
        for name in soa:
            soa[name]
    assert soa.adapter_cache["mine"] == 1


def test_slices_and_copies_have_caches_of_their_own():
    """What was made of one SoA's rows is not taken for another's."""
    soa = soa_of()
    assert soa["x"][0] == 0
    assert soa[5:]["x"][0] == 5
    for other in (soa[:], copy.copy(soa), copy.deepcopy(soa), pickle.loads(pickle.dumps(soa))):
        assert other.adapter_cache == {}


def test_the_cache_goes_with_the_soa():
    """It holds the memory no longer than the SoA and its views do."""
    soa = soa_of()
    view, gone = soa["x"], weakref.ref(soa)
    del soa
    gc.collect()
    assert gone() is None
    assert view.tolist() == list(range(33))


def test_threads_share_a_cache():
    """Whoever comes first, all threads read what is right, while entries come and go."""
    soa, wrong = soa_of(), []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        for step in range(500):
            keep(soa, (number, step), step)
            if soa["x"][7] != 7 or soa[["x", "y"]][7].tolist() != [7, -7]:
                wrong.append(step)

    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong
    assert len(soa.adapter_cache) <= MOST + len(LAYOUT) + 4


ENTRY = {"xy": ["x", "y"], "c": "c"}


def test_specs_are_told_by_value():
    """Equal specs have one key, whoever made them; another order or entry has another one."""
    key = Spec(ENTRY).key
    assert Spec(xy=("x", "y"), c="c").key == key
    assert Spec(ENTRY) == Spec(xy=("x", "y"), c="c")
    assert hash(Spec(ENTRY)) == hash(Spec(xy=("x", "y"), c="c"))
    others = [
        Spec(c="c", xy=["x", "y"]),
        Spec(xy=["y", "x"], c="c"),
        Spec(xy=["x", "y"]),
        Spec(xy=["x", "y"], c=["c"]),
        Spec(xy="['x', 'y']", c="c"),
        Spec(xy="x', 'y", c="c"),
        Spec(xy=["x, 'y"], c="c"),
        Spec(xy=Value("x"), c="c"),
        Spec(xy="Value('x')", c="c"),
        Spec({"xy', ('x', 'y')), ('c": "c"}),
    ]
    assert Spec({np.str_("xy"): [np.str_("x"), "y"], "c": np.str_("c")}).key == key
    assert Spec(n=Value(np.str_("n"))) == Spec(n=Value("n"))
    keys = [key, *(other.key for other in others)]
    assert len(set(keys)) == len(keys)
