"""What one field is: a column or a scalar."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ._dtypes import INT64_MAX, ITEMSIZE, dtype_name, exact_int

MAX_FIELDS = 65_536
"""Of a layout."""


def freeze(value: object, **attributes: object) -> None:
    """Set attributes of a frozen object that is being made."""
    for name, attribute in attributes.items():
        object.__setattr__(value, name, attribute)


def check_name(kind: str, name: object) -> str:
    """A name is a string, and not empty; of a kind of strings, the plain one."""
    if not isinstance(name, str):
        raise TypeError(f"a {kind}'s name must be a string, got {name!r:.60}")
    if not name:
        raise ValueError(f"a {kind}'s name must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a {kind}'s name must be Unicode text, got {name!r:.60}") from error
    return str.__str__(name)


def shown(name: str) -> str:
    """A field's name for a person: in one line, and not too long for it."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_dtype(name: str, dtype: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype's canonical name, and its own shape, from a name or any library's dtype."""
    if isinstance(dtype, str):
        dtype = str.__str__(dtype)
        if dtype in ITEMSIZE:
            return dtype, ()
    known, shape = _numpys(dtype)
    if known is not None:
        if not known.isnative:
            raise ValueError(
                f"field {name!r:.80}: dtype {dtype!r:.60} is not in native byte order; declare "
                f"{known.name}"
            )
        if known.name in ITEMSIZE and known.fields is None:
            return str(known.name), shape
    if not isinstance(dtype, (str, type(None))):
        theirs = dtype_name(dtype)
        if theirs in ITEMSIZE:
            return theirs, ()
    lower = dtype.lower() if isinstance(dtype, str) else ""
    hint = f"did you mean {lower!r}?" if lower in ITEMSIZE else f"known are {', '.join(ITEMSIZE)}"
    raise ValueError(f"field {name!r:.80}: unknown dtype {dtype!r:.60}; {hint}")


def _numpys(dtype: Any) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    """What NumPy makes of it, without a shape of its own, and that shape."""
    if dtype is None:  # which would be float64
        return None, ()
    try:
        known: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError, RecursionError):
        return None, ()
    return (known, ()) if known.subdtype is None else known.subdtype


