"""Arrow's arrays as numbers, with a mask of what is missing, out of their own buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._dtypes import ITEMSIZE, dtype_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TIMES = ("timestamp", "date32", "date64", "time32", "time64", "duration")


def kind_of(theirs: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype of an Arrow type's numbers, and the shape of one row.

    Raises:
        TypeError: a type without numbers, or with more than a row of a column has.
    """
    name = dtype_name(theirs)
    if name in ITEMSIZE:
        return np.dtype(name), ()
    if str(theirs).startswith(_TIMES):
        return np.dtype(f"int{theirs.bit_width}"), ()
    if hasattr(theirs, "storage_type"):  # an extension's
        dtype, shape = kind_of(theirs.storage_type)
        inner = getattr(theirs, "shape", None)
        order = getattr(theirs, "permutation", None)
        if order is not None and [*order] != sorted(order):
            raise TypeError(f"it holds tensors whose axes are in another order ({order})")
        return dtype, shape if inner is None else tuple(inner)
    if hasattr(theirs, "run_end_type"):
        return kind_of(theirs.value_type)
    if hasattr(theirs, "index_type"):
        values = dtype_name(theirs.value_type)
        return np.dtype(values if values in ITEMSIZE else str(theirs.index_type)), ()
    if hasattr(theirs, "list_size"):
        dtype, shape = kind_of(theirs.value_type)
        return dtype, (theirs.list_size, *shape)
    text = str(theirs)
    if text.startswith("struct<") and theirs.num_fields:
        kinds = {kind_of(theirs.field(i).type) for i in range(theirs.num_fields)}
        if len(kinds) > 1:
            raise TypeError(f"it holds structs of several types ({text:.60}), which make no vector")
        [(dtype, shape)] = kinds
        return dtype, (theirs.num_fields, *shape)
    what = "nulls alone, without a type" if text == "null" else text
    raise TypeError(f"it holds {what:.60}, not numbers")


def numbers_of(array: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """The numbers of an Arrow array, and where they are missing; None where none is."""
    theirs, rows = array.type, len(array)
    dtype, shape = kind_of(theirs)
    if hasattr(theirs, "storage_type"):
        values, missing = numbers_of(array.storage)
        return values.reshape(rows, *shape), missing
    if hasattr(theirs, "run_end_type"):
        ends = np.asarray(numbers_of(array.run_ends)[0])
        at = np.searchsorted(ends, np.arange(array.offset, array.offset + rows), side="right")
        values, missing = numbers_of(array.values)
        return values[at], None if missing is None else missing[at]
    missing = _missing(array)
    if hasattr(theirs, "index_type"):
        codes, _ = numbers_of(array.indices)
        if missing is not None:
            codes = np.where(missing, 0, codes)
        if dtype_name(theirs.value_type) not in ITEMSIZE:
            absent = _missing(array.dictionary)
            values = codes
        else:
            values, absent = numbers_of(array.dictionary)
            if not len(values):
                values = np.zeros(1, dtype)
            values = values[codes]
        if absent is not None and rows:
            missing = _either(missing, absent[codes] if len(absent) else None)
        return values, missing
    if hasattr(theirs, "list_size"):
        size = theirs.list_size
        inner = array.values.slice(array.offset * size, rows * size)
        values, absent = numbers_of(inner)
        if absent is not None:
            absent = np.asarray(absent.reshape(rows, size).any(axis=1))
        return values.reshape(rows, *shape), _either(missing, absent)
    if shape:  # structs
        values = np.empty((rows, *shape), dtype)
        for number in range(theirs.num_fields):
            values[:, number], absent = numbers_of(array.field(number))
            missing = _either(missing, absent)
        return values, missing
    memory = array.buffers()[1]
    if memory is None:
        return np.zeros(rows, dtype), missing
    if dtype == np.bool_:
        return _bits(memory, array.offset, rows), missing
    return np.frombuffer(memory, dtype, rows, array.offset * dtype.itemsize), missing


def _missing(array: Any) -> NDArray[np.bool_] | None:
    """By the array's own validity, one bit for each row."""
    if not array.null_count:
        return None
    valid = array.buffers()[0]
    if valid is None:  # of Arrow's null type
        return np.ones(len(array), np.bool_)
    return ~_bits(valid, array.offset, len(array))


def _either(
    one: NDArray[np.bool_] | None, other: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other


def _bits(memory: Any, first: int, count: int) -> NDArray[np.bool_]:
    """`count` bits from that one on, the lowest of a byte first."""
    start, skip = divmod(first, 8)
    packed = np.frombuffer(memory, np.uint8, -(-(skip + count) // 8), start) if count else None
    if packed is None:
        return np.zeros(0, np.bool_)
    found = np.unpackbits(packed, bitorder="little")[skip : skip + count]
    return found.view(np.bool_)
