"""Arrays of an event loop: new ones in each call, like those that were bound before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ._bound import PLAIN, Allocations
from ._buffer import WORDS
from ._compile import compiled
from ._dtypes import BYTE
from ._host import address_of
from ._soa import SoA, new_soa

if TYPE_CHECKING:
    from ._bound import BoundFields

Make = Callable[[Any], "SoA | None"]
"""What makes an SoA of a dictionary of arrays like those that were bound last."""

_OWNERS: dict[tuple[str, ...], Make] = {}
"""By columns' names; of arrays that are allocations."""

_PARTS: dict[tuple[str, ...], Make] = {}
"""The same of views of such arrays."""

_LAST: dict[tuple[str, ...], BoundFields] = {}
"""Where such views were, the last time."""

_RECORDS: dict[int, tuple[np.dtype[Any], np.dtype[Any], Any]] = {}
"""Of records, by their dtype's identity: that dtype, words to read them as, and fields."""


def again(data: Any) -> SoA | None:
    """An SoA of arrays, or records, like some that were bound before; None of anything else.

    Asking each array for its address takes longer than all the rest, and what owns its memory need
    not be asked.
    """
    if type(data) is dict:
        names = (*data,)
        run = _OWNERS.get(names)
        made = None if run is None else run(data)
        if made is None:
            run = _PARTS.get(names)
            made = None if run is None else run(data)
        return made
    if type(data) is not np.ndarray:
        return None
    known = _RECORDS.get(id(data.dtype))
    if known is None or data.flags.num & PLAIN != PLAIN or data.ndim != 1:
        return None
    _, words, fields = known
    root = data.view(words)
    # Of records without padding the flag says nothing about where they start.
    if not root.size or address_of(root) % 16:
        return None
    return new_soa(fields, Allocations.of((root,), root.nbytes), len(data), 0, len(data))


def learn(data: Any, layout: Any) -> None:
    """Keep what was found of some rows, if all of it is in memory that arrays of NumPy's own."""
    if type(data) is np.ndarray:
        if data.flags.num & PLAIN == PLAIN and data.ndim == 1 and address_of(data) % 16 == 0:
            widest = max(field.itemsize for field in layout.fields)
            size = next(n for n in (8, 4, 2, 1) if n <= widest and data.itemsize % n == 0)
            _remember(_RECORDS, id(data.dtype), (data.dtype, WORDS[size], layout))
        return
    if type(data) is not dict or len({*map(id, data.values())}) < len(data):
        return
    arrays = [*data.values()]
    if not all(type(array) is np.ndarray and array.ndim for array in arrays):
        return
    # Of items of 16 bytes NumPy's flag is content with 8.
    if all(array.flags.num & PLAIN == PLAIN and array.itemsize <= 8 for array in arrays):
        _remember(_OWNERS, (*data,), _of_owners(layout, arrays))
    elif all(type(array.base) is np.ndarray for array in arrays):
        bases: list[Any] = [array.base for array in arrays]
        plain = all(base.flags.num & PLAIN == PLAIN for base in bases)
        if not plain or any(address_of(base) % 16 for base in bases):
            return
        # Where they lie elsewhere in each event a function for each would not pay.
        last = _LAST.get((*data,))
        if last is None or last is not layout:
            _remember(_LAST, (*data,), layout)
        else:
            _remember(_PARTS, (*data,), _of_parts(last, arrays))


def _of_owners(layout: BoundFields, arrays: list[Any]) -> Make:
    """What makes an SoA of such arrays that are allocations, of any row count."""
    named = _names(arrays)
    flags = " & ".join(f"{a}.flags.num" for a in named)
    shapes = [
        f"{a}.shape == ({', '.join(['rows', *map(str, field.shape)])},)"
        for a, field in zip(named, layout.fields, strict=True)
    ]
    lines = [
        f"if {flags} & {PLAIN} != {PLAIN}: return None",
        "rows = a0.shape[0] if a0.shape else 0",
        f"if not rows or not ({' and '.join(shapes)}): return None",
        f"if len({{{', '.join(f'id({a})' for a in named)}}}) < {len(named)}: return None",
        f"memory = allocations(({', '.join(named)},), rows * {layout.nbytes(1)})",
        "return new_soa(layout, memory, rows, 0, rows)",
    ]
    return _compiled(layout, arrays, lines)


def _of_parts(layout: BoundFields, arrays: list[Any]) -> Make:
    """What makes an SoA of such views of arrays, of this row count, and at these distances."""
    bases: dict[int, str] = {}
    lines, roots = [], []
    flags = f"{0x100 | 0x400}"  # aligned, writable
    for a, array in zip(_names(arrays), arrays, strict=True):
        base = bases.get(id(array.base))
        if base is None:
            base = bases[id(array.base)] = f"b{len(bases)}"
            lines += [
                f"{base} = {a}.base",
                f"if type({base}) is not ndarray or {base}.flags.num & {PLAIN} != {PLAIN}"
                f" or {base}.nbytes != {array.base.nbytes}: return None",
                f"at_{base} = address_of({base})",
                f"if at_{base} % 16: return None",
            ]
            roots.append(f"{base}.reshape(-1).view(byte)")
        offset = address_of(array) - address_of(array.base)
        lines += [
            f"if {a}.shape != {array.shape} or {a}.strides !="
            f" {array.strides} or {a}.flags.num & {flags} != {flags}: return None",
            f"if address_of({a}) - at_{base} != {offset}: return None",
        ]
    if len(bases) > 1:
        lines.append(
            f"if len({{{', '.join(f'id({b})' for b in bases.values())}}}) < {len(bases)}:"
            f" return None"
        )
    nbytes = sum({id(array.base): array.base.nbytes for array in arrays}.values())
    rows = len(arrays[0])
    lines += [
        f"memory = allocations(({', '.join(roots)},), {nbytes})",
        f"return new_soa(layout, memory, {rows}, 0, {rows})",
    ]
    return _compiled(layout, arrays, lines)


def _names(arrays: list[Any]) -> list[str]:
    return [f"a{i}" for i in range(len(arrays))]


def _compiled(layout: BoundFields, arrays: list[Any], lines: list[str]) -> Make:
    """What looks first whether a dictionary has arrays of these dtypes."""
    named = _names(arrays)
    names: dict[str, Any] = {f"{a}_dtype": x.dtype for a, x in zip(named, arrays, strict=True)}
    names |= {"allocations": Allocations.of, "address_of": address_of, "byte": BYTE}
    names |= {"layout": layout, "ndarray": np.ndarray, "new_soa": new_soa}
    first = [
        f"{', '.join(named)}, = data.values()",
        f"if not ({' and '.join(f'type({a}) is ndarray' for a in named)}): return None",
        f"if not ({' and '.join(f'{a}.dtype is {a}_dtype' for a in named)}): return None",
    ]
    return compiled("data", first + lines, names)


def _remember(known: dict[Any, Any], key: Any, found: Any) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = found


_MOST = 256
