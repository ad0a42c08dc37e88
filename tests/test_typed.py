"""Memory that says what it holds: believed where that is the layout's, or refused."""

from __future__ import annotations

import array
import ctypes
import sys

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pytest

from soaview import Blocks, Column, Layout, Scalar
from soaview._dtypes import ITEMSIZE, numpy_dtype

ROWS = 5


def plain(dtype, columns=2, alignment=None):
    fields = [Column(f"c{number}", dtype) for number in range(columns)]
    return Layout(fields, alignment=alignment or ITEMSIZE[dtype])


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_typed_memory_of_the_layouts_own_dtype(dtype):
    """An array of one axis is taken where its dtype is that of every field, and aliased."""
    layout = plain(dtype)
    memory = np.arange(2 * ROWS).astype(numpy_dtype(dtype))
    soa = layout.wrap(memory, ROWS)
    np.testing.assert_array_equal(soa["c1"], memory[ROWS:])
    memory[ROWS] = 1
    assert soa["c1"][0] == 1
    assert soa.buffer.owner is memory


@pytest.mark.parametrize("own", ITEMSIZE)
def test_typed_memory_of_another_dtype(own):
    """Every other dtype is refused by the field's name, but one-byte integers, which are bytes."""
    layout = plain(own, 1, alignment=128)
    for other in ITEMSIZE:
        memory = np.zeros(2048, numpy_dtype(other))
        if other in ("int8", "uint8", own):
            layout.wrap(memory, ROWS)
            continue
        message = f"holds {other}, but field 'c0' is {own}; .*pack.*uint8"
        with pytest.raises(TypeError, match=message):
            layout.wrap(memory, ROWS)


@pytest.mark.parametrize("dtype", [dtype for dtype in ITEMSIZE if ITEMSIZE[dtype] > 1])
def test_a_field_of_another_dtype_among_many(dtype):
    """One field that differs is enough: mixed layouts take bytes only, and scalars count."""
    for odd in (Column("odd", "bool"), Scalar("odd", "int8"), Column("odd", "uint8", (2,))):
        layout = Layout([*plain(dtype).fields, odd], alignment=16)
        memory = np.zeros(layout.nbytes(ROWS) // ITEMSIZE[dtype], numpy_dtype(dtype))
        with pytest.raises(TypeError, match="field 'odd' is"):
            layout.wrap(memory, ROWS)
        layout.wrap(memory.view(np.uint8), ROWS)
        blocks = Blocks({"a": plain(dtype, alignment=16), "b": Layout([odd], alignment=16)})
        with pytest.raises(TypeError, match="field 'odd' is"):
            blocks.wrap(np.zeros(999, numpy_dtype(dtype)), {"a": 1, "b": 2})


def test_blocks_of_one_dtype():
    """Blocks take an array of their dtype along one axis, and no table."""
    blocks = Blocks({"a": plain("float32"), "b": plain("float32", 1)})
    memory = np.arange(10, dtype="f4")
    soas = blocks.wrap(memory, {"a": 3, "b": 4})
    assert soas["b"]["c0"].tolist() == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="2 axes.*as one axis, .reshape"):
        blocks.wrap(memory.reshape(2, 5), {"a": 3, "b": 4})


@pytest.mark.parametrize("dtype", ["int16", "float32", "int64", "complex128", "float16"])
@pytest.mark.parametrize("source", ["numpy", "memoryview", "2-d"])
def test_a_foreign_byte_order(dtype, source):
    """It is refused, even where it is the only thing wrong; converted as advised it is right."""
    layout = plain(dtype)
    numbers = np.arange(2 * ROWS).astype(dtype)
    swapped = numbers.astype(numbers.dtype.newbyteorder())
    if source == "memoryview" and dtype != "complex128":
        memory = memoryview(swapped)
    elif source == "2-d":
        memory = np.asfortranarray(swapped.reshape(2, ROWS).T)
    else:
        memory = swapped
    with pytest.raises(ValueError, match="not in this machine's byte order; convert"):
        layout.wrap(memory, ROWS)
    converted = swapped.astype(swapped.dtype.newbyteorder("="))
    np.testing.assert_array_equal(layout.wrap(converted, ROWS)["c1"], numbers[ROWS:])
    np.testing.assert_array_equal(layout.pack({"c0": swapped[:1], "c1": swapped[1:2]})["c1"], 1)


class Point(ctypes.Structure):
    _fields_ = (("Offset", ctypes.c_float), ("P", ctypes.c_float))


class Nested(ctypes.Structure):
    _fields_ = (("points", Point * 2), ("n", ctypes.c_int))


class Union(ctypes.Union):
    _fields_ = (("x", ctypes.c_float), ("n", ctypes.c_int))


class Packed(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("x", ctypes.c_float), ("y", ctypes.c_float))


