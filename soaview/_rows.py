"""Chosen rows of an SoA, and SoAs one after another: copies, column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._device import DeviceBuffer
from ._fields import Column, Scalar, difference
from ._soa import SoA
from ._spec import Value
from ._views import check_soa

if TYPE_CHECKING:
    from numpy.typing import NDArray


def take(soa: SoA, rows: Any) -> SoA:
    """`SoA.take`: check the rows, then allocate and fill."""
    index = row_numbers(rows, soa.rows)
    columns = _columns(soa, "take")
    made = soa.layout.allocate(len(index))
    for field, column in zip(made.layout.fields, columns, strict=True):
        if field.per_row:
            gather(column, index, made[field.name])
        else:
            made[Value(field.name)][...] = column
    return made


def concatenate(soas: Any) -> SoA:
    """The rows of several SoAs, one after another, in a new one: a copy, laid out as the first is.

    Args:
        soas: a list of SoAs on the host, slices and bound ones too, whose fields have the same
            names, dtypes and shapes, in the same order. A scalar must have the same value in all
            of them, bit by bit (or NaN), which it keeps.

    Raises:
        TypeError, ValueError: no such list; another field, by its number; a scalar that differs.
        BufferError: memory that is not the host's.

    >>> from soaview import Column, Layout
    >>> layout = Layout([Column("pt", "float32")])
    >>> concatenate([layout.pack({"pt": [1.0, 2.0]}), layout.pack({"pt": [3.0]})])["pt"]
    array([1., 2., 3.], dtype=float32)
    """
    soas = check_alike(soas)
    columns = [_columns(soa, "concatenate") for soa in soas]
    first = soas[0]
    for position, field in enumerate(first.layout.fields):
        if not field.per_row:
            check_same_scalar(field.name, [each[position] for each in columns])
    made: SoA = first.layout.allocate(sum(soa.rows for soa in soas))
    for field, *parts in zip(made.layout.fields, *columns, strict=True):
        if not field.per_row:
            made[Value(field.name)][...] = parts[0]
            continue
        target, done = made[field.name], 0
        for part in parts:
            target[done : done + len(part)] = part
            done += len(part)
    return made


def row_numbers(given: Any, count: int) -> NDArray[np.intp]:
    """Which of `count` rows are chosen: integers, of which -1 is the last row, or a mask.

    Raises:
        IndexError: a row that is not there, or a mask of another length.
        TypeError: anything else.

    >>> row_numbers([True, False, True], 3), row_numbers([-1, 0], 3)
    (array([0, 2]), array([-1,  0]))
    """
    try:
        found: NDArray[Any] = np.asanyarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"rows must be integers or a mask along one axis: {error}") from error
    if isinstance(found, np.ma.MaskedArray):
        raise TypeError("rows are a masked array, whose mask would be lost; pass .data")
    if isinstance(given, (list, tuple)) and not len(given):
        found = np.zeros(0, np.intp)
    if found.ndim != 1 or found.dtype.kind not in "biu":
        raise TypeError(
            f"rows must be integers or a mask along one axis, got {found.dtype} of shape "
            f"{found.shape}; row i alone is [i], and neighbouring rows are soa[a:b]"
        )
    if found.dtype.kind == "b":
        check_mask(len(found), count)
        return np.flatnonzero(found)
    if found.size:
        check_present(int(found.min()), int(found.max()), count)
    return found.astype(np.intp)


def check_mask(length: int, count: int) -> None:
    """Raise unless a mask has a value for each row."""
    if length != count:
        raise IndexError(f"the mask has {length} values, and the SoA has {count} rows")


def check_present(least: int, most: int, count: int) -> None:
    """Raise unless rows, the least and the most of which these are, are there."""
    for row in (least, most):
        if not -count <= row < count:
            raise IndexError(f"row {row} is not there: the SoA has {count} rows")


def gather(source: NDArray[Any], index: NDArray[np.intp], target: NDArray[Any]) -> None:
    """Put the source's rows of these numbers, which are there, into the target: in one pass."""
    if source.flags.c_contiguous and target.flags.c_contiguous:
        # With `mode="raise"`, the default, NumPy makes a copy first. Of rows that are there -1 is
        # the last in this one, too.
        np.take(source, index, axis=0, out=target, mode="wrap")
    elif source.ndim > 1:
        for position in range(source.shape[1]):
            gather(source[:, position], index, target[:, position])
    else:
        target[...] = source[index]


def check_alike(soas: Any) -> list[SoA]:
    """SoAs of the same fields, as a list.

    Raises:
        TypeError, ValueError: no list of SoAs, or none at all; fields that differ.
    """
    if not isinstance(soas, (list, tuple)):
        raise TypeError(f"soas must be a list of SoAs, got {type(soas).__name__}")
    if not soas:
        raise ValueError("soas is empty; without an SoA there are no fields")
    for number, soa in enumerate(soas):
        check_soa(soa)
        if differs := difference(_kinds(soa), _kinds(soas[0])):
            raise ValueError(f"soas[{number}] has other fields than soas[0]: {differs}")
    return list(soas)


def _kinds(soa: SoA) -> tuple[Column | Scalar, ...]:
    """The fields without what says where they lie, which is no matter to a copy."""
    return tuple([Column(f.name, f.dtype, f.shape) if f.per_row else f for f in soa.layout.fields])


def check_same_scalar(name: str, values: list[NDArray[Any]]) -> None:
    """Raise unless all SoAs have the same bits in a scalar, or NaN."""
    for number, value in enumerate(values):
        if not _same(value, values[0]):
            raise ValueError(
                f"scalar {name!r:.80} is {values[0].tolist()!r:.60} in soas[0] and "
                f"{value.tolist()!r:.60} in soas[{number}], and what is made has one; give all of "
                f"them one, soa[Value(name)] = value, or concatenate SoAs without it"
            )


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    if one.dtype.kind == "c":
        return _same(one.real, other.real) and _same(one.imag, other.imag)
    pairs = zip(one.ravel(), other.ravel(), strict=True)
    return all(a.tobytes() == b.tobytes() or (a != a and b != b) for a, b in pairs)


def _columns(soa: SoA, verb: str) -> list[NDArray[Any]]:
    """NumPy's view of each field, a scalar's of its one value."""
    if isinstance(soa.buffer.piece(0), DeviceBuffer):
        raise BufferError(
            f"the SoA is on {soa.device}, and NumPy reads the host's memory; {verb} of "
            f"soaview_torch or soaview_jax does this there"
        )
    return [soa[f.name if f.per_row else Value(f.name)] for f in soa.layout.fields]
