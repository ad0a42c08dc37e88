"""Columns that lie where others have put them: fields, and the allocations that they are in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn, final

import numpy as np

from ._buffer import Buffer, HostBuffer
from ._dtypes import numpy_dtype
from ._fields import Column, Fields, Scalar, listed, shown
from ._spec import Plans, Value, columns_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._layout import Layout
    from ._spec import Entry
    from ._strided import Strided


class Home(NamedTuple):
    """Where a field lies, whatever the row count.

    Attributes:
        allocation: its number.
        offset: of its first element, in bytes from the allocation's first.
        strides: in bytes: of the rows, where it is a column, and of the axes within one.
        aligned: whether the elements are on multiples of their size, as every framework wants.
        empty: whether it is a column without rows, which lies nowhere.
    """

    allocation: int
    offset: int
    strides: tuple[int, ...]
    aligned: bool
    empty: bool = False


@final
class BoundFields(Fields):
    """The fields of a bound SoA: what a `Layout` is to memory that a rule has laid out.

    It is a mapping from name to field. No rule says where its fields lie: `homes` does.

    Attributes:
        fields: `Column`s and `Scalar`s.
        homes: where they lie.
        plans: what was compiled of specs.
    """

    __slots__ = ("__weakref__", "_by_name", "_hash", "_homes", "fields", "homes", "plans")

    fields: tuple[Column | Scalar, ...]
    homes: tuple[Home, ...]
    sizes: ClassVar[tuple[int, ...]] = ()  # no offset depends on the rows
    alignment: ClassVar[int] = 1

    def __init__(self, fields: tuple[Column | Scalar, ...], homes: tuple[Home, ...]) -> None:
        self.fields, self.homes = fields, homes
        self._by_name = {field.name: field for field in fields}
        self._homes = {f.name: home for f, home in zip(fields, homes, strict=True)}
        self._hash = hash((fields, homes))
        self.plans = Plans(len(fields))

    @property
    def starts(self) -> dict[str, Column | Scalar]:
        """The fields by name."""
        return self._by_name

    def home(self, name: str) -> Home:
        """Where a field lies.

        Raises:
            KeyError: no such field.
        """
        return self._homes[self[name].name]

    def laid(self) -> Layout:
        """A layout of these fields, for one buffer."""
        from ._layout import Layout

        return Layout(self.fields)

    def allocate(self, rows: int) -> Any:
        """An SoA of these fields in one buffer of its own."""
        return self.laid().allocate(rows)

    def nbytes(self, rows: int) -> int:
        """Bytes of the values alone, without what lies between them."""
        return sum(f.itemsize * f.components * (rows if f.per_row else 1) for f in self.fields)

    def describe(self, rows: int) -> str:
        """Of each field the dtype, the shape, the allocation, and strides in bytes."""
        table = [("field", "dtype", "shape", "allocation", "offset", "strides")]
        for field, home in zip(self.fields, self.homes, strict=True):
            shape = (rows, *field.shape) if field.per_row else field.shape
            strides = f"{home.strides}" + ("" if home.aligned else ", not aligned")
            where = str(home.allocation), str(home.offset), strides
            table.append((shown(field.name), field.dtype, str(shape), *where))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BoundFields):
            return NotImplemented
        return self is other or (self.fields, self.homes) == (other.fields, other.homes)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"BoundFields([{listed(map(repr, self.fields))}])"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "where bound columns lie is of no use elsewhere: pickle the SoA, which packs them"
        )


@final
class Allocations(Buffer):
    """The memory of bound columns: one allocation or several, each with an owner of its own."""

    __slots__ = ("_pieces",)

    piecewise = True

    def __init__(self, pieces: Sequence[Buffer], owner: object) -> None:
        self._pieces: tuple[Buffer, ...] | None = tuple(pieces)
        self.owner = owner
        self.nbytes = sum(piece.nbytes for piece in pieces)
        self.imports = {}

    @classmethod
    def of(cls, arrays: list[NDArray[Any]]) -> Allocations:
        """Of arrays of the host, each of which is contiguous, and an allocation itself."""
        made = cls((), arrays)
        made._pieces = None
        made.nbytes = sum([array.nbytes for array in arrays])
        return made

    @property
    def pieces(self) -> tuple[Buffer, ...]:
        """A buffer for each allocation."""
        if self._pieces is None:
            arrays: Any = self.owner
            sizes = [1 if array.dtype.names else array.itemsize for array in arrays]
            both = zip(arrays, sizes, strict=True)
            made = tuple([HostBuffer(array, array.nbytes, size) for array, size in both])
            # Of several threads' the first, for imports are kept there.
            self._pieces = self.imports.setdefault("pieces", made)
        return self._pieces

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        """Whether NumPy reads the memory."""
        return self.pieces[0].on_host

    @property
    def device(self) -> str:
        """Where the memory is: all of it."""
        return self.pieces[0].device

    @property
    def summary(self) -> str:
        """In words: how many allocations there are."""
        count = len(self.pieces)
        return f"bound, {count} allocation{'s' * (count > 1)}"

    @property
    def readonly(self) -> bool:
        """Whether any of it refuses writes."""
        return any(piece.readonly for piece in self.pieces)

    @property
    def address(self) -> int:
        """Of the first byte, of one allocation."""
        return self._only().address

    @property
    def root(self) -> NDArray[np.uint8]:
        """The bytes, of one allocation."""
        return self._only().root

    @property
    def words(self) -> NDArray[Any]:
        """The same, as the allocation has it."""
        return self._only().words

    @property
    def unguarded(self) -> NDArray[np.uint8]:
        """The same, without its read-only flag."""
        return self._only().unguarded

    def array(self, at: Strided) -> NDArray[Any]:
        """The NumPy view, of one allocation."""
        return self._only().array(at)

    def piece(self, number: int) -> Buffer:
        """An allocation."""
        return self.pieces[number]

    def shares(self, array: NDArray[Any]) -> bool:
        """Whether an array may lie in this memory."""
        return any(piece.shares(array) for piece in self.pieces)

    def _only(self) -> Buffer:
        if len(self.pieces) > 1:
            raise BufferError(
                f"the bound columns are in {len(self.pieces)} allocations, and not in one buffer; "
                f"soa[name] reads a column where it lies, and soa.pack() copies all into one"
            )
        return self.pieces[0]


def unaligned(
    layout: Any, buffer: Buffer, start: int, rows: int, entry: Entry
) -> tuple[tuple[int, ...], np.dtype[Any], NDArray[np.uint8], int, tuple[int, ...]] | None:
    """What `np.ndarray` takes for one column that is not aligned; None where it is no such one.

    Raises:
        BufferError: memory that NumPy does not read.
    """
    if not isinstance(layout, BoundFields) or isinstance(entry, tuple):
        return None
    [name] = columns_of(entry)
    home, field = layout.home(name), layout[name]
    if home.aligned or (isinstance(entry, Value) and field.per_row):
        return None
    shape, strides, offset = field.shape, home.strides, home.offset
    if field.per_row:
        shape = (rows, *shape)
        offset += start * strides[0]
    elif isinstance(entry, str):
        shape, strides = (rows, *shape), (0, *strides)
    memory = buffer.piece(home.allocation).root
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + field.itemsize
    if 0 not in shape and not 0 <= offset <= last <= memory.size:
        raise ValueError(f"column {field.name!r} does not lie inside its {memory.size} bytes")
    if strides[:1] == (0,):
        memory = memory[:]
        memory.flags.writeable = False
    return shape, numpy_dtype(field.dtype), memory, offset, strides


def why_not_bound(layout: BoundFields, names: tuple[str, ...]) -> str:
    """Why no single strided view covers these columns."""
    homes = [layout.home(name) for name in names]
    for name, home in zip(names, homes, strict=True):
        if not home.aligned:
            size = layout[name].itemsize
            return (
                f"column {name!r} is not on multiples of its item size, {size} bytes, as records "
                f"without padding have it, and frameworks read no such memory"
            )
    where: dict[int, list[str]] = {}
    for name, home in zip(names, homes, strict=True):
        where.setdefault(home.allocation, []).append(name)
    if len(where) > 1:
        apart = ", ".join(f"{listed(some)} in allocation {n}" for n, some in where.items())
        return f"its columns are in memory apart ({apart})"
    if len({home.strides for home in homes}) > 1:
        strides = ", ".join(f"{n!r} {home.strides}" for n, home in zip(names, homes, strict=True))
        return f"its columns have other strides ({strides}, in bytes)"
    both = pairwise(zip(names, homes, strict=True))
    steps = [f"{a!r} to {b!r} {there.offset - here.offset}" for (a, here), (b, there) in both]
    return f"its columns are at no positive, even distance ({listed(steps)} bytes)"
