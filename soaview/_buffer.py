"""The memory under an SoA: what a buffer is asked, whatever kind it is, and the host's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, final

import numpy as np

from ._dtypes import BYTE, exact_int, numpy_dtype
from ._host import ArrayInterface, address_of, as_bytes, holding_the_export

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._strided import Strided

_WIDEST = {1: "uint8", 2: "float16", 4: "float32", 8: "float64", 16: "complex128"}
"""By item size, the dtype of `Buffer.words`."""

WORDS = {size: np.dtype(name) for size, name in _WIDEST.items()}
"""NumPy's dtypes of these."""


class Buffer(ABC):
    """Memory that somebody else owns, held for as long as this object lives.

    What there is to know about it is asked of it, not of its kind.

    Attributes:
        owner: the object that the memory came from.
        nbytes: how many bytes the layout takes.
        imports: where an adapter keeps its framework's import of the memory, under a name of its
            own: one for all views, and for all threads.
        on_host: whether NumPy reads the memory.
        piecewise: whether each run of the layout's fields lies in memory of its own.
    """

    __slots__ = ("imports", "nbytes", "owner")

    on_host: ClassVar[bool] = False
    piecewise: ClassVar[bool] = False

    owner: object
    nbytes: int
    imports: dict[str, Any]

    @property
    @abstractmethod
    def device(self) -> str:
        """Where the memory is: `"cpu"`, or such as `"cuda:0"`."""

    @property
    @abstractmethod
    def readonly(self) -> bool:
        """Whether the memory refuses writes."""

    @property
    @abstractmethod
    def address(self) -> int:
        """Of the first byte.

        Raises:
            BufferError: memory in pieces has none.
        """

    @property
    @abstractmethod
    def root(self) -> NDArray[np.uint8]:
        """The bytes as a NumPy array.

        Raises:
            BufferError: they are not on the host, or not in one piece. So do `words`, `unguarded`.
        """

    @property
    @abstractmethod
    def words(self) -> NDArray[Any]:
        """The same as items of the largest size in the layout, to import as they are."""

    @property
    @abstractmethod
    def unguarded(self) -> NDArray[np.uint8]:
        """`root` without its read-only flag, for a reader that insists on writable memory.

        Only for consumers that never write (JAX's immutable arrays) and as the source of copies.
        """

    @property
    def summary(self) -> str:
        """In words, how much there is."""
        return f"{self.nbytes} bytes"

    def locate(self, at: Strided) -> tuple[Buffer, Strided]:
        """The piece of memory in which the elements lie, and where; a buffer in one piece is it."""
        return self, at

    def piece(self, number: int) -> Buffer:
        """An allocation of bound columns; of one buffer, itself."""
        return self

    def shares(self, array: NDArray[Any]) -> bool:
        """Whether an array of the host may lie in this memory."""
        return bool(self.on_host and np.may_share_memory(array, self.root))

    @abstractmethod
    def array(self, at: Strided) -> NDArray[Any]:
        """The NumPy view of these elements, which lie inside the buffer.

        Raises:
            BufferError: the memory is not on the host.
        """

    def value(self, at: Strided) -> Any:
        """The one value that lies there, as Python has it: read now, or fetched from the device."""
        return self.array(at).item()

    def export(self, at: Strided, **options: Any) -> Any:
        """The DLPack capsule of these elements, with all options that the consumer gives."""
        return self.array(at).__dlpack__(**options)

    def dlpack_device(self, at: Strided) -> tuple[int, int]:
        """DLPack's numbers for the device."""
        return self.array(at).__dlpack_device__()

    def interface(self, at: Strided) -> dict[str, Any]:
        """The CUDA array interface of these elements.

        Raises:
            AttributeError: the memory is not CUDA's.
        """
        raise AttributeError(f"memory on {self.device} has no CUDA array interface")

    def bytes_in(self, framework: str) -> Any:
        """The whole memory as a flat array of bytes of the framework's; of the host's, of NumPy's.

        Raises:
            BufferError: the framework does not take it, or it is not in one piece.
        """
        return self.root

    def check_imported(self, address: int) -> None:
        """Raise where a framework has the memory elsewhere than it is: moved, or copied."""
        check_address(address, self.address, self.nbytes, self.device)

    def waiter(self, framework: str, device: Any) -> Callable[[], object] | None:
        """What lets the framework's current stream on its device wait for whoever writes.

        None where nothing has to be waited for.
        """
        return None

    def _check_part(self, first: int, nbytes: int) -> None:
        """Raise unless so many bytes from this one on are inside."""
        first, nbytes = exact_int(first, "first"), exact_int(nbytes, "nbytes")
        if min(first, nbytes) < 0 or first + nbytes > self.nbytes:
            raise ValueError(
                f"{nbytes} bytes from byte {first} on are not inside the buffer's {self.nbytes}"
            )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "views and their memory are not copied or pickled on their own, apart from each other: "
            "pickle or deepcopy the SoA, and take the views of that"
        )


