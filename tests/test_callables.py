"""Which compiled code a function of JAX's is run by: that of the same object and numbers."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass, field
from types import MethodType
from typing import NamedTuple

import jax
import numpy as np
import places
import pytest
from jax.tree_util import Partial

from soaview import Column, Layout, Spec
from soaview_jax import forward
from soaview_jax._forward import _COMPILED

NEEDS = ["jax"]

LAYOUT = Layout([Column("x", "float32"), Column("y", "float32")])
SOA = LAYOUT.pack({"x": [1.0, 2.0, 4.0], "y": [0.0, 0.0, 0.0]})


def run(fn):
    """What the function makes of 1, 2 and 4."""
    SOA["y"][:] = np.nan
    forward(fn, (SOA, Spec(x="x")), (SOA, Spec(y="y")))
    return SOA["y"].tolist()


@dataclass(frozen=True)
class Scale:
    """Equal to all others of its name."""

    name: str
    by: float = field(compare=False)

    def __call__(self, x):
        traced.append(self)
        return x * self.by

    def less(self, x):
        traced.append(self)
        return x - self.by


traced = []


@pytest.fixture(autouse=True)
def _nothing_traced():
    traced.clear()


def apply(inner, x):
    return inner(x)


@jax.tree_util.register_pytree_node_class
class Node:
    """A pytree without leaves: all of it is static data."""

    def __init__(self, how, static):
        self.how, self.static = how, static

    def __call__(self, x):
        return self.how(self.static)(x)

    def tree_flatten(self):
        return (), (self.how, self.static)

    @classmethod
    def tree_unflatten(cls, static, _):
        return cls(*static)


class Pair(NamedTuple):
    name: str
    inner: object


@dataclass(frozen=True)
class Settings:
    inner: object


class Frozen(dict):
    """A mapping that has a hash."""

    def __hash__(self):
        return hash(frozenset(self))


def first(static):
    return next(iter(static))


def at_key(static):
    return static["a"]


def in_a_pytree(static):
    """A pytree whose static data are a pytree's, which has a function in it."""
    return jax.tree.unflatten(static, [])


WAYS = {
    "itself": lambda inner: inner,
    "bound method": lambda inner: inner.less,
    "Partial": lambda inner: Partial(inner),
    "method in a Partial": lambda inner: Partial(inner.less),
    "leaf": lambda inner: Partial(apply, inner),
    "method as a leaf": lambda inner: Partial(apply, inner.less),
    "tuple": lambda inner: Node(first, (inner, "a")),
    "named tuple": lambda inner: Node(lambda_inner, Pair("a", inner)),
    "frozenset": lambda inner: Node(first, frozenset([inner])),
    "dataclass": lambda inner: Node(lambda_inner, Settings(inner)),
    "mapping": lambda inner: Node(at_key, Frozen(a=inner)),
    "tree": lambda inner: Node(in_a_pytree, jax.tree.structure(Partial(inner))),
    "deep": lambda inner: Partial(apply, Node(first, ((inner,),)[0])),
}


def lambda_inner(static):
    return static.inner


def wanted(way, by):
    values = np.array([1, 2, 4], "float32")
    return (values - by if "method" in way else values * np.float32(by)).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_equal_functions_are_not_the_same(way):
    """Where an equal function stands, alone or anywhere in a pytree, does not matter: each runs."""
    one, other = Scale("a", 2.0), Scale("a", 3.0)
    assert one == other
    for _ in range(2):
        for inner in (one, other):
            assert run(WAYS[way](inner)) == wanted(way, inner.by)
    assert len(traced) == 2  # found again, though what holds it was made anew


def test_partial_functions_are_found_again():
    """JAX puts an object of its own around a partial function in a Partial, anew each time."""
    one, other = (functools.partial(Scale("a", by)) for by in (2.0, 3.0))
    for _ in range(2):
        assert run(Partial(one)) == [2, 4, 8]
        assert run(Partial(other)) == [3, 6, 12]
    assert len(traced) == 2


