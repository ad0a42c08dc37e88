"""Named layouts and specs, with the shapes, strides and values that the tests expect.

Nothing here asks soaview for an answer: strides are the formulas of the memory layout written out,
memory is filled by arithmetic of its own, and `cms_soa.*` are images that C++ classes wrote.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import places

from soaview import Blocks, Column, Layout, Scalar, SoA, Value

ROWS = (0, 1, 31, 32, 33, 1000)

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A spec entry over a layout.

    `strides` takes p, the padded rows of the entry's dtype, and q, those of the layout's other
    column dtype, both in elements of the entry's dtype. Of an interleaved entry p is all that one
    of its columns takes, which has so many numbers in a row.
    """

    name: str
    layout: Layout
    entry: Any
    shape: tuple[int, ...]  # of one row
    strides: Callable[[int, int], tuple[int, ...]]
    dtype: str
    has_rows: bool = True
    interleaved: int = 0

    def __str__(self) -> str:
        return self.name

    def geometry(self, rows: int, padded: bool = False) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Expected shape and strides in elements."""
        if self.interleaved:
            size = np.dtype(self.dtype).itemsize
            room = -(-rows * self.interleaved * size // 128) * 128 // size
            return (rows, *self.shape), self.strides(room, 0)
        own = padded_rows(self.dtype, rows)
        (other,) = {f.dtype for f in self.layout.fields if f.per_row and f.dtype != self.dtype} or {
            self.dtype
        }
        scaled = padded_bytes(other, rows) // np.dtype(self.dtype).itemsize
        lead = ((own if padded else rows),) if self.has_rows else ()
        return (*lead, *self.shape), self.strides(own, scaled)


def first_name(entry: Any) -> str:
    return entry.name if isinstance(entry, Value) else entry if isinstance(entry, str) else entry[0]


def padded_bytes(dtype: str, rows: int, alignment: int = 128) -> int:
    return -(-rows * np.dtype(dtype).itemsize // alignment) * alignment


def padded_rows(dtype: str, rows: int) -> int:
    return padded_bytes(dtype, rows) // np.dtype(dtype).itemsize


def layout_of(dtype: str, other: str) -> Layout:
    """Every kind of field, in one dtype with another one in between."""
    return Layout(
        [
            Column("x", dtype),
            Column("y", dtype),
            Column("z", dtype),
            Scalar("n", dtype),
            Column("gap", other),
            Column("u", dtype, (3,)),
            Column("v", dtype, (3,)),
            Column("m", dtype, (2, 3)),
            Column("k", dtype, (2, 3), order="C"),
            Scalar("s", dtype),
            Scalar("t", dtype),
            Column("p", dtype, (3,), interleaved=True),
            Column("q", dtype, (3,), interleaved=True),
            Column("w", dtype, (2, 3), interleaved=True),
            Column("f", dtype, (2, 3), order="F", interleaved=True),
            Scalar("a", dtype, (3,)),
            Scalar("b", dtype, (3,)),
            Scalar("c", dtype, (9, 20)),
        ]
    )


ARRAYS = "abc"
"""The scalars among these that are arrays."""


def entries(dtype: str, other: str) -> list[Case]:
    layout, one = layout_of(dtype, other), 128 // np.dtype(dtype).itemsize

    def case(name: str, entry: Any, shape: Any, strides: Any, has_rows: bool = True) -> Case:
        first = layout[first_name(entry)]
        adjacent = math.prod(first.shape) if first.name in "pqwf" else 0
        return Case(f"{dtype}-{name}", layout, entry, shape, strides, dtype, has_rows, adjacent)

    return [
        case("column", "x", (), lambda p, q: (1,)),
        case("last-column", "z", (), lambda p, q: (1,)),
        case("columns", ["x", "y", "z"], (3,), lambda p, q: (1, p)),
        case("two-of-three", ["y", "z"], (2,), lambda p, q: (1, p)),
        case("every-second-column", ["x", "z"], (2,), lambda p, q: (1, 2 * p)),
        case("one-in-a-list", ["y"], (1,), lambda p, q: (1, p)),
        case("vector", "u", (3,), lambda p, q: (1, p)),
        case("vectors", ["u", "v"], (2, 3), lambda p, q: (1, 3 * p, p)),
        case("matrix", "m", (2, 3), lambda p, q: (1, p, 2 * p)),
        case("matrix-order-c", "k", (2, 3), lambda p, q: (1, 3 * p, p)),
        case("matrix-in-a-list", ["m"], (1, 2, 3), lambda p, q: (1, 6 * p, p, 2 * p)),
        case("scalar", "n", (), lambda p, q: (0,)),
        case("scalar-in-a-list", ["n"], (1,), lambda p, q: (0, 1)),
        case("scalars", ["s", "t"], (2,), lambda p, q: (0, one)),
        case("scalars-apart", ["n", "s"], (2,), lambda p, q: (0, one + q + 18 * p)),
        case("value", Value("n"), (), lambda p, q: (), has_rows=False),
        case("interleaved", "p", (3,), lambda p, q: (3, 1)),
        case("interleaved-in-a-list", ["q"], (1, 3), lambda p, q: (3, p, 1)),
        case("interleaved-both", ["p", "q"], (2, 3), lambda p, q: (3, p, 1)),
        case("interleaved-matrix", "w", (2, 3), lambda p, q: (6, 3, 1)),
        case("interleaved-order-f", "f", (2, 3), lambda p, q: (6, 1, 2)),
        case("scalar-array", "a", (3,), lambda p, q: (0, 1)),
        case("scalar-array-in-a-list", ["a"], (1, 3), lambda p, q: (0, 3, 1)),
        case("scalar-arrays", ["a", "b"], (2, 3), lambda p, q: (0, one, 1)),
        case("array-value", Value("b"), (3,), lambda p, q: (1,), has_rows=False),
        case("matrix-value", Value("c"), (9, 20), lambda p, q: (20, 1), has_rows=False),
    ]


DTYPES = {
    "bool": "float32",
    "int8": "float64",
    "int16": "float32",
    "int32": "float64",
    "int64": "float32",
    "uint8": "float64",
    "uint16": "float32",
    "uint32": "int8",
    "uint64": "float32",
    "float16": "int64",
    "bfloat16": "int64",
    "float32": "float64",
    "float64": "float32",
    "complex64": "float32",
    "complex128": "float32",
}

ONE_OF_EACH = ["column", "columns", "matrix", "scalar", "value", "interleaved"]
ADJACENT = ["interleaved", "interleaved-matrix", "scalar-array", "array-value"]


def is_taken(case: Case) -> bool:
    """Every kind of entry in the common dtypes, but of what is adjacent in memory only some.

    In the others there is one of each number of axes.
    """
    kind = case.name.split("-", 1)[1]
    if case.dtype == "float32":
        return True
    if case.dtype in ("float64", "bfloat16"):
        return (
            not (case.interleaved or "array" in kind or "matrix-value" in kind) or kind in ADJACENT
        )
    return kind in ONE_OF_EACH


CASES = [
    case for dtype, other in DTYPES.items() for case in entries(dtype, other) if is_taken(case)
]

# Entries that no single strided view covers, and a word of why.
SCATTERED = {
    ("z", "y", "x"): "reversed order",
    ("x", "z", "y"): "uneven distance",
    ("x", "x"): "repeated",
    ("x", "y", "x"): "repeated",
    ("v", "u"): "reversed order",
    ("x", "n"): "columns and scalars",
    ("m", "k"): "matrices of order",
    ("q", "p"): "reversed order",
    ("p", "p"): "repeated",
    ("u", "p"): "interleaved and component-wise columns",
    ("w", "f"): "matrices of order",
    ("p", "a"): "columns and scalars",
}


def value(dtype: str, field: int, row: Any, component: Any) -> Any:
    """What stands in memory, from the numbers of field, row and component."""
    numbers = (field * 7 + np.asarray(row) * 3 + np.asarray(component) * 5) % 97
    return (numbers & 1 if dtype == "bool" else numbers).astype(np.dtype(dtype))


def filled(layout: Layout, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The bytes of an SoA, filled by plain arithmetic, and what each field must read as.

    Padding holds 0xEE. The memory starts on a multiple of 128, and is no other caller's.
    """
    memory, expected = _filled(layout, rows)
    return places.aligned(memory), {name: values.copy() for name, values in expected.items()}


