"""Columns that containers of others keep: frames, awkward records, datasets, tensor dictionaries.

Each is known by what its type offers, and nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACK = "layout.pack copies it"


def pairs_of(data: Any) -> Iterator[tuple[str, Any]] | None:
    """The columns of such a container, by name; None of what is none.

    Raises:
        TypeError, ValueError: while they are read: columns that it does not have in memory, or that
            do not have the same rows.
    """
    if hasattr(type(data), "data_vars"):  # xarray's
        return _variables(data)
    if _has_tensors(data):
        return _tensors(data, "")
    layout = getattr(data, "layout", None)  # awkward's
    return _records(layout, "") if getattr(layout, "is_record", False) else None


def why_none(data: Any) -> str:
    """What to do about a container that has no columns as it is; nothing of what is none."""
    layout = getattr(data, "layout", None)
    if hasattr(layout, "is_record"):
        return f": {_why_not(layout)}"
    if getattr(getattr(data, "dtype", None), "names", None):  # records of a file
        return ", which is not in memory; np.asarray(data) reads it"
    return ""


def within(value: Any) -> Any:
    """The array that a container's column has; else the value itself.

    Raises:
        TypeError: where there would be a copy.
    """
    if hasattr(type(value), "dims") and hasattr(type(value), "variable"):
        # To be asked would be to read a file; `_in_memory` says so before, if it is there.
        found = value.data if getattr(value.variable, "_in_memory", True) else None
        if found is None or value.data is not found:
            raise TypeError(
                "it is not in memory as an array; .load() of the variable or dataset reads it, or "
                "works it out; of an index, .to_numpy() is a copy"
            )
        return found
    layout = getattr(value, "layout", value)
    return _memory(layout) if hasattr(layout, "is_numpy") else value


def of_frame(value: Any, library: str) -> NDArray[Any]:
    """A column of pandas, polars or Arrow, where its memory can be had as it is."""
    if library == "pandas":
        if not isinstance(value.dtype, np.dtype):
            raise TypeError(f"pandas' {value.dtype} is more than plain memory; {PACK}")
        found: NDArray[Any] = value.to_numpy(copy=False)
        return found
    nulls = value.null_count() if callable(value.null_count) else value.null_count
    if nulls:
        raise ValueError(f"{nulls} nulls, and a column has a value in every row; fill or drop them")
    chunks = value.n_chunks() if library == "polars" else getattr(value, "num_chunks", 1)
    if chunks > 1:
        how = "rechunk()" if library == "polars" else "combine_chunks()"
        raise ValueError(f"it is in {chunks} chunks; {how} copies them into one, or {PACK}")
    try:
        if library == "polars":
            return np.asarray(value.to_numpy(allow_copy=False))
        one = value
        if hasattr(value, "num_chunks"):
            one = value.chunk(0) if chunks else value.combine_chunks()  # of no rows
        return np.asarray(one.to_numpy(zero_copy_only=True))
    except Exception as error:  # theirs are of many kinds
        raise TypeError(f"{library} gives no array over its memory ({error}); {PACK}") from error


def _variables(data: Any) -> Iterator[tuple[str, Any]]:
    along: Any = None
    for name, variable in data.data_vars.items():
        if variable.dims:
            along = along or (name, variable.dims[0])
            if variable.dims[0] != along[1]:
                raise ValueError(
                    f"column {name!r:.80} lies along {variable.dims[0]!r:.80}, and {along[0]!r:.80}"
                    f" along {along[1]!r:.80}; data.transpose({along[1]!r:.80}, ...) has views "
                    f"along it, and data[[names]] the variables that you want"
                )
        yield name, variable


def _has_tensors(data: Any) -> bool:
    """Whether it is a dictionary of tensors, as tensordict has it; a text there has no keys."""
    return hasattr(type(data), "batch_size") and hasattr(data, "keys") and any(data.keys())


def _tensors(data: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    # A dictionary that has a tensor gives the same one again; one that stacks them does not.
    for (name, value), (_, again) in zip(data.items(), data.items(), strict=True):
        if value is not again:
            raise TypeError(
                f"column {prefix + name!r:.80} is made anew whenever it is asked for; "
                f"data.contiguous() has it in memory, once"
            )
        if _has_tensors(value):
            yield from _tensors(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _records(layout: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in layout.fields:
        content = layout.content(name)
        if content.is_record:
            yield from _records(content, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", content


def _memory(layout: Any) -> Any:
    """The array that awkward's numbers lie in."""
    if layout.is_numpy and getattr(layout, "is_all_materialized", True):
        return layout.data
    if layout.is_regular:
        flat, size = _memory(layout.content), layout.size
        # Another axis at the front needs no copy, whatever the strides are.
        return flat[: len(layout) * size].reshape(len(layout), size, *flat.shape[1:])
    raise TypeError(_why_not(layout))


def _why_not(layout: Any) -> str:
    """Why awkward's array is no column, or no records, in memory of its own."""
    if layout.is_option:
        return "values may be missing; ak.fill_none or ak.drop_none, then ak.to_packed, copy it"
    if layout.is_indexed:
        return "its rows are chosen from other memory; ak.to_packed copies them"
    if layout.is_regular:
        return "its rows are lists of one length; bind its fields one by one, or ak.flatten it"
    if layout.is_list:
        return "it is jagged; ak.flatten has its values, and ak.num how many each row has"
    if layout.is_numpy and not getattr(layout, "is_all_materialized", True):
        return "it is read when it is needed; ak.materialize reads it"
    return f"awkward's {type(layout).__name__} is no memory of one dtype in rows of one shape"
