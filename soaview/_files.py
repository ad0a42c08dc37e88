"""Files of columns: Arrow's, mapped where they lie; Parquet's, read into one SoA."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrow import numbers_of
from ._bind import bind
from ._dtypes import exact_int
from ._host import address_of
from ._intake import layout_of, write_all
from ._soa import SoA
from ._tables import source

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

_ACCESS = {"c": mmap.ACCESS_COPY, "r": mmap.ACCESS_READ}


def open_arrow(
    path: str | PathLike[str],
    *,
    batch: int | None = None,
    columns: Iterable[str] | None = None,
    mode: str = "c",
) -> Any:
    """The record batches of an Arrow IPC file (Feather's second version), mapped: no copy.

    Each is an SoA of bound columns, which lie in the file's pages, all in one allocation: several
    of one dtype, which the file has at even distances, are one strided tensor. Words of a
    dictionary are their codes, dates and durations their integers. The file is read when its values
    are, and stays mapped as long as an SoA, or a tensor of one, lives; nobody may shorten it then.

    Args:
        path: of the file; a stream of Arrow's is none.
        batch: the number of the one that is wanted; all by default.
        columns: which, and in which order; all by default.
        mode: `"c"`, pages that are private to this process and may be written, the file staying as
            it is; `"r"`, read-only ones.

    Returns:
        A list of SoAs; one SoA, where `batch` is given.

    Raises:
        ImportError: there is no pyarrow, which is the extra `arrow`.
        OSError, ValueError: no such file; nulls, by their number; a column whose numbers do not lie
            in the file as they are, for it is compressed, or bools are bits.
        TypeError: a column of no numbers.
        KeyError, IndexError: no such column; no such batch.
    """
    arrow = _needed("pyarrow")
    if mode not in _ACCESS:
        raise ValueError(f"mode must be 'c' or 'r', got {mode!r:.60}")
    names = None if columns is None else list(columns)
    with Path(path).open("rb") as file:
        try:
            mapping = mmap.mmap(file.fileno(), 0, access=_ACCESS[mode])
        except ValueError as error:  # an empty one
            raise ValueError(f"{path}: {error}") from None
    root = np.frombuffer(mapping, np.uint8)
    try:
        reader = arrow.ipc.open_file(arrow.py_buffer(mapping))
        count = reader.num_record_batches
        if batch is not None:
            chosen = exact_int(batch, "batch")
            if not -count <= chosen < count:
                raise IndexError(f"{path}: there are {count} batches, got batch {batch}")
        numbers = range(count) if batch is None else [chosen % count]
        batches = [reader.get_batch(number) for number in numbers]
        for one in batches:
            one.validate()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is no whole Arrow IPC file ({str(error).splitlines()[0]:.200}); a stream goes "
            f"by soaview.pack(pyarrow.ipc.open_stream(path))"
        ) from None
    found = []
    for one in batches:
        try:
            found.append(bind(_columns(one, names, root)))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path}: {error}") from None
    return found if batch is None else found[0]


def _columns(batch: Any, names: list[str] | None, root: NDArray[np.uint8]) -> dict[str, Any]:
    """Arrays over the mapping's own bytes."""
    there = batch.schema.names
    found: dict[str, Any] = {}
    for name in there if names is None else names:
        if name not in there:
            raise KeyError(f"there is no column {name!r:.80}; there are {there!r:.200}")
        if there.count(name) > 1 or name in found:
            raise ValueError(f"column {name!r:.80} stands twice; names must be unique")
        column = batch.column(there.index(name))
        try:
            values, missing = numbers_of(column)
        except TypeError as error:
            raise TypeError(f"column {name!r:.80}: {error}; columns= can leave it out") from None
        except (IndexError, ValueError) as error:
            raise ValueError(f"column {name!r:.80}: the file is damaged ({error})") from None
        if missing is not None and missing.any():
            raise ValueError(
                f"column {name!r:.80}: {int(missing.sum())} nulls, and a column has a value in "
                f"every row; soaview.pack(table, fill=0) fills them in a copy"
            )
        first = address_of(values) - address_of(root) if values.size else 0
        if not 0 <= first <= root.size - values.nbytes:
            raise ValueError(
                f"column {name!r:.80}: its numbers ({column.type!s:.40}) do not lie in the file as "
                f"they are: they are compressed, or of another form there; soaview.pack("
                f"pyarrow.feather.read_table(path)) copies them"
            )
        part = root[first : first + values.nbytes]
        found[name] = part.view(values.dtype).reshape(values.shape)
    if not found:
        raise ValueError("it has no columns")
    return found


def read_parquet(
    paths: Any,
    *,
    columns: Iterable[str] | None = None,
    dtypes: str | Mapping[str, str] | None = None,
    fill: Any = None,
) -> SoA:
    """One SoA of the rows of Parquet files, one after another.

    Some rows are read at a time, and written in their place: the peak of memory is the result, and
    what Arrow holds of a row group. Columns are those of `pack`.

    Args:
        paths: a file, or a list of files of the same columns.
        columns: which, and in which order; all by default.
        dtypes: what columns become, as `pack` takes it.
        fill: what stands where a value is missing, likewise.

    Raises:
        ImportError: there is no pyarrow, which is the extra `arrow`.
        OSError, ValueError: no such file, or no Parquet; files of other columns than the first's;
            nulls without `fill`.
        TypeError, KeyError: as `pack`.
    """
    parquet, arrow = _needed("pyarrow.parquet"), _needed("pyarrow")
    given = [paths] if isinstance(paths, str) or hasattr(paths, "__fspath__") else list(paths)
    if not given:
        raise ValueError("paths is empty; without a file there are no columns")
    names = None if columns is None else list(columns)
    counts, first = [], None
    for path in given:
        try:
            with parquet.ParquetFile(path) as file:
                counts.append(file.metadata.num_rows)
                layout = layout_of(file.schema_arrow.empty_table(), names, dtypes, 128)
        except arrow.ArrowException as error:
            raise ValueError(f"{path} is no Parquet file: {error!s:.200}") from None
        if first is not None and layout != first:
            raise ValueError(f"{path} has {layout!r:.300}, and {given[0]} has {first!r:.300}")
        first = layout
    assert first is not None
    soa, done = first.allocate(sum(counts)), 0
    for path, count in zip(given, counts, strict=True):
        end = done + count
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=[*first]):
                    part = soa[done : min(done + batch.num_rows, end)]
                    columns_of = {name: source(name, batch.column(name)) for name in first}
                    write_all(part, columns_of, fill)
                    done += batch.num_rows
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read: {error!s:.200}") from None
        if done != end:
            raise ValueError(f"{path} has {count} rows by its own word, and gave {done - end} more")
    return soa


_ROWS = 1 << 16
"""Of a Parquet file that are read at a time."""


def _needed(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError('pyarrow is not installed: pip install "soaview[arrow]"') from None
