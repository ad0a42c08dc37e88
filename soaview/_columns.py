"""What has columns, and what is one: arrays, pointers, records, frames, as they lie in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._bound import Records, dense, dense_strides
from ._buffer import Buffer
from ._containers import PACK, of_frame, pairs_of, why_none, within
from ._device import DeviceBuffer, located, lying_of, pointed
from ._dtypes import ITEMSIZE, numpy_name
from ._fields import Column, Scalar
from ._frameworks import allocation_of, check_storage, detached, in_numpy
from ._gather import Gather, views_or_gathers
from ._soa import SoA
from ._spec import Spec, Value
from ._views import View

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Bound(NamedTuple):
    """A column that is to be bound.

    Attributes:
        name, dtype, shape: of the field; the shape is that of one row, or of a scalar.
        rows: how many; None of a scalar.
        memory: a NumPy array of these elements, or memory of its own, where they are from `offset`
            on.
        offset, strides: in bytes, where `memory` is no array.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int | None
    memory: NDArray[Any] | Buffer
    offset: int
    strides: tuple[int, ...]

    @property
    def field(self) -> Column | Scalar:
        return _field(self.rows is not None, self.name, self.dtype, self.shape)


@lru_cache(4096)
def _field(per_row: bool, name: str, dtype: str, shape: tuple[int, ...]) -> Column | Scalar:
    """A field, which takes a while to check: events have the same ones."""
    return Column(name, dtype, shape) if per_row else Scalar(name, dtype, shape)


# What has columns


def named(data: Any) -> dict[str, Any]:
    """The columns of what has some, by name.

    Raises:
        TypeError: what has none.
        ValueError: two of one name.
    """
    found: dict[str, Any] = {}
    for name, column in _pairs(data):
        if name in found:
            raise ValueError(f"column {name!r:.80} stands twice; names must be unique")
        found[name] = column
    return found


def _pairs(data: Any) -> Iterator[tuple[str, Any]]:
    kind = type(data)  # of which a frame's columns are no attributes
    if isinstance(data, SoA):
        for field in data.layout.fields:
            entry = field.name if field.per_row else Value(field.name)
            [view] = views_or_gathers(data, Spec({field.name: entry}))
            if isinstance(view, Gather):  # what is not aligned, NumPy alone has as it lies
                yield field.name, data[entry]
            else:
                yield field.name, _of_view(field.name, view, field.per_row)
    elif isinstance(data, np.ndarray) and data.dtype.names is not None:
        yield from _fields_of(data, "")
    elif isinstance(data, ctypes.Array) and issubclass(data._type_, ctypes.Structure):
        yield from _fields_of(_records(data), "")
    elif isinstance(data, ctypes.Structure):
        yield from _members_of(data)
    elif (pairs := pairs_of(data)) is not None:
        yield from pairs
    elif isinstance(data, Mapping):
        yield from data.items()
    elif hasattr(kind, "column_names") and hasattr(kind, "columns"):  # Arrow's
        yield from zip(data.column_names, data.columns, strict=True)
    elif hasattr(kind, "get_columns"):  # polars'
        yield from ((series.name, series) for series in data.get_columns())
    elif hasattr(kind, "iloc") and hasattr(kind, "columns"):  # pandas'
        yield from ((name, data.iloc[:, i]) for i, name in enumerate(data.columns))
    else:
        raise TypeError(
            f"bind takes a mapping from name to column, records, a frame or an SoA, got "
            f"{kind.__name__}{why_none(data)}"
        )


