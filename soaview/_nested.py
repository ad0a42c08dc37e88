"""Blocks in blocks: where each layout lies, and row counts in mappings of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ._fields import listed, no_such, shown
from ._layout import Layout

MAX_BLOCKS = 65_536
"""Layouts in blocks, however deep they are."""

MAX_DEPTH = 16
"""Blocks in blocks."""


class Leaf(NamedTuple):
    """A layout in blocks.

    Attributes:
        path: the blocks' names that lead to it.
        layout: the fields.
        rows: how many.
        first: byte of the whole buffer at which it starts.
        nbytes: how many there are.
    """

    path: tuple[str, ...]
    layout: Layout
    rows: int
    first: int
    nbytes: int

    @property
    def name(self) -> str:
        """For a person."""
        return ".".join(map(shown, self.path))


def leaves(
    blocks: Mapping[str, Any], rows: Mapping[str, Any], path: tuple[str, ...] = (), first: int = 0
) -> Iterator[Leaf]:
    """The layouts in blocks, in memory order, for row counts that `row_counts` has given."""
    for name, block in blocks.items():
        if isinstance(block, Layout):
            nbytes = block.nbytes(rows[name])
            yield Leaf((*path, name), block, rows[name], first, nbytes)
            first += nbytes
        else:
            for leaf in leaves(block, rows[name], (*path, name), first):
                yield leaf
                first = leaf.first + leaf.nbytes


def layouts_in(blocks: Mapping[str, Any]) -> Iterator[Layout]:
    """The layouts in blocks, in memory order."""
    for block in blocks.values():
        if isinstance(block, Layout):
            yield block
        else:
            yield from layouts_in(block)


def measured(blocks: Mapping[str, Any]) -> tuple[int, int]:
    """How many blocks lie in each other, and how many layouts there are.

    Raises:
        ValueError: too many, as when many names stand for one thing, again and again.
    """
    nested = [block for block in blocks.values() if not isinstance(block, Layout)]
    depth = 1 + max((block.depth for block in nested), default=0)
    count = len(blocks) - len(nested) + sum(block.count for block in nested)
    if depth > MAX_DEPTH or count > MAX_BLOCKS:
        raise ValueError(
            f"{count} layouts in blocks {depth} deep are too many; at most {MAX_BLOCKS} layouts, "
            f"and {MAX_DEPTH} blocks in each other"
        )
    return depth, count


def check_depth(description: Any) -> None:
    """Raise where a description of blocks goes too deep to be followed."""
    level = [description]
    for _ in range(MAX_DEPTH + 1):
        inner = [found.get("blocks") for found in level if isinstance(found, Mapping)]
        level = [b for blocks in inner if isinstance(blocks, Mapping) for b in blocks.values()]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} blocks lie in each other")


def row_counts(
    blocks: Mapping[str, Any],
    rows: Any,
    check: Callable[[object], int],
    path: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The row count of each block, checked; of blocks in it, a mapping.

    Raises:
        TypeError, ValueError: no mapping where there are blocks; what `check` refuses.
        KeyError: a count that is missing, or of no block.
    """
    where = f" of block {'.'.join(path)!r:.80}" if path else ""
    if not isinstance(rows, Mapping):
        raise TypeError(f"rows{where} must be a mapping from block to row count, got {rows!r:.60}")
    for name in rows:
        if not isinstance(name, str) or name not in blocks:
            raise KeyError(no_such("block", name, blocks))
    if missing := [".".join((*path, name)) for name in blocks if name not in rows]:
        raise KeyError(f"no row count for block {listed(map(repr, missing))}")
    found: dict[str, Any] = {}
    for name, block in blocks.items():
        count = rows[name]
        if not isinstance(block, Layout):
            found[name] = row_counts(block, count, check, (*path, name))
        elif type(count) is not int and isinstance(count, Mapping):  # the second takes longer
            raise TypeError(
                f"rows of block {'.'.join((*path, name))!r:.80} must be one integer, for it holds "
                f"no blocks, got {count!r:.60}"
            )
        else:
            found[name] = check(count)
    return found


def fixed(rows: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same row counts, in mappings that nobody can change."""
    return MappingProxyType({k: n if type(n) is int else fixed(n) for k, n in rows.items()})


def plain(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The same row counts, in dictionaries."""
    return {k: plain(n) if isinstance(n, Mapping) else n for k, n in rows.items()}