def test_bound_methods_are_told_by_object_and_function():
    """Looked up again a method is not compiled anew; of another object, or another one, it is."""

    class Unhashable:
        __hash__ = None

        def __init__(self, by):
            self.by = by

        def __eq__(self, other):
            return True

        def more(self, x):
            traced.append(self)
            return x + self.by

        def less(self, x):
            traced.append(self)
            return x - self.by

    one, other = Unhashable(1), Unhashable(2)
    for _ in range(3):
        assert run(one.more) == [2, 3, 5]
        assert run(one.less) == [0, 1, 3]
        assert run(other.more) == [3, 4, 6]
        assert run(MethodType(Unhashable.more, other)) == [3, 4, 6]
    assert len(traced) == 3


@pytest.mark.slow
def test_what_was_compiled_goes_with_the_function():
    """When an object goes, nothing is left of what was compiled for it and its methods."""
    before = len(_COMPILED._found)
    for by in range(20):
        scale = Scale("a", float(by))
        assert run(scale) == [by, 2 * by, 4 * by]
        assert run(scale.less) == [1 - by, 2 - by, 4 - by]
        del scale
        traced.clear()
        gc.collect()
    assert places.soon(lambda: len(_COMPILED._found) == before)


def test_what_is_left_of_another_object_is_not_taken():
    """An id alone proves nothing: whoever had it before may have left something behind."""
    scale, other = Scale("a", 2.0), Scale("a", 3.0)
    assert (run(other), run(other.less)) == ([3, 6, 12], [-2, -1, 1])
    numbers = id(scale), (id(scale), id(Scale.less))
    for number, wrong in zip(numbers, (id(other), (id(other), id(Scale.less))), strict=True):
        _COMPILED._found[number] = _COMPILED._found[wrong]
    assert (run(scale), run(scale.less)) == ([2, 4, 8], [-1, 0, 2])


def test_equal_functions_of_one_object_are_not_the_same():
    """A method's function is told by identity, too, wherever the method stands."""

    @dataclass(frozen=True)
    class Times:
        name: str
        by: float = field(compare=False)

        def __call__(self, scale, x):
            return x * self.by * scale.by

    scale = Scale("a", 2.0)
    one, other = (MethodType(Times("a", by), scale) for by in (1.0, 3.0))
    assert one == other
    for around in (lambda fn: fn, Partial, lambda fn: Partial(apply, fn)):
        assert [run(around(fn))[0] for fn in (one, other)] == [2, 6]


def test_a_methods_function_may_go_first():
    """What was compiled for a function bound by hand goes with that function, too."""
    before, by = len(_COMPILED._found), Scale("a", 2.0)
    for more in range(3):
        method = MethodType(lambda self, x, more=more: x * self.by + more, by)
        assert run(method) == [2 + more, 4 + more, 8 + more]
        del method
    assert places.soon(lambda: len(_COMPILED._found) == before)


@pytest.mark.slow
def test_functions_without_weak_references():
    """They are told apart, too; what was compiled for them is kept."""

    class Slots:
        __slots__ = ("by",)

        def __init__(self, by):
            self.by = by

        def __call__(self, x):
            traced.append(self.by)
            return x * self.by

    kept = [Slots(by) for by in (2, 3)]
    for _ in range(2):
        assert [run(fn)[0] for fn in kept] == [2, 3]
        assert [run(fn.__call__)[0] for fn in kept] == [2, 3]
        for by in range(10, 15):
            assert run(Slots(by))[0] == by
    assert traced[:4] == [2, 3, 2, 3]
    assert not {2, 3} & set(traced[4:])


def test_what_has_no_hash_is_refused():
    """An object that says it may change is no function, and none of a pytree's parts."""

    class Changes:
        __hash__ = None

        def __call__(self, x):
            return x

    fn = Changes()
    for bad in (fn, Partial(fn), Partial(apply, fn), Node(first, (fn,)), Node(first, [fn])):
        with pytest.raises(TypeError, match="fn cannot be told from others.*pass a function, or a"):
            run(bad)
    assert run(fn.__call__) == [1, 2, 4]  # a method is told by its object