@final
class HostBuffer(Buffer):
    """Memory of the host.

    NumPy holds the owner's buffer export, so closing a mapping or resizing a bytearray raises while
    a view lives. It speaks DLPack, as its bytes.
    """

    __slots__ = ("root", "words")

    on_host = True

    root: NDArray[np.uint8]
    words: NDArray[Any]

    def __init__(self, owner: NDArray[Any], nbytes: int, itemsize: int) -> None:
        """Hold the first `nbytes` bytes of an array, aligned for items of `itemsize` bytes."""
        root, pointed = owner, owner.base is not None
        if root.dtype is not BYTE or root.strides != (1,):
            root = as_bytes(root)
        if root.size < nbytes:
            raise too_small(root.size, nbytes)
        # Even of the same size: a flag that somebody sets on the owner later does not reach this.
        root = root[:nbytes]
        if pointed:
            root = holding_the_export(root)
        # NumPy's flag is ten times cheaper than asking it for the address; for complex128 it is
        # content with 8 bytes, where torch crashes.
        words = root.view(WORDS[itemsize])
        if nbytes and not (words.flags.aligned and (itemsize < 16 or address_of(root) % 16 == 0)):
            raise misaligned(address_of(root), itemsize)
        self.owner = owner
        self.root = root
        self.nbytes = nbytes
        self.words = words
        self.imports = {}

    @property
    def device(self) -> str:
        """The host's name."""
        return "cpu"

    @property
    def address(self) -> int:
        """Of the first byte."""
        return address_of(self.root)

    @property
    def readonly(self) -> bool:
        """Whether the memory refuses writes: the owner may set the flag later."""
        return not self.root.flags.writeable

    def array(self, at: Strided) -> NDArray[Any]:
        """The NumPy view of these elements."""
        return host_array(guarded(self.root, at), at)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.root.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.root.__dlpack_device__()

    def part(self, first: int, nbytes: int, itemsize: int) -> HostBuffer:
        """Some of the bytes, as memory of its own that is aligned for items of `itemsize`."""
        self._check_part(first, nbytes)
        part = HostBuffer(self.root[first : first + nbytes], nbytes, itemsize)
        part.owner = self.owner
        return part

    @property
    def unguarded(self) -> NDArray[np.uint8]:
        """`root` without its read-only flag."""
        root = self.root
        if not self.readonly:
            return root
        return np.asarray(ArrayInterface(address_of(root), root.size, False, root))


def check_address(found: int, address: int, nbytes: int, device: str) -> None:
    """Raise where a framework has memory elsewhere than it was: moved, or copied."""
    if nbytes and found != address:
        raise BufferError(
            f"the memory on {device} is not where it was: it was wrapped at {address:#x}, and is "
            f"given at {found:#x}; its owner has moved it, or it is on another device than was "
            f"said and was copied. Wrap it anew"
        )


ArrayArguments = tuple[tuple[int, ...], np.dtype[Any], "NDArray[np.uint8]", int, tuple[int, ...]]


def guarded(memory: NDArray[np.uint8], at: Strided) -> NDArray[np.uint8]:
    """The bytes, as read-only where all rows of these elements are one value."""
    if at.strides[:1] == (0,):
        memory = memory[:]
        memory.flags.writeable = False
    return memory


def array_arguments(memory: NDArray[np.uint8], at: Strided) -> ArrayArguments:
    """What `np.ndarray` takes for these elements of bytes, which must have passed the gate."""
    _, dtype, size, shape, strides, offset = at
    return shape, numpy_dtype(dtype), memory, offset * size, tuple([n * size for n in strides])


def host_array(memory: NDArray[np.uint8], at: Strided) -> NDArray[Any]:
    """A NumPy view of bytes; what it reaches must have passed the gate."""
    return np.ndarray(*array_arguments(memory, at))


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
