"""Which function it is: told from others by identity, and numbers in it by their bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from numbers import Number
from types import MethodType
from typing import Any
from weakref import ref

import jax
import numpy as np


class FunctionCache:
    """What was made for functions, until they go: it is found for the same object alone.

    A bound method, which is another object each time it is looked up, is told by its own object and
    its function. What has no weak references is kept for good.
    """

    def __init__(self) -> None:
        self._found: dict[Any, tuple[Any, ...]] = {}

    def get(self, fn: Any) -> Any:
        """What was made for this function; None where nothing was."""
        if type(fn) is not MethodType:
            made, own = self._found.get(id(fn), _NONE)
            return made if own() is fn else None
        to, function = fn.__self__, fn.__func__
        made, own, called = self._found.get((id(to), id(function)), (*_NONE, _NONE[1]))
        return made if own() is to and called() is function else None

    def make(self, fn: Any, how: Callable[[Callable[[], Any]], Any]) -> Any:
        """Make something for a function, of what gives it back while somebody else holds it."""

        def gone(_: object) -> None:  # before another object can have the same id
            self._found.pop(number, None)

        number: Any
        if type(fn) is not MethodType:
            number, own = id(fn), _own(fn, gone)
            made = how(own)
            self._found[number] = made, own
        else:
            number = id(fn.__self__), id(fn.__func__)
            to, function = _own(fn.__self__, gone), _own(fn.__func__, gone)
            made = how(lambda: MethodType(function(), to()))
            self._found[number] = made, to, function
        return made


_NONE = (None, lambda: None)


def _own(thing: Any, gone: Callable[[Any], Any]) -> Callable[[], Any]:
    try:
        return ref(thing, gone)
    except TypeError:  # it has no weak references
        return lambda: thing


@dataclass(frozen=True, slots=True)
class Function:
    """A function that is a pytree, without its arrays: as a key of what was compiled.

    Attributes:
        tree: what it is as a pytree.
        identity: what tells it from others whose trees are equal.
        leaves: of the pytree, with None for its arrays.
    """

    tree: Any
    identity: tuple[Any, ...]
    leaves: tuple[Any, ...] = field(compare=False)

    def whole(self, arrays: list[Any]) -> Any:
        """The function with these arrays in it, and None where it has none."""
        both = zip(self.leaves, arrays, strict=True)
        return jax.tree.unflatten(self.tree, [leaf if a is None else a for leaf, a in both])


def split_arrays(tree: Any, leaves: list[Any]) -> tuple[Function, list[Any]]:
    """What a pytree is beside its arrays, and these, with None for its other leaves.

    Raises:
        TypeError: something in it has no hash.
    """
    arrays, rest, identities = [], [], []
    for leaf in leaves:
        is_array = isinstance(leaf, (np.ndarray, jax.Array))
        arrays.append(leaf if is_array else None)
        rest.append(None if is_array else leaf)
        identities.append(None if is_array else _leaf_identity(leaf))
    found = Function(tree, (_tree_identity(tree, leaves), *identities), tuple(rest))
    hash(found)
    return found, arrays


class _Same:
    """Equal to that of the same object alone."""

    __slots__ = ("thing",)

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __hash__(self) -> int:
        return id(self.thing)

    def __eq__(self, other: object) -> bool:
        return type(other) is _Same and other.thing is self.thing


def _leaf_identity(thing: Any) -> Any:
    """What tells a leaf from all others: its type and bits, or which object it is."""
    kind = type(thing)
    if kind in (bool, int, str, bytes):
        return kind, thing
    if kind in (float, complex):
        return kind, struct.pack("dd", thing.real, thing.imag)
    if isinstance(thing, np.generic) and not thing.dtype.hasobject:
        return kind, thing.dtype, thing.tobytes()
    hash(thing)  # what has none says that it may change
    if kind is MethodType:
        return kind, _Same(thing.__self__), _Same(thing.__func__)
    return _Same(thing)


_NAMES = {str}

# What JAX puts around a partial function in a `Partial`, anew each time.
_SHIM = type(jax.tree_util.Partial(partial(len)).func)  # type: ignore[no-untyped-call]


def _static_identity(thing: Any) -> Any:
    """What tells static data of a pytree's node from others that are equal to it."""
    kind = type(thing)
    if kind is str or thing is None or isinstance(thing, np.dtype):
        return thing
    if kind is list or kind is tuple:
        return None if _NAMES.issuperset(map(type, thing)) else tuple(map(_static_identity, thing))
    if kind is _SHIM:
        return _leaf_identity(getattr(thing, "fun", thing))
    if callable(thing) or isinstance(thing, (Number, np.generic)):
        return _leaf_identity(thing)
    if isinstance(thing, jax.tree_util.PyTreeDef):
        return _tree_identity(thing, [None] * thing.num_leaves)
    if kind is slice:
        return (
            kind,
            _static_identity(thing.start),
            _static_identity(thing.stop),
            _static_identity(thing.step),
        )
    if isinstance(thing, tuple) and not getattr(thing, "__dict__", None):
        return kind, *map(_static_identity, thing)
    if isinstance(thing, Set):
        return kind, frozenset(map(_static_identity, thing))
    if isinstance(thing, Mapping):
        return kind, *(
            (_static_identity(key), _static_identity(value)) for key, value in thing.items()
        )
    if is_dataclass(thing) and _has_equality(kind):
        return kind, *(_static_identity(getattr(thing, f.name)) for f in fields(thing))
    # Whose equality is its own may be equal to what is another.
    return _Same(thing) if _has_equality(kind) else kind


def _has_equality(kind: Any) -> bool:
    """Whether a type has an equality of its own."""
    return kind.__eq__ is not object.__eq__


def _tree_identity(tree: Any, leaves: list[Any]) -> tuple[Any, ...]:
    found: list[Any] = []

    def node(_: object, data: Any) -> None:
        found.append(_static_identity(data))

    tree.walk(node, id, leaves)
    return tuple(found)
