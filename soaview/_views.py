"""Where a spec's tensors lie over a layout: the stride engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ._buffer import ITEMSIZE, Buffer, Geometry, check_bounds, host_array, numpy_dtype
from ._runs import run_numbers
from ._spec import Entry, Spec, Value, columns_of, listed, repeated

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._fields import Column, Scalar
    from ._layout import Layout
    from ._soa import SoA


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
        view = (self.name, self.dtype_name, self.itemsize, self.shape, self.strides, self.offset)
        check_bounds([view], self.buffer.nbytes)

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
        at = self.buffer.locate(self)
        return at.buffer.address + at.byte_offset

    @property
    def device(self) -> str:
        """Where the memory is."""
        return self.buffer.device

    def numpy(self) -> NDArray[Any]:
        """The NumPy view. It is read-only where the memory is, and where rows share one value."""
        at = self.buffer.locate(self)
        array = host_array(at.buffer.root, at.dtype_name, at.shape, at.strides, at.offset)
        if self.strides[:1] == (0,):
            array.flags.writeable = False
        return array

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        return np.asarray(self.numpy(), dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.buffer.export(self, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.buffer.dlpack_device(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.buffer.interface(self)

    def __repr__(self) -> str:
        return (
            f"View({self.name!r}, {self.dtype_name}, shape={self.shape}, strides={self.strides}, "
            f"offset={self.offset}, device={self.device!r})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """A tensor that no single strided view covers: one view per column, to be stacked on axis 1."""

    name: str
    dtype_name: str
    columns: tuple[str, ...]
    soa: SoA
    padded: bool

    @property
    def parts(self) -> list[View]:
        """The columns' views, made each time that they are asked for: a refusal needs none."""
        return self._views(len(self.columns))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the parts make."""
        rows, *element = self._views(1)[0].shape
        return (rows, len(self.columns), *element)

    def _views(self, count: int) -> list[View]:
        names = enumerate(self.columns[:count])
        columns = {f"{self.name}, column {number}": name for number, name in names}
        return views(self.soa, Spec(columns), padded=self.padded)

    def why(self) -> str:
        """Why it cannot be viewed without a copy, and the ways out."""
        return _why_copied(self.soa, self.columns)


def _why_copied(soa: SoA, names: tuple[str, ...]) -> str:
    """Why a tensor's columns cannot be viewed without a copy, and the ways out."""
    if soa.buffer.piecewise and _in_pieces(soa.layout, names):
        return f"{why_not(soa, names)}; let copy=None of an adapter gather them"
    return f"{why_not(soa, names)}; {_way_out(soa.layout, names)}"


def views(soa: SoA, spec: Spec, *, padded: bool = False) -> list[View]:
    """The recipes of `spec`'s tensors over `soa`, in spec order. Nothing is copied.

    Args:
        soa: the memory.
        spec: the tensors.
        padded: take the padded rows (pitch / itemsize) instead of the valid ones.

    Raises:
        KeyError: no such column.
        ValueError: columns of one tensor differ in dtype or shape.
        BufferError: no single strided view covers a tensor's columns.

    >>> from soaview import Column, Layout
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(33)
    >>> views(soa, Spec(features=["pt", "eta"]))
    [View('features', float32, shape=(33, 2), strides=(1, 64), offset=0, device='cpu')]
    """
    return [View(*numbers, soa.buffer) for numbers in geometry(soa, spec, padded)]


def geometry(soa: SoA, spec: Spec, padded: bool) -> list[Geometry]:
    """As `views`: the numbers alone, past the gate."""
    plan = _plan(soa, spec, padded)
    if plan.scattered:
        tensor = plan.scattered[0][1]
        raise BufferError(f"tensor {tensor.name!r}: {_why_copied(soa, tensor.columns)}")
    found = plan.geometry(soa.capacity, soa.start, soa.rows)
    check_bounds(found, soa.buffer.nbytes)
    return found


