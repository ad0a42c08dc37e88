"""Columns where they lie: arrays apart from each other, or rows of records, as one SoA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ._bound import Allocations, BoundFields, Home
from ._buffer import Buffer, HostBuffer
from ._columns import Bound, column_of, contiguous, named
from ._dtypes import ITEMSIZE, check_rows
from ._fields import Column, Scalar, check_fields
from ._frameworks import check_storage
from ._host import ArrayInterface, address_of
from ._layout import Layout
from ._soa import SoA

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bind(
    data: Any,
    *,
    rows: int | None = None,
    device: str | None = None,
    owner: object = None,
    readonly: bool | None = None,
) -> SoA:
    """An SoA of columns where they lie: nothing is copied, and no layout is asked of them.

    The columns may be in allocations of their own or in one, with any positive strides: arrays, the
    fields of records, columns of a frame. What works on an SoA works on this one: names, slices,
    batches, specs and the tensors that they give, `write`, `forward`, `jit`. Columns make one
    strided tensor where they lie in one allocation, with one dtype, equal strides, and one positive
    distance; that is a fact of the memory at hand. Else `copy=None` of an adapter gathers them.
    `soa.pack()` gives the same rows in one buffer.

    Args:
        data: a mapping from name to column, or what has named columns: a structured array, of NumPy
            or `ctypes`, one `ctypes` structure of arrays or pointers, an SoA, a frame of pandas or
            polars, an Arrow table or record batch. A column is an array `(N,)`, `(N, d)` or
            `(N, r, c)`, of NumPy or of what has the DLPack or an array interface, all on one device
            (where it is not the host, they are contiguous); one of no axes, or a number, is a
            scalar. `(address, dtype)` or `(address, dtype, shape)` is a pointer to contiguous rows,
            of elements of that shape.
        rows: how many; needed where pointers or scalars alone do not say it.
        device: where pointers lead, such as `"cuda:0"`; the host by default.
        owner: what owns the memory that pointers lead to, kept as long as the SoA and its views.
        readonly: `True` forbids writes. `False` is your word that columns may be written, where
            their owner's memory can be, though an array or a frame says that they may not.

    Raises:
        TypeError, ValueError: what is no such data; unequal lengths; another byte order, objects,
            nulls, negative strides, rows that overlap. Each names the column, and a way out.
        BufferError: memory that cannot be had without a copy.

    >>> import numpy as np
    >>> records = np.zeros(3, [("pt", "f4"), ("eta", "f4"), ("n", "i8")])
    >>> soa = bind(records)
    >>> soa["pt"][:] = [1, 2, 3]
    >>> records["pt"], soa[["pt", "eta"]].strides
    (array([1., 2., 3.], dtype=float32), (16, 4))
    """
    if not (readonly is None or readonly is True or readonly is False):
        raise TypeError(f"readonly must be None, True or False, got {readonly!r:.60}")
    key = _key_of(data) if rows is readonly is None else None
    known = _OWNING.get(key)
    if known is not None:
        arrays = [*data.values()] if type(data) is dict else [data]
        return _of_fields(known, Allocations.of(arrays), len(arrays[0]))
    given = dict(named(data))
    if not given:
        raise ValueError("there are no columns to bind")
    count = None if rows is None else check_rows(rows)
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"a column's name must be a string, got {name!r:.60}")
    found = [column_of(name, value, count, device, owner) for name, value in given.items()]
    first = next((c for c in found if c.rows is not None), None)
    if count is None:
        if first is None:
            raise ValueError("single values alone say nothing about rows; pass rows=")
        count = first.rows
    for column in found:
        if column.rows is not None and column.rows != count:
            of = f"rows={rows}" if rows is not None or first is None else f"{first.name!r:.80}"
            raise ValueError(
                f"column {column.name!r:.80} has {column.rows} rows, and {of} "
                f"{'was given' if rows is not None else f'has {count}'}; columns need as many"
            )
    assert count is not None
    soa = _soa_of(found, count, readonly)
    # Of one row, NumPy takes an array for contiguous whatever step would lead to the next.
    if key is not None and count > 1:
        layout: Any = soa.layout
        _remember(_OWNING, key, layout)
    return soa


_OWNING: dict[Any, BoundFields] = {}
"""The fields of arrays that are allocations themselves, by names, dtypes and shapes of rows."""

_PLAIN = 0x1 | 0x4 | 0x100 | 0x400  # C contiguous, owns its data, aligned, writable


def _key_of(data: Any) -> tuple[Any, ...] | None:
    """What tells such arrays of one row count, or records, from others; None of anything else.

    An event loop brings new ones each time, and asking each for its address would take longer than
    all the rest.
    """
    if type(data) is np.ndarray and data.dtype.names is not None:
        plain = data.flags.num & _PLAIN == _PLAIN and data.ndim == 1 and data.size
        # Of records without padding the flag says nothing about where they start.
        return (data.dtype,) if plain and address_of(data) % 16 == 0 else None
    if type(data) is not dict or not data:
        return None
    key: list[Any] = []
    rows, seen = None, set()
    for name, array in data.items():
        if type(array) is not np.ndarray or array.flags.num & _PLAIN != _PLAIN:
            return None
        if not array.size or array.itemsize > 8 or type(name) is not str:
            return None  # of items of 16 bytes NumPy's flag is content with 8
        count, *shape = array.shape or (0,)
        if count != (count if rows is None else rows) or not count:
            return None
        rows = count
        seen.add(id(array))
        key += name, array.dtype, tuple(shape)
    return tuple(key) if len(seen) == len(data) else None


# In which allocations


class _Extent(NamedTuple):
    """Memory that an owner vouches for, in which an array lies.

    Attributes:
        first, end: its first byte, and its end.
        address: of the array's first element.
        writable: whether the owner allows it.
        owner: what holds it.
    """

    first: int
    end: int
    address: int
    writable: bool
    owner: object


def _extent(name: str, array: NDArray[Any]) -> _Extent:
    """The whole allocation in which a column lies, as far as anybody vouches for it.

    Raises:
        BufferError: the array reaches out of it.
    """
    base: Any = array
    while True:
        below = base.base
        if not isinstance(below, np.ndarray):
            below = getattr(below, "base", None)  # what `as_strided` puts between
            if not isinstance(below, np.ndarray):
                break
        base = below
    owner, address = base.base, address_of(array)
    if owner is None:
        first = address if base is array else address_of(base)
        found = _Extent(first, first + base.nbytes, address, base.flags.writeable, base)
    elif isinstance(owner, memoryview) and isinstance(owner.obj, np.ndarray):
        found = _extent(name, owner.obj)._replace(address=address)
    else:
        found = _vouched(name, base, owner, address)
    _, end = _span(array)
    if array.size and not (found.first <= address and end <= found.end):
        raise BufferError(
            f"column {name!r:.80} reaches from byte {address - found.first} to "
            f"{end - found.first} of its owner's {found.end - found.first}; bind an array that "
            f"lies in its memory"
        )
    return found


def _vouched(name: str, base: NDArray[Any], owner: Any, address: int) -> _Extent:
    if hasattr(owner, "untyped_storage"):
        check_storage(owner, f"column {name!r:.80}")
        storage = owner.untyped_storage()
        first, nbytes = storage.data_ptr(), storage.nbytes()
        return _Extent(first, first + nbytes, address, base.flags.writeable, base)
    held = isinstance(owner, memoryview)
    exporter: Any = owner.obj if held else owner
    try:
        whole = np.frombuffer(exporter, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        if not (held or isinstance(error, TypeError)):
            raise BufferError(
                f"column {name!r:.80} is in memory of {type(owner).__name__}, which does not "
                f"export it ({error}); bind it before it is closed"
            ) from None
        # No buffer, such as DLPack's capsule: it vouches for what it has handed out.
        return _Extent(*_span(base), address, base.flags.writeable, base)
    first = address_of(whole)
    return _Extent(first, first + whole.size, address, whole.flags.writeable, whole)


def _span(array: NDArray[Any]) -> tuple[int, int]:
    """Addresses of the first byte, and of the end, of an array with strides of any sign."""
    low = high = address_of(array)
    for count, stride in zip(array.shape, array.strides, strict=True):
        low += min((count - 1) * stride, 0)
        high += max((count - 1) * stride, 0)
    return (low, high + array.itemsize) if array.size else (low, low)


def _soa_of(columns: list[Bound], rows: int, readonly: bool | None) -> SoA:
    pieces: list[Buffer] = []
    homes: dict[int, tuple[int, int]] = {}  # of each column the allocation, and bytes from there
    arrays = {i: c.memory for i, c in enumerate(columns) if isinstance(c.memory, np.ndarray)}
    extents = {i: _extent(columns[i].name, array) for i, array in arrays.items()}
    groups = _groups(extents)
    for group in groups:
        first = min([extent.first for _, extent in group])
        end = max([extent.end for _, extent in group])
        starts = [extent.address for i, extent in group if arrays[i].size]
        up = -first % 16  # so that offsets are multiples of item sizes where addresses are
        if starts and first + up <= min(starts):
            first += up
        # Where they are not, for somebody vouches from an odd address on, these lie by themselves.
        odd = [(i, e._replace(first=e.address)) for i, e in group if _is_odd(arrays[i], first)]
        if odd:
            groups.append(odd)
            group = [pair for pair in group if pair[0] not in dict(odd)]
        writable = all(extent.writable for _, extent in group)
        if readonly is None:
            writable = writable and all(arrays[i].flags.writeable for i, _ in group)
        held = tuple([extent.owner for _, extent in group])
        at = ArrayInterface(first, max(end - first, 0), readonly is True or not writable, held)
        for i, extent in group:
            homes[i] = len(pieces), max(extent.address - first, 0) if arrays[i].size else 0
        root = np.asarray(at)
        pieces.append(HostBuffer(root, root.size, 1))
    known: dict[int, int] = {}
    for i, column in enumerate(columns):
        if isinstance(column.memory, Buffer):
            number = known.setdefault(id(column.memory), len(pieces))
            if number == len(pieces):
                pieces.append(column.memory)
            homes[i] = number, column.offset
    devices = dict.fromkeys([piece.device for piece in pieces])
    if len(devices) > 1:
        raise ValueError(
            f"the columns are on {len(devices)} devices ({', '.join(devices)}), and an SoA is on "
            f"one; move some of them first"
        )
    bases = [piece.address for piece in pieces]
    places = []
    for i, column in enumerate(columns):
        number, offset = homes[i]
        size = ITEMSIZE[column.dtype]
        empty = column.rows == 0
        # Nobody takes a step along an axis of length 1, within a row.
        axes = zip(column.shape, column.strides[column.rows is not None :], strict=True)
        inner = [stride if length > 1 else size for length, stride in axes]
        strides = (*column.strides[: column.rows is not None], *inner)
        if empty:  # of which NumPy has strides of 0, as of what is broadcast
            strides = contiguous(column.field, 0)
        aligned = empty or not any(n % size for n in (offset, bases[number], *strides))
        places.append(Home(number, 0 if empty else offset, strides, aligned, empty))
    fields = _fields_at(tuple([column.field for column in columns]), tuple(places))
    return _of_fields(fields, Allocations(pieces, tuple(pieces)), rows)


def _is_odd(array: NDArray[Any], first: int) -> bool:
    """Whether its elements are on multiples of their size, and not counted from this address."""
    return bool(array.size and not address_of(array) % array.itemsize and first % array.itemsize)


def _of_fields(fields: Any, memory: Allocations, rows: int) -> SoA:
    """An SoA, which is typed for its layout: these fields take its place."""
    return SoA(fields, memory, rows, 0, rows)


def _fields_at(fields: tuple[Column | Scalar, ...], homes: tuple[Home, ...]) -> BoundFields:
    """The fields there; with what was compiled for them, where an earlier event had the same."""
    key = fields, homes
    found: BoundFields | None = _KNOWN.get(key)
    if found is None:
        found = BoundFields(check_fields(fields), homes)
        _remember(_KNOWN, key, found)
    return found


def _remember(known: dict[Any, BoundFields], key: Any, fields: BoundFields) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = fields


_MOST = 256
_KNOWN: dict[tuple[tuple[Column | Scalar, ...], tuple[Home, ...]], BoundFields] = {}


def _groups(extents: Mapping[int, _Extent]) -> list[list[tuple[int, _Extent]]]:
    """Which of them overlap: touching is not overlapping, nor is even spacing."""
    groups = [[pair] for pair in extents.items() if pair[1].first == pair[1].end]
    some = [pair for pair in extents.items() if pair[1].first < pair[1].end]
    end = -1
    for i, extent in sorted(some, key=lambda pair: pair[1][:2]):
        if extent.first >= end:
            groups.append([])
        groups[-1].append((i, extent))
        end = max(end, extent.end)
    # In the columns' order, which is the same for the next event's, whatever its addresses are.
    return sorted((sorted(group) for group in groups), key=lambda group: group[0][0])


class Apart(Layout):
    """A layout of bound columns as an adapter hands them over: each field is a run of its own."""

    __slots__ = ()

    apart: ClassVar[bool] = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Apart) and Layout.__eq__(self, other)

    def __hash__(self) -> int:
        return hash((Apart, Layout.__hash__(self)))

    def allocate(self, rows: int) -> SoA:
        """An SoA of the same fields, of which neighbours are one run again."""
        return Layout(self.fields).allocate(rows)


def apart(layout: BoundFields) -> Layout:
    """The layout of arrays that an adapter makes of bound columns: rows, then components.

    Each field is a run of its own, whatever lies beside it in memory.

    >>> import numpy as np
    >>> from soaview.adapter import runs
    >>> soa = bind({"x": np.zeros(3, "f4"), "v": np.zeros((3, 2), "f4")})
    >>> [run.shape for run in runs(apart(soa.layout), 3)]
    [(3, 1), (3, 2)]
    """
    key = "apart"
    found: Layout | None = layout.plans.get(key)
    if found is None:
        fields = [
            Column(f.name, f.dtype, f.shape, "C", interleaved=True) if f.per_row and f.shape else f
            for f in layout.fields
        ]
        found = layout.plans[key] = Apart(fields)
    return found
