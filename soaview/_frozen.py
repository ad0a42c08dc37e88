"""What an SoA is made of, and that it does not change."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NoReturn

from ._buffer import Buffer

if TYPE_CHECKING:
    from ._layout import Layout


class Unfrozen:
    """An SoA that is being made."""

    __slots__ = ("__weakref__", "adapter_cache", "buffer", "capacity", "layout", "rows", "start")

    layout: Layout
    buffer: Buffer
    capacity: int
    start: int
    rows: int
    adapter_cache: dict[Hashable, Any]


class Frozen(Unfrozen):
    """An SoA that is made: its attributes stay."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(
            f"an SoA is immutable, and {name!r} cannot be set; its values are written through "
            f"soa[name][...] = values, another row count or layout is another SoA"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"an SoA is immutable, and {name!r} cannot be deleted")