def _check_shape(name: str, given: Any, own: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one value, which the dtype may have, too."""
    if not isinstance(given, (tuple, list)):
        raise TypeError(
            f"field {name!r:.80}: shape must be a tuple or list such as (3,), got {given!r:.60}"
        )
    shape: tuple[int, ...] = tuple(given) or own
    if len(shape) <= 2:
        shape = tuple(exact_int(n, f"field {name!r:.80}: shape entry") for n in shape)
    if len(shape) > 2 or any(not 1 <= n <= INT64_MAX for n in shape):
        raise ValueError(
            f"field {name!r:.80}: bad shape {shape!r:.200}; expected (), (d,) or "
            f"(r, c), with at least one component"
        )
    if own and shape not in ((), own):
        raise ValueError(
            f"field {name!r:.80}: the dtype has shape {own}, and the field {shape}; pass one"
        )
    return shape


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Column:
    """A field with one value per row: a number, a vector `(d,)` or a matrix `(r, c)`.

    Args:
        name: the field's name.
        dtype: a name such as `"float32"`, anything `numpy.dtype` takes, or a dtype of torch, JAX,
            polars, Arrow or pandas. One of NumPy's with a shape of its own gives the shape.
        shape: of one row's element: `()`, `(d,)` or `(r, c)`.
        order: which components of a matrix follow each other in memory: `"F"` column by column
            (Eigen's default, and the CMS experiment's), `"C"` row by row. Left out it is `"F"`, and
            `"C"` where the column is interleaved.
        interleaved: the components of a row are adjacent, and row follows row, as in a column of
            `std::array`; or else each component is a sub-column of its own, padded and aligned.

    Raises:
        TypeError, ValueError: naming the field, what was got and what is expected.

    >>> Column("cov", "float32", (3, 3)).components
    9
    >>> Column("embedding", "float32", (6,), interleaved=True).width
    24
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: str
    interleaved: bool

    per_row: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        dtype: Any,
        shape: Sequence[int] = (),
        order: str | None = None,
        *,
        interleaved: bool = False,
    ) -> None:
        name = check_name("column", name)
        dtype, own = _check_dtype(name, dtype)
        shape = _check_shape(name, shape, own)
        if interleaved is not True and interleaved is not False:
            raise TypeError(
                f"field {name!r:.80}: interleaved must be True or False, got {interleaved!r:.60}"
            )
        if interleaved and not shape:
            raise ValueError(
                f"field {name!r:.80}: one number a row has nothing to interleave; give a shape, "
                f"such as (3,), or leave interleaved= out"
            )
        if order is None:
            order = "C" if interleaved else "F"
        if not isinstance(order, str) or str.__str__(order) not in ("F", "C"):
            raise ValueError(f"field {name!r:.80}: order must be 'F' or 'C', got {order!r:.60}")
        freeze(self, name=name, dtype=dtype, shape=shape)
        freeze(self, order=str.__str__(order), interleaved=interleaved)

    @property
    def itemsize(self) -> int:
        """Bytes of one component."""
        return ITEMSIZE[self.dtype]

    @property
    def components(self) -> int:
        """How many numbers a row has."""
        return prod(self.shape)

    @property
    def subcolumns(self) -> int:
        """How many aligned sub-columns the field takes: one for each component, or one for all."""
        return 1 if self.interleaved else self.components

    @property
    def width(self) -> int:
        """Bytes that a row takes in a sub-column."""
        return self.itemsize * (self.components if self.interleaved else 1)

    def __repr__(self) -> str:
        shape = f", {self.shape!r}" if self.shape else ""
        order = f", order={self.order!r}" if self.order != "FC"[self.interleaved] else ""
        interleaved = ", interleaved=True" if self.interleaved else ""
        return f"Column({self.name!r}, {self.dtype!r}{shape}{order}{interleaved})"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Scalar:
    """A field with one value for the whole SoA: a number, or a small array.

    Args:
        name: the field's name.
        dtype: as `Column` takes it.
        shape: `()`, `(d,)` or `(r, c)`; an array's numbers are adjacent, a matrix's row by row.

    Raises:
        TypeError, ValueError: as `Column`.

    >>> Scalar("n_tracks", "int32")
    Scalar('n_tracks', 'int32')
    >>> Scalar("edges", "float32", (11,)).width
    44
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    per_row: ClassVar[bool] = False
    order: ClassVar[str] = "C"
    interleaved: ClassVar[bool] = True
    subcolumns: ClassVar[int] = 1

    def __init__(self, name: str, dtype: Any, shape: Sequence[int] = ()) -> None:
        name = check_name("scalar", name)
        dtype, own = _check_dtype(name, dtype)
        freeze(self, name=name, dtype=dtype, shape=_check_shape(name, shape, own))

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEMSIZE[self.dtype]

    @property
    def components(self) -> int:
        """How many numbers there are."""
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of all of them."""
        return self.itemsize * self.components

    def __repr__(self) -> str:
        shape = f", {self.shape!r}" if self.shape else ""
        return f"Scalar({self.name!r}, {self.dtype!r}{shape})"


def check_fields(fields: Any) -> tuple[Column | Scalar, ...]:
    """The fields of a layout: some, of distinct names."""
    if isinstance(fields, (str, Column, Scalar)) or not isinstance(fields, Iterable):
        raise TypeError(f"fields must be a list of Column and Scalar, got {fields!r}")
    found: tuple[Column | Scalar, ...] = tuple(fields)
    if not found:
        raise ValueError("a layout needs at least one field")
    if len(found) > MAX_FIELDS:
        raise ValueError(f"{len(found)} fields are too many; at most {MAX_FIELDS}")
    seen = set()
    for f in found:
        if type(f) not in (Column, Scalar):
            raise TypeError(
                f"a field must be a Column or a Scalar, such as Column('pt', 'float32'), "
                f"got {f!r:.60}"
            )
        if f.name in seen:
            raise ValueError(f"field name {f.name!r:.80} stands twice; names must be unique")
        seen.add(f.name)
    return found


