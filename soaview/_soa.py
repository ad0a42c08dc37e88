"""SoA: a layout bound to a row count and a buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from ._buffer import ITEMSIZE, Buffer, check_rows, exact_int, numpy_dtype, too_small
from ._runs import runs
from ._spec import Entry, Spec, Value, columns_of
from ._views import Scattered, View, views, views_or_columns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._fields import Column, Scalar
    from ._layout import Layout


class SoA:
    """Rows of a layout in a buffer, made by `Layout.allocate`, `Layout.wrap` or `Layout.pack`.

    `soa["pt"]` is a NumPy view, shaped as a spec entry is: a list of names adds the column axis,
    `Value(name)` gives a scalar as it is. `soa[a:b]` is an SoA over those rows of the same memory,
    `len(soa)` the row count; iteration and `in` are over field names. `soa.buffer.root` is the
    whole memory as a NumPy array of bytes.

    `pickle` and `copy.deepcopy` copy the memory, of a slice its rows alone; `copy.copy` does not.
    Pickle protocol 5 hands it over out of band, as one buffer.

    >>> from soaview import Column, Layout, Scalar, Value
    >>> soa = Layout([Column("pt", "float32"), Scalar("n", "int32")]).allocate(4)
    >>> soa["pt"][1:] = [1, 2, 3]
    >>> soa[Value("n")][...] = 3
    >>> soa[2:]["pt"], soa["n"]
    (array([2., 3.], dtype=float32), array([3, 3, 3, 3], dtype=int32))

    Attributes:
        layout: the fields.
        rows: how many rows this SoA has.
        buffer: the memory, shared by all slices.
        capacity: the row count that the buffer is laid out for; `rows`, unless this is a slice.
        start: the buffer's row at which this SoA starts.
        ready: where an adapter keeps, under a name of its own, what it worked out last.
    """

    __slots__ = ("__weakref__", "buffer", "capacity", "layout", "ready", "rows", "start")

    def __init__(
        self,
        layout: Layout,
        buffer: Buffer,
        capacity: int,
        start: int,
        rows: int,
    ) -> None:
        self.layout = layout
        self.buffer = buffer
        self.capacity = capacity
        self.start = start
        self.rows = rows
        self.ready: dict[str, Any] = {}

    @property
    def readonly(self) -> bool:
        """Whether the memory refuses writes."""
        return self.buffer.readonly

    @property
    def device(self) -> str:
        """Where the memory is."""
        return self.buffer.device

    def __len__(self) -> int:
        return self.rows

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in self.layout.fields)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.starts if isinstance(name, str) else False

    @overload
    def __getitem__(self, key: slice) -> SoA: ...
    @overload
    def __getitem__(self, key: str | list[str] | Entry) -> NDArray[Any]: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._slice(key)
        if not isinstance(key, (str, list, tuple, Value)):
            raise TypeError(
                f"an SoA takes a field's name, a list of names, Value(name) or a slice of rows, "
                f"got {type(key).__name__}; row i is soa[i:i+1], and chosen rows are a column's: "
                f"soa[name][rows]"
            )
        return views(self, Spec({"soa[...]": key}))[0].numpy()

    def _slice(self, key: slice) -> SoA:
        if key.step not in (None, 1):
            raise ValueError(
                f"rows are taken in steps of 1, got {key!r}; a column's view takes any: "
                f"soa[name][::2]"
            )
        first, last, _ = key.indices(self.rows)
        count = max(last - first, 0)
        start = self.start + first
        return SoA(self.layout, self.buffer, self.capacity, start, count)

    def batches(self, size: int) -> Iterator[SoA]:
        """Slices of `size` rows one after another, the last one short; views, not copies.

        Raises:
            TypeError, ValueError: a size that is no positive integer.

        >>> from soaview import Column, Layout
        >>> soa = Layout([Column("pt", "float32")]).allocate(10)
        >>> [len(batch) for batch in soa.batches(4)]
        [4, 4, 2]
        """
        size = exact_int(size, "the batch size")
        if size < 1:
            raise ValueError(f"the batch size must be positive, got {size}")
        return (self[first : first + size] for first in range(0, self.rows, size))

    def check_bools(self) -> None:
        """Raise unless every bool is stored as 0 or 1, which torch and JAX take for granted.

        Of memory that another program wrote nobody knows; with other bytes in it sums, comparisons
        and masks are wrong, without a word. Reads all bools, on the host.

        Raises:
            ValueError: naming the field, the row and the byte.

        >>> from soaview import Column, Layout
        >>> soa = Layout([Column("b", "bool")]).wrap(bytes([2]) * 128, rows=3)
        >>> soa.check_bools()
        Traceback (most recent call last):
        ValueError: field 'b', row 0: a bool is stored as 0 or 1, got byte 2; declare it uint8
        """
        for field in self.layout.fields:
            if field.dtype != "bool":
                continue
            found = self[field.name if field.per_row else Value(field.name)].view(np.uint8)
            if found.size and found.max() > 1:
                first = tuple(np.argwhere(found > 1)[0])
                row = f", row {first[0]}" if field.per_row else ""
                raise ValueError(
                    f"field {field.name!r:.80}{row}: a bool is stored as 0 or 1, got byte "
                    f"{found[first]}; declare it uint8"
                )

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TypeError(f"write through the view: soa[{key!r:.60}][...] = values")

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("an SoA is not one array: take soa[name], or its bytes, soa.buffer.root")

    def __copy__(self) -> SoA:
        """The same memory once more, as `self[:]`."""
        return SoA(self.layout, self.buffer, self.capacity, self.start, self.rows)

    def __deepcopy__(self, memo: object) -> SoA:
        """Memory of its own with the same values; a slice's copy has its rows alone."""
        return self._own()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As layout, rows and the memory's bytes, which protocol 5 may send out of band."""
        whole = self.rows == self.capacity and not self.buffer.piecewise
        memory = (self if whole else self._own()).buffer.root
        return rebuilt, (self.layout, self.rows, sent(memory, protocol))

    def _own(self) -> SoA:
        soa = self.layout.allocate(self.rows)
        if self.buffer.piecewise:
            for field in self.layout.fields:
                key = field.name if field.per_row else Value(field.name)
                soa[key][...] = self[key]
            return soa
        copy_rows(self, self.buffer.root, soa.buffer.root)
        return soa

    def __repr__(self) -> str:
        rows = f"{self.rows} rows"
        if self.rows != self.capacity:
            rows += f" ({self.start}:{self.start + self.rows} of {self.capacity})"
        readonly = ", read-only" if self.readonly else ""
        return (
            f"SoA({rows}, {self.buffer.nbytes} bytes on {self.device}{readonly}: {', '.join(self)})"
        )


