"""Where the bytes are: the memory under an SoA, and the gate that every view of it passes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ._typed import Asked, by_columns, format_says, numpy_says

if TYPE_CHECKING:
    from ._views import View

ITEMSIZE = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The dtypes that NumPy, torch and JAX share, and their sizes in bytes."""

_NUMPY = {name: np.dtype(name) for name in ITEMSIZE if name != "bfloat16"}

WIDEST = {1: "uint8", 2: "float16", 4: "float32", 8: "float64", 16: "complex128"}
"""By item size, the dtype of `Buffer.wide`."""

BYTE = np.dtype(np.uint8)
"""NumPy keeps one of it, so that `is` tells it."""

INT64_MAX = 2**63 - 1


def exact_int(value: object, what: str) -> int:
    """`value` as a plain Python integer; bools, floats and strings are no integers.

    It may be larger than any memory, but short enough to be printed.
    """
    found = value
    if type(found) is not int:
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            found = operator.index(value)  # type: ignore[arg-type]  # the TypeError is the check
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"{what} must be an integer, got {value!r:.200} ({kind})") from None
    if found.bit_length() > 1000:
        raise ValueError(f"{what} is a number of {found.bit_length()} bits: no memory is so large")
    return found


def check_rows(value: object) -> int:
    """A row count: an integer that is not negative."""
    rows = exact_int(value, "rows")
    if rows < 0:
        raise ValueError(f"rows must not be negative, got {rows}")
    return rows


def check_held(value: object) -> int:
    """A row count that memory can have."""
    rows = check_rows(value)
    if rows > INT64_MAX:
        raise ValueError(f"{rows} rows are more than memory can have")
    return rows


Geometry = tuple[str, str, int, tuple[int, ...], tuple[int, ...], int]
"""One view: tensor name, dtype, bytes of an item; shape, strides and offset in elements."""


def check_bounds(views: Iterable[Geometry], nbytes: int) -> None:
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


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's dtype of this name; bfloat16 exists there once `ml_dtypes` has been imported."""
    known = _NUMPY.get(dtype)
    if known is not None:
        return known
    try:
        return np.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"NumPy has no {dtype} of its own: `import ml_dtypes` (JAX installs it) adds it, "
            f"or take the tensor in torch or JAX"
        ) from None


def host_array(
    root: NDArray[np.uint8],
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
) -> NDArray[Any]:
    """A NumPy view of `root`; strides and offset count elements. Pass `check_bounds` first."""
    size = ITEMSIZE[dtype]
    return np.ndarray(
        shape, numpy_dtype(dtype), root, offset * size, [stride * size for stride in strides]
    )


class Buffer:
    """Host memory that somebody else owns, held for as long as this object lives.

    Attributes:
        owner: the object that the memory came from.
        root: its bytes as a NumPy array. NumPy holds the owner's buffer export, so closing a
            mapping or resizing a bytearray raises while a view lives.
        wide: `root` as items of the largest size in the layout.
        nbytes: how many bytes the layout takes.
        imports: where an adapter keeps its framework's import of the memory: one for all views.

    It speaks DLPack, as its bytes.
    """

    __slots__ = ("_unguarded", "imports", "nbytes", "owner", "root", "wide")

    piecewise = False
    """Whether each run of the layout's fields lies in memory of its own."""

    @property
    def device(self) -> str:
        """Where the memory is."""
        return "cpu"

    def __init__(self, owner: NDArray[Any], nbytes: int, itemsize: int) -> None:
        """Hold the first `nbytes` bytes of an array, aligned for items of `itemsize` bytes."""
        root, pointed = owner, owner.base is not None
        if root.dtype is not BYTE or root.strides != (1,):
            root = _as_bytes(root)
        if root.size < nbytes:
            raise too_small(root.size, nbytes)
        # Even of the same size: a flag that somebody sets on the owner later does not reach this.
        root = root[:nbytes]
        if pointed:
            root = _holding_the_export(root)
        # NumPy's flag is ten times cheaper than asking it for the address; for complex128 it is
        # content with 8 bytes, where torch crashes.
        wide = root.view(_NUMPY[WIDEST[itemsize]])
        if nbytes and not (wide.flags.aligned and (itemsize < 16 or _address(root) % 16 == 0)):
            raise misaligned(_address(root), itemsize)
        self.owner: object = owner
        self.root: NDArray[np.uint8] = root
        self.nbytes = nbytes
        self.wide = wide
        self.imports: dict[Any, Any] = {}
        self._unguarded: NDArray[np.uint8] | None = None

    @property
    def address(self) -> int:
        """Of the first byte."""
        return _address(self.root)

    @property
    def readonly(self) -> bool:
        """Whether the memory refuses writes."""
        return not self.root.flags.writeable

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.root.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.root.__dlpack_device__()

    def producer(self, view: View) -> Any:
        """The view as the memory's own framework has it, which speaks DLPack: here NumPy."""
        return view.numpy()

    def export(self, view: View, **asked: Any) -> Any:
        """The view's DLPack capsule, with all that was asked of it."""
        return self.producer(view).__dlpack__(**asked)

    def interface(self, view: View) -> dict[str, Any]:
        """The view's CUDA array interface; there is none here."""
        raise AttributeError(f"memory on {self.device} has no CUDA array interface")

    def dlpack_device(self, view: View) -> tuple[int, int]:
        """DLPack's numbers for the device."""
        return view.numpy().__dlpack_device__()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "views and their memory are not copied or pickled on their own, apart from each other: "
            "pickle or deepcopy the SoA, and take the views of that"
        )

    def locate(self, view: View) -> View:
        """The same view over the piece of memory that holds it; here there is but one."""
        return view

    def part(self, first: int, nbytes: int, itemsize: int) -> Buffer:
        """Some of the bytes, as memory of its own that is aligned for items of `itemsize`."""
        return Buffer(self.root[first : first + nbytes], nbytes, itemsize)

    @property
    def unguarded(self) -> NDArray[np.uint8]:
        """`root` without its read-only flag, for a reader that insists on writable memory.

        Only for consumers that never write (JAX's immutable arrays) and as the source of copies.
        """
        if self._unguarded is None or not self._unguarded.flags.writeable:  # which may be set later
            root = self.root
            held = Held(_address(root), root.size, False, root)
            self._unguarded = np.asarray(held) if self.readonly else root
        return self._unguarded


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
    first = -_address(raw) % alignment
    return raw[first : first + nbytes]