def views_or_columns(soa: SoA, spec: Spec, *, padded: bool = False) -> list[View | Scattered]:
    """As `views`, but a tensor that no single view covers comes as its columns: to be gathered."""
    plan = _plan(soa, spec, padded)
    if not plan.scattered:
        found = plan.geometry(soa.capacity, soa.start, soa.rows)
        return [View(*numbers, soa.buffer) for numbers in found]  # each passes the gate
    names = {tensor.name for _, tensor in plan.scattered}
    strided = views(soa, spec.subset(*(n for n in spec if n not in names)), padded=padded)
    both: list[View | Scattered] = [*strided]
    for position, tensor in plan.scattered:
        columns = tensor.columns
        both.insert(position, Scattered(tensor.name, tensor.dtype, columns, soa, padded))
    return both


def check_soa(soa: object) -> None:
    """Raise unless this is an SoA."""
    if not hasattr(soa, "capacity"):
        how = (
            "take one of the blocks, soas[name]"
            if hasattr(soa, "buffer")
            else "over memory that holds one, make it with layout.wrap(buffer, rows)"
        )
        raise TypeError(f"soa must be an SoA, got {type(soa).__name__}; {how}")


def _plan(soa: SoA, spec: Spec, padded: bool) -> Plan:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec must be a Spec, got {type(spec).__name__}{meant(spec)}")
    check_soa(soa)
    if padded is not False and padded is not True:
        raise TypeError(f"padded must be True or False, got {padded!r:.60}")
    if padded and soa.rows != soa.capacity:
        raise ValueError(
            f"padded=True: rows {soa.start}:{soa.start + soa.rows} are a slice of {soa.capacity}, "
            f"and what follows them is other rows, not padding; take the whole SoA, and slice "
            f"what it gives"
        )
    return compile_spec(soa.layout, spec, padded, soa.buffer.piecewise)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A spec entry over a layout, for every row count.

    A form `(constant, coefficient per layout.sizes, ...)` counts elements: coefficients multiply
    the aligned blocks that one component takes.
    """

    name: str
    dtype: str
    rows: int | None  # stride of the row axis, in elements; None where there is none
    shape: tuple[int, ...]  # of one row
    strides: tuple[tuple[int, ...], ...]  # forms, one per entry of `shape`
    offset: tuple[int, ...]  # a form
    columns: tuple[str, ...]  # of a tensor without a single view; else empty


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """A spec compiled for a layout.

    `scattered` holds the tensors that have no single view, with their places in the spec. Where
    there are none, `geometry(capacity, start, rows)` gives the views' numbers.
    """

    geometry: Callable[..., list[Geometry]]
    scattered: tuple[tuple[int, Tensor], ...]


def compile_spec(layout: Layout, spec: Spec, padded: bool, piecewise: bool) -> Plan:
    """Resolve names, dtypes and distances once; only integers that depend on rows are left."""
    key = spec, padded, piecewise
    plan: Plan | None = layout.plans.get(key)
    if plan is None:
        tensors = [_tensor(layout, name, entry, piecewise) for name, entry in spec.items()]
        plan = layout.plans[key] = _plan_of(layout, tensors, padded)
    return plan


def compile_entry(layout: Layout, entry: Entry, piecewise: bool) -> Plan:
    """The same of one entry, without a tensor's name."""
    key = entry, piecewise
    plan: Plan | None = layout.plans.get(key)
    if plan is None:
        tensor = replace(_tensor(layout, "", entry, piecewise), name=listed(columns_of(entry)))
        plan = _plan_of(layout, [tensor], False)
        layout.plans[key] = plan
    return plan


def _plan_of(layout: Layout, tensors: list[Tensor], padded: bool) -> Plan:
    scattered = tuple((i, t) for i, t in enumerate(tensors) if t.columns)
    if scattered:  # the others are planned on their own, where they are wanted
        return Plan(lambda *_: [], scattered)
    # One expression instead of a loop over forms, for an event loop meets a new row count in
    # every call, and this is several times faster. Names reach it as `n0`, ...: it is made of
    # integers alone.
    blocks = [f"b{size}" for size in layout.sizes]
    items: list[str] = []
    known: dict[str, str] = {}
    for i, t in enumerate(tensors):
        known[f"n{i}"], known[f"d{i}"] = t.name, t.dtype
        size = ITEMSIZE[t.dtype]
        rows = f"{layout.alignment // size} * b{size}" if padded else "rows"
        items.append(f"(n{i}, d{i}, {size}, {_numbers(t, rows, blocks)})")
    bound = [f"(b{size} := -(-capacity * {size} // {layout.alignment}))" for size in layout.sizes]
    source = f"lambda capacity, start, rows: ({', '.join(bound)}, [{', '.join(items)}])[-1]"
    return Plan(eval(source, known), scattered)