def copy_rows(soa: SoA, source: Any, target: Any) -> None:
    """Copy an SoA's own rows from its memory to that of one that has no others.

    Both are flat arrays of bytes, of NumPy or of one device's framework.
    """
    both = zip(runs(soa.layout, soa.capacity), runs(soa.layout, soa.rows), strict=True)
    for run, own in both:
        size, (components, width) = ITEMSIZE[run.dtype], run.shape
        first, last = soa.start * size, (soa.start + soa.rows) * size
        if not soa.layout.field(run.names[0]).per_row:
            first, last = 0, width * size
        to = target[own.offset :][: components * own.shape[1] * size].reshape(components, -1)
        of = source[run.offset :][: components * width * size].reshape(components, -1)
        to[:, : last - first] = of[:, first:last]


def sent(memory: NDArray[np.uint8], protocol: int) -> PickleBuffer | bytes:
    """Memory as a pickle takes it."""
    return PickleBuffer(memory.data) if protocol >= 5 else memory.tobytes()


def rebuilt(layout: Any, rows: Any, memory: Any) -> Any:
    """What was pickled as a layout (or blocks), rows and memory, once more.

    It lies over memory of its own, or over what came out of band. Bytes and bytearrays, which the
    pickle itself holds, and memory that came to lie misaligned, are copied.
    """
    if not isinstance(memory, (bytes, bytearray)):
        try:
            return layout.wrap(memory, rows)
        except BufferError:
            pass
    soa = layout.allocate(rows)
    root, given = soa.buffer.root, np.frombuffer(memory, np.uint8)
    if given.size < root.size:
        raise too_small(given.size, root.size)
    root[...] = given[: root.size]
    return soa


