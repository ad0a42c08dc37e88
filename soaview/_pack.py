"""Values from arrays: what `pack` and item assignment take, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ._dtypes import ITEMSIZE, check_rows, numpy_dtype
from ._fields import listed
from ._frameworks import check_readable
from ._soa import SoA
from ._spec import Entry, Value, repeated
from ._write import check_apart, check_writable, wrong_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._fields import Column, Scalar
    from ._layout import Layout

_PLAIN = {bool, int, float, complex}
_LISTS = {list, tuple}
_MOST_AXES = 4  # of a matrix column, several of which are assigned at once


def pack(layout: Layout, arrays: Mapping[str, Any], rows: int | None) -> SoA:
    """`Layout.pack`: check every array, then allocate and fill."""
    for name in arrays:
        layout[name]
    if missing := [field.name for field in layout.fields if field.name not in arrays]:
        raise KeyError(
            f"no array for {listed(map(repr, missing))}; pass one for each field: of a column that "
            f"is to be filled later a number will do, such as {missing[0]!r:.80}: 0"
        )
    values = [as_array(field, arrays[field.name]) for field in layout.fields]
    first = ""
    if rows is None:
        columns = zip(layout.fields, values, strict=True)
        counts = [(f.name, len(v)) for f, v in columns if f.per_row and v.ndim]
        if not counts:
            raise ValueError("single values alone say nothing about rows; pass rows=")
        first, rows = counts[0]
    rows = check_rows(rows)
    for field, value in zip(layout.fields, values, strict=True):
        _check_shape(field, value, rows, first)
    soa = layout.allocate(rows)
    for field, value in zip(layout.fields, values, strict=True):
        soa[field.name if field.per_row else Value(field.name)][...] = value
    return soa


def assign(soa: SoA, entry: Entry, given: Any) -> None:
    """`soa[entry] = given`, by `pack`'s rules: nothing is written unless all of it fits."""
    check_writable(soa, [entry])
    layout = soa.layout
    if isinstance(entry, tuple):
        columns = [layout[name] for name in entry]
        if (twice := repeated(entry)) is not None:
            raise ValueError(f"column {twice!r:.80} stands twice, and would be written twice")
        first = columns[0]
        value = as_array(first, given)
        for column in columns:
            same = column.dtype, column.shape, column.per_row
            if same != (first.dtype, first.shape, True):
                raise ValueError(
                    f"{first!r:.200} and {column!r:.200} do not make one array; assign one by one"
                )
        expected = (soa.rows, len(entry), *first.shape)
        if value.shape != expected:
            raise ValueError(
                wrong_shape(f"columns {list(entry)!r:.200}", value.shape, expected, per_row=True)
            )
        if soa.buffer.shares(value):  # what is written first is read later
            value = value.copy()
        targets = [(name, soa[name]) for name in entry]
        if soa.buffer.piecewise:
            check_apart(targets)
        for number, (_, target) in enumerate(targets):
            target[...] = value[:, number]
        return
    field = layout[entry.name if isinstance(entry, Value) else entry]
    target = soa[entry if field.per_row else Value(field.name)]
    value = as_array(field, given)
    _check_shape(field, value, soa.rows)
    target[...] = value


def _check_shape(field: Column | Scalar, value: NDArray[Any], rows: int, first: str = "") -> None:
    """Of a value, against the rows there are, which the first column may have told."""
    expected = (rows, *field.shape) if field.per_row else field.shape
    one_for_all = field.per_row and field.shape == () == value.shape
    if value.shape != expected and not one_for_all:
        where = f"field {field.name!r:.80}"
        wrong = wrong_shape(where, value.shape, expected, per_row=field.per_row)
        same = field.per_row and value.shape[1:] == field.shape and first
        raise ValueError(f"{wrong}, and {first!r:.80} has {rows}" if same else wrong)


def as_array(field: Column | Scalar, value: Any) -> NDArray[Any]:
    """`value` as an array of the field's dtype, in any byte order.

    Only Python's own numbers are converted, to the dtype that their kind allows; what says that it
    has nulls has none.
    """
    try:
        return _array(field, value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"field {field.name!r:.80}: {error}") from None