def _numbers(tensor: Tensor, rows: str, blocks: list[str]) -> str:
    """Shape, strides and offset as source text over `rows`, `start` and `blocks`."""

    def total(form: tuple[int, ...]) -> str:
        terms = [f"{n} * {b}" for n, b in zip(form, ("1", *blocks), strict=True) if n]
        return " + ".join(terms) or "0"

    def as_tuple(items: list[str]) -> str:
        return f"({', '.join(items)},)" if items else "()"

    shape = [str(n) for n in tensor.shape]
    strides = [total(form) for form in tensor.strides]
    offset = total(tensor.offset)
    if tensor.rows is not None:
        shape, strides = [rows, *shape], [str(tensor.rows), *strides]
    if tensor.rows:
        offset += " + start"
    return f"{as_tuple(shape)}, {as_tuple(strides)}, {offset}"


def _tensor(layout: Layout, name: str, entry: Entry, piecewise: bool) -> Tensor:
    if isinstance(entry, Value):
        column = _field(layout, name, entry.name)
        if column.per_row:
            raise ValueError(
                f"{_at(name)}Value takes a Scalar, but {entry.name!r} is a Column; "
                f"write {entry.name!r}"
            )
        return Tensor(name, column.dtype, None, (), (), _start(layout, column), ())
    columns = [_field(layout, name, c) for c in ((entry,) if isinstance(entry, str) else entry)]
    first = columns[0]
    for other in columns[1:]:
        _check_alike(name, first, other)
    row = int(first.per_row)
    shape, strides = first.shape, _inner(layout, first)
    start = _start(layout, first)
    if isinstance(entry, str):
        return Tensor(name, first.dtype, row, shape, strides, start, ())
    shape = (len(columns), *shape)
    distance = _distance(layout, columns)
    if distance is None or (piecewise and _in_pieces(layout, entry)):
        return Tensor(name, first.dtype, row, shape, (), (), tuple(entry))
    return Tensor(name, first.dtype, row, shape, (distance, *strides), start, ())


def _field(layout: Layout, tensor: str, name: str) -> Column | Scalar:
    try:
        return layout[name]
    except KeyError as error:
        raise KeyError(f"{_at(tensor)}{error.args[0]}") from None


def _at(tensor: str) -> str:
    """How a message about a tensor begins; an array that has no name needs none."""
    return f"tensor {tensor!r}: " if tensor else ""


def _check_alike(tensor: str, one: Column | Scalar, other: Column | Scalar) -> None:
    for what, a, b in (("dtype", one.dtype, other.dtype), ("shape", one.shape, other.shape)):
        if a != b:
            raise ValueError(
                f"{_at(tensor)}its columns need one {what}, but {one.name!r} has {a} and "
                f"{other.name!r} has {b}; take them apart"
            )


def _start(layout: Layout, column: Column | Scalar) -> tuple[int, ...]:
    """The form of a field's first element."""
    block = layout.alignment // column.itemsize
    return tuple(block * n for n in layout.starts[column.name])


def _pitches(layout: Layout, column: Column | Scalar, count: int) -> tuple[int, ...]:
    """The form of `count` pitches of a column."""
    block = layout.alignment // column.itemsize
    return (0, *(count * block if size == column.itemsize else 0 for size in layout.sizes))


def _inner(layout: Layout, column: Column | Scalar) -> tuple[tuple[int, ...], ...]:
    """Stride forms of the axes within one row."""
    if len(column.shape) < 2:
        return tuple(_pitches(layout, column, 1) for _ in column.shape)
    r, c = column.shape
    counts = (1, r) if column.order == "F" else (c, 1)
    return tuple(_pitches(layout, column, count) for count in counts)


