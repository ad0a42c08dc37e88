"""Several SoAs in one buffer, one laid after another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from ._buffer import Buffer, HostBuffer
from ._device import DeviceBuffer, buffer_of
from ._dtypes import check_capacity, check_rows
from ._fields import check_name, freeze, no_such, shown
from ._host import aligned_zeros
from ._json import Described, check_keys
from ._layout import Layout
from ._nested import check_depth, fixed, layouts_in, leaves, measured, plain, row_counts
from ._reduce import rebuild_soa, reduce_soa
from ._soa import SoA
from ._typed import Asked


@dataclass(frozen=True, slots=True, repr=False, eq=False, init=False)
class Blocks(Mapping[str, Any], Described):
    """Layouts by name, for SoAs that lie one after another in one buffer, each with its own rows.

    A block may be blocks itself: then row counts, and what `allocate` and `wrap` give, are mappings
    of the same shape. A block starts where the one before it ends, which is on an aligned byte.
    This is how the CMS experiment's SoA blocks lie
    (https://github.com/cms-sw/cmssw/tree/master/DataFormats/SoATemplate).

    Args:
        layouts: of the blocks, in memory order; all of one alignment. Each is a `Layout` or
            `Blocks`, 16 deep at most.

    Raises:
        TypeError, ValueError: no blocks, a bad name, something that is no layout, two alignments.

    >>> from soaview import Column
    >>> tracks = Layout([Column("pt", "float32")])
    >>> hits = Layout([Column("x", "float32"), Column("track", "int32")])
    >>> blocks = Blocks({"tracks": tracks, "hits": hits})
    >>> blocks.nbytes({"tracks": 10, "hits": 40})
    640
    >>> blocks.offset("hits", {"tracks": 10, "hits": 40})
    128
    >>> event = Blocks({"reco": blocks, "truth": tracks})
    >>> event.nbytes({"reco": {"tracks": 10, "hits": 40}, "truth": 5})
    768
    """

    layouts: Mapping[str, Any]
    alignment: int
    depth: int  # of blocks in each other
    count: int  # of layouts

    def __init__(self, layouts: Mapping[str, Layout | Blocks]) -> None:
        if not isinstance(layouts, Mapping):
            raise TypeError(f"blocks are a mapping from name to Layout, got {layouts!r:.60}")
        found: dict[str, Layout | Blocks] = {}
        for key, layout in layouts.items():
            name = check_name("block", key)
            if not isinstance(layout, (Layout, Blocks)):
                raise TypeError(f"block {name!r} must be a Layout or Blocks, got {layout!r:.60}")
            if name in found:  # strings of a kind that says they differ
                raise ValueError(f"block name {name!r:.80} stands twice; names must be unique")
            found[name] = layout
        if not found:
            raise ValueError("blocks need at least one layout")
        (first, one), *others = found.items()
        for name, layout in others:
            if layout.alignment != one.alignment:
                raise ValueError(
                    f"blocks need one alignment: {first!r} has {one.alignment}, {name!r} has "
                    f"{layout.alignment}"
                )
        depth, count = measured(found)
        freeze(self, layouts=MappingProxyType(found), alignment=one.alignment)
        freeze(self, depth=depth, count=count)

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str) or name not in self.layouts:
            raise KeyError(no_such("block", name, self.layouts))
        return self.layouts[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.layouts

    def __iter__(self) -> Iterator[str]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Blocks):
            return NotImplemented
        return list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.layouts.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, (dict(self.layouts),)

    def __repr__(self) -> str:
        return f"Blocks({dict(self.layouts)!r})"

    def nbytes(self, rows: Mapping[str, Any]) -> int:
        """Bytes of the whole buffer, at so many rows of each block."""
        return sum(leaf.nbytes for leaf in leaves(self, row_counts(self, rows, check_rows)))

    def offset(self, name: str, rows: Mapping[str, Any]) -> int:
        """Byte at which a block starts; of a block in others, count from where these do.

        Raises:
            KeyError: no such block.
        """
        self[name]
        found = leaves(self, row_counts(self, rows, check_rows))
        return next(leaf.first for leaf in found if leaf.path[0] == name)

    def describe(self, rows: Mapping[str, Any]) -> str:
        """The memory maps of the blocks, one after another; offsets count from a block's start."""
        maps = [
            f"{leaf.name}: from byte {leaf.first} on, {leaf.layout.describe(leaf.rows)}"
            for leaf in leaves(self, row_counts(self, rows, check_rows))
        ]
        return "\n\n".join(maps)

    def to_svg(self, rows: Mapping[str, Any], spec: Mapping[str, Any] | None = None) -> str:
        """The memory map as a drawing, as `Layout.to_svg` has it: all blocks, then one by one.

        Args:
            rows: of each block.
            spec: by block, the tensors that are drawn under it; not every block need be there.

        Raises:
            KeyError, TypeError, ValueError: as `Layout.to_svg`; no such block.
        """
        from ._draw import svg_of_blocks

        return svg_of_blocks(self, row_counts(self, rows, check_rows), spec)

    def _repr_html_(self) -> str:
        from ._notebook import html_of_blocks

        return html_of_blocks(self)

    def to_dict(self) -> dict[str, Any]:
        """A description that JSON can hold and `from_dict` turns back: each block's layout."""
        return {"blocks": {name: layout.to_dict() for name, layout in self.items()}}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Blocks:
        """The blocks that `to_dict` described.

        Raises:
            TypeError, ValueError: anything that is not exactly such a description.
        """
        blocks = check_keys("the description", description, {"blocks"}, set())["blocks"]
        if not isinstance(blocks, Mapping):
            raise TypeError(f"blocks must be a mapping from name to layout, got {blocks!r:.60}")
        check_depth(description)
        layouts: dict[str, Layout | Blocks] = {}
        for name, block in blocks.items():
            kind = cls if isinstance(block, Mapping) and "blocks" in block else Layout
            try:
                layouts[name] = kind.from_dict(block)
            except (TypeError, ValueError) as error:
                raise type(error)(f"block {name!r:.60}: {error}") from None
        return cls(layouts)

    def allocate(self, rows: Mapping[str, Any]) -> SoABlocks:
        """Zeroed SoAs in one buffer, aligned in memory.

        Raises:
            KeyError, TypeError, ValueError: a row count that is missing, or of no block, or bad.
            MemoryError: with the bytes that were needed.

        >>> from soaview import Column
        >>> blocks = Blocks({"tracks": Layout([Column("pt", "float32")])})
        >>> blocks.allocate({"tracks": 3})["tracks"]["pt"]
        array([0., 0., 0.], dtype=float32)
        """
        nbytes = self.nbytes(rows)
        try:
            return self.wrap(aligned_zeros(nbytes, self.alignment), rows)
        except MemoryError:
            raise MemoryError(f"blocks of {plain(rows)} rows need {nbytes} bytes") from None

    def wrap(self, buffer: object, rows: Mapping[str, Any]) -> SoABlocks:
        """SoAs over memory that already holds them: no byte is copied.

        Args:
            buffer: as `Layout.wrap` takes it.
            rows: of each block, as the buffer was laid out for.

        Raises:
            As `Layout.wrap`, and KeyError: a row count that is missing, or of no block.
        """
        counts = row_counts(self, rows, check_capacity)
        # Bytes; each block then wants the alignment that its own items need.
        asked = Asked([f for layout in layouts_in(self) for f in layout.fields], None, None)
        nbytes = sum([leaf.nbytes for leaf in leaves(self, counts)])
        return SoABlocks(self, counts, buffer_of(buffer, nbytes, 1, asked))


class SoABlocks(Mapping[str, Any]):
    """SoAs by name in one buffer, made by `Blocks.allocate` or `Blocks.wrap`.

    Where a block holds blocks, there is an `SoABlocks` in it: `soas["inner"]["tracks"]["pt"]`.

    Each of them is an SoA like any other. Pickles and copies are those of the whole buffer, and so
    are transfers to another device. To JAX it is a pytree, and so an argument of `jit`.

    >>> from soaview import Column
    >>> layout = Layout([Column("pt", "float32")])
    >>> event = Blocks({"tracks": layout, "hits": layout}).allocate({"tracks": 2, "hits": 3})
    >>> event["hits"]["pt"][:] = 1
    >>> event["tracks"]["pt"], event.buffer.root.view("float32").sum()
    (array([0., 0.], dtype=float32), np.float32(3.0))

    Attributes:
        layout: the Blocks.
        rows: of each block; where it holds blocks, a mapping.
    """

    __slots__ = ("__weakref__", "_buffer", "_soas", "layout", "rows")

    _buffer: HostBuffer | DeviceBuffer | None
    _soas: dict[str, Any]
    layout: Blocks
    rows: Mapping[str, Any]

    def __init__(
        self, layout: Blocks, rows: Mapping[str, Any], memory: HostBuffer | DeviceBuffer
    ) -> None:
        soas: dict[str, SoA | SoABlocks] = {}
        first = 0
        for name, block in layout.items():
            count, nbytes = rows[name], block.nbytes(rows[name])
            if isinstance(block, Blocks):
                soas[name] = SoABlocks(block, count, memory.part(first, nbytes, 1))
            else:
                part = memory.part(first, nbytes, block.itemsize)
                soas[name] = SoA(block, part, count, 0, count)
            first += nbytes
        freeze(self, layout=layout, rows=fixed(rows), _soas=soas, _buffer=memory)

    @classmethod
    def of(cls, layout: Blocks, soas: dict[str, Any], rows: Mapping[str, Any]) -> SoABlocks:
        """Blocks that do not lie in one buffer, as JAX and `replace` make them."""
        found = cls.__new__(cls)
        freeze(found, layout=layout, rows=fixed(rows), _soas=soas, _buffer=None)
        return found

    def replace(self, soas: Mapping[str, Any]) -> SoABlocks:
        """Other SoAs in place of some, which must have their layouts and row counts.

        Nothing is written: it is how blocks come out of `jit` that have been updated there.

        Raises:
            KeyError, TypeError, ValueError: no such block, or another layout or row count.
        """
        if not isinstance(soas, Mapping):
            raise TypeError(f"soas must be a mapping from block to SoA, got {soas!r:.60}")
        soas = dict(soas)
        for name, soa in soas.items():
            layout, rows = self.layout[name], self.rows[name]
            kind = SoABlocks if isinstance(layout, Blocks) else SoA
            if not isinstance(soa, kind):
                an = "SoABlocks" if kind is SoABlocks else "an SoA"
                raise TypeError(f"block {name!r}: expected {an}, got {type(soa).__name__}")
            if soa.layout != layout or soa.rows != rows:
                raise ValueError(f"block {name!r} has {rows} rows of {layout!r:.200}, got {soa!r}")
        return self.of(self.layout, {**self._soas, **soas}, self.rows)

    @property
    def piecewise(self) -> bool:
        """Whether they do not lie in one buffer."""
        return self._buffer is None

    @property
    def buffer(self) -> Buffer:
        """The memory of all blocks."""
        if self._buffer is None:
            raise BufferError(
                "these SoAs are not in one buffer, for JAX made them or some were replaced; "
                "copy.deepcopy puts them in one on the host"
            )
        return self._buffer

    @property
    def device(self) -> str:
        """Where the memory is."""
        return "+".join(sorted({name for soa in self.values() for name in soa.device.split("+")}))

    @property
    def readonly(self) -> bool:
        """Whether the memory refuses writes."""
        return any(soa.readonly for soa in self.values())

    def __getitem__(self, name: str) -> Any:
        self.layout[name]
        return self._soas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._soas)

    def __len__(self) -> int:
        return len(self._soas)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"blocks are immutable, and {name!r} cannot be set; see `replace`")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"blocks are immutable, and {name!r} cannot be deleted")

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TypeError("write through the view: soas[block][column][...] = values")

    def __copy__(self) -> SoABlocks:
        """The same memory once more."""
        if self._buffer is None:
            return self.of(self.layout, self._soas, self.rows)
        return SoABlocks(self.layout, self.rows, self._buffer)

    def __deepcopy__(self, memo: object) -> SoABlocks:
        """Memory of its own with the same values."""
        own = self.layout.allocate(self.rows)
        for name, soa in self.items():
            own[name].buffer.root[...] = copy.deepcopy(soa).buffer.root
        return own

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As layout, rows and the memory's bytes, which protocol 5 may send out of band."""
        soas = copy.deepcopy(self) if self._buffer is None else self
        return reduce_soa(SoABlocks, self.layout, plain(self.rows), soas.buffer.root, protocol)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if hasattr(self, "layout"):
            raise AttributeError("blocks are immutable, and their state cannot be set again")
        found = rebuild_soa(state)
        SoABlocks.__init__(self, found.layout, found.rows, found.buffer)

    def describe(self) -> str:
        """The memory maps of the blocks, as `Blocks.describe` gives them."""
        return self.layout.describe(self.rows)

    def _repr_html_(self) -> str:
        from ._notebook import html_of_blocks

        return html_of_blocks(self)

    def __repr__(self) -> str:
        return f"SoABlocks({', '.join(f'{shown(name)}: {soa!r}' for name, soa in self.items())})"