def _fields_of(records: NDArray[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """The fields of records, those of records within them as `a.b`."""
    names = records.dtype.names
    assert names is not None
    for name in names:
        column = records[name]
        if column.dtype.names is not None:
            yield from _fields_of(column, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", column


def _records(data: Any) -> NDArray[Any]:
    """A `ctypes` array of structures as NumPy has it."""
    _check_members(data._type_)
    return np.frombuffer(data, np.dtype(data._type_))


def records_in(data: Any) -> NDArray[Any] | None:
    """Rows of records that are bound whole, as NumPy has them; None of what are none."""
    if isinstance(data, ctypes.Array) and issubclass(data._type_, ctypes.Structure):
        return _records(data)
    plain = isinstance(data, np.ndarray) and data.dtype.names is not None and data.ndim == 1
    return np.asarray(data) if plain else None


def offsets_of(dtype: np.dtype[Any]) -> Records | None:
    """How the fields lie in a record; None where a field is records in rows itself."""
    found = [*_offsets(dtype, 0)]
    return None if None in found else Records(dtype.itemsize, tuple(found))


def _offsets(dtype: np.dtype[Any], first: int) -> Iterator[Any]:
    """Of the fields of a record; None of records that are not next to each other."""
    assert dtype.names is not None
    assert dtype.fields is not None
    for name in dtype.names:
        kind, at = dtype.fields[name][:2]
        if kind.names is not None:
            yield from _offsets(kind, first + at)
        else:
            yield None if kind.base.names is not None else first + at


def _check_members(kind: Any, *, pointers: bool = False) -> None:
    """Raise for members that are not numbers, nor, where that is allowed, lead to some."""
    for name, of, *bits in kind._fields_:
        if bits:
            raise TypeError(f"column {name!r:.80} is a bit field, which has no address")
        if pointers and hasattr(of, "contents"):
            of = of._type_
        while issubclass(of, ctypes.Array):
            of = of._type_
        if issubclass(of, ctypes.Union):
            raise TypeError(f"column {name!r:.80} is a union, which has no one type")
        if issubclass(of, ctypes.Structure):
            _check_members(of)
        elif not isinstance(code := getattr(of, "_type_", None), str) or code in "PzZO":
            raise TypeError(
                f"column {name!r:.80} has pointers, which are no numbers; bind a mapping of what "
                f"you want: what a pointer leads to is (address, dtype)"
            )


def _members_of(data: Any) -> Iterator[tuple[str, Any]]:
    """The members of one structure: arrays, numbers, and pointers."""
    _check_members(type(data), pointers=True)
    for name, kind, *_ in type(data)._fields_:
        if hasattr(kind, "contents"):
            address = ctypes.cast(getattr(data, name), ctypes.c_void_p).value or 0
            item, shape = _item(kind._type_)
            yield name, (address, item, shape)
        elif issubclass(kind, ctypes.Structure):
            raise TypeError(f"column {name!r:.80} is a structure within one; bind it by itself")
        else:
            first, nbytes = getattr(type(data), name).offset, ctypes.sizeof(kind)
            item, shape = _item(kind)
            memory = np.frombuffer(data, np.uint8)[first : first + nbytes]
            yield name, memory.view(item).reshape(shape)


def _item(kind: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The number that a type of `ctypes` holds, or an array of it, and the array's shape."""
    shape: tuple[int, ...] = ()
    while issubclass(kind, ctypes.Array):
        shape, kind = (*shape, kind._length_), kind._type_
    return np.dtype(kind), shape


# What is a column


def column_of(name: str, value: Any, rows: int | None, device: str | None, owner: object) -> Bound:
    """A column where it lies; see `bind`."""
    try:
        if type(value) is np.ndarray:
            return _of_array(name, value)
        if isinstance(value, Bound):
            return value
        if isinstance(value, View):
            return _of_view(name, value, value.ndim > 0)
        if isinstance(value, tuple):
            return _of_pointer(name, value, rows, device, owner)
        value = within(value)
        array = _host_array(value)
        return _of_device(name, value) if array is None else _of_array(name, array)
    except (BufferError, TypeError, ValueError) as error:
        kinds = BufferError, TypeError, ValueError
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"column {name!r:.80}: {error}") from error


def _of_view(name: str, view: View, per_row: bool) -> Bound:
    """A column or a scalar of an SoA."""
    buffer, at = view.buffer.locate(view.strided)
    if per_row and at.strides[0] == 0:
        raise ValueError("it is a scalar, broadcast to the rows; pass Value's view, or its number")
    strides = tuple(stride * at.itemsize for stride in at.strides)
    rows, shape = (at.shape[0], at.shape[1:]) if per_row else (None, at.shape)
    return Bound(name, at.dtype, shape, rows, buffer, at.byte_offset, strides)


def _of_pointer(
    name: str, given: tuple[Any, ...], rows: int | None, device: str | None, owner: object
) -> Bound:
    if not 2 <= len(given) <= 3:
        raise TypeError(
            f"a pointer is (address, dtype) or (address, dtype, shape), got {given!r:.90}"
        )
    if rows is None:
        raise ValueError("a pointer does not say how many rows there are; pass rows=")
    if owner is None:
        raise ValueError(
            "nothing says who owns the memory that a pointer leads to; pass owner=, an object that "
            "keeps it, such as the handle of the library that allocated it"
        )
    field = Column(name, given[1], given[2] if len(given) == 3 else ())
    nbytes = rows * field.itemsize * field.components
    memory = located(given[0], device or "cpu", nbytes, None, False, None)
    buffer = pointed(memory, field.itemsize, owner, None)
    return Bound(name, field.dtype, field.shape, rows, buffer, 0, dense(field))


def _of_device(name: str, value: Any) -> Bound:
    """What says where its memory is, on another device."""
    whole, found = allocation_of(value), lying_of(value)
    if found is None:
        raise TypeError(f"{type(value).__name__} does not say where its memory is")
    memory, lying = found
    around, offset = memory, 0
    if whole is not value and memory.size:
        around, _ = lying_of(whole) or found
        offset = memory.address - around.address
    if not 0 <= offset <= around.size - memory.size:
        raise BufferError(
            f"it reaches from byte {offset} to {offset + memory.size} of the {around.size} of its "
            f"owner; bind an array that lies in its memory"
        )
    buffer = DeviceBuffer(around._replace(owner=value), around.size, 1)
    dtype, itemsize, shape, strides = lying
    at = dense_strides(shape, itemsize) if strides is None else strides
    return _at(name, dtype or "bytes without a dtype", itemsize, shape, at, buffer, offset)


def _host_array(value: Any) -> NDArray[Any] | None:
    """The array of NumPy's over the same memory; None where that is not the host's."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError("a masked array's mask would be lost; pass .data, or fill it")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return np.array(value)
    library = type(value).__module__.partition(".")[0]
    if library in ("pandas", "polars", "pyarrow"):
        return of_frame(value, library)
    if hasattr(type(value), "__dlpack_device__"):
        try:
            kind, _ = value.__dlpack_device__()
            if kind != 1:  # DLPack's number of the host
                return None
            check_storage(value)
            plain = detached(value)
            # Torch's own says which storage it is of.
            own = hasattr(plain, "untyped_storage")
            found: NDArray[Any] = in_numpy(plain) if own else np.from_dlpack(plain)
        except Exception as error:  # theirs are of many kinds
            raise BufferError(
                f"{type(value).__name__} gives no array over its memory ({error}); {PACK}"
            ) from error
        return found
    if hasattr(value, "__cuda_array_interface__"):
        return None
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    try:
        memoryview(value)
    except TypeError:
        asked = hasattr(type(value), "__array__")  # which reads a file, or works it out
        why = "np.asarray of it is a copy in memory" if asked else "lists have no memory to bind"
        raise TypeError(
            f"got {type(value).__name__}, expected an array, a number, or (address, dtype); {why}"
            f"{'' if asked else f': {PACK}'}"
        ) from None
    return np.asarray(value)


def _of_array(name: str, array: NDArray[Any]) -> Bound:
    dtype = array.dtype
    if dtype.hasobject:
        raise TypeError(f"it holds Python objects ({dtype!s:.60}), not plain memory")
    if dtype.names is not None:
        raise TypeError("it holds records; bind these by themselves, or their fields one by one")
    if not dtype.isnative:
        raise ValueError(
            f"its byte order is not this machine's ({dtype.str}); "
            f"array.astype(array.dtype.newbyteorder('=')) is a copy that has it"
        )
    size = dtype.itemsize
    return _at(name, numpy_name(dtype), size, array.shape, array.strides, array, 0)


def _at(
    name: str,
    dtype: str,
    itemsize: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    memory: NDArray[Any] | Buffer,
    offset: int,
) -> Bound:
    """A column of these elements, with strides in bytes; one of no axes is a scalar.

    Raises:
        TypeError, ValueError: no such dtype; no such shape; strides that no column has.
    """
    if dtype not in ITEMSIZE:
        raise TypeError(f"there is no dtype {dtype!s:.60}; known are {', '.join(ITEMSIZE)}")
    row = shape[1:]
    if len(row) > 2 or 0 in row:
        raise ValueError(
            f"shape {shape}: a column has shape (N,), (N, d) or (N, r, c), with at least one "
            f"component"
        )
    reach = itemsize
    axes = sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1)
    for stride, length in axes if 0 not in shape else ():
        if stride < 0:
            raise ValueError(
                f"strides {strides}: they must be positive; bind the array that this is a "
                f"reversed view of, and reverse what you take"
            )
        if stride < reach:
            raise ValueError(
                f"strides {strides}, shape {shape}: elements overlap in memory, as of what is "
                f"broadcast; pass a value that all rows share as a number, or copy it"
            )
        reach += stride * (length - 1)
    return Bound(name, dtype, row, shape[0] if shape else None, memory, offset, strides)