def pack(layout: Layout, arrays: Mapping[str, Any], rows: int | None) -> SoA:
    """`Layout.pack`: check every array, then allocate and fill."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays must be a mapping from field name to array, got {arrays!r:.60}")
    for name in arrays:
        layout.field(name)
    if missing := [field.name for field in layout.fields if field.name not in arrays]:
        raise KeyError(f"no array for {', '.join(map(repr, missing))}")
    values = {field.name: _as_array(field, arrays[field.name]) for field in layout.fields}
    counts = {
        field.name: len(values[field.name])
        for field in layout.fields
        if field.per_row and values[field.name].ndim
    }
    if rows is None:
        if not counts:
            raise ValueError("a layout of scalars alone says nothing about rows; pass rows=")
        rows = next(iter(counts.values()))
    rows = check_rows(rows)
    for field in layout.fields:
        got, expected = values[field.name].shape, (rows, *field.shape) if field.per_row else ()
        if got != expected:
            raise ValueError(_wrong_shape(f"field {field.name!r}", got, expected))
    soa = layout.allocate(rows)
    for name, value in values.items():
        target = soa[name] if layout.field(name).per_row else soa[Value(name)]
        target[...] = value
    return soa


def _as_array(field: Column | Scalar, value: Any) -> NDArray[Any]:
    """`value` as an array of the field's dtype; only Python's own numbers are converted."""
    dtype = numpy_dtype(field.dtype)
    try:
        types = _types(value)
        if any(issubclass(kind, np.ma.MaskedArray) for kind in types):
            raise TypeError("a masked array's mask would be lost; pass .data")
        if plain := types <= {bool, int, float, complex}:
            # NumPy's promotion of Python's numbers, where bfloat16 counts as the float it is.
            weak = np.dtype("float16") if field.dtype == "bfloat16" else dtype
            got = np.result_type(weak, *(kind() for kind in types))
            fits = got == weak
        else:
            got = np.asarray(value).dtype.newbyteorder("=")
            fits = got == dtype
        if not fits:
            raise TypeError(
                f"got dtype {got}, expected {field.dtype}; nothing is converted in silence: "
                f"pass .astype({field.dtype!r})"
            )
        with np.errstate(over="ignore"):
            found = np.asarray(value, dtype)
        if plain and _infinities(found) > _infinities(np.asarray(value, complex)):
            raise OverflowError(f"a number is beyond what {field.dtype} holds")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"field {field.name!r}: {error}") from None
    return found


def _infinities(array: NDArray[Any]) -> int:
    return int(np.isinf(array.real).sum() + np.isinf(array.imag).sum())


def _types(value: Any) -> set[type]:
    """Of the items of a nested list, or of the value itself."""
    if type(value) not in (list, tuple):
        return {type(value)}
    return set().union(*map(_types, value))


def check_copy(copy: object) -> None:
    """`copy=` of an adapter is False, None or True."""
    if not (copy is None or copy is True or copy is False):
        raise TypeError(
            f"copy must be False (never), None (where needed) or True (always), got {copy!r}"
        )


def check_writable(soa: SoA) -> None:
    """Raise where the memory is read-only."""
    if soa.readonly:
        raise BufferError(
            "the SoA's memory is read-only and cannot be written to; wrap memory that can: "
            'a file with numpy.memmap(mode="r+"), or a copy in layout.allocate(rows).buffer.root'
        )


def numbered(spec: Spec, given: Sequence[Any]) -> list[str]:
    """What messages call tensors that are given for a spec: by name, if there are as many."""
    if len(given) != len(spec):
        return [f"tensor number {number}" for number in range(len(given))]
    return [f"tensor {name!r}" for name in spec]


def check_given(
    soa: SoA,
    spec: Spec,
    found: list[View | Scattered],
    given: list[tuple[tuple[int, ...], str, str]],
) -> None:
    """Whether tensors of these (shape, dtype, device) fit the places found for them.

    Raises:
        ValueError: a wrong number of tensors, a wrong shape or device, or memory that would be
            written twice.
        TypeError: a wrong dtype.
    """
    if len(given) != len(found):
        raise ValueError(f"got {len(given)} tensors, but the spec has {len(found)}: {list(spec)}")
    check_columns(soa.layout, spec)
    for (name, _), view, (shape, dtype, device) in zip(spec.items(), found, given, strict=True):
        if device != soa.device:
            raise ValueError(
                f"tensor {name!r}: got device {device}, the SoA is on {soa.device}; "
                f"move the tensor there first"
            )
        if dtype != view.dtype_name:
            raise TypeError(
                f"tensor {name!r}: got dtype {dtype}, expected {view.dtype_name}; convert it first"
            )
        if shape != view.shape:
            padded = views_or_columns(soa, spec.subset(name), padded=soa.rows == soa.capacity)
            if shape == padded[0].shape:
                raise ValueError(
                    f"tensor {name!r}: got {shape[0]} padded rows, expected {soa.rows}; "
                    f"write the valid ones, [:soa.rows]"
                )
            raise ValueError(_wrong_shape(f"tensor {name!r}", shape, view.shape))


@lru_cache(maxsize=256)
def check_columns(layout: Layout, spec: Spec) -> None:
    """Raise where the spec's tensors cannot all be written."""
    written: dict[str, str] = {}
    for name, entry in spec.items():
        for column in columns_of(entry):
            if column in written:
                raise ValueError(
                    f"tensor {name!r}: {column!r} would be written twice (also by tensor "
                    f"{written[column]!r}); name every column once"
                )
            written[column] = name
            if not isinstance(entry, Value) and not layout.field(column).per_row:
                raise ValueError(
                    f"tensor {name!r}: scalar {column!r} has one value, not one per row; "
                    f"write Value({column!r})"
                )


def _wrong_shape(where: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    hint = ""
    if len(got) == 2 and got[::-1] == expected:
        hint = "; rows come first: pass its transpose"
    elif not expected:
        hint = "; a scalar has no axes"
    elif got == (*expected, 1):
        hint = "; drop the last axis, or name the column in a list of one"
    elif got and got[1:] == expected[1:]:
        hint = "; it needs one row for each of the SoA's"
    return f"{where}: got shape {got}, expected {expected}{hint}"
