"""What a table is, and what its columns are as numbers: of any library, by what it says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._arrow import kind_of, numbers_of
from ._columns import named
from ._dtypes import ITEMSIZE, numpy_name
from ._frameworks import check_readable
from ._soa import SoA
from ._spec import Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROWS = 1 << 18
"""Of a file that are read together."""


class Source(NamedTuple):
    """A column of numbers, chunk by chunk.

    Attributes:
        dtype: the numbers' own, in this machine's byte order.
        shape: of one row, or of a single value.
        rows: how many; None of a single value.
        chunks: gives the numbers, and a mask of what is missing of each, or None.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: int | None
    chunks: Callable[[], Iterable[tuple[NDArray[Any], NDArray[np.bool_] | None]]]


# What has columns


def columns_of(data: Any, wanted: Iterable[str] | None) -> dict[str, Any]:
    """The columns of a table by name, those that are wanted.

    Raises:
        TypeError: what has none, or has no strings for names.
        KeyError, ValueError: a wanted one is not there; a name twice.
    """
    found = dict(_named(data))
    for name in found:
        if not isinstance(name, str):
            raise TypeError(
                f"a column's name must be a string, got {name!r:.60}; rename the columns, or pass "
                f"a dictionary of them"
            )
    if wanted is None:
        return found
    if isinstance(wanted, str):
        raise TypeError(f"columns must be a list of names, got the string {wanted!r:.60}")
    names = list(wanted)
    for name in names:
        if name not in found:
            raise KeyError(f"there is no column {name!r:.80}; there are {[*found]!r:.200}")
    if len({*names}) < len(names):
        raise ValueError(f"a column stands twice in columns={names!r:.200}")
    return {name: found[name] for name in names}


def is_plain(data: Any) -> bool:
    """Whether it is a mapping and nothing more: each value is an array by itself."""
    library = type(data).__module__.partition(".")[0]
    return isinstance(data, Mapping) and library not in ("soaview", *_LIBRARIES)


def unread(data: Any) -> Any:
    """What has the same columns without a row, of an Arrow reader, which is read only once."""
    return data.schema.empty_table() if hasattr(data, "read_next_batch") else data


_LIBRARIES = ("uproot", "xarray", "tensordict", "h5py")
"""Whose mappings are tables."""


