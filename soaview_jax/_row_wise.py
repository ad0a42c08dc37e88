"""Functions that treat each row alone: row counts go up to a capacity, which is compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from soaview import Value, View
from soaview.adapter import Matches, Pair, Work, numpy_dtype, views_or_gathers

from ._arrays import check_width
from ._settings import x64

_LEAST = 256

_finfo: Any = jnp.finfo


def capacity_of(rows: int) -> int:
    """The next power of two, from 256 on: XLA compiles for each of these once."""
    return max(_LEAST, 1 << (rows - 1).bit_length())


def check_mode(row_wise: object) -> None:
    """Raise for no mode that there is."""
    if row_wise is not False and row_wise is not True and row_wise != "verify":
        raise TypeError(f"row_wise must be False, True or 'verify', got {row_wise!r:.60}")


def check_row_wise(row_wise: object, task: Work) -> None:
    """Raise unless all rows go together, through the host.

    Raises:
        TypeError: no mode that there is.
        ValueError: a scalar as an output; SoAs of other row counts, or on a device.
    """
    check_mode(row_wise)
    if row_wise is False:
        return
    first = task.outputs[0][0]
    for _, spec in task.outputs:
        for name, entry in spec.items():
            if isinstance(entry, Value):
                raise ValueError(
                    f"tensor {name!r} is one value for the whole SoA, and row_wise= is for "
                    f"functions that treat each row alone; leave it out"
                )
    for soa, _ in (*task.inputs, *task.outputs):
        if soa.device != "cpu":
            raise ValueError(
                f"row_wise= copies rows on the host, and {soa!r:.200} is on {soa.device}; leave it "
                f"out"
            )
    for number in range(min(task.steps, 2)):
        both = (*task.inputs_of(number), *task.outputs_of(number))
        rows = task.outputs_of(number)[0][0].rows
        other = next((soa for soa, _ in both if soa.rows != rows), None)
        if other is not None:
            raise ValueError(
                f"row_wise= is for SoAs of one row count, but {first!r:.200} has {rows} rows where "
                f"{other!r:.200} has {other.rows}; leave it out, close over the other one's "
                f"arrays, or give each a fixed capacity and mask its rows, soaview_jax.mask"
            )


def padded(pairs: Sequence[Pair], capacity: int, *, extreme: bool = False) -> list[NDArray[Any]]:
    """The pairs' arrays, copied, with the rows last, so that columns stay columns.

    Args:
        pairs: SoAs on the host, and their specs.
        capacity: how many rows there are then; those that no SoA has are zero.
        extreme: rather larger and smaller than all others, to find out whether a function looks
            at them.
    """
    made: list[NDArray[Any]] = []
    for soa, spec in pairs:
        for view, entry in zip(views_or_gathers(soa, spec), spec.values(), strict=True):
            if not x64():
                check_width(view)
            if isinstance(entry, Value):
                assert isinstance(view, View)
                made.append(view.numpy().copy())
                continue
            rows, *element = view.shape
            array = np.zeros((*element, capacity), numpy_dtype(view.dtype_name))
            if isinstance(view, View) or not view.aligned:
                array[..., :rows] = np.moveaxis(view.numpy(), 0, -1)
            else:
                for column, part in zip(array, view.parts, strict=True):
                    column[..., :rows] = np.moveaxis(part.numpy(), 0, -1)
            if extreme:
                array[..., rows:], array[..., -1] = _beyond(array[..., :rows])
            made.append(array)
    return made


def _beyond(array: NDArray[Any]) -> tuple[Any, Any]:
    """Numbers larger and smaller than all of these, as far as the dtype has such."""
    if array.dtype == bool:
        return True, False
    if array.dtype.kind in "iu":
        info = np.iinfo(array.dtype)
        return info.max, info.min
    size = np.abs(array).astype(np.float64)
    most = size.max(initial=1, where=np.isfinite(size))
    most = 2 * min(most, float(_finfo(array.dtype).max) / 2)
    return most, -most


def check_same(outputs: Sequence[Pair], one: Matches[Any], other: Matches[Any]) -> None:
    """Raise unless results with other rows beside them are the same, but for rounding.

    Args:
        outputs: SoAs and their specs.
        one: arrays for each, as `matched` gives them.
        other: likewise.

    Raises:
        ValueError: naming the first one that is not.
    """
    found = iter(zip(one, other, strict=True))
    for soa, spec in outputs:
        for name in spec:
            a, b = (np.asarray(values) for _, values in next(found))
            if jnp.issubdtype(a.dtype, jnp.inexact):
                near = float(_finfo(a.dtype).eps) ** 0.5
                wide = np.complex128 if a.dtype.kind == "c" else np.float64
                same = np.isclose(a.astype(wide), b.astype(wide), near, near, equal_nan=True)
            else:
                same = a == b
            if not same.all():
                wrong = int((~same).reshape(soa.rows, -1).any(1).sum())
                raise ValueError(
                    f"tensor {name!r}: {wrong} of {soa.rows} rows have other values when other "
                    f"rows lie beyond them: fn does not treat each row alone; leave row_wise= out"
                )
