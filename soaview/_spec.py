"""Which columns make which tensor: what the user writes."""

from __future__ import annotations

import keyword
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, final

from ._fields import no_such


@final
@dataclass(frozen=True, slots=True)
class Value:
    """In a spec: the scalar as it is, in its own shape; its name alone broadcasts it to the rows.

    >>> Spec(n=Value("n_tracks"))
    Spec(n=Value('n_tracks'))
    """

    name: str

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("Value is final: write one, Value(name)")

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"Value takes a scalar's name, got {self.name!r}")
        object.__setattr__(self, "name", str.__str__(self.name))  # of a kind of strings, the plain

    def __repr__(self) -> str:
        return f"Value({self.name!r})"


Entry = str | tuple[str, ...] | Value


@final
class Spec(Mapping[str, Entry]):
    """Which columns make each tensor, and in which order the tensors come.

    An entry is a name (no axis is added), a list of names (they become an axis), or `Value(name)`.
    A spec is immutable and hashable; the order of its tensors counts when two are compared.

    Attributes:
        key: all of it as text, equal for equal specs: what it is looked up by in caches.

    Raises:
        TypeError, ValueError: an entry that is none of these, or an empty list.

    >>> spec = Spec(features=["pt", "eta"], cov="cov")
    >>> list(spec)
    ['features', 'cov']
    >>> spec.reorder("cov", "features")
    Spec(cov='cov', features=['pt', 'eta'])
    """

    __slots__ = ("_entries", "key")

    _entries: dict[str, Entry]
    key: str

    def __init__(self, entries: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        if entries is None:
            entries = {}
        if not isinstance(entries, Mapping):
            raise TypeError(f"a spec is made from a mapping or keywords, got {entries!r}")
        if twice := entries.keys() & named.keys():
            raise ValueError(f"tensors given twice: {', '.join(map(repr, sorted(twice)))}")
        found: dict[str, Entry] = {}
        for name, entry in {**entries, **named}.items():
            if not isinstance(name, str):
                raise TypeError(f"a tensor's name must be a string, got {name!r:.60}")
            if not name:
                raise ValueError("a tensor's name must not be empty")
            name = str.__str__(name)
            if name in found:  # strings of a kind that says they differ
                raise ValueError(f"tensors given twice: {name!r}")
            found[name] = checked_entry(name, entry)
        object.__setattr__(self, "_entries", found)
        object.__setattr__(self, "key", repr([*found.items()]))

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("a spec's class is final; hold one in an object of your own instead")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a spec is immutable, and {name!r} cannot be set; make another one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a spec is immutable, and {name!r} cannot be deleted")

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise KeyError(no_such("tensor", name, self)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return Spec, (self._entries,)

    def __repr__(self) -> str:
        entries = {n: list(e) if isinstance(e, tuple) else e for n, e in self._entries.items()}
        if all(name.isidentifier() and not keyword.iskeyword(name) for name in entries):
            return f"Spec({', '.join(f'{name}={entry!r}' for name, entry in entries.items())})"
        return f"Spec({entries!r})"

    def subset(self, *names: str) -> Spec:
        """The spec of these tensors only, in this order.

        >>> Spec(a="x", b="y", c="z").subset("c", "a")
        Spec(c='z', a='x')
        """
        if (twice := repeated(names)) is not None:
            raise ValueError(f"tensor {twice!r} stands twice")
        return Spec({name: self[name] for name in names})

    def reorder(self, *names: str) -> Spec:
        """The same tensors in another order; every name must stand exactly once."""
        subset = self.subset(*names)
        if missing := [name for name in self if name not in subset]:
            raise ValueError(
                f"reorder lacks {', '.join(map(repr, missing))}; to leave tensors out, use subset"
            )
        return subset


def checked_entry(tensor: str, entry: Any) -> Entry:
    """What makes a tensor, or an array that has no name; names in it as plain strings."""
    where = f"tensor {tensor!r}: " if tensor else ""
    if isinstance(entry, Value):
        return entry
    if isinstance(entry, str):
        return str.__str__(entry)
    names = tuple(entry) if isinstance(entry, (list, tuple)) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{where}expected a column's name, a list of names or Value(name), got {entry!r:.200}"
        )
    if not names:
        raise ValueError(f"{where}the list of columns is empty")
    return tuple(map(str.__str__, names))


def columns_of(entry: Entry) -> tuple[str, ...]:
    """The fields that an entry names."""
    if isinstance(entry, Value):
        return (entry.name,)
    return (entry,) if isinstance(entry, str) else entry


def repeated(names: Iterable[str]) -> str | None:
    """The first name that has been there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


MOST_PLANS = 4096
"""Of a layout, beside those of its fields: a loop may make a new spec in each of its rounds."""


class Plans(dict[Hashable, Any]):
    """What rooms above have compiled for a layout of so many fields; it is emptied when full."""

    __slots__ = ("fields",)

    def __init__(self, fields: int) -> None:
        self.fields = fields

    def __setitem__(self, key: Hashable, made: Any) -> None:
        if len(self) >= MOST_PLANS + 2 * self.fields:
            self.clear()
        super().__setitem__(key, made)
