"""SoA: a layout bound to a row count and a buffer."""

from __future__ import annotations

from collections.abc import Hashable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final, overload

import numpy as np

from ._bound import unaligned
from ._buffer import Buffer, array_arguments, guarded
from ._dtypes import exact_int
from ._fields import listed, shown
from ._frozen import Frozen, Unfrozen
from ._reduce import copy_rows, rebuild_soa, reduce_soa
from ._resolve import numbers_of, pattern_of
from ._spec import Entry, Spec, Value, checked_entry
from ._strided import Strided, check_bounds
from ._why import why_not

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._layout import Layout


_new = object.__new__


@final
class SoA(Frozen):
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
        adapter_cache: what adapters have made of it, by `(adapter, spec.key, options)`; bounded.

    An SoA does not change: only the memory under it does.
    """

    __slots__ = ()

    def __new__(
        cls,
        layout: Layout | None = None,
        buffer: Buffer | None = None,
        capacity: int = 0,
        start: int = 0,
        rows: int = 0,
    ) -> SoA:
        """Made while it may still be changed: a setter for each attribute takes twice as long."""
        if layout is None or buffer is None:
            return object.__new__(cls)  # for pickle, which sets the state next
        return new_soa(layout, buffer, capacity, start, rows)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("an SoA's class is final; hold one in an object of your own instead")

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
        entry = key if type(key) is str else _entry_of(key)
        known = self.adapter_cache.get(("numpy", entry))
        if known is None:
            known = unaligned(self.layout, self.buffer, self.start, self.rows, entry)
            if known is None:
                buffer, at = self._at(entry)
                if not buffer.on_host:
                    return buffer.array(at)
                known = array_arguments(guarded(buffer.root, at), at)
            keep(self, ("numpy", entry), known)
        return np.ndarray(*known)

    def _at(self, entry: Entry) -> tuple[Buffer, Strided]:
        """Where an entry's elements are: inside the buffer."""
        pattern = pattern_of(self.layout, entry, self.buffer.piecewise)
        if pattern.columns:
            why = why_not(self.layout, pattern.columns, self.capacity, self.buffer.piecewise)
            raise BufferError(
                f"{listed(pattern.columns)} make no single array: {why}; take them one by one, "
                f"soa[name], and copy them into one, np.stack(arrays, axis=1)"
            )
        found = numbers_of(self.layout, pattern, self.capacity, self.start, self.rows)
        buffer = self.buffer.piece(pattern.allocation)
        check_bounds([found], buffer.nbytes)
        return buffer, Strided(*found)

    def _slice(self, key: slice) -> SoA:
        if key.step not in (None, 1):
            raise ValueError(
                f"rows are taken in steps of 1, got {key!r}; a column's view takes any: "
                f"soa[name][::2]"
            )
        first, last, _ = key.indices(self.rows)
        count = max(last - first, 0)
        start = self.start + first
        if not count and self.buffer.piecewise:
            start = 0  # for where the last record ends no field of another one lies
        return SoA(self.layout, self.buffer, self.capacity, start, count)

    def counted(self, name: str) -> SoA:
        """The first rows: as many as the SoA's own scalar of that name says.

        For memory of a fixed capacity that holds its own count. That is read in this call, once; on
        a device it is fetched, which waits for the device.

        Raises:
            KeyError: no such field.
            TypeError: it is no scalar, or no integer; the SoA is traced, where no value is known.
            ValueError: a negative count, or one above the rows; an SoA that is a slice itself.

        >>> from soaview import Column, Layout, Scalar, Value
        >>> soa = Layout([Column("pt", "float32"), Scalar("n", "int32")]).allocate(4096)
        >>> soa[Value("n")] = 3
        >>> len(soa.counted("n"))
        3
        """
        from ._values import count_in

        return self[: count_in(self, name)]

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

    def batches(self, size: int, *, drop_last: bool = False) -> Sequence[SoA]:
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
        from ._batches import Batches

        size = exact_int(size, "the batch size")
        if size < 1:
            raise ValueError(f"the batch size must be positive, got {size}")
        if drop_last is not True and drop_last is not False:
            raise TypeError(f"drop_last must be True or False, got {drop_last!r:.60}")
        return Batches(self, size, drop_last)

    def take(self, rows: Any) -> SoA:
        """The chosen rows, in this order, in a new SoA: a copy, of the host's memory.

        Args:
            rows: integers along one axis, of which -1 is the last row, or a bool for each row.

        Raises:
            IndexError: a row that is not there, or a mask of another length.
            TypeError: anything else.
            BufferError: memory that is not the host's; the adapters have a `take` for that.

        >>> from soaview import Column, Layout
        >>> soa = Layout([Column("pt", "float32")]).pack({"pt": [1.0, 2.0, 3.0]})
        >>> soa.take([2, 0])["pt"], soa.take(soa["pt"] > 1).rows
        (array([3., 1.], dtype=float32), 2)
        """
        from ._rows import take

        return take(self, rows)

    def describe(self) -> str:
        """The memory map, as `Layout.describe` gives it, below what `repr` says.

        Of bound columns: offsets and strides in bytes, allocations, which make one strided tensor.
        """
        from ._describe import soa_map

        return f"{self!r}\n{soa_map(self)}"

    def to_svg(self, spec: Spec | None = None) -> str:
        """The memory map as a drawing, SVG, as `Layout.to_svg` gives it.

        Of bound columns the allocations stand side by side, those of several columns below, records
        by one of them; and a line says what XLA copies.

        Args:
            spec: each of its tensors is a line: a view, or why there is none.

        Raises:
            KeyError, TypeError, ValueError: as `views`.

        >>> from soaview import bind
        >>> bind({"pt": np.zeros(33)}).to_svg()[:26]
        '<svg xmlns="http://www.w3.'
        """
        from ._draw_soa import svg_of_soa

        return svg_of_soa(self, spec)

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
        from ._values import check_bools

        check_bools(self)

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
        return self.pack()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """As layout, rows and the memory's bytes, which protocol 5 may send out of band."""
        whole = self.rows == self.capacity and not self.buffer.piecewise
        sent = self if whole else self.pack()
        return reduce_soa(SoA, sent.layout, sent.rows, sent.buffer.root, protocol)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if hasattr(self, "layout"):
            raise AttributeError("an SoA is immutable, and its state cannot be set again")
        found = rebuild_soa(state)
        for name in Unfrozen.__slots__[1:]:
            object.__setattr__(self, name, getattr(found, name))

    def pack(self) -> SoA:
        """The same rows in one buffer of their own: a copy.

        Raises:
            BufferError: memory that NumPy does not read.

        >>> from soaview import Column, Layout
        >>> soa = Layout([Column("pt", "float32")]).allocate(10)
        >>> soa[3:].pack()
        SoA(7 rows, 128 bytes on cpu: pt float32)
        """
        soa = self.layout.allocate(self.rows)
        if self.buffer.piecewise:
            for field in self.layout.fields:
                key = field.name if field.per_row else Value(field.name)
                soa[key][...] = self[key]
            return soa
        rows = range(self.start, self.start + self.rows)
        copy_rows(self.layout, self.capacity, rows, self.buffer.root, soa.buffer.root)
        return soa

    def _repr_html_(self) -> str:
        from ._notebook import html_of_soa

        return html_of_soa(self)

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
        return f"SoA({rows}, {self.buffer.summary} on {self.device}{readonly}: {fields})"


