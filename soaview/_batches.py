"""An SoA's rows in slices, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from ._soa import SoA


class Batches(Sequence[SoA]):
    """An SoA's rows in slices, one after another; `SoA.batches` makes them."""

    __slots__ = ("_firsts", "_size", "_soa")

    def __init__(self, soa: SoA, size: int, drop_last: bool) -> None:
        self._soa = soa
        self._size = size
        self._firsts = range(0, soa.rows // size * size if drop_last else soa.rows, size)

    def __len__(self) -> int:
        return len(self._firsts)

    @overload
    def __getitem__(self, index: int) -> SoA: ...
    @overload
    def __getitem__(self, index: slice) -> list[SoA]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._soa[first : first + self._size] for first in self._firsts[index]]
        try:
            first = self._firsts[index]
        except IndexError:
            raise IndexError(f"there are {len(self)} batches, got index {index}") from None
        return self._soa[first : first + self._size]

    def __repr__(self) -> str:
        return f"Batches({len(self)} of {self._size} rows: {self._soa!r})"
