"""Rows that belong to events: which offsets, or counts, may cut them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._dtypes import INT64_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_one_given(offsets: object, counts: object) -> None:
    """One of the two is given."""
    if (offsets is None) == (counts is None):
        raise TypeError("pass either offsets, one more than there are events, or counts=")


def host_offsets(what: str, given: Any, rows: int) -> NDArray[np.int64]:
    """Offsets or counts that are on the host, checked: sums of the counts are exact in int64."""
    try:
        given = np.asanyarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} must be integers along one axis: {error}") from error
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{what} are a masked array, whose mask would be lost; pass .data")
    found: NDArray[Any] = np.asarray(given)
    check_kind(what, found.shape, not found.size or found.dtype.kind in "iu", found.dtype)
    if found.size:
        check_numbers(what, rows, found, int(found.min()), int(found.max()))
    return found.astype(np.int64)


def check_kind(what: str, shape: tuple[int, ...], integer: bool, dtype: object) -> None:
    """Offsets and counts are integers, along one axis."""
    if len(shape) != 1 or not integer:
        raise TypeError(f"{what} must be integers along one axis, got {dtype} of shape {shape}")
    if what == "offsets" and shape == (0,):
        raise ValueError("offsets are empty: there is one more than there are events")


def check_numbers(what: str, rows: int, numbers: Any, least: int, most: int) -> None:
    """They lie among the rows, and so do the counts together: int64 holds what is made of them.

    Of the numbers themselves, an array or a tensor, only their sum is taken, where it may be more
    than int64 holds.
    """
    for number in (least, most):
        if not 0 <= number <= rows:
            raise ValueError(
                f"{what} must be between 0 and the SoA's {rows} rows, got {number}; are they those "
                f"of another SoA?"
            )
    if what == "counts" and len(numbers) * most > INT64_MAX:
        check_offsets(rows, 0, sum(numbers.tolist()), 0, all_rows=False)


def check_offsets(rows: int, first: int, last: int, shortest: int, *, all_rows: bool) -> None:
    """Events start at row 0, follow each other, and end with the last row (or before it)."""
    if first != 0:
        raise ValueError(
            f"offsets must start at row 0, got {first}; if these are counts, pass counts="
        )
    if shortest < 0:
        raise ValueError(f"offsets must not decrease, got a step of {shortest}")
    if last > rows:
        raise ValueError(
            f"the events have {last} rows, the SoA has {rows}; are they those of another SoA?"
        )
    if all_rows and last < rows:
        raise ValueError(
            f"the events have {last} rows, the SoA has {rows}; take its slice, soa[:{last}]"
        )
