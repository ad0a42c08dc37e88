"""Rows that belong to events: which offsets, or counts, may cut them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._dtypes import INT64_MAX

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_one_given(offsets: object, counts: object) -> None:
    """Raise unless one of the two is given, and the other one is None.

    Raises:
        TypeError: both or neither.

    >>> check_one_given(None, [2, 0, 1])
    """
    if (offsets is None) == (counts is None):
        raise TypeError("pass either offsets, one more than there are events, or counts=")


def host_offsets(what: str, given: Any, rows: int) -> NDArray[np.int64]:
    """Offsets or counts that are on the host, checked: sums of the counts are exact in int64.

    Offsets must still pass `check_offsets`.

    Args:
        what: `"offsets"` or `"counts"`.
        given: integers, whatever NumPy takes for an array.
        rows: of the SoA.

    Raises:
        TypeError: no integers, not along one axis, or with a mask.
        ValueError: no offsets at all; numbers that are not among the rows.

    >>> host_offsets("counts", [2, 0, 1], rows=3)
    array([2, 0, 1])
    """
    try:
        given = np.asanyarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{what} must be integers along one axis: {error}") from error
    if isinstance(given, np.ma.MaskedArray):
        raise TypeError(f"{what} are a masked array, whose mask would be lost; pass .data")
    found: NDArray[Any] = np.asarray(given)
    check_integers(what, found.shape, not found.size or found.dtype.kind in "iu", found.dtype)
    if found.size:
        check_among_rows(what, rows, found, int(found.min()), int(found.max()))
    return found.astype(np.int64)


def check_integers(what: str, shape: tuple[int, ...], integer: bool, dtype: object) -> None:
    """Raise unless offsets or counts are integers along one axis.

    Args:
        what: `"offsets"` or `"counts"`.
        shape: theirs.
        integer: whether they are integers, bools not among them.
        dtype: theirs, for the message.

    Raises:
        TypeError: they are not.
        ValueError: no offsets at all.

    >>> check_integers("counts", (2, 3), True, "int64")
    Traceback (most recent call last):
    TypeError: counts must be integers along one axis, got int64 of shape (2, 3)
    """
    if len(shape) != 1 or not integer:
        raise TypeError(f"{what} must be integers along one axis, got {dtype} of shape {shape}")
    if what == "offsets" and shape == (0,):
        raise ValueError("offsets are empty: there is one more than there are events")


def check_among_rows(what: str, rows: int, numbers: Any, least: int, most: int) -> None:
    """Raise unless offsets or counts lie among the rows, so that int64 holds what is made of them.

    Args:
        what: `"offsets"` or `"counts"`.
        rows: of the SoA.
        numbers: an array or a tensor with `tolist`, which is asked for the sum of counts only
            where that may be more than int64 holds.
        least: of the numbers.
        most: likewise.

    Raises:
        ValueError: a number, or the sum of all counts, is not among the rows.

    >>> check_among_rows("counts", 3, [2, 4], least=2, most=4)
    Traceback (most recent call last):
    ValueError: counts must be between 0 and the SoA's 3 rows, got 4; are they those of another SoA?
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
    """Raise unless events start at row 0, follow each other, and end with the last row.

    Args:
        rows: of the SoA.
        first: of the offsets.
        last: likewise.
        shortest: the smallest step from one offset to the next.
        all_rows: whether every row must belong to an event; or else rows may be left at the end.

    Raises:
        ValueError: naming what is wrong.

    >>> check_offsets(3, first=0, last=2, shortest=0, all_rows=True)
    Traceback (most recent call last):
    ValueError: the events have 2 rows, the SoA has 3; take its slice, soa[:2]
    """
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