class Held:
    """Host memory as NumPy takes it; `memory` is let go before `owner` is."""

    def __init__(
        self, address: int, nbytes: int, readonly: bool, memory: object, owner: object = None
    ) -> None:
        self.memory = memory
        self.owner = owner
        data = {"data": (address, readonly), "shape": (nbytes,)}
        self.__array_interface__ = {**data, "typestr": "|u1", "version": 3}


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


def _holding_the_export(root: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same bytes, also holding the export of a buffer that NumPy was only pointed at.

    `np.ndarray(buffer=...)`, and so `np.memmap`, does not hold it.
    """
    base: Any = root
    while isinstance(base, np.ndarray):
        base = base.base
    if base is None or isinstance(base, (memoryview, Held)):
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
    first = _address(root) - _address(whole)
    if not 0 <= first <= whole.size - root.size:
        raise BufferError(
            f"the array does not lie in the memory of its base, {type(base).__name__} of "
            f"{whole.size} bytes, which was resized since; make the array anew"
        )
    held = whole[first : first + root.size]
    if not root.flags.writeable:
        held.flags.writeable = False
    return held


def misaligned(address: int, align: int) -> BufferError:
    """What memory at an address that the layout's largest item cannot have is refused with."""
    return BufferError(
        f"the buffer is misaligned: it starts at address {address:#x}, {address % align} bytes "
        f"past a multiple of {align}, the size of the layout's largest item, on which torch and "
        f"devices insist; start it on such an address, or copy its bytes into the memory of a new "
        f"SoA, soa.buffer.root of soa = layout.allocate(rows)"
    )


def too_small(got: int, needed: int) -> ValueError:
    """What memory that does not hold the SoA is refused with."""
    return ValueError(
        f"the buffer is too small: got {got} bytes, needed {needed} ({needed - got} more); every "
        f"component is padded to the alignment"
    )


def _as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
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
        return _as_bytes(array.T if transposed else array)
    if isinstance(owner, type):
        raise TypeError(f"cannot wrap {owner!r}: it is a class, not an object that holds memory")
    segment = getattr(owner, "buf", None)
    if isinstance(segment, memoryview):
        # multiprocessing's SharedMemory, which closes its memory when it is collected.
        memory = _exported(segment, asked)
        readonly = not memory.flags.writeable
        return np.asarray(Held(_address(memory), memory.size, readonly, memory, owner))
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
        return _as_bytes(np.frombuffer(np.asarray(memory).T, np.uint8))
    if not c:
        raise BufferError(
            f"the buffer is not contiguous: shape {memory.shape}, strides {memory.strides} bytes; "
            f"pass the object that owns the memory, or a contiguous copy of it"
        )
    return np.frombuffer(owner, np.uint8)


def check_storage(owner: Any) -> None:
    """Raise for a tensor of torch's that reaches past its storage, which was shrunk under it."""
    if hasattr(owner, "untyped_storage"):
        reach = sum((n - 1) * s for n, s in zip(owner.shape, owner.stride(), strict=True))
        end = (owner.storage_offset() + reach + 1) * owner.element_size()
        size = owner.untyped_storage().nbytes()
        if owner.numel() and end > size:
            raise BufferError(
                f"a tensor reaches to byte {end} of its storage, which was resized to {size} bytes"
            )