def new_soa(layout: Layout, buffer: Buffer, capacity: int, start: int, rows: int) -> SoA:
    """As `SoA`, whose call takes twice as long."""
    made = _new(Unfrozen)
    made.layout = layout
    made.buffer = buffer
    made.capacity = capacity
    made.start = start
    made.rows = rows
    made.adapter_cache = {}
    made.__class__ = SoA
    return made  # type: ignore[return-value]  # the line above has made it one


MOST = 256
"""Entries of an adapter cache beside those of single fields: as many as a program uses in turn."""

Made = TypeVar("Made")


def keep(soa: SoA, key: Hashable, made: Made) -> Made:
    """Put what an adapter has made of an SoA into its cache, and give it back.

    A full cache is emptied first. Each step is one of a dictionary's own, so that threads may do
    this at once: at worst two of them make the same, or forget what would have been found.

    Args:
        soa: any.
        key: `(adapter, spec.key, options)`: by value, so that an equal spec finds it.
        made: anything that lives as long as the SoA's memory does.
    """
    cache = soa.adapter_cache
    if len(cache) >= MOST + len(soa.layout.fields):
        cache.clear()
    cache[key] = made
    return made


def _entry_of(key: Any) -> Entry:
    """What an SoA is indexed with, as a spec has it."""
    if not isinstance(key, (str, list, tuple, Value)):
        raise TypeError(
            f"an SoA takes a field's name, a list of names, Value(name) or a slice of rows, "
            f"got {type(key).__name__}; row i is soa[i:i+1], and chosen rows are soa.take(rows)"
        )
    return checked_entry("", key)