RECORDS = {
    "ctypes, packed": lambda: (Packed * 99)(),
    "ctypes, a union": lambda: (Union * 99)(),
    "numpy": lambda: np.zeros(99, [("x", "f4"), ("y", "f4")]),
    "numpy, one field": lambda: np.zeros(99, [("x", "f4")]),
    "numpy, nested": lambda: np.zeros(99, [("p", [("x", "f4"), ("O", "f4", (3,))])]),
    "numpy recarray": lambda: np.zeros(99, [("x", "f4"), ("y", "f4")]).view(np.recarray),
    "memoryview": lambda: memoryview(np.zeros(99, [("O", "f4"), ("x", "i4")])),
    "ctypes": lambda: (Point * 99)(),
    "ctypes, nested": lambda: (Nested * 99)(),
    "ctypes, one": lambda: (Point * 99 * 1)(),
}


@pytest.mark.parametrize("source", RECORDS)
def test_records(source):
    """They lie row by row, and are refused; their bytes are free, as all bytes are."""
    layout = plain("float32")
    for dtype in ("float32", "uint32", "uint64", "complex64"):
        with pytest.raises(TypeError, match="holds records .*row by row.*pack the columns"):
            plain(dtype).wrap(RECORDS[source](), 2)
    layout.wrap(memoryview(RECORDS[source]()).cast("B"), ROWS)


POINTERS = {
    "numpy objects": lambda: np.array([None] * 99),
    "numpy records": lambda: np.zeros(99, [("x", "f4"), ("o", "O")]),
    "numpy, nested": lambda: np.zeros(99, [("x", [("y", "i4"), ("o", "O", (2,))])]),
    "ctypes objects": lambda: (ctypes.py_object * 99)(),
    "ctypes pointers": lambda: (ctypes.c_void_p * 99)(),
    "memoryview": lambda: memoryview(np.array([None] * 99)),
}


@pytest.mark.parametrize("source", POINTERS)
def test_python_objects_and_pointers(source):
    """Memory of pointers is never shown as numbers, whatever it is nested in."""
    for layout in (plain("float32"), plain("uint8")):
        with pytest.raises(TypeError, match="Python objects|records"):
            layout.wrap(POINTERS[source](), ROWS)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda n: array.array("f", range(n)), "float32"),
        (lambda n: array.array("d", range(n)), "float64"),
        (lambda n: array.array("h", range(n)), "int16"),
        (lambda n: array.array("I", range(n)), "uint32"),
        (lambda n: array.array("l", range(n)), f"int{8 * ctypes.sizeof(ctypes.c_long)}"),
        (lambda n: array.array("Q", range(n)), "uint64"),
        (lambda n: (ctypes.c_double * n)(*range(n)), "float64"),
        (lambda n: (ctypes.c_long * n)(*range(n)), f"int{8 * ctypes.sizeof(ctypes.c_long)}"),
        (lambda n: (ctypes.c_uint16 * n)(*range(n)), "uint16"),
        (lambda n: (ctypes.c_bool * n)(*range(n)), "bool"),
        (lambda n: memoryview(np.arange(n, dtype="f2")), "float16"),
        (lambda n: memoryview(np.arange(n).astype("c8")), "complex64"),
        (lambda n: memoryview(np.arange(n).astype("c16")), "complex128"),
    ],
)
def test_buffers_with_a_format(make, dtype):
    """What speaks the buffer protocol is believed as NumPy's arrays are, by its own format."""
    layout = plain(dtype)
    soa = layout.wrap(make(2 * ROWS), ROWS)
    expected = np.arange(2 * ROWS).astype(dtype)[ROWS:]
    np.testing.assert_array_equal(soa["c1"], expected)
    other = "float32" if dtype != "float32" else "int32"
    with pytest.raises(TypeError, match=f"holds {dtype}, but field 'c0' is {other}"):
        plain(other).wrap(make(2 * ROWS), ROWS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(99, "S4"),
        lambda: np.zeros(99, "U1"),
        lambda: np.zeros(99, "M8[s]"),
        lambda: np.zeros(99, "m8[s]"),
        lambda: np.zeros(99, "g"),
        lambda: np.zeros(99, "float8_e4m3fn"),
        lambda: memoryview(array.array("w" if sys.version_info >= (3, 13) else "u", "x" * 99)),
        lambda: memoryview(np.zeros(99, "g")),
    ],
)
def test_dtypes_that_no_layout_has(make):
    """Dates, text and wide floats are not taken for integers, bytes or floats of their size."""
    for dtype in ("uint8", "int64", "complex128", "float32", "float16"):
        with pytest.raises(TypeError, match="the buffer holds"):
            plain(dtype, 1).wrap(make(), 2)


# Tables of two axes