def _distance(layout: Layout, columns: list[Column | Scalar]) -> tuple[int, ...] | None:
    """The form of the columns' common distance; None where they have none at every row count."""
    first = columns[0]
    if len(columns) == 1:
        # Nobody takes this step: a scalar's is 1, a column's the room that it takes.
        one = (1, *(0 for _ in layout.sizes))
        return _pitches(layout, first, first.components) if first.per_row else one
    if not _one_step(layout, columns):
        return None
    starts = [_start(layout, c) for c in columns]
    steps = {
        tuple(b - a for a, b in zip(one, other, strict=True)) for one, other in pairwise(starts)
    }
    (step, *others) = steps
    return None if others or max(step) <= 0 else step


def _in_pieces(layout: Layout, names: tuple[str, ...]) -> bool:
    """Whether the fields lie in more than one run."""
    return len({run_numbers(layout)[name] for name in names}) > 1


def _one_step(layout: Layout, columns: list[Column | Scalar]) -> bool:
    """Whether the columns agree in every stride but their distance."""
    return len({(c.per_row, _inner(layout, c)) for c in columns}) == 1


def why_not(soa: SoA, names: tuple[str, ...]) -> str:
    """Why no single strided view covers these columns."""
    layout = soa.layout
    if soa.buffer.piecewise and _in_pieces(layout, names):
        return "its columns are in memory apart, for each run of equal fields has its own"
    columns = [layout[name] for name in names]
    if (twice := repeated(names)) is not None:
        return f"column {twice!r} is repeated, so that its columns have no common distance"
    if not _one_step(layout, columns):
        scalars = len({c.per_row for c in columns}) > 1
        what = "columns and scalars" if scalars else "matrices of order 'F' and 'C'"
        return f"{what} are mixed, so that one stride cannot lead through them"
    starts = [layout.offset(name, soa.capacity) for name in names[: _SHOWN + 2]]
    steps = [
        f"{a!r} to {b!r} {there - here}"
        for (a, here), (b, there) in pairwise(zip(names, starts, strict=False))
    ]
    order = {f.name: i for i, f in enumerate(layout.fields)}
    positions = [order[name] for name in names]
    if positions == sorted(positions, reverse=True):
        kind = "its columns are in reversed order, and strides must be positive"
    else:
        kind = "its columns are at an uneven distance"
    more = ", ..." if len(steps) > _SHOWN else ""
    return f"{kind} ({', '.join(steps[:_SHOWN])}{more} bytes at {soa.capacity} rows)"


def _way_out(layout: Layout, names: tuple[str, ...]) -> str:
    copy = "let copy=None of an adapter gather them"
    if len(set(names)) < len(names) or not _one_step(layout, [*map(layout.__getitem__, names)]):
        return f"make them tensors of their own, or {copy}"
    order = {f.name: i for i, f in enumerate(layout.fields)}
    in_memory = sorted(names, key=order.__getitem__)
    if _distance(layout, [*map(layout.__getitem__, in_memory)]) is not None:
        return (
            f"{copy}; or, if it does not matter which comes first, list them in memory order, "
            f"{_shortened(in_memory)}"
        )
    at = order[in_memory[0]]
    fields = [f.name for f in layout.fields]
    chosen = set(names)
    even = [*fields[:at], *names, *(name for name in fields[at:] if name not in chosen)]
    return (
        f"{copy}, or have the fields declared, and the memory written, in the order "
        f"{_shortened(even)}"
    )


_SHOWN = 30


def _shortened(names: list[str]) -> str:
    return repr(names) if len(names) <= _SHOWN else f"{names[:_SHOWN]!r:.1000} ..."


def meant(spec: object) -> str:
    """What somebody may have meant who passed this for a spec."""
    if isinstance(spec, Mapping):
        return f"; write Spec({spec!r:.60})"
    if isinstance(spec, (str, list, tuple)):
        return f"; write Spec(x={spec!r:.60})"
    return "; the arguments are soa, then spec" if hasattr(spec, "capacity") else ""
