"""What tells functions apart that are pytrees: numbers by their bits, and all of it at once."""

from __future__ import annotations

import functools
import math
import random
import struct
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from jax.tree_util import Partial
from test_callables import SOA, WAYS, Node, Scale, run, traced, wanted

from soaview import Column, Layout, Spec
from soaview_jax import forward

NEEDS = ["jax"]


@pytest.fixture(autouse=True)
def _nothing_traced():
    traced.clear()


def bits(number):
    """A number that gives away another one's type, sign and payload."""
    if isinstance(number, np.generic):
        found = number.tobytes()
    else:
        found = struct.pack("d", number) if isinstance(number, float) else bytes([int(number)])
    return sum(byte * 31**i for i, byte in enumerate(found)) % 65521 + len(str(type(number)))


NAN = [np.array([n], "uint32").view("float32")[0] for n in (0x7FC00000, 0x7FC00007)]
NUMBERS = {
    "float32": (np.float32(0.0), np.float32(-0.0), np.float32(1.0)),
    "NaN": NAN,
    "types": (1, 1.0, True, np.float32(1), np.int32(1), np.int8(1), np.bool_(True)),
    "float": (0.0, -0.0),
    "bfloat16": tuple(np.dtype("bfloat16").type(n) for n in (0.0, -0.0)),
}


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("static", [False, True])
def test_numbers_are_told_by_type_and_bits(name, static):
    """As leaves and as static data: none is taken for an equal one, and none is compiled twice."""

    def add(number, x):
        traced.append(number)
        return x + bits(number)

    def partly(number):
        return functools.partial(add, number)

    for _ in range(3):
        for number in NUMBERS[name]:
            same = np.array([number])[0] if isinstance(number, np.generic) else number
            fn = Node(partly, same) if static else Partial(add, same)
            assert run(fn)[0] == np.float32(bits(number) + 1), number
    if name != "NaN" or not static:  # static data with a NaN are another's, to JAX
        assert len(traced) == len(NUMBERS[name])


def test_complex_numbers_are_told_by_the_signs_of_their_zeros():
    """Both parts count."""
    found = [
        run(
            Partial(lambda z, x: x * 0 + math.copysign(1, z.real) + 2 * math.copysign(1, z.imag), z)
        )
        for z in (complex(a, b) for a in (0.0, -0.0) for b in (0.0, -0.0))
    ]
    assert [values[0] for values in found] == [3, -1, 1, -3]


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float64", "complex128"])
def test_wide_numbers_are_not_narrowed(dtype):
    """NumPy's 64-bit scalars, and arrays without axes, are refused by name while those are off."""
    number = np.dtype(dtype).type(2**40 + 5)
    for given, what in ((number, "number"), (np.asarray(number), "array")):
        fn = Partial(lambda wide, x: x + (wide - 2**40).real.astype("float32"), given)
        with pytest.raises(TypeError, match=f"fn holds a NumPy {what} of {dtype}.*convert it fir"):
            run(fn)
        assert np.isnan(SOA["y"]).all()
        with jax.enable_x64(True):
            assert run(fn) == [6, 7, 9]


# All of it at once


@pytest.mark.slow
def test_a_thousand_random_functions():
    """Equal, nested, made anew and gone again: every one gives its own results."""
    rng, pool = random.Random(5), []
    for _ in range(1000):
        if len(pool) < 12:
            inner = Scale(rng.choice("ab"), float(rng.randrange(4)))
            pool.append((inner, rng.sample(list(WAYS), 2)))
        inner, ways = rng.choice(pool)
        way = rng.choice(ways)
        assert run(WAYS[way](inner)) == wanted(way, inner.by)
        if rng.random() < 0.15:
            del pool[rng.randrange(len(pool))]  # its place in memory is free for another one
            del inner
            traced.clear()


@jax.tree_util.register_pytree_node_class
class Static:
    """A callable pytree without leaves, whose data JAX compares by `==`."""

    def __init__(self, data):
        self.data = data

    def tree_flatten(self):
        return (), self.data

    @classmethod
    def tree_unflatten(cls, data, _):
        return cls(data)

    def __call__(self, x):
        return x * 0 + signs(self.data)


def signs(data):
    """1 or -1, by the sign of the zero in some data."""
    if isinstance(data, slice):
        data = data.start
    if isinstance(data, (frozenset, Ordered)):
        data = dict(data)["a"]
    return np.float32(np.copysign(1, getattr(data, "zero", data)))


class Ordered(Mapping):
    """A mapping with a hash, equal to any with the same items."""

    def __init__(self, items):
        self.items_ = dict(items)

    def __getitem__(self, name):
        return self.items_[name]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)

    def __hash__(self):
        return 1


class Alike:
    """Equal to all of its kind."""

    def __init__(self, zero):
        self.zero = zero

    def __eq__(self, other):
        return type(other) is Alike

    def __hash__(self):
        return 1


class Text(str):
    """A string with something beside it."""


def text(zero):
    found = Text("x")
    found.zero = zero
    return found


class Beside(tuple):
    """A tuple with something beside it."""


def pair(zero):
    found = Beside((1,))
    found.zero = zero
    return found


STATIC = {
    "a set of pairs": lambda one, other: frozenset({("a", one), ("b", other)}),
    "a mapping": lambda one, other: Ordered({"a": one, "b": other}),
    "a mapping in another order": lambda one, other: Ordered(
        {"a": one, "b": other} if np.signbit(one) else {"b": other, "a": one}
    ),
    "a slice": lambda one, other: slice(one, 1),
    "equal to all": lambda one, other: Alike(one),
    "a string": lambda one, other: text(one),
    "a tuple": lambda one, other: pair(one),
}


@pytest.mark.parametrize("kind", STATIC)
def test_static_data_that_is_equal_is_not_the_same(kind):
    """Functions whose static data are equal, and another's, are compiled on their own."""
    layout = Layout([Column("x", "float32")])
    soa, spec = layout.allocate(3), Spec(x="x")
    for one, other in ((0.0, -0.0), (-0.0, 0.0), (0.0, -0.0)):
        fn = Static(STATIC[kind](one, other))
        forward(fn, (soa, spec), (soa, spec))
        assert soa["x"].tolist() == [np.copysign(1, one)] * 3
        soa["x"] = 0


def test_static_data_of_plain_kinds_is_found_again():
    """Names, dtypes, shapes and slices made anew are those of before: nothing is compiled anew."""
    traced = []

    @jax.tree_util.register_pytree_node_class
    class Counted(Static):
        def __call__(self, x):
            traced.append(1)
            return x

    soa = Layout([Column("x", "float32")]).allocate(3)
    for _ in range(3):
        data = ("name", (1, 2.5), np.dtype("float32"), slice(1, 2), frozenset({"a"}), None, True)
        forward(Counted(data), (soa, Spec(x="x")), (soa, Spec(x="x")))
    assert len(traced) == 1
