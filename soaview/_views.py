"""A spec's tensors over an SoA, as views of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ._blocks import SoABlocks
from ._buffer import Buffer
from ._compile import Plan, plan_of
from ._dtypes import ITEMSIZE, numpy_dtype
from ._soa import SoA
from ._spec import Spec
from ._strided import Numbers, Strided, check_bounds
from ._why import why_copied

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One tensor's recipe: where its elements lie in a buffer. `views` makes them.

    They lie inside the buffer, or the view cannot exist. It is an array to everybody who asks as
    arrays do: `dtype`, `ndim`, `size`, `len`, indices, `__array__`.

    Attributes:
        name: the tensor's name in the spec.
        dtype_name: such as `"float32"`.
        itemsize: bytes of an element.
        shape, strides, offset: in elements; `offset` counts from the buffer's first byte.
        buffer: the memory.

    Raises:
        TypeError: numbers that are no plain integers, or not in tuples.
        ValueError: a dtype that no layout has, another item size than the dtype's, or elements
            outside of the buffer.

    It speaks DLPack by handing out the view that the memory's own framework has of it: on the host
    NumPy's, read-only flag included, which `torch.from_dlpack` ignores and `soaview_torch.tensors`
    does not; on a device that of torch or CuPy, with the consumer's stream passed on. On a CUDA
    device it has `__cuda_array_interface__`, too.
    """

    name: str
    dtype_name: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    buffer: Buffer

    def __post_init__(self) -> None:
        numbers = (*self.shape, *self.strides, self.offset, self.itemsize)
        plain = type(self.shape) is type(self.strides) is tuple
        if not plain or not all(type(number) is int for number in numbers):
            raise TypeError(
                f"tensor {self.name!r}: shape and strides must be tuples of plain integers, and "
                f"offset and itemsize such integers, got {self.shape!r:.80}, {self.strides!r:.80}, "
                f"{self.offset!r:.60} and {self.itemsize!r:.60}"
            )
        if len(self.shape) != len(self.strides):
            raise ValueError(
                f"tensor {self.name!r}: shape {self.shape} and strides {self.strides} differ in "
                f"length"
            )
        if ITEMSIZE.get(self.dtype_name) != self.itemsize:
            raise ValueError(
                f"tensor {self.name!r}: no dtype {self.dtype_name!r} of {self.itemsize!r} bytes; "
                f"known are {', '.join(f'{name} ({size})' for name, size in ITEMSIZE.items())}"
            )
        at = (self.name, self.dtype_name, self.itemsize, self.shape, self.strides, self.offset)
        check_bounds([at], self.buffer.nbytes)

    @property
    def strided(self) -> Strided:
        """The same as plain numbers, which is what a buffer takes."""
        numbers = self.itemsize, self.shape, self.strides, self.offset
        return Strided(self.name, self.dtype_name, *numbers)

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype.

        Raises:
            TypeError: bfloat16, where `ml_dtypes` has not been imported.
        """
        return numpy_dtype(self.dtype_name)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"tensor {self.name!r} is one value, and has no length")
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        return self.numpy()[key]

    @property
    def byte_offset(self) -> int:
        """`offset` in bytes."""
        return self.offset * self.itemsize

    @property
    def address(self) -> int:
        """Of the first element."""
        buffer, at = self.buffer.locate(self.strided)
        return buffer.address + at.byte_offset

    @property
    def device(self) -> str:
        """Where the memory is."""
        return self.buffer.device

    def numpy(self) -> NDArray[Any]:
        """The NumPy view. It is read-only where the memory is, and where rows share one value."""
        return self.buffer.array(self.strided)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        return np.asarray(self.numpy(), dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.buffer.export(self.strided, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.buffer.dlpack_device(self.strided)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.buffer.interface(self.strided)

    def __repr__(self) -> str:
        return (
            f"View({self.name!r}, {self.dtype_name}, shape={self.shape}, strides={self.strides}, "
            f"offset={self.offset}, device={self.device!r})"
        )


def why_gathered(soa: SoA, columns: tuple[str, ...]) -> str:
    return why_copied(soa.layout, columns, soa.capacity, soa.buffer.piecewise)


def views(soa: SoA, spec: Spec, *, padded: bool = False) -> list[View]:
    """The recipes of `spec`'s tensors over `soa`, in spec order. Nothing is copied.

    Args:
        soa: the memory.
        spec: the tensors.
        padded: take the padded rows (pitch / itemsize) instead of the valid ones; interleaved
            columns have none, and give their rows.

    Raises:
        KeyError: no such column.
        ValueError: columns of one tensor differ in dtype or shape.
        BufferError: no single strided view covers a tensor's columns.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(33)
    >>> views(soa, Spec(features=["pt", "eta"]))
    [View('features', float32, shape=(33, 2), strides=(1, 64), offset=0, device='cpu')]
    """
    plan = plan_for(soa, spec, padded)
    _check_strided(soa, plan)
    return views_of(soa, plan)


def resolve(soa: SoA, spec: Spec, *, padded: bool = False) -> list[Numbers]:
    """As `views`: the numbers alone, past the gate, for who needs no more.

    Each is what a `Strided` is, as a plain tuple: name, dtype, bytes of an element; shape, strides
    and offset in elements.
    """
    plan = plan_for(soa, spec, padded)
    _check_strided(soa, plan)
    found = plan.numbers(soa.capacity, soa.start, soa.rows)
    check_bounds(found, soa.buffer.nbytes)
    return found


def _check_strided(soa: SoA, plan: Plan) -> None:
    if plan.gathers:
        tensor = plan.gathers[0][1]
        raise BufferError(f"tensor {tensor.name!r}: {why_gathered(soa, tensor.columns)}")


def views_of(soa: SoA, plan: Plan) -> list[View]:
    found = plan.numbers(soa.capacity, soa.start, soa.rows)
    piece = soa.buffer.piece  # each passes the gate
    both = zip(found, plan.allocations, strict=True)
    return [View(*numbers, piece(number)) for numbers, number in both]


def check_spec(spec: object) -> None:
    """Raise unless this is a Spec."""
    if not isinstance(spec, Spec):
        raise TypeError(f"spec must be a Spec, got {type(spec).__name__}{spec_hint(spec)}")


def check_soa(soa: object) -> None:
    """Raise unless this is an SoA."""
    if not isinstance(soa, SoA):
        how = (
            "take one of the blocks, soas[name]"
            if isinstance(soa, SoABlocks)
            else "over memory that holds one, make it with layout.wrap(buffer, rows)"
        )
        raise TypeError(f"soa must be an SoA, got {type(soa).__name__}; {how}")


def check_copy(copy: object) -> None:
    """`copy=` of an adapter is False, None or True."""
    if not (copy is None or copy is True or copy is False):
        raise TypeError(
            f"copy must be False (never), None (where needed) or True (always), got {copy!r}"
        )


def plan_for(soa: SoA, spec: Spec, padded: bool) -> Plan:
    check_spec(spec)
    check_soa(soa)
    if padded is not False and padded is not True:
        raise TypeError(f"padded must be True or False, got {padded!r:.60}")
    if padded and soa.rows != soa.capacity:
        raise ValueError(
            f"padded=True: rows {soa.start}:{soa.start + soa.rows} are a slice of {soa.capacity}, "
            f"and what follows them is other rows, not padding; take the whole SoA, and slice "
            f"what it gives"
        )
    return plan_of(soa.layout, spec, padded, soa.buffer.piecewise)


def spec_hint(spec: object) -> str:
    """What somebody may have meant who passed this for a spec."""
    if isinstance(spec, Mapping):
        return f"; write Spec({spec!r:.60})"
    if isinstance(spec, (str, list, tuple)):
        if not spec:
            return "; write Spec() where no tensor is wanted"
        return f"; write Spec(x={spec!r:.60})"
    return "; the arguments are soa, then spec" if isinstance(spec, SoA) else ""