def check_alignment(value: object, fields: tuple[Column | Scalar, ...]) -> int:
    """The alignment of a layout with these fields, in bytes."""
    alignment = exact_int(value, "alignment")
    if not 1 <= alignment <= INT64_MAX or alignment & (alignment - 1):
        raise ValueError(f"alignment must be a power of two, got {alignment}")
    widest = max(fields, key=lambda f: f.itemsize)
    if alignment % widest.itemsize:
        raise ValueError(
            f"alignment must be a multiple of every item size: got {alignment}, but field "
            f"{widest.name!r} is {widest.dtype} ({widest.itemsize} bytes)"
        )
    return alignment


class Arranged(NamedTuple):
    """Where fields lie one after another, for every row count, in units of `alignment` bytes.

    Each place is a constant, and how many times the units that a sub-column of each width takes.

    Attributes:
        sizes: the widths that there are, in bytes.
        starts: where each field starts, by name.
        end: where the last one ends.
        total: what gives the bytes of all of them at a row count.
    """

    sizes: tuple[int, ...]
    starts: dict[str, tuple[int, ...]]
    end: tuple[int, ...]
    total: Callable[[int], int]


def arranged(fields: tuple[Column | Scalar, ...], alignment: int) -> Arranged:
    """Where these fields lie."""
    # Of a scalar, which takes no more room with more rows, its numbers' size: it can be broadcast.
    sizes = tuple(sorted({f.width if f.per_row else f.itemsize for f in fields}))
    starts: dict[str, tuple[int, ...]] = {}
    position = [0] * (1 + len(sizes))
    for f in fields:
        starts[f.name] = tuple(position)
        if f.per_row:
            position[1 + sizes.index(f.width)] += f.subcolumns
        else:
            position[0] += -(-f.width // alignment)
    columns = tuple(pair for pair in zip(position[1:], sizes, strict=True) if pair[0])
    total = _total_of(position[0] * alignment, columns, alignment)
    return Arranged(sizes, starts, tuple(position), total)


def _total_of(
    scalars: int, columns: tuple[tuple[int, int], ...], alignment: int
) -> Callable[[int], int]:
    """Bytes at a row count: those of scalars, and of so many sub-columns of each width.

    An event loop asks for a new row count every time, and most layouts have one or two sizes.
    """
    up, mask = alignment - 1, -alignment  # for the alignment is a power of two
    if len(columns) == 1:
        [(n, size)] = columns
        return lambda rows: scalars + n * (rows * size + up & mask)
    if len(columns) == 2:
        (n, size), (m, other) = columns
        return lambda rows: scalars + n * (rows * size + up & mask) + m * (rows * other + up & mask)
    return lambda rows: scalars + sum([n * (rows * size + up & mask) for n, size in columns])


def listed(names: Iterable[str]) -> str:
    """Names, or what else, for a person: the first twenty."""
    known = list(names)
    more = f", ... {len(known) - 20} more" if len(known) > 20 else ""
    return ", ".join(known[:20]) + more


def difference(got: tuple[Column | Scalar, ...], expected: tuple[Column | Scalar, ...]) -> str:
    """Where a list of fields differs from another first, in words; empty where it does not."""
    both = zip(got, expected, strict=False)
    first = next((n for n, (a, b) in enumerate(both) if a != b), None)
    if first is not None:
        return f"field {first} is {got[first]!r:.200}, expected {expected[first]!r:.200}"
    return f"{len(got)} fields, expected {len(expected)}" if len(got) != len(expected) else ""


def no_such(what: str, name: object, known: Iterable[str]) -> str:
    """The message for a name that is not there, with the closest one that is."""
    names = [other[:60] for other in itertools.islice(known, 1000)]  # for difflib is slow
    folded = {other.casefold(): other for other in names}
    close = (
        difflib.get_close_matches(name[:60].casefold(), folded, 1) if isinstance(name, str) else []
    )
    hint = f"did you mean {folded[close[0]]!r}?" if close else f"there are {listed(names)}"
    return f"no {what} {name!r:.80}; {hint}"


class Fields(Mapping[str, Column | Scalar]):
    """Fields by name, in order."""

    __slots__ = ()
    fields: tuple[Column | Scalar, ...]
    _by_name: dict[str, Column | Scalar]

    def __getitem__(self, name: str) -> Column | Scalar:
        """The field of that name.

        Raises:
            KeyError: naming the closest name there is.
        """
        found = self._by_name.get(name) if isinstance(name, str) else None
        if found is None:
            raise KeyError(no_such("column", name, self._by_name))
        return found

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.fields)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)
