"""SoA: a layout bound to a row count and a buffer."""

from __future__ import annotations

import copyreg
from collections.abc import ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, NoReturn, overload

import numpy as np

from ._buffer import ITEMSIZE, Buffer, Geometry, exact_int, too_small
from ._fields import shown
from ._runs import runs
from ._spec import Entry, Spec, Value, checked_entry, columns_of, listed
from ._views import Scattered, View, compile_entry, views_or_columns, why_not

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._layout import Layout


class SoA:
    """Rows of a layout in a buffer, made by `Layout.allocate`, `Layout.wrap` or `Layout.pack`.

    `soa["pt"]` is a NumPy view, shaped as a spec entry is: a list of names adds the column axis,
    `Value(name)` gives a scalar as it is. `soa["pt"] = array` writes what `pack` would take: exact
    in dtype and shape. Through the view NumPy's own rules hold: `soa["pt"][:] = array` converts,
    and may narrow, and so do operators in place, `soa["pt"] += array`. `soa[a:b]` is an SoA over
    those rows of the same memory, `len(soa)` the row count; else it is a mapping of columns:
    `keys`, `items`, `values`, `in`, `dict(soa)`. `soa.buffer.root` is the whole memory as a NumPy
    array of bytes.

    `pickle` and `copy.deepcopy` copy the memory, of a slice its rows alone; `copy.copy` does not.
    Pickle protocol 5 hands it over as one buffer; what comes out of band is taken as it is, without
    a copy. What such a pickle holds itself is aligned for the layout's items, not for XLA
    (`copy.deepcopy` aligns it), and read-only if the whole SoA was.

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
        return View(*_numbers(self, _entry_of(key)), self.buffer).numpy()

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

    def keys(self) -> KeysView[str]:
        """The fields' names."""
        return self.layout.keys()

    def items(self) -> ItemsView[str, NDArray[Any]]:
        """The fields' names and their NumPy views."""
        return {name: self[name] for name in self}.items()

    def values(self) -> ValuesView[NDArray[Any]]:
        """The fields' NumPy views."""
        return {name: self[name] for name in self}.values()

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def batches(self, size: int, *, drop_last: bool = False) -> Batches:
        """Slices of `size` rows one after another, the last one short; views, not copies.

        They are a collection: it has a length, and is iterated again and again.

        Args:
            size: rows of each.
            drop_last: leave out a last one that is short.

        Raises:
            TypeError, ValueError: a size that is no positive integer; another `drop_last`.

        >>> from soaview import Column, Layout
        >>> soa = Layout([Column("pt", "float32")]).allocate(10)
        >>> [len(batch) for batch in soa.batches(4)]
        [4, 4, 2]
        >>> len(soa.batches(4, drop_last=True))
        2
        """
        size = exact_int(size, "the batch size")
        if size < 1:
            raise ValueError(f"the batch size must be positive, got {size}")
        if drop_last is not True and drop_last is not False:
            raise TypeError(f"drop_last must be True or False, got {drop_last!r:.60}")
        return Batches(self, size, drop_last)

    def describe(self) -> str:
        """The memory map, as `Layout.describe` gives it, below what `repr` says."""
        return f"{self!r}\n{self.layout.describe(self.capacity)}"

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

    def __setitem__(self, key: Any, value: Any) -> None:
        from ._pack import assign

        if isinstance(key, slice):
            raise TypeError("an SoA's rows are written column by column: soa[a:b][name] = values")
        assign(self, _entry_of(key), value)

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
        return sent(SoA, self.layout, self.rows, memory, protocol)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        found = restored(state)
        for name in ("layout", "buffer", "capacity", "start", "rows", "ready"):
            setattr(self, name, getattr(found, name))

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
        fields = listed(
            [
                f"{shown(f.name)} {f.dtype}{f' {f.shape}' if f.shape else ''}"
                for f in self.layout.fields
            ]
        )
        return f"SoA({rows}, {self.buffer.nbytes} bytes on {self.device}{readonly}: {fields})"


class Batches(Sequence[SoA]):
    """An SoA's rows in slices, one after another; `SoA.batches` makes them."""

    __slots__ = ("_firsts", "_size", "_soa")

    def __init__(self, soa: SoA, size: int, drop_last: bool) -> None:
        self._soa = soa
        self._size = size
        self._firsts = range(0, soa.rows // size * size if drop_last else soa.rows, size)

    def __len__(self) -> int:
        return len(self._firsts)

    @overload
    def __getitem__(self, index: int) -> SoA: ...
    @overload
    def __getitem__(self, index: slice) -> list[SoA]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._soa[first : first + self._size] for first in self._firsts[index]]
        try:
            first = self._firsts[index]
        except IndexError:
            raise IndexError(f"there are {len(self)} batches, got index {index}") from None
        return self._soa[first : first + self._size]

    def __repr__(self) -> str:
        return f"Batches({len(self)} of {self._size} rows: {self._soa!r})"


