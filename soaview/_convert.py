"""Numbers written as another dtype: only where each of them survives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._dtypes import numpy_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1 << 18
"""Rows that are looked at together: what that takes beside the result is bounded."""


def write_as(target: NDArray[Any], values: NDArray[Any], first: int) -> None:
    """Write `values`, which may round floats, and changes nothing else.

    Args:
        target: where; its dtype is the one wanted.
        values: of the same shape.
        first: the row of the first one, for the message.

    Raises:
        ValueError: the first value that would be another one.
    """
    if np.can_cast(values.dtype, target.dtype, "safe"):
        target[...] = values
        return
    for start in range(0, len(values) if values.ndim else 1, BLOCK):
        at = slice(start, start + BLOCK) if values.ndim else ...
        given, there = values[at], target[at]
        with np.errstate(all="ignore"):
            real = given.real if given.dtype.kind == "c" != there.dtype.kind else given
            np.copyto(there, real, casting="unsafe")
            lost = _lost(given, there)
        if lost.any():
            index = np.unravel_index(int(np.argmax(lost)), lost.shape)
            where = f" in row {first + start + int(index[0])}" if index else ""
            raise ValueError(
                f"{given[index]}{where} is no {numpy_name(target.dtype)}; "
                f"{_way_out(values, target.dtype)}"
            )


def _lost(given: NDArray[Any], there: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are others than were given, but for rounding."""
    if there.dtype.kind == "b":
        found = (given != 0) & (given != 1)
    elif there.dtype.kind in "iu":
        info = np.iinfo(there.dtype)
        low, end = int(info.min), int(info.max) + 1
        if given.dtype.kind in "biu":
            found = (given < low) | (given >= end)
        else:
            real = given.real
            whole = (real >= float(low)) & (real < float(end)) & (np.trunc(real) == real)
            found = ~(whole & np.isfinite(real)) | (given.imag != 0)
    else:
        found = np.isinf(there) & ~np.isinf(given)
        if there.dtype.kind != "c" and given.dtype.kind == "c":
            found = found | (given.imag != 0)
    return np.asarray(found)


def _way_out(values: NDArray[Any], dtype: np.dtype[Any]) -> str:
    kind, own = values.dtype.kind, numpy_name(values.dtype.newbyteorder("="))
    if kind == "c" and dtype.kind != "c":
        return f"take its real part first, or leave the column {own}"
    if kind not in "biu" and dtype.kind in "biu":
        return f"round or fill it first, as you mean it, or leave the column {own}"
    return f"leave the column {own}, or choose one that holds it"
