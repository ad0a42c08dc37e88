"""Memory of the host: the bytes of whatever can be wrapped, and zeroed ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._dtypes import INT64_MAX
from ._typed import Asked, by_columns, format_says, numpy_says

if TYPE_CHECKING:
    from numpy.typing import NDArray


def aligned_zeros(nbytes: int, alignment: int) -> NDArray[np.uint8]:
    """Zeroed memory that starts on a multiple of `alignment`, and of what XLA wants.

    Raises:
        MemoryError: there is not so much.
    """
    alignment = max(alignment, 64)  # XLA aliases addresses that are multiples of 64
    try:
        raw = np.zeros(nbytes + alignment, np.uint8)
    except ValueError as error:  # which says that the size is beyond int64
        raise MemoryError(*error.args) from None
    first = -address_of(raw) % alignment
    return raw[first : first + nbytes]


class ArrayInterface:
    """Host memory as NumPy takes it: `memory` is let go before `owner` is."""

    def __init__(
        self, address: int, nbytes: int, readonly: bool, memory: object, owner: object = None
    ) -> None:
        if nbytes > INT64_MAX:
            raise ValueError(f"no memory of {nbytes} bytes is at address {address:#x}")
        self.memory = memory
        self.owner = owner
        data = {"data": (address, readonly), "shape": (nbytes,)}
        self.__array_interface__ = {**data, "typestr": "|u1", "version": 3}


def address_of(array: NDArray[Any]) -> int:
    """Of the first byte."""
    return int(array.__array_interface__["data"][0])


def holding_the_export(root: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes, also holding the export of a buffer that NumPy was only pointed at.

    `np.ndarray(buffer=...)`, and so `np.memmap`, does not hold it.
    """
    base: Any = root
    while isinstance(base, np.ndarray):
        base = base.base
    if base is None or isinstance(base, (memoryview, ArrayInterface)):
        return root
    try:
        whole = np.frombuffer(base, np.uint8)
    except TypeError:
        return root  # no buffer, such as DLPack's capsule
    except (ValueError, BufferError) as error:
        raise BufferError(
            f"the array's memory is that of {type(base).__name__}, which does not export it "
            f"({error}); wrap it before it is closed"
        ) from None
    first = address_of(root) - address_of(whole)
    if not 0 <= first <= whole.size - root.size:
        raise BufferError(
            f"the array does not lie in the memory of its base, {type(base).__name__} of "
            f"{whole.size} bytes, which was resized since; make the array anew"
        )
    exported = whole[first : first + root.size]
    if not root.flags.writeable:
        exported.flags.writeable = False
    return exported


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of an array, which must be contiguous."""
    if not array.flags.c_contiguous:
        raise BufferError(
            f"the buffer is not contiguous: shape {array.shape}, strides {array.strides} bytes; "
            f"pass the array that owns the memory, or a contiguous copy of it"
        )
    return array.reshape(-1).view(np.uint8)


def host_bytes(owner: Any, asked: Asked) -> NDArray[np.uint8]:
    """The bytes of host memory, which is what is asked, or but bytes.

    Raises:
        BufferError, TypeError, ValueError: no memory, or memory that says it is something else.
    """
    if isinstance(owner, np.ndarray):
        if isinstance(owner, np.ma.MaskedArray):
            raise TypeError("a masked array cannot be wrapped: its mask would be lost; pass .data")
        array, says = np.asarray(owner), numpy_says(owner.dtype)
        c, fortran = array.flags.c_contiguous, array.flags.f_contiguous
        transposed = by_columns(asked, says, array.shape, c=c, fortran=fortran)
        return as_bytes(array.T if transposed else array)
    if isinstance(owner, type):
        raise TypeError(f"cannot wrap {owner!r}: it is a class, not an object that holds memory")
    segment = getattr(owner, "buf", None)
    if isinstance(segment, memoryview):
        # multiprocessing's SharedMemory, which closes its memory when it is collected.
        memory = _exported(segment, asked)
        readonly = not memory.flags.writeable
        return np.asarray(ArrayInterface(address_of(memory), memory.size, readonly, memory, owner))
    return _exported(owner, asked)


def _exported(owner: Any, asked: Asked) -> NDArray[np.uint8]:
    try:
        memory = memoryview(owner)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"cannot wrap {type(owner).__name__} ({error}); pass an array (numpy.memmap for a "
            f"file), bytes, an mmap or shared memory, not closed or released; an SoA's memory is "
            f"soa.buffer; lists and tables of values go through layout.pack, a bare address "
            f"through layout.from_pointer"
        ) from None
    says = format_says(memory.format, memory.itemsize)
    c, fortran = memory.c_contiguous, memory.f_contiguous
    # np.frombuffer, unlike np.ndarray(buffer=...), holds the export.
    if by_columns(asked, says, memory.shape or (), c=c, fortran=fortran):
        return as_bytes(np.frombuffer(np.asarray(memory).T, np.uint8))
    if not c:
        raise BufferError(
            f"the buffer is not contiguous: shape {memory.shape}, strides {memory.strides} bytes; "
            f"pass the object that owns the memory, or a contiguous copy of it"
        )
    return np.frombuffer(owner, np.uint8)