def _entry_of(key: Any) -> Entry:
    """What an SoA is indexed with, as a spec has it."""
    if not isinstance(key, (str, list, tuple, Value)):
        raise TypeError(
            f"an SoA takes a field's name, a list of names, Value(name) or a slice of rows, "
            f"got {type(key).__name__}; row i is soa[i:i+1], and chosen rows are a column's: "
            f"soa[name][rows]"
        )
    return checked_entry("", key)


def _numbers(soa: SoA, entry: Entry) -> Geometry:
    """Of the view that the entry makes of an SoA's memory."""
    plan = compile_entry(soa.layout, entry, soa.buffer.piecewise)
    if plan.scattered:
        names = plan.scattered[0][1].columns
        raise BufferError(
            f"{listed(names)} make no single array: {why_not(soa, names)}; take them one by one, "
            f"soa[name], and copy them into one, np.stack(arrays, axis=1)"
        )
    [found] = plan.geometry(soa.capacity, soa.start, soa.rows)
    return found


def copy_rows(soa: SoA, source: Any, target: Any) -> None:
    """Copy an SoA's own rows from its memory to that of one that has no others.

    Both are flat arrays of bytes, of NumPy or of one device's framework.
    """
    both = zip(runs(soa.layout, soa.capacity), runs(soa.layout, soa.rows), strict=True)
    for run, own in both:
        size, (components, width) = ITEMSIZE[run.dtype], run.shape
        first, last = soa.start * size, (soa.start + soa.rows) * size
        if not soa.layout[run.names[0]].per_row:
            first, last = 0, width * size
        to = target[own.offset :][: components * own.shape[1] * size].reshape(components, -1)
        of = source[run.offset :][: components * width * size].reshape(components, -1)
        to[:, : last - first] = of[:, first:last]


def sent(
    kind: type, layout: Any, rows: Any, memory: NDArray[np.uint8], protocol: int
) -> tuple[Any, ...]:
    """What a pickle holds of an SoA or blocks: names that are public, and plain state.

    Protocol 5 hands the memory over, for the pickle to hold or to send out of band.
    """
    held = {"memory": PickleBuffer(memory.data)} if protocol >= 5 else {"bytes": memory.tobytes()}
    new = copyreg.__newobj__  # type: ignore[attr-defined]  # as `object.__reduce_ex__` gives it
    return new, (kind,), {"layout": layout, "rows": rows, **held}


def restored(state: Mapping[str, Any]) -> Any:
    """What was pickled, over the memory that came with it, of whatever kind.

    Bytes of a protocol that has but them, and memory that came to lie misaligned, are copied.
    """
    layout, rows = state["layout"], state["rows"]
    memory = state.get("memory")
    if memory is not None:
        try:
            return layout.wrap(memory, rows)
        except BufferError:
            if not memoryview(memory).c_contiguous:
                raise
    soa = layout.allocate(rows)
    root, given = soa.buffer.root, np.frombuffer(state.get("bytes", memory), np.uint8)
    if given.size < root.size:
        raise too_small(given.size, root.size)
    root[...] = given[: root.size]
    return soa


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
            raise ValueError(wrong_shape(f"tensor {name!r}", shape, view.shape))


def check_columns(layout: Layout, spec: Spec) -> None:
    """Raise where the spec's tensors cannot all be written."""
    if ("written", spec) in layout.plans:
        return
    written: dict[str, str] = {}
    for name, entry in spec.items():
        for column in columns_of(entry):
            if column in written:
                raise ValueError(
                    f"tensor {name!r}: {column!r} would be written twice (also by tensor "
                    f"{written[column]!r}); name every column once"
                )
            written[column] = name
            if not isinstance(entry, Value) and not layout[column].per_row:
                raise ValueError(
                    f"tensor {name!r}: scalar {column!r} has one value, not one per row; "
                    f"write Value({column!r})"
                )
    layout.plans["written", spec] = True


def wrong_shape(where: str, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """What another shape than expected is refused with."""
    hint = ""
    if len(got) == 2 and got[::-1] == expected:
        hint = "; rows come first: pass its transpose"
    elif not expected:
        hint = "; a scalar has no axes: pass its one value, such as soa[Value(name)]"
    elif got == (*expected, 1):
        hint = "; drop the last axis"
        if where.startswith("tensor"):
            hint += ", or name the column in a list of one"
    elif got and got[1:] == expected[1:]:
        hint = "; it needs one row for each of the SoA's"
    return f"{where}: got shape {got}, expected {expected}{hint}"