@functools.cache
def _filled(layout: Layout, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    total = sum(math.prod(stretches_of(f, rows)) for f in layout.fields)
    memory = np.full(total, 0xEE, np.uint8)
    expected, offset = {}, 0
    for number, f in enumerate(layout.fields):
        count, pitch = stretches_of(f, rows)
        row, component = np.ogrid[: rows if f.per_row else 1, : math.prod(f.shape)]
        table = value(f.dtype, number, row, component)
        for stretch in [table] if count == 1 else table.T:
            part = np.ascontiguousarray(stretch).reshape(-1).view(np.uint8)
            memory[offset : offset + part.size] = part
            offset += pitch
        found = np.empty((len(table), *f.shape), np.dtype(f.dtype))
        for row, components in enumerate(table):
            found[row] = components.reshape(f.shape, order=f.order)
        expected[f.name] = found if f.per_row else found[0]
    return memory, expected


def read(entry: Any, expected: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """What the tensor of an entry must hold."""
    if isinstance(entry, Value):
        return expected[entry.name]
    if isinstance(entry, str):
        field = expected[entry]
        scalar = not field.ndim or entry in ARRAYS
        return np.broadcast_to(field, (rows, *field.shape)) if scalar else field
    return np.stack([read(name, expected, rows) for name in entry], axis=1)


def stretches_of(f: Column | Scalar, rows: int) -> tuple[int, int]:
    """How many aligned stretches of memory a field takes, and the bytes of each."""
    numbers = math.prod(f.shape)
    count = 1 if f.interleaved or not f.per_row else numbers
    used = np.dtype(f.dtype).itemsize * (rows if f.per_row else 1) * (numbers // count)
    return count, -(-used // 128) * 128


def column_offset(layout: Layout, name: str, rows: int) -> int:
    """Byte at which a field starts, counted along the layout."""
    offset = 0
    for f in layout.fields:
        if f.name == name:
            return offset
        offset += math.prod(stretches_of(f, rows))
    raise AssertionError(name)


def list_of(entry: Any) -> Any:
    """As a spec takes it; in a dictionary's keys lists are tuples."""
    return list(entry) if isinstance(entry, tuple) else entry


def wrapped(layout: Layout, rows: int) -> tuple[SoA, dict[str, np.ndarray]]:
    memory, expected = filled(layout, rows)
    return places.under_test.wrap(layout, memory, rows), expected


@dataclass(frozen=True)
class Image:
    """A memory image written by the CMS experiment's C++ classes."""

    file: str
    name: str
    layout: Layout
    rows: int
    nbytes: int
    offsets: dict[str, dict[str, int]]

    def __str__(self) -> str:
        return f"{self.name}-{self.rows}"

    def memory(self) -> np.ndarray:
        """The image's bytes, on an address that every adapter takes."""
        return image_of(self.file, f"{self.name}/{self.rows}")

    def expected(self, number: int) -> np.ndarray:
        """Field number `number`, by the formula that the C++ program filled it with."""
        return written(self.layout, number, self.rows)


def image_of(file: str, key: str) -> np.ndarray:
    with np.load(HERE / f"{file}.npz") as images:
        return places.aligned(images[key])


def written(layout: Layout, number: int, rows: int, block: int = 0) -> np.ndarray:
    """What the C++ programs filled a field with, in a leaf block of that number."""
    f = layout.fields[number]
    r, c = (*f.shape, 1, 1)[:2]
    i, j, k = np.ogrid[: rows if f.per_row else 1, :r, :c]
    first = 17 * block + 7 * number + (3 * i if f.per_row else 5)
    numbers = ((first + j * 5 + k * 11) % 97).reshape(-1, *f.shape)
    numbers = numbers if f.per_row else numbers[0]
    return (numbers & 1 if f.dtype == "bool" else numbers).astype(np.dtype(f.dtype))


def field_of(described: dict[str, Any]) -> Column | Scalar:
    """A field as the images' JSON has it."""
    kind, dtype = described["kind"], np.dtype(described["dtype"])
    name, shape = described["name"], described.get("shape", ())
    if kind.endswith("scalar"):
        return Scalar(name, dtype, shape)
    adjacent = kind == "array_column"
    return Column(name, dtype, shape, described.get("order"), interleaved=adjacent)


def described_in(file: str) -> list[dict[str, Any]]:
    return json.loads((HERE / f"{file}.json").read_text())


FILES = ("cms_soa", "cms_soa_arrays_blocks")


def _images() -> list[Image]:
    images = []
    for file in FILES:
        for described in described_in(file):
            if "blocks" in described:
                continue
            name, fields = described["name"], map(field_of, described["fields"])
            layout = Layout(fields, alignment=described["alignment"])
            images += [
                Image(file, name, layout, c["rows"], c["nbytes"], c["offsets"])
                for c in described["cases"]
            ]
    return images


IMAGES = _images()


@dataclass(frozen=True)
class BlocksImage:
    """The same of a block class: `places` has, by the names that lead to it, each leaf's."""

    name: str
    blocks: Blocks
    rows: dict[str, Any]
    nbytes: int
    places: dict[tuple[str, ...], dict[str, Any]]
    key: str

    def __str__(self) -> str:
        return self.key.replace("/", "-")

    def memory(self) -> np.ndarray:
        """As an `Image` has it."""
        return image_of(FILES[1], self.key)


def _block_of(described: dict[str, Any], alignment: int) -> Layout | Blocks:
    if described["kind"] == "layout":
        return Layout(map(field_of, described["fields"]), alignment=alignment)
    return Blocks({b["name"]: _block_of(b, alignment) for b in described["blocks"]})


def _rows_of(places: dict[str, Any]) -> dict[str, Any]:
    return {n: _rows_of(p["blocks"]) if "blocks" in p else p["rows"] for n, p in places.items()}


def _leaves_of(places: dict[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, place in places.items():
        leaf = {(*path, name): place}
        found |= _leaves_of(place["blocks"], (*path, name)) if "blocks" in place else leaf
    return found


def _blocks_images() -> list[BlocksImage]:
    images = []
    for described in described_in(FILES[1]):
        if "blocks" not in described:
            continue
        blocks = _block_of(described, described["alignment"])
        assert isinstance(blocks, Blocks)
        for case in described["cases"]:
            places_ = case["blocks"]
            key = f"{described['name']}/{'-'.join(map(str, case['rows']))}"
            found = _rows_of(places_), case["nbytes"], _leaves_of(places_)
            images.append(BlocksImage(described["name"], blocks, *found, key))
    return images


BLOCKS_IMAGES = _blocks_images()
