"""Columns where they lie: arrays apart from each other, or rows of records, as one SoA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ._again import again, learn
from ._bound import Allocations, BoundFields, Home, Records, dense
from ._buffer import Buffer, HostBuffer
from ._columns import Bound, column_of, named, offsets_of, records_in
from ._device import DeviceBuffer
from ._dtypes import ITEMSIZE, check_rows
from ._extents import extent_of, overlapping
from ._fields import Column, Scalar, check_fields
from ._host import ArrayInterface
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
            polars, an Arrow table or record batch, records of awkward, a dataset of xarray, a
            `TensorDict`. A column is an array `(N,)`, `(N, d)` or `(N, r, c)`, of NumPy or of what
            has the DLPack or an array interface, all on one device; one of no axes, or a number, is
            a scalar. `(address, dtype)` or `(address, dtype, shape)` is a pointer to contiguous
            rows, of elements of that shape.
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
    made = again(data) if rows is readonly is None else None
    if made is not None:
        return made
    given = named(data)
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
    soa = _soa_of(found, count, readonly, records_in(data))
    # Of one row, NumPy takes an array for contiguous whatever step would lead to the next.
    if rows is readonly is None and count > 1:
        learn(data, soa.layout)
    return soa


def _soa_of(
    columns: list[Bound], rows: int, readonly: bool | None, bound_whole: NDArray[Any] | None
) -> SoA:
    pieces: list[Buffer] = []
    homes: dict[int, tuple[int, int]] = {}  # of each column the allocation, and bytes from there
    arrays = {i: c.memory for i, c in enumerate(columns) if isinstance(c.memory, np.ndarray)}
    firsts: dict[int, int] = {}
    extents = {i: extent_of(columns[i].name, array, firsts) for i, array in arrays.items()}
    records = None if bound_whole is None else offsets_of(bound_whole.dtype)
    if bound_whole is not None and records is not None:  # which may reach beyond their fields
        first, end = extent_of("records", bound_whole, firsts)[:2]
        extents = {
            i: extent._replace(first=min(extent.first, first), end=max(extent.end, end))
            for i, extent in extents.items()
        }
    groups = overlapping(extents)
    for group in groups:
        first = min([extent.first for _, extent in group])
        end = max([extent.end for _, extent in group])
        before = records.offsets if records else (0,) * len(columns)
        starts = [extent.address - before[i] for i, extent in group if arrays[i].size]
        up = -first % 16  # so that offsets are multiples of item sizes where addresses are
        if starts and first + up <= min(starts):
            first += up
        # Where they are not, for somebody vouches from an odd address on, these lie by themselves.
        odd = [
            (i, e._replace(first=e.address))
            for i, e in group
            if _is_odd(arrays[i], e.address, first)
        ]
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
    known: dict[Any, int] = {}
    for i, column in enumerate(columns):
        if isinstance(column.memory, Buffer):
            number = known.setdefault(_identity(column.memory), len(pieces))
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
            strides = dense(column.field)
        aligned = empty or not any(n % size for n in (offset, bases[number], *strides))
        places.append(Home(number, 0 if empty else offset, strides, aligned, empty))
    fields = _fields_at(tuple([column.field for column in columns]), tuple(places), records)
    return _of_fields(fields, Allocations(pieces, tuple(pieces)), rows)


def _identity(buffer: Buffer) -> Any:
    """The same of buffers over the same memory of a device, however often that was asked for."""
    if not isinstance(buffer, DeviceBuffer):
        return id(buffer)
    return buffer.device, buffer.address, buffer.nbytes, buffer.readonly, buffer.memory.stream


def _is_odd(array: NDArray[Any], address: int, first: int) -> bool:
    """Whether its elements are on multiples of their size, and not counted from this address."""
    return bool(first % array.itemsize and array.size and not address % array.itemsize)


def _of_fields(fields: Any, memory: Allocations, rows: int) -> SoA:
    """An SoA, which is typed for its layout: these fields take its place."""
    return SoA(fields, memory, rows, 0, rows)


def _fields_at(
    fields: tuple[Column | Scalar, ...], homes: tuple[Home, ...], records: Records | None
) -> BoundFields:
    """The fields there; with what was compiled for them, where an earlier event had the same."""
    key = fields, homes, records
    found: BoundFields | None = _KNOWN.get(key)
    if found is None:
        found = BoundFields(check_fields(fields), homes, records)
        _remember(_KNOWN, key, found)
    return found


def _remember(known: dict[Any, Any], key: Any, found: Any) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = found


_MOST = 256
_KNOWN: dict[Any, BoundFields] = {}


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