def _array(field: Column | Scalar, value: Any) -> NDArray[Any]:
    dtype = numpy_dtype(field.dtype)
    types = _types(value)
    if types <= _PLAIN:
        return _numbers(value, types, dtype)
    # Dask says of what its arrays are, and drops their masks when it is asked for values.
    _check_masks(types | {type(getattr(value, "_meta", None))})
    check_readable(value)
    _check_nulls(_nulls(value))
    # What can have nulls, and has none, is told what it is without them.
    bare = getattr(getattr(value, "dtype", None), "numpy_dtype", None)
    given = np.asanyarray(value) if bare is None else np.asarray(value, bare)
    _check_masks({type(given)})
    found = np.asarray(given)
    if found.dtype.hasobject:
        raise TypeError(_objects(found, field, isinstance(value, np.ndarray)))
    if found.dtype.newbyteorder("=") != dtype:
        raise TypeError(
            f"got dtype {found.dtype}, expected {field.dtype}; nothing is converted in silence: "
            f"{_conversion(found, field.dtype, dtype, isinstance(value, np.ndarray))}"
        )
    parts = _columns(value) or (value if type(value) in _LISTS else ())
    theirs = {np.dtype(kind) for kind in types if issubclass(kind, np.generic)}
    theirs |= {part.dtype for part in parts if isinstance(getattr(part, "dtype", 0), np.dtype)}
    for own in theirs:
        if own.newbyteorder("=") != dtype:
            raise TypeError(
                f"got a part of dtype {own} among others, expected {field.dtype} of all; convert "
                f"each as you mean it first"
            )
    return found


def _check_masks(types: set[type]) -> None:
    if any(issubclass(kind, np.ma.MaskedArray) for kind in types):
        raise TypeError("a masked array's mask would be lost; pass .data, or fill it")


