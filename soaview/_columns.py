"""What has columns, and what is one: arrays, pointers, records, frames, as they lie in memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._buffer import Buffer
from ._device import buffer_of, located, pointed
from ._dtypes import ITEMSIZE, dtype_name
from ._fields import Column, Scalar
from ._frameworks import check_storage, detached, in_numpy
from ._soa import SoA
from ._spec import Spec, Value
from ._typed import Asked
from ._views import Gather, View, views_or_gathers

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PACK = "layout.pack copies it"


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


def named(data: Any) -> Iterator[tuple[str, Any]]:
    """The columns of what has some, by name.

    Raises:
        TypeError: what has none.
    """
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
    elif isinstance(data, Mapping):
        yield from data.items()
    elif hasattr(data, "column_names") and hasattr(data, "columns"):  # Arrow's
        yield from _unique(data.column_names, data.columns)
    elif hasattr(data, "get_columns"):  # polars'
        yield from ((series.name, series) for series in data.get_columns())
    elif hasattr(data, "iloc") and hasattr(data, "columns"):  # pandas'
        yield from _unique(data.columns, [data.iloc[:, i] for i in range(data.shape[1])])
    else:
        raise TypeError(
            f"bind takes a mapping from name to column, records, a frame or an SoA, got "
            f"{type(data).__name__}"
        )


def _unique(names: Any, columns: Any) -> Iterator[tuple[str, Any]]:
    known = set()
    for name, column in zip(names, columns, strict=True):
        if name in known:
            raise ValueError(f"column {name!r:.80} stands twice; names must be unique")
        known.add(name)
        yield name, column


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


def _check_members(kind: Any) -> None:
    for name, of, *bits in kind._fields_:
        if bits:
            raise TypeError(f"column {name!r:.80} is a bit field, which has no address")
        if issubclass(of, ctypes.Union):
            raise TypeError(f"column {name!r:.80} is a union, which has no one type")
        if issubclass(of, ctypes.Structure):
            _check_members(of)


def _members_of(data: Any) -> Iterator[tuple[str, Any]]:
    """The members of one structure: arrays, numbers, and pointers."""
    _check_members(type(data))
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
        if isinstance(value, Bound):
            return value
        if isinstance(value, View):
            return _of_view(name, value, value.ndim > 0)
        if isinstance(value, tuple):
            return _of_pointer(name, value, rows, device, owner)
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
    return Bound(name, field.dtype, field.shape, rows, buffer, 0, contiguous(field, rows))


def contiguous(field: Column | Scalar, rows: int) -> tuple[int, ...]:
    """Strides in bytes of rows one after another, each with its components in C's order."""
    strides, step = [], field.itemsize
    for length in reversed((rows, *field.shape)):
        strides.append(step)
        step *= length
    return tuple(reversed(strides))


def _of_device(name: str, value: Any) -> Bound:
    """What says where its memory is, and that it is contiguous, on another device."""
    dtype, shape = dtype_name(value.dtype), tuple(int(n) for n in value.shape)
    # Of a square its order in memory could not be told, of three axes nobody asks for it.
    if not 1 <= len(shape) <= 2 or shape[:1] == shape[1:]:
        raise ValueError(
            f"on a device a column is (N,) or (N, d), d another number than N, got {shape}; pass "
            f"its components one by one, or (address, dtype, shape)"
        )
    field = Column(name, dtype, shape[1:])
    nbytes = shape[0] * field.itemsize * field.components
    table: Any = shape if shape[1:] else None
    buffer = buffer_of(value, nbytes, field.itemsize, Asked([field], table, None))
    return Bound(name, field.dtype, field.shape, shape[0], buffer, 0, contiguous(field, shape[0]))


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
        return _of_frame(value, library)
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
                f"{type(value).__name__} gives no array over its memory ({error}); {_PACK}"
            ) from error
        return found
    if hasattr(value, "__cuda_array_interface__"):
        return None
    if hasattr(value, "__array_interface__"):
        return np.asarray(value)
    try:
        memoryview(value)
    except TypeError:
        raise TypeError(
            f"got {type(value).__name__}, expected an array, a number, or (address, dtype); lists "
            f"have no memory to bind: {_PACK}"
        ) from None
    return np.asarray(value)


def _of_frame(value: Any, library: str) -> NDArray[Any]:
    """A column of pandas, polars or Arrow, where its memory can be had as it is."""
    if library == "pandas":
        if not isinstance(value.dtype, np.dtype):
            raise TypeError(f"pandas' {value.dtype} is more than plain memory; {_PACK}")
        found: NDArray[Any] = value.to_numpy(copy=False)
        return found
    nulls = value.null_count() if callable(value.null_count) else value.null_count
    if nulls:
        raise ValueError(f"{nulls} nulls, and a column has a value in every row; fill or drop them")
    chunks = value.n_chunks() if library == "polars" else getattr(value, "num_chunks", 1)
    if chunks != 1:
        how = "rechunk()" if library == "polars" else "combine_chunks()"
        raise ValueError(f"it is in {chunks} chunks; {how} copies them into one, or {_PACK}")
    try:
        if library == "polars":
            return np.asarray(value.to_numpy(allow_copy=False))
        one = value.chunk(0) if hasattr(value, "num_chunks") else value
        return np.asarray(one.to_numpy(zero_copy_only=True))
    except Exception as error:  # theirs are of many kinds
        raise TypeError(f"{library} gives no array over its memory ({error}); {_PACK}") from error


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
    if dtype.name not in ITEMSIZE:
        raise TypeError(f"there is no dtype {dtype!s:.60}; known are {', '.join(ITEMSIZE)}")
    rows, shape = (array.shape[0], array.shape[1:]) if array.ndim else (None, ())
    if len(shape) > 2 or 0 in shape:
        raise ValueError(
            f"shape {array.shape}: a column has shape (N,), (N, d) or (N, r, c), with at least one "
            f"component"
        )
    reach = dtype.itemsize
    axes = sorted((s, n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for stride, length in axes if array.size else ():
        if stride < 0:
            raise ValueError(
                f"strides {array.strides}: they must be positive; bind the array that this is a "
                f"reversed view of, and reverse what you take"
            )
        if stride < reach:
            raise ValueError(
                f"strides {array.strides}, shape {array.shape}: elements overlap in memory, as of "
                f"what is broadcast; pass a value that all rows share as a number, or copy it"
            )
        reach += stride * (length - 1)
    return Bound(name, dtype.name, shape, rows, array, 0, array.strides)
