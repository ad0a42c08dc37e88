"""What the memory looks like: the offsets that follow from fields and a row count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar

import numpy as np

from ._buffer import Buffer, HostBuffer
from ._device import buffer_of, located, pointed
from ._dtypes import BYTE, INT64_MAX, check_capacity, check_rows
from ._fields import Column, Fields, Scalar, arranged, check_alignment, check_fields, freeze, listed
from ._host import aligned_zeros
from ._json import Described, field_to_dict, fields_from_dict
from ._soa import SoA, new_soa
from ._spec import Plans, Spec
from ._typed import asked_of


@dataclass(frozen=True, slots=True, repr=False, eq=False, init=False)
class Layout(Fields, Described):
    """An immutable list of fields; with a row count, every offset follows from it.

    It is a mapping from name to field.

    Fields follow each other in declaration order and each component starts on an aligned byte: a
    column takes `components * ceil(rows * itemsize / alignment) * alignment` bytes. One that is
    interleaved is a single sub-column of rows; a scalar takes its bytes, rounded up. With alignment
    128 this is byte for byte, but for padding, where the CMS experiment's SoA classes lay columns,
    scalars, Eigen columns, and columns and scalars of `std::array`
    (https://github.com/cms-sw/cmssw/tree/master/DataFormats/SoATemplate).

    Args:
        fields: `Column`s and `Scalar`s.
        alignment: bytes; a power of two, and a multiple of every item size.

    Raises:
        TypeError, ValueError: no fields, a name twice, a bad alignment.

    >>> layout = Layout([Column("pt", "float32"), Column("cov", "float64", (2, 2))])
    >>> layout.nbytes(rows=33)
    1792
    >>> layout.offset("cov", rows=33), layout.pitch("cov", rows=33)
    (256, 384)
    >>> list(layout), layout["cov"].shape
    (['pt', 'cov'], (2, 2))
    """

    fields: tuple[Column | Scalar, ...]
    alignment: int
    # Everything below is derived. An offset is linear in the padded sizes, one per width in
    # `sizes`: counted in units of `alignment` bytes it is (constant, units of sizes[0], ...).
    sizes: tuple[int, ...]
    starts: dict[str, tuple[int, ...]]
    end: tuple[int, ...]
    itemsize: int  # of the largest item, on whose multiples memory starts
    _total: Callable[[int], int]  # bytes of the whole buffer at a row count
    _by_name: dict[str, Column | Scalar]
    _hash: int
    plans: Plans  # what rooms above have compiled for this layout
    apart: ClassVar[bool] = False  # whether each field is a run of its own

    def __init__(self, fields: Iterable[Column | Scalar], *, alignment: int = 128) -> None:
        fields = check_fields(fields)
        alignment = check_alignment(alignment, fields)
        sizes, starts, end, total = arranged(fields, alignment)
        itemsize, by_name = max(f.itemsize for f in fields), {f.name: f for f in fields}
        freeze(self, fields=fields, alignment=alignment, sizes=sizes, starts=starts, end=end)
        freeze(self, itemsize=itemsize, _total=total, _by_name=by_name, plans=Plans(len(fields)))
        freeze(self, _hash=hash((fields, alignment)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layout):
            return NotImplemented
        return self.fields == other.fields and self.alignment == other.alignment

    def __hash__(self) -> int:
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        Layout.__init__(self, **fields_from_dict(state))  # checks all of it

    def __repr__(self) -> str:
        alignment = f", alignment={self.alignment}" if self.alignment != 128 else ""
        return f"Layout([{listed(map(repr, self.fields))}]{alignment})"

    def nbytes(self, rows: int) -> int:
        """Bytes of the whole buffer at `rows` rows."""
        return self._total(check_rows(rows))

    def offset(self, name: str, rows: int) -> int:
        """Byte at which field `name` starts; a `KeyError` where there is no such field."""
        self[name]
        rows = check_rows(rows)
        units = (1, *(-(-rows * size // self.alignment) for size in self.sizes))
        return self.alignment * sum(n * u for n, u in zip(self.starts[name], units, strict=True))

    def pitch(self, name: str, rows: int) -> int:
        """Bytes from one component of column `name` to its next; else all that the field takes."""
        found = self[name]
        count = check_rows(rows) if found.per_row else 1
        return -(-count * found.width // self.alignment) * self.alignment

    def dense_rows(self, rows: int) -> int:
        """The smallest row count, at least `rows`, at which no column has padding.

        >>> Layout([Column("pt", "float32"), Column("cov", "float64", (2, 2))]).dense_rows(1000)
        1024
        """
        rows = check_rows(rows)
        shared = [gcd(f.width, self.alignment) for f in self.fields if f.per_row]
        step = self.alignment // min(shared, default=self.alignment)  # all are powers of two
        return -(-rows // step) * step

    @classmethod
    def arrange(
        cls, fields: Iterable[Column | Scalar], specs: Spec | list[Spec], *, alignment: int = 128
    ) -> Layout:
        """A layout of the fields in an order in which every tensor of the specs is a strided view.

        As declared, if that will do. If only tensors of two columns are asked for, each place takes
        the earliest declared field that may stand there; for longer ones more fields may move.

        Raises:
            ValueError: there is none; it names a few tensors that cannot be had together. Or that
                was not found out in a bounded search, which more than 16 tensors can come to.
            KeyError, TypeError: as `views`.

        >>> fields = [Column(name, "float32") for name in ("eta", "e", "pt", "phi")]
        >>> list(Layout.arrange(fields, Spec(x=["pt", "eta", "phi"], y=["e", "pt"])))
        ['e', 'pt', 'eta', 'phi']
        """
        from ._arrange import arrange

        return arrange(fields, specs, alignment)

    def describe(self, rows: int) -> str:
        """The memory map at `rows` rows, as a table; offset, pitch, bytes and padding in bytes.

        A matrix's shape is followed by its order; of a long name there is the beginning. The last
        line draws the memory, its fields to scale where there is room.

        >>> layout = Layout([Column("pt", "float32"), Scalar("n", "int32")])
        >>> print(layout.describe(rows=33))
        33 rows, 384 bytes, alignment 128
        field  dtype    shape   offset  pitch  bytes  padding
        pt     float32  (33,)        0    256    256      124
        n      int32    scalar     256    128    128      124
        │████████████████████░░░░░░░░░░░░░░░░░░│▓░░░░░░░░░░░░░░░░░░│ ▓ scalar, ░ padding
        """
        from ._describe import memory_map

        return memory_map(self, check_rows(rows))

    def to_svg(self, rows: int, spec: Spec | None = None) -> str:
        """The memory map as a drawing: SVG, for a page or a file; notebooks draw it by themselves.

        Fields are to scale, but none less wide than can be seen. Padding is hatched; the numbers,
        in bytes, are tooltips. Of more than 40 fields the others are one piece, which says so.

        Args:
            rows: how many.
            spec: each of its tensors is a line under the memory: a view, or why there is none.

        Raises:
            KeyError, TypeError, ValueError: as `views`; rows that are no such count.

        >>> Layout([Column("pt", "float32")]).to_svg(rows=33)[:26]
        '<svg xmlns="http://www.w3.'
        """
        from ._draw import svg_of

        return svg_of(self, check_rows(rows), spec)

    def _repr_html_(self) -> str:
        from ._notebook import html_of_layout

        return html_of_layout(self)

    def check(self, offsets: Mapping[str, int], rows: int) -> None:
        """Raise unless a producer's own offsets are this layout's, at that row count.

        What writes the memory knows them: C's `offsetof`, pointers less the buffer's address, a
        JSON that C++ wrote. Sizes that agree prove nothing, for they may do so by chance.

        Args:
            offsets: by field, the byte at which it starts; not every field need be there.
            rows: how many rows the memory was laid out for.

        Raises:
            ValueError: naming every field that lies elsewhere, by how many bytes, and what would
                explain it, where something does: another alignment, another row count, a field
                too many or too few.
            TypeError: offsets that are no mapping, or no integers.

        >>> layout = Layout([Column("pt", "float32"), Column("score", "float32")])
        >>> layout.check({"pt": 0, "score": 4096}, rows=1000)
        >>> layout.check({"pt": 0, "score": 4096}, rows=900)
        Traceback (most recent call last):
        ValueError: at 900 rows 1 of 2 fields lies elsewhere: 'score' at byte 4096, here at 3712 \
        (384 more); this would be so at 993 to 1024 rows
        """
        from ._offsets import check_offsets

        check_offsets(self, offsets, check_rows(rows))

    def to_dict(self) -> dict[str, Any]:
        """A description that JSON can hold and `from_dict` turns back.

        >>> Layout([Scalar("n", "int32")]).to_dict()
        {'alignment': 128, 'fields': [{'kind': 'scalar', 'name': 'n', 'dtype': 'int32'}]}
        """
        return {"alignment": self.alignment, "fields": [field_to_dict(f) for f in self.fields]}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Layout:
        """The layout that `to_dict` described; `alignment`, `shape` and `order` may be left out.

        Raises:
            TypeError, ValueError: anything that is not exactly such a description.
        """
        return cls(**fields_from_dict(description))

    def allocate(self, rows: int) -> SoA:
        """A zeroed SoA of `rows` rows, its columns aligned in memory.

        Raises:
            MemoryError: with the bytes that were needed.

        >>> soa = Layout([Column("pt", "float32")]).allocate(3)
        >>> soa["pt"]
        array([0., 0., 0.], dtype=float32)
        """
        rows = check_rows(rows)
        nbytes = self._total(rows)
        try:
            return self.wrap(aligned_zeros(nbytes, self.alignment), rows)
        except MemoryError:
            raise MemoryError(f"{rows} rows need {nbytes} bytes") from None

    def wrap(self, buffer: object, rows: int) -> SoA:
        """An SoA over memory that already holds one: no byte is copied.

        Args:
            buffer: a NumPy array, bytes, bytearray, memoryview, mmap, array.array, shared memory, a
                ctypes array; or, on any device, what speaks DLPack or has the CUDA array interface,
                such as tensors of torch, JAX and CuPy. It may be larger than needed, and starts on
                a multiple of the layout's largest item size: 16 bytes for complex128. It is kept,
                and its export held, while the SoA or a view lives. Where DLPack is older than 1.0
                it cannot say whether memory may be written, and is taken as read-only.
                Bytes (one-byte integers, raw memory) are taken for whatever the layout says. Memory
                of another dtype must have that of every field, in this machine's byte order, along
                one axis, or as the table that the layout's memory is: `(columns, padded rows)` in C
                order, or its transpose in Fortran's.
            rows: how many rows the buffer was laid out for. Memory does not say: another count
                than the writer's gives other offsets, hence wrong values, and so does another
                layout. That the sizes agree proves nothing, as below: `check` compares offsets.

        Raises:
            ValueError: too small, or negative rows; a foreign byte order; a table in another order.
            BufferError: misaligned, or not contiguous.
            TypeError: no memory at all; another dtype than the fields'; rows that are no integer.

        >>> layout = Layout([Column("pt", "float32"), Column("n", "int16")])
        >>> other = Layout([Column("n", "int16"), Column("pt", "float32")])
        >>> layout.nbytes(100) == other.nbytes(100)
        True
        >>> memory = layout.pack({"pt": [1.0] * 100, "n": [1] * 100}).buffer.root
        >>> other.wrap(memory, rows=100)["n"][:2]
        array([    0, 16256], dtype=int16)
        """
        if type(rows) is not int or not 0 <= rows <= INT64_MAX:
            rows = check_capacity(rows)
        if type(buffer) is np.ndarray and buffer.dtype is BYTE and buffer.ndim == 1:
            # Plain bytes say no more.
            memory: Buffer = HostBuffer(buffer, self._total(rows), self.itemsize)
        else:
            memory = buffer_of(buffer, self._total(rows), self.itemsize, asked_of(self, rows))
        return new_soa(self, memory, rows, 0, rows)

    def from_pointer(
        self,
        address: int,
        rows: int,
        *,
        device: str,
        owner: object = None,
        finalizer: Callable[[], object] | None = None,
        readonly: bool = False,
        nbytes: int | None = None,
        stream: int | None = None,
    ) -> SoA:
        """An SoA over memory of which there is but the address, such as C++ code gives it.

        Nothing about it can be checked but the numbers: a wrong address, device or row count reads
        and writes somebody else's memory.

        Args:
            address: of the first byte.
            rows: how many rows the memory was laid out for.
            device: where it is, by a name of DLPack's, with a number: `"cuda:0"`; `"cpu"` for the
                host. A pointer of one taken for the other's is found out at the first access only.
            owner: what keeps the memory; it lives as long as the SoA and its views do, and must not
                hold them.
            finalizer: called once, without arguments, when the last of these is gone; not at the
                interpreter's exit, nor where this call raises. Instead of `owner`; it must not hold
                them either.
            readonly: refuse writes.
            nbytes: how much memory there is, where that is known: too little is an error.
            stream: the CUDA stream that the memory is being written on, as an integer (1 for the
                legacy default stream, 2 for the thread's): consumers' streams wait for it.

        Raises:
            TypeError, ValueError: numbers that no memory can have; an unknown device.
            BufferError: an address that the layout's largest item cannot have.

        >>> layout = Layout([Column("pt", "float32")])
        >>> memory = np.zeros(128, np.uint8)
        >>> layout.from_pointer(memory.ctypes.data, 3, device="cpu", owner=memory)["pt"]
        array([0., 0., 0.], dtype=float32)
        """
        rows = check_capacity(rows)
        memory = located(address, device, self._total(rows), nbytes, readonly, stream)
        buffer = pointed(memory, self.itemsize, owner, finalizer)
        return SoA(self, buffer, rows, 0, rows)

    @classmethod
    def of(
        cls,
        data: Any,
        *,
        columns: Iterable[str] | None = None,
        dtypes: str | Mapping[str, str] | None = None,
        alignment: int = 128,
    ) -> Layout:
        """The layout that `soaview.pack` gives such data; its values are not looked at.

        >>> Layout.of({"pt": np.zeros(3), "n": 7}, dtypes={"pt": "float32"})
        Layout([Column('pt', 'float32'), Scalar('n', 'int64')])
        """
        from ._intake import layout_of

        return layout_of(data, columns, dtypes, alignment)

    def pack(self, data: Any, rows: int | None = None) -> SoA:
        """A new SoA, filled from one array per field: shape `(rows, *shape)`, a scalar's `()`.

        `data` is such a mapping, or a table as of `soaview.pack`, of which the fields are taken.
        Arrays must have the field's dtype, for nothing is converted in silence; Python numbers and
        lists take it where their kind allows. One number is taken for all rows of a column.

        Raises:
            KeyError: a field is missing; a mapping has an unknown one.
            TypeError, ValueError: a wrong dtype, shape or row count; nulls, by their number.

        >>> layout = Layout([Column("pt", "float32"), Scalar("n", "int32")])
        >>> soa = layout.pack({"pt": [1.0, 2.0], "n": 7})
        >>> soa["pt"], soa["n"]
        (array([1., 2.], dtype=float32), array([7, 7], dtype=int32))
        """
        from ._intake import pack_into

        return pack_into(self, data, rows)