def _numbers(value: Any, types: set[type], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Python's numbers, by NumPy's promotion of them."""
    # Where bfloat16 counts as the float it is.
    weak = np.dtype("float16") if dtype.name == "bfloat16" else dtype
    got = np.result_type(weak, *(kind() for kind in types))
    if got != weak:
        raise TypeError(
            f"got Python numbers that need dtype {got}, expected {dtype}; convert them as you "
            f"mean it first, or declare the field {got}"
        )
    with np.errstate(over="ignore"):
        found = np.asarray(value, dtype)
    infinite = _infinities(found) if found.dtype.kind not in "biu" else 0
    if infinite and infinite > _infinities(np.asarray(value, complex)):
        raise OverflowError(f"a number is beyond what {dtype} holds")
    return found


def _infinities(array: NDArray[Any]) -> int:
    return int(np.isinf(array.real).sum() + np.isinf(array.imag).sum())


def _types(value: Any) -> set[type]:
    """Of the items of a list of lists, or of the value itself.

    Raises:
        ValueError: lists deeper than any field's.
    """
    items, found = [value], set[type]()
    for _ in range(_MOST_AXES + 1):
        types = set(map(type, items))
        found |= types - _LISTS
        if not types & _LISTS:
            return found
        # Each list once, however often it stands there.
        lists = {id(item): item for item in items if type(item) in _LISTS}.values()
        items = list(chain.from_iterable(lists))
    raise ValueError(f"lists are nested more than {_MOST_AXES} deep")


def _columns(value: Any) -> list[Any]:
    """A table's: of Arrow's, polars' or pandas'; of anything else none."""
    if hasattr(value, "column_names"):
        return list(value.columns)
    if hasattr(value, "get_columns"):
        return list(value.get_columns())
    if hasattr(value, "iloc") and len(value.shape) == 2:
        return [value.iloc[:, number] for number in range(value.shape[1])]
    return []


def _nulls(value: Any) -> int:
    """How many values are missing, by the word of what can lack some: Arrow, polars, pandas."""
    if isinstance(value, np.ndarray):
        return 0
    if isinstance(value, (list, tuple)):
        return _missing(value)
    if parts := _columns(value):
        return sum(map(_nulls, parts))
    chunks = getattr(value, "chunks", None)
    if isinstance(chunks, list):
        return sum(map(_nulls, chunks))
    dtype = getattr(value, "dtype", None)
    if hasattr(dtype, "pyarrow_dtype"):
        value = getattr(value, "array", value).__arrow_array__()
        return _nulls(value)
    count = getattr(value, "null_count", None)
    if count is None:
        masked = hasattr(value, "isna") and not isinstance(dtype, np.dtype)
        return int(np.asarray(value.isna()).sum()) if masked else 0
    found = int(count() if callable(count) else count)
    if found:
        return found
    # Within lists, records, dictionaries and runs there can be more.
    nested = getattr(dtype, "is_nested", None)
    if nested is not None:
        return _missing(value.to_list()) if nested() else 0
    theirs = getattr(value, "type", None)
    inner = any(hasattr(value, name) for name in ("dictionary", "run_ends", "storage"))
    inner = inner or bool(getattr(theirs, "num_fields", 0))
    return _missing(value.to_pylist()) if inner else 0


def _missing(values: Any) -> int:
    """How many items of a list, or of an array of objects, are no values: None, NA, NaT."""
    found = 0
    for item in values:
        if item is None or type(item).__name__ in ("NAType", "NaTType"):
            found += 1
        elif isinstance(item, (list, tuple)) or (
            isinstance(item, np.ndarray) and item.dtype.hasobject and item.ndim
        ):
            found += _missing(item)
        elif isinstance(item, dict):
            found += _missing(item.values())
        elif hasattr(item, "null_count") or hasattr(item, "isna"):
            found += _nulls(item)
    return found


def _check_nulls(count: int) -> None:
    if count:
        raise ValueError(
            f"{count} null{'s' * (count > 1)}, and a column has a value in every row; fill or drop "
            f"what is missing where it comes from, as you mean it"
        )


def _objects(found: NDArray[Any], field: Column | Scalar, numpys: bool) -> str:
    """What an array of Python objects is refused with, and the way out."""
    items, values = found.ravel(), "values" if numpys else "np.asarray(values)"
    _check_nulls(_missing(items))
    types = _types(items.tolist())
    lists = [item for item in items if isinstance(item, (list, tuple, np.ndarray))]
    if 0 < len(lists) < len(items):
        return "got lists among single values, and every row of a column has as many"
    if lists:
        lengths = sorted({len(item) if np.ndim(item) else 0 for item in lists})
        if len(lengths) > 1:
            return (
                f"got lists of {lengths[0]} to {lengths[-1]} items, and every row of a column has "
                f"as many; pack all items, np.concatenate(values), as rows of an SoA of their own, "
                f"and keep the lengths beside it"
            )
        if all(isinstance(item, np.ndarray) for item in lists):
            return f"got an array of arrays, not of numbers; pass np.stack({values})"
        return f"got an array of lists, not of numbers; pass {values}.tolist()"
    if types <= _PLAIN:
        return f"got Python numbers as objects; pass {values}.tolist(), of the field's dtype"
    names = sorted(kind.__name__ for kind in types)
    return f"got objects ({', '.join(names[:5])}), expected {field.dtype}"


def _conversion(values: NDArray[Any], name: str, dtype: np.dtype[Any], numpys: bool) -> str:
    """How to convert values so that what changes is known; never what would corrupt them."""
    got = values.dtype.newbyteorder("=")
    if got.name not in ITEMSIZE:
        return f"make {name} of them first, as you mean it"
    call = f"{'' if numpys else 'np.asarray(values)'}.astype({name!r})"
    rounds = got.kind in "iu" and got.itemsize == 8 and dtype.kind in "fc"
    if np.can_cast(got, dtype, "safe") and not rounds:
        return f"pass {call}"
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        converted = values.astype(dtype)
        # Both ways, for a number that wraps comes back, and one that rounds compares as equal.
        exact = (converted == values) & (converted.astype(got) == values)
        if exact.all() and (got.kind != "c" or dtype.kind == "c"):
            return f"pass {call}, in which all of these values fit"
    floats = np.can_cast(got, dtype, "same_kind") and got.kind not in "biu"
    if floats and _infinities(converted) == _infinities(values):
        return f"pass {call}, which rounds, or declare the field {got.name}"
    return f"declare the field {got.name}; in {name} not all of these values fit"
