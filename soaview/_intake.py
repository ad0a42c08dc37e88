"""Data of any kind into one buffer: the layout that it says, and the one copy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ._convert import write_as
from ._dtypes import check_rows, numpy_name
from ._fields import Column, Scalar
from ._layout import Layout
from ._pack import pack as pack_arrays
from ._spec import Value
from ._tables import Source, columns_of, is_plain, source, unread
from ._write import wrong_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._soa import SoA


def pack(
    data: Any,
    *,
    columns: Iterable[str] | None = None,
    dtypes: str | Mapping[str, str] | None = None,
    alignment: int = 128,
    fill: Any = None,
) -> SoA:
    """A new SoA of a table's columns: one copy of each, into one buffer.

    Dates and durations become integers, in the unit that they have; categories that are no numbers
    become their codes; vectors are structs or lists of one type and length. Strings, objects, and
    lists of several lengths are refused. The index of a frame is left out. A stream is consumed.

    Args:
        data: a mapping from name to array or number; a frame of pandas or polars; an Arrow table,
            batch or reader, or what has Arrow's PyCapsules, such as a relation of DuckDB, where
            pyarrow is imported; a structured array; an SoA; an xarray Dataset, a TensorDict, a flat
            record array of awkward; an HDF5 group of datasets, or compound dataset; a TTree or
            RNTuple of uproot.
        columns: which, and in which order; all by default.
        dtypes: what columns become: one dtype for all, or by column. Floats may be rounded; a value
            that another dtype does not have is an error.
        alignment: bytes, as in `Layout`.
        fill: what stands where a value is missing: one number for all columns, or by column.

    Raises:
        TypeError: no table; a column of no numbers; names that are no strings.
        ValueError: nulls without `fill`, by their number; a value that would be another one;
            columns of different lengths.
        KeyError: a column that is not there.

    >>> import numpy as np
    >>> soa = pack({"pt": np.array([1.5, 2.5]), "n": np.array([1, 2])}, dtypes={"pt": "float32"})
    >>> soa.layout
    Layout([Column('pt', 'float32'), Column('n', 'int64')])
    >>> soa["pt"]
    array([1.5, 2.5], dtype=float32)
    """
    found = _sources(data, columns)
    layout = _layout(found, dtypes, alignment)
    rows = {name: s.rows for name, s in found.items() if s.rows is not None}
    if not rows:
        raise ValueError("single values alone say nothing about rows; use layout.pack(data, rows)")
    return filled(layout, found, next(iter(rows.values())), fill)


def layout_of(
    data: Any,
    columns: Iterable[str] | None,
    dtypes: str | Mapping[str, str] | None,
    alignment: int,
) -> Layout:
    """See `Layout.of`."""
    return _layout(_sources(unread(data), columns), dtypes, alignment)


def pack_into(layout: Layout, data: Any, rows: int | None) -> SoA:
    """`Layout.pack`: the layout says which columns of a table, and their dtypes."""
    if is_plain(data):
        return pack_arrays(layout, data, rows)
    given = columns_of(data, None)
    if missing := [field.name for field in layout.fields if field.name not in given]:
        raise KeyError(
            f"no column for {', '.join(map(repr, missing[:5]))}; there are {[*given]!r:.200}"
        )
    found = {field.name: source(field.name, given[field.name]) for field in layout.fields}
    for field in layout.fields:
        own = numpy_name(found[field.name].dtype)
        if own != field.dtype:
            raise TypeError(
                f"column {field.name!r:.80}: got dtype {own}, expected {field.dtype}; nothing is "
                f"converted in silence: soaview.pack(data, dtypes={{{field.name!r:.80}: "
                f"{field.dtype!r}}}) converts"
            )
    if rows is None:
        counts = [s.rows for s in found.values() if s.rows is not None]
        if not counts:
            raise ValueError("single values alone say nothing about rows; pass rows=")
        rows = counts[0]
    return filled(layout, found, check_rows(rows), None)


def _sources(data: Any, columns: Iterable[str] | None) -> dict[str, Source]:
    found = {name: source(name, value) for name, value in columns_of(data, columns).items()}
    if not found:
        raise ValueError("there are no columns to pack")
    return found


def _layout(
    found: dict[str, Source], dtypes: str | Mapping[str, str] | None, alignment: int
) -> Layout:
    if isinstance(dtypes, Mapping):
        for name in dtypes:
            if name not in found:
                raise KeyError(f"dtypes: there is no column {name!r:.80}; there are "
                               f"{[*found]!r:.200}")  # fmt: skip
    fields: list[Column | Scalar] = []
    for name, one in found.items():
        own = numpy_name(one.dtype)
        asked = dtypes.get(name, own) if isinstance(dtypes, Mapping) else dtypes or own
        kind = Scalar if one.rows is None else Column
        fields.append(kind(name, str(asked), one.shape))
    return Layout(fields, alignment=alignment)


def filled(layout: Layout, found: dict[str, Source], rows: int, fill: Any) -> SoA:
    """An SoA of these columns, each written in its place chunk by chunk, and taken from `found`."""
    if isinstance(fill, Mapping):
        for name in fill:
            if name not in found:
                raise KeyError(f"fill: there is no column {name!r:.80}; there are "
                               f"{[*found]!r:.200}")  # fmt: skip
    for field in layout.fields:
        one = found[field.name]
        got = one.shape if one.rows is None else (one.rows, *one.shape)
        expected = (rows, *field.shape) if field.per_row else field.shape
        one_for_all = field.per_row and field.shape == () == got
        if got != expected and not one_for_all:
            where = f"column {field.name!r:.80}"
            raise ValueError(wrong_shape(where, got, expected, per_row=field.per_row))
    soa = layout.allocate(rows)
    write_all(soa, found, fill)
    return soa


def write_all(soa: SoA, found: dict[str, Source], fill: Any) -> None:
    """Write columns that fit over those of an SoA, chunk by chunk, and take them from `found`."""
    for field in soa.layout.fields:
        target = soa[field.name if field.per_row else Value(field.name)]
        value = fill.get(field.name) if isinstance(fill, Mapping) else fill
        try:
            _write(target, found.pop(field.name), value)  # what a stream gave goes with it
        except ValueError as error:
            raise ValueError(f"column {field.name!r:.80}: {error}") from None


def _write(target: NDArray[Any], one: Source, fill: Any) -> None:
    start = 0
    for values, missing in one.chunks():
        if one.rows is None:
            there = target
        else:
            there = target[start : start + len(values)]
            if len(there) != len(values):
                raise ValueError(f"it gives more rows than the {one.rows} that it says it has")
        if missing is not None:
            if fill is None:
                raise ValueError(_nulls(one))
            own = np.asarray(fill)
            if own.ndim or own.dtype.kind not in "biufc":
                raise ValueError(f"fill must be a number, got {fill!r:.60}")
            values = values.copy()
            values[missing] = 0
        write_as(there, values, start)
        if missing is not None:
            filled = np.empty((), target.dtype)
            write_as(filled, own, start)
            there[missing] = filled
        start += len(values) if one.rows is not None else 0
    if one.rows is not None and start != one.rows:
        raise ValueError(f"it gives {start} rows, and says that it has {one.rows}")


def _nulls(one: Source) -> str:
    count = sum(int(missing.sum()) for _, missing in one.chunks() if missing is not None)
    how = ", such as fill=float('nan')" if one.dtype.kind in "fc" else ""
    return (
        f"{count} null{'s' * (count > 1)}, and a column has a value in every row; soaview.pack's "
        f"fill= says what stands there{how}"
    )