def _named(data: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(data, SoA):
        entries = {f.name: f.name if f.per_row else Value(f.name) for f in data.layout.fields}
        return ((name, data[entry]) for name, entry in entries.items())
    if hasattr(data, "num_entries") and hasattr(data, "arrays"):  # uproot's
        return ((name, data[name]) for name in data.keys())  # noqa: SIM118 - iterates otherwise
    if hasattr(data, "data_vars") and hasattr(data, "dims"):  # xarray's
        return _of_xarray(data)
    if hasattr(data, "fields") and hasattr(data, "layout"):  # awkward's
        if not data.fields:
            raise TypeError("this awkward array has no fields; pass {name: array}")
        return ((name, data[name]) for name in data.fields)
    if hasattr(data, "batch_size") and hasattr(data, "items"):  # a TensorDict
        return [*data.items()]
    library = type(data).__module__.partition(".")[0]
    if library == "h5py":
        return _of_hdf5(data)
    if library == "pyarrow" and hasattr(data, "read_all"):
        return _named(data.read_all())
    frame = hasattr(data, "iloc") or hasattr(data, "get_columns") or hasattr(data, "column_names")
    for protocol in ("__arrow_c_stream__", "__arrow_c_array__"):
        if hasattr(data, protocol) and not frame:
            return _named(_of_capsule(data, protocol))
    if not (frame or isinstance(data, (Mapping, np.ndarray))):
        for method in ("collect", "compute"):
            if hasattr(data, method):
                raise TypeError(
                    f"{type(data).__name__} has no values yet; pass what its {method}() gives"
                )
    try:
        return named(data).items()
    except TypeError as error:
        if "bind takes" not in str(error):
            raise
        raise TypeError(
            f"got {type(data).__name__}, expected a mapping from name to column, or a table that "
            f"has such"
        ) from None


def _of_capsule(data: Any, protocol: str) -> Any:
    arrow = sys.modules.get("pyarrow")
    if arrow is None:
        raise TypeError(
            f"{type(data).__name__} gives its columns through Arrow: import pyarrow first"
        )
    try:
        if protocol == "__arrow_c_stream__":
            return arrow.RecordBatchReader.from_stream(data)
        return arrow.record_batch(data)
    except (TypeError, ValueError) as error:  # Arrow's own are these, too
        raise TypeError(
            f"{type(data).__name__} is no table ({error!s:.90}); pass {{name: column}}"
        ) from error


def _of_xarray(data: Any) -> Iterator[tuple[str, Any]]:
    first = {v.dims[0] for v in data.data_vars.values() if v.dims}
    if len(first) > 1:
        raise ValueError(
            f"its variables have rows along several dimensions, {sorted(map(str, first))!r:.200}; "
            f"choose those of one, data[names], or transpose them"
        )
    for name, variable in data.data_vars.items():
        yield name, variable.data


def _of_hdf5(data: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(data, "items"):
        for name, member in data.items():
            if hasattr(member, "items"):
                raise TypeError(
                    f"column {name!r:.80} is a group within a group; pass it by itself, or leave "
                    f"it out: pass a dictionary of datasets"
                )
            yield name, member
    elif data.dtype.names is None:
        raise TypeError("this HDF5 dataset has no fields; pass {name: dataset}")
    else:
        for name in data.dtype.names:
            yield name, data.fields(name)


# What is a column


def source(name: str, value: Any) -> Source:
    """A column's numbers, by its library.

    Raises:
        TypeError, ValueError: what is no column of numbers, by its name.
    """
    try:
        return _source(value)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"column {name!r:.80}: {error}; columns= can leave it out") from error


def _source(value: Any) -> Source:
    if isinstance(value, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(value)
        whole = missing.reshape(len(value), -1).any(axis=1) if value.ndim else missing
        return _of_numpy(value.data, whole)
    if isinstance(value, np.ndarray):
        return _of_numpy(value)
    library = type(value).__module__.partition(".")[0]
    if library == "pyarrow":
        chunks = value.chunks if hasattr(value, "chunks") else [value]
        return Source(*kind_of(value.type), len(value), lambda: map(numbers_of, chunks))
    if library == "polars":
        return _of_polars(value)
    if library == "pandas":
        return _of_pandas(value)
    if library == "h5py":
        return _of_dataset(value)
    if library == "uproot":
        return _of_branch(value)
    if library == "awkward":
        return _of_awkward(value)
    check_readable(value)
    if value is None:
        raise TypeError("it is None")
    try:
        found = np.asanyarray(value)
    except ValueError:
        raise TypeError("it holds lists of several lengths, not numbers") from None
    return _source(found) if isinstance(found, np.ma.MaskedArray) else _of_numpy(found)


def _of_numpy(values: NDArray[Any], missing: Any = None) -> Source:
    """Of an array; dates and durations as integers in their own unit, NaT being none."""
    if values.dtype.kind in "mM":
        absent = np.isnat(values)
        missing = absent if missing is None else absent | missing
        if values.ndim > 1:
            missing = missing.reshape(len(values), -1).any(axis=1)
        if not values.dtype.isnative:
            values = values.astype(values.dtype.newbyteorder("="))
        values = values.view("i8")
    if values.dtype.names is not None:
        raise TypeError("it holds records; pass their fields as columns of their own")
    dtype = values.dtype.newbyteorder("=")
    if numpy_name(dtype) not in ITEMSIZE:
        raise TypeError(f"it holds {_holds(values)}, not numbers")
    rows = len(values) if values.ndim else None
    chunk = values, missing if missing is not None and missing.any() else None
    return Source(dtype, values.shape[1:], rows, lambda: [chunk])


def _holds(values: NDArray[Any]) -> str:
    if not values.dtype.hasobject:
        return str(values.dtype)
    kinds = sorted({type(item).__name__ for item in values.ravel()[:1000]})
    return f"objects ({', '.join(kinds[:5])})" if kinds else "objects"


def _of_polars(series: Any) -> Source:
    if hasattr(series.dtype, "fields"):  # structs
        parts = [_of_polars(part) for part in series.struct.unnest().get_columns()]
        kinds = {(part.dtype, part.shape) for part in parts}
        if len(kinds) != 1:
            raise TypeError(f"it holds {series.dtype!s:.60}, and structs of one type make a vector")
        [(dtype, shape)] = kinds
        absent = series.is_null().to_numpy() if series.null_count() else None

        def rows() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
            values = np.empty((len(series), len(parts), *shape), dtype)
            missing = absent
            for number, part in enumerate(parts):
                start = 0
                for chunk, empty in part.chunks():
                    values[start : start + len(chunk), number] = chunk
                    if empty is not None:
                        missing = np.zeros(len(series), np.bool_) if missing is None else missing
                        missing[start : start + len(chunk)] |= empty
                    start += len(chunk)
            yield values, missing

        return Source(dtype, (len(parts), *shape), len(series), rows)
    bare = series.to_physical()
    leaf, shape = bare.dtype, tuple(getattr(bare.dtype, "shape", ()))
    if shape:
        while hasattr(leaf, "inner"):
            leaf = leaf.inner
    name = str(leaf).lower().replace("boolean", "bool")
    if name not in ITEMSIZE or hasattr(leaf, "inner"):
        raise TypeError(f"it holds {series.dtype!s:.60}, not numbers")

    def chunks() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        parts = bare.get_chunks() if bare.n_chunks() > 1 else [bare]
        for part in parts:
            missing = part.is_null().to_numpy() if part.null_count() else None
            if shape:
                flat = part.explode() if missing is None else part.drop_nulls().explode()
                while hasattr(flat.dtype, "inner"):
                    flat = flat.explode()
                inner = flat.is_null().to_numpy() if flat.null_count() else None
                given = (flat if inner is None else flat.fill_null(_zero(name))).to_numpy()
                values = np.zeros((len(part), *shape), name)
                there = slice(None) if missing is None else ~missing
                values[there] = given.reshape(-1, *shape)
                if inner is not None:
                    missing = np.zeros(len(part), np.bool_) if missing is None else missing.copy()
                    missing[there] |= inner.reshape(-1, int(np.prod(shape))).any(axis=1)
                yield values, missing
            else:
                filled = part if missing is None else part.fill_null(_zero(name))
                yield filled.to_numpy(), missing

    return Source(np.dtype(name), shape, len(series), chunks)


def _zero(name: str) -> Any:
    return False if name == "bool" else 0


def _of_pandas(series: Any) -> Source:
    dtype = series.dtype
    if isinstance(dtype, np.dtype):
        return _of_numpy(series.to_numpy(copy=False))
    if hasattr(dtype, "pyarrow_dtype"):
        return _source(getattr(series, "array", series).__arrow_array__())
    if hasattr(dtype, "categories"):
        categories, array = dtype.categories, getattr(series, "array", series)
        codes = np.asarray(array.codes)
        missing = codes < 0
        if isinstance(categories.dtype, np.dtype) and categories.dtype.name in ITEMSIZE:
            values = np.asarray(categories)
            codes = values[codes] if len(values) else np.zeros(len(codes), values.dtype)
        return _of_numpy(codes, missing)
    if hasattr(dtype, "tz"):
        return _of_numpy(series.to_numpy(dtype=f"M8[{dtype.unit}]"))
    if hasattr(dtype, "subtype") and hasattr(dtype, "fill_value"):  # sparse
        return _of_numpy(np.asarray(series))
    bare = getattr(dtype, "numpy_dtype", None)
    if bare is None or bare.name not in ITEMSIZE:
        raise TypeError(f"it holds pandas' {dtype}, not numbers")
    missing = np.asarray(series.isna())
    zero = bare.type(0)
    return _of_numpy(series.to_numpy(dtype=bare, na_value=zero) if missing.any() else
                     series.to_numpy(dtype=bare), missing)  # fmt: skip


def _of_dataset(dataset: Any) -> Source:
    """Of HDF5, which is read in pieces, straight to where it belongs."""
    empty = _of_numpy(np.empty(0, dataset.dtype) if dataset.shape else np.zeros((), dataset.dtype))
    if not dataset.shape:
        return _of_numpy(np.asarray(dataset[()]))

    def chunks() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        for start in range(0, len(dataset), _ROWS):
            yield from _of_numpy(dataset[start : start + _ROWS]).chunks()

    shape = (*dataset.shape[1:], *empty.shape)
    return Source(empty.dtype, shape, dataset.shape[0], chunks)


def _of_branch(branch: Any) -> Source:
    """Of ROOT's files: one branch of a tree, or one field of an ntuple."""
    first = _of_numpy(_read(branch, 0, 0))

    def chunks() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
        yield _read(branch, 0, None), None

    return Source(first.dtype, first.shape, branch.num_entries, chunks)


def _read(branch: Any, start: int, stop: int | None) -> NDArray[Any]:
    return np.asarray(branch.array(entry_start=start, entry_stop=stop, library="np"))


def _of_awkward(array: Any) -> Source:
    """Of a flat array of awkward's, or one of regular lists."""
    awkward = sys.modules["awkward"]
    missing = np.asarray(awkward.is_none(array))
    if missing.any():
        array = awkward.fill_none(array, False if "bool" in str(array.type) else 0, axis=0)
    try:
        values = awkward.to_numpy(array, allow_missing=False)
    except Exception as error:  # theirs are of many kinds
        raise TypeError(f"it holds {array.type!s:.80}, not numbers in rows of one shape") from error
    return _of_numpy(np.asarray(values), missing)