@pytest.mark.parametrize("dtype", ["uint8", "int8", "bool", "bfloat16", "float64"])
@pytest.mark.parametrize(("rows", "alignment"), [(5, None), (4, None), (5, 64), (64, 64)])
def test_tables_in_the_layouts_order(dtype, rows, alignment):
    """Columns first in C order, or rows first in Fortran's, padding included: nothing is copied."""
    layout = plain(dtype, 3, alignment)
    width = layout.pitch("c0", rows) // ITEMSIZE[dtype]
    numbers = (np.arange(3 * width) % 2).reshape(3, width).astype(numpy_dtype(dtype))
    for table in (numbers.copy(), np.asfortranarray(numbers.T)):
        for source in (table, table.view()):
            soa = layout.wrap(source, rows)
            np.testing.assert_array_equal(soa["c2"], numbers[2, :rows])
            assert np.shares_memory(soa["c2"], table)
    frozen = np.asfortranarray(numbers.T)
    frozen.flags.writeable = False
    assert layout.wrap(frozen, rows).readonly


def test_tables_by_the_buffer_protocol():
    """A memoryview says its order, too."""
    layout, table = plain("float32", 3), np.arange(15, dtype="f4").reshape(3, 5)
    assert layout.wrap(memoryview(table), 5)["c1"].tolist() == [5, 6, 7, 8, 9]
    columns = memoryview(np.asfortranarray(table.T))
    soa = layout.wrap(columns, 5)
    assert soa["c1"].tolist() == [5, 6, 7, 8, 9]
    assert np.shares_memory(soa["c1"], np.asarray(columns))
    with pytest.raises(ValueError, match="columns of .* one after another"):
        layout.wrap(memoryview(table.T.copy()), 5)


def followed(layout, table, rows, message):
    """What the error's own advice gives."""
    with pytest.raises(ValueError, match=message) as refusal:
        layout.wrap(table, rows)
    text = str(refusal.value)
    call = text[text.index("layout.pack(") :].partition(")")[0] + ")"
    return eval(call, {"layout": layout, "table": table})


@pytest.mark.parametrize("alignment", [4, 128])
@pytest.mark.parametrize("rows", [2, 3, 7])
def test_the_advice_for_tables_is_right(alignment, rows):
    """What a refusal says to write gives the values that the table holds."""
    layout = Layout(
        [Column("x", "f4"), Column("v", "f4", (2,)), Column("y", "f4")], alignment=alignment
    )
    table = np.arange(4 * rows, dtype="f4").reshape(rows, 4)
    soa = followed(layout, table, rows, "columns of .* one after another")
    np.testing.assert_array_equal(soa["v"], table[:, 1:3])
    np.testing.assert_array_equal(soa["y"], table[:, 3])
    if alignment == 128:  # rows without their padding
        soa = followed(layout, table.T.copy(), rows, "its 4 columns of 32 rows, padding included")
        np.testing.assert_array_equal(soa["v"], table[:, 1:3])
    by_column = np.asfortranarray(table.T)  # each of whose rows is a column of the layout
    soa = followed(layout, by_column, rows, "pack it")
    np.testing.assert_array_equal(soa["v"], table[:, 1:3])


def test_square_tables():
    """A square table in C order is ambiguous; in Fortran's it is not, and flat it is taken."""
    layout, table = plain("float32", 4), np.arange(16, dtype="f4").reshape(4, 4)
    with pytest.raises(ValueError, match="a square table.*as one axis, .reshape"):
        layout.wrap(table, 4)
    assert layout.wrap(table.reshape(-1), 4)["c1"].tolist() == [4, 5, 6, 7]
    first = Layout(layout.fields[:3], alignment=4)
    assert followed(first, table[:3, :3].copy(), 3, "if not, pack it")["c1"].tolist() == [1, 5, 9]
    assert layout.wrap(np.asfortranarray(table), 4)["c1"].tolist() == [1, 5, 9, 13]


def test_other_tables():
    """Other shapes, three axes, and layouts with scalars take one axis."""
    layout, numbers = plain("float32", 3), np.arange(30, dtype="f4")
    for shape in ((6, 5), (2, 15), (5, 6), (2, 3, 5), (3, 5, 2)):
        with pytest.raises(ValueError, match="table's shape|axes"):
            layout.wrap(numbers.reshape(shape), 5)
    for rows in (4, 6):
        with pytest.raises(ValueError, match=f"it has 5 rows, and rows={rows}; pack it"):
            layout.wrap(numbers[:15].reshape(3, 5), rows)
    with pytest.raises(ValueError, match=r"as one axis, .T.reshape\(-1\)"):
        layout.wrap(np.asfortranarray(numbers.reshape(6, 5)), 5)
    scalars = Layout([Column("x", "f4"), Scalar("n", "f4")], alignment=4)
    with pytest.raises(ValueError, match="no such table"):
        scalars.wrap(np.zeros((2, 3), "f4"), 3)
    for flat in ((30, 1), (1, 30), (1, 1, 30)):
        assert layout.wrap(numbers.reshape(flat), 5)["c1"][0] == 5
    assert layout.wrap(np.zeros((0, 3), "f4"), 0).rows == 0
    assert layout.wrap(numbers, 5)[1:3]["c0"].tolist() == [1, 2]
    with pytest.raises(BufferError, match="not contiguous"):
        layout.wrap(np.zeros((5, 6), "f4")[:, ::2], 5)
