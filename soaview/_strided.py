"""Where elements lie in memory, in plain numbers, and the gate that all of them pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ._dtypes import INT64_MAX

Numbers = tuple[str, str, int, tuple[int, ...], tuple[int, ...], int]
"""What a `Strided` is, as a plain tuple: generated code makes these, for they cost less."""


class Strided(NamedTuple):
    """Elements at equal steps in memory.

    Attributes:
        name: of the tensor.
        dtype: such as `"float32"`.
        itemsize: bytes of an element.
        shape, strides, offset: in elements; `offset` counts from the buffer's first byte.
    """

    name: str
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @property
    def byte_offset(self) -> int:
        """`offset` in bytes."""
        return self.offset * self.itemsize


def check_bounds(views: Iterable[Numbers], nbytes: int) -> None:
    """Raise unless every view starts, and every element of it lies, inside `nbytes` bytes.

    DLPack carries no buffer size and NumPy's own check wraps at 2**64, so this is the only check
    between a wrong number and foreign memory: plain Python integers, no negative stride, and no
    number beyond int64 even where no element is touched. A view has as many strides as axes.
    """
    for name, _, itemsize, shape, strides, offset in views:
        if offset >= 0:
            last, axis = offset, 0
            for stride in strides:  # zip is slower
                count = shape[axis]
                axis += 1  # noqa: SIM113 - so is enumerate
                if count > 1 and stride > 0:
                    last += (count - 1) * stride
                elif not (
                    type(count) is int
                    and type(stride) is int
                    and 0 <= count <= INT64_MAX
                    and 0 <= stride <= INT64_MAX
                ):
                    break
            else:
                if 0 not in shape:
                    # A number that is no plain int has made `last` one of its own kind.
                    if type(last) is int and (last + 1) * itemsize <= nbytes:
                        continue
                elif (
                    type(offset) is int
                    and offset * itemsize <= nbytes
                    and max(*shape, *strides) <= INT64_MAX
                ):
                    continue
        raise ValueError(
            f"tensor {name!r}: shape {shape!r}, strides {strides!r} at offset {offset!r} "
            f"(elements of {itemsize} bytes) do not lie inside the buffer's {nbytes!r} bytes"
        )


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the axes.

    >>> is_dense((3, 2), (1, 3)), is_dense((3, 2), (1, 4))
    (True, False)
    """
    expected = 1
    if len(shape) != len(strides):
        raise ValueError(f"shape {shape} and strides {strides} have different numbers of axes")
    if 0 in shape:
        return True
    for stride, count in sorted(zip(strides, shape, strict=True)):
        if count > 1:
            if stride != expected:
                return False
            expected *= count
    return True
