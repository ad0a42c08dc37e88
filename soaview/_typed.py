"""What memory says of itself, beside where it is: believed where it is a layout's, or refused."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ._fields import Column, Scalar

_BYTES = ("uint8", "int8")
_KINDS = {"b": "int", "h": "int", "i": "int", "l": "int", "q": "int", "n": "int"}
_KINDS |= {code.upper(): "uint" for code in _KINDS}
_KINDS |= {"?": "bool", "e": "float", "f": "float", "d": "float", "Zf": "complex", "Zd": "complex"}


class Asked(NamedTuple):
    """What a layout, or blocks of them, ask of memory that says more than that it is bytes.

    Attributes:
        fields: all of them.
        table: components, and padded rows of each, where the memory is one matrix of columns.
        rows: that there are; None of blocks.
    """

    fields: Iterable[Column | Scalar]
    table: tuple[int, int] | None
    rows: int | None


def asked_of(layout: Any, rows: int) -> Asked:
    """What a layout asks of memory that says what it holds, for `rows` rows."""
    first, components = layout.fields[0], sum(f.components for f in layout.fields)
    plain = len(layout.sizes) == 1 and not any(f.interleaved for f in layout.fields)
    width = layout.pitch(first.name, rows) // first.itemsize
    return Asked(layout.fields, (components, width) if plain else None, rows)


def numpy_says(dtype: np.dtype[Any]) -> str | None:
    """The dtype's name; None for raw memory.

    Raises:
        TypeError: Python objects, or records.
        ValueError: numbers in a foreign byte order.
    """
    if dtype.hasobject:
        raise TypeError(f"the buffer holds Python objects (dtype {dtype!s:.60}), not plain memory")
    if dtype.names is not None:
        raise _records(str(dtype))
    if not dtype.isnative:
        raise _byte_order(dtype.str)
    return None if dtype.type is np.void else str(dtype.name)


def format_says(text: str, itemsize: int) -> str | None:
    """As `numpy_says`, of a buffer's format in the words of Python's `struct`; of `c`, None."""
    found = re.fullmatch("([@=<>!]?)(Z?.)", text)
    if found is None:
        raise _records(text)
    order, code = found.groups()
    if code in "OP":
        raise TypeError(f"the buffer holds Python objects or pointers ({text!r}), no plain memory")
    if code == "c":
        return None
    kind = _KINDS.get(code)
    # Of records and unions that are packed ctypes tells the format of a byte, and the whole size.
    one = struct.calcsize(code[-1]) * len(code) if kind else itemsize
    if itemsize != one:
        raise _records(f"items of {itemsize} bytes")
    if itemsize > 1 and order in (("<",) if sys.byteorder == "big" else (">", "!")):
        raise _byte_order(text)
    name = f"format {text!r:.20}" if kind is None else kind
    return name if kind in (None, "bool") else f"{name}{8 * itemsize}"


def _records(what: str) -> TypeError:
    return TypeError(
        f"the buffer holds records ({what:.60}), whose fields lie row by row, and a layout has "
        f"them column by column; pack the columns, layout.pack({{name: records[name] ...}}), or "
        f"pass plain bytes, its uint8 view, if records are but how this layout's memory was typed"
    )


def _byte_order(what: str) -> ValueError:
    return ValueError(
        f"the buffer's numbers ({what:.60}) are not in this machine's byte order; convert them "
        f"first, array.astype(array.dtype.newbyteorder('=')), or pack the columns, which does"
    )


def by_columns(
    asked: Asked, says: str | None, shape: tuple[int, ...], *, c: bool, fortran: bool
) -> bool:
    """Whether memory of this dtype and shape is read column by column; in row order otherwise.

    Args:
        asked: what the layout asks.
        says: the dtype's name; None for raw memory.
        shape: of the memory, as its owner has it.
        c: whether the last axis is the fastest in memory, without gaps.
        fortran: whether the first one is.

    Raises:
        TypeError: a field has another dtype; one-byte integers are bytes, which every field may be.
        ValueError: a table in another order than the layout's, or one that does not tell.
    """
    if says is None:
        return False
    for field in asked.fields:
        if field.dtype != says:
            if says in _BYTES:
                return False
            raise TypeError(
                f"the buffer holds {says}, but field {field.name!r:.80} is {field.dtype}; values "
                f"of another dtype are converted first, or go through layout.pack; only memory "
                f"that was written as this layout goes as plain bytes, its uint8 view"
            )
    if sum(n != 1 for n in shape) < 2 or 0 in shape or not (c or fortran):
        return False
    table = asked.table
    if len(shape) == 2 and table is not None:
        if fortran and shape == table[::-1]:
            return True
        if c and shape == table and table[0] != table[1]:
            return False
    raise ValueError(_table(asked, shape, c))


def _table(asked: Asked, shape: tuple[int, ...], c: bool) -> str:
    """Why a table is not taken, and the way out."""
    flat = "reshape(-1)" if c else "T.reshape(-1)"
    if asked.table is None or len(shape) != 2:
        return (
            f"the buffer has {len(shape)} axes, {shape}, and this layout's memory is no such "
            f"table; if it is in the layout's order all the same, pass it as one axis, .{flat}"
        )
    components, width = asked.table
    whole = f"this layout's memory is its {components} columns of {width} rows, padding included"
    by_row, by_column = _packed(asked, "table[:, {}]"), _packed(asked, "table[{}]")
    if c and shape == asked.table:
        return (
            f"a square table, {shape}, does not tell whether its rows are the layout's columns; "
            f"if they are, pass it as one axis, .reshape(-1); if not, pack it: {by_row}"
        )
    if components in shape:
        number, pack = (0, by_row) if shape[1] == components else (1, by_column)
        rows = f"; it has {shape[number]} rows, and rows={asked.rows}"
        return (
            f"the table's shape is {shape}, and {whole}, one after another"
            f"{rows if shape[number] not in (asked.rows, width) else ''}; pack it: {pack}"
        )
    return (
        f"the table's shape is {shape}, and {whole}; if it is in the layout's order all the same, "
        f"pass it as one axis, .{flat}"
    )


def _packed(asked: Asked, part: str) -> str:
    """The call of `pack` that takes the table's first columns."""
    parts: list[str] = []
    first, transposed = 0, part.startswith("table[{")
    for field in asked.fields:
        if len(parts) == 3 or len(field.shape) > 1:
            parts.append("...")
            break
        last = first + field.components
        where = part.format(f"{first}:{last}" if field.shape else first)
        parts.append(f"{field.name!r:.40}: {where}{'.T' if transposed and field.shape else ''}")
        first = last
    return f"layout.pack({{{', '.join(parts)}}})"
