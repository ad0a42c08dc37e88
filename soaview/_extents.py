"""In which allocations columns lie: memory that somebody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._frameworks import check_storage
from ._host import address_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Extent(NamedTuple):
    """Memory that an owner vouches for, in which an array lies.

    Attributes:
        first, end: its first byte, and its end.
        address: of the array's first element.
        writable: whether the owner allows it.
        owner: what holds it.
    """

    first: int
    end: int
    address: int
    writable: bool
    owner: object


def extent_of(name: str, array: NDArray[Any], firsts: dict[int, int]) -> Extent:
    """The whole allocation in which a column lies, as far as anybody vouches for it.

    `firsts` has the addresses of those that were met, for it takes a while to ask for one.

    Raises:
        BufferError: the array reaches out of it.
    """
    base: Any = array
    while True:
        below = base.base
        if not isinstance(below, np.ndarray):
            below = getattr(below, "base", None)  # what `as_strided` puts between
            if not isinstance(below, np.ndarray):
                break
        base = below
    owner, address = base.base, address_of(array)
    if owner is None:
        first = firsts.get(id(base)) if base is not array else address
        if first is None:
            first = firsts[id(base)] = address_of(base)
        found = Extent(first, first + base.nbytes, address, base.flags.writeable, base)
    elif isinstance(owner, memoryview) and isinstance(owner.obj, np.ndarray):
        found = extent_of(name, owner.obj, firsts)._replace(address=address)
    else:
        found = _vouched(name, base, owner, address)
    _, end = _span(array, address)
    if array.size and not (found.first <= address and end <= found.end):
        raise BufferError(
            f"column {name!r:.80} reaches from byte {address - found.first} to "
            f"{end - found.first} of its owner's {found.end - found.first}; bind an array that "
            f"lies in its memory"
        )
    return found


def _vouched(name: str, base: NDArray[Any], owner: Any, address: int) -> Extent:
    if hasattr(owner, "untyped_storage"):
        check_storage(owner, f"column {name!r:.80}")
        storage = owner.untyped_storage()
        first, nbytes = storage.data_ptr(), storage.nbytes()
        return Extent(first, first + nbytes, address, base.flags.writeable, base)
    held = isinstance(owner, memoryview)
    exporter: Any = owner.obj if held else owner
    try:
        whole = np.frombuffer(exporter, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        if not (held or isinstance(error, TypeError)):
            raise BufferError(
                f"column {name!r:.80} is in memory of {type(owner).__name__}, which does not "
                f"export it ({error}); bind it before it is closed"
            ) from None
        # No buffer, such as DLPack's capsule: it vouches for what it has handed out.
        return Extent(*_span(base, address_of(base)), address, base.flags.writeable, base)
    first = address_of(whole)
    return Extent(first, first + whole.size, address, whole.flags.writeable, whole)


def _span(array: NDArray[Any], address: int) -> tuple[int, int]:
    """Addresses of the first byte, and of the end, of an array with strides of any sign."""
    low = high = address
    for count, stride in zip(array.shape, array.strides, strict=True):
        low += min((count - 1) * stride, 0)
        high += max((count - 1) * stride, 0)
    return (low, high + array.itemsize) if array.size else (low, low)


def overlapping(extents: Mapping[int, Extent]) -> list[list[tuple[int, Extent]]]:
    """Which of them overlap: touching is not overlapping, nor is even spacing."""
    groups = [[pair] for pair in extents.items() if pair[1].first == pair[1].end]
    some = [pair for pair in extents.items() if pair[1].first < pair[1].end]
    end = -1
    for i, extent in sorted(some, key=lambda pair: pair[1][:2]):
        if extent.first >= end:
            groups.append([])
        groups[-1].append((i, extent))
        end = max(end, extent.end)
    # In the columns' order, which is the same for the next event's, whatever its addresses are.
    return sorted((sorted(group) for group in groups), key=lambda group: group[0][0])
