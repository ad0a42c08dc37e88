"""What columns can be bound from, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import weakref

import numpy as np
import pytest
from bound import fields_of, values_of

from soaview import Column, Layout, Scalar, Spec, Value, bind, views

N = 5


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_float), ("id", ctypes.c_int8), ("cov", (ctypes.c_double * 2) * 2)]


class Columns(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_int),
        ("x", ctypes.c_float * 4),
        ("v", (ctypes.c_double * 3) * 4),
    ]


class Pointers(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.POINTER(ctypes.c_float)),
        ("v", ctypes.POINTER(ctypes.c_double * 3)),
    ]


def test_records_of_ctypes():
    """An array of structures is rows of records."""
    points = (Point * N)()
    for number, point in enumerate(points):
        point.x, point.id, point.cov[1][0] = number, -number, 10 * number
    soa = bind(points)
    assert soa.layout["cov"].shape == (2, 2)
    assert soa["id"].tolist() == [0, -1, -2, -3, -4]
    assert soa["cov"][3, 1, 0] == 30
    soa["x"][:] = 9
    assert [point.x for point in points] == [9] * N


def test_a_structure_of_arrays():
    """A number of it is a scalar, and says nothing about rows."""
    columns = Columns()
    soa = bind(columns)
    assert (len(soa), soa.layout["v"].shape, soa.layout["n"].per_row) == (4, (3,), False)
    soa["v"][2, 1] = 5
    soa[Value("n")][...] = 2
    assert (columns.v[2][1], columns.n) == (5, 2)
    alive = weakref.ref(columns)
    x = soa["x"]
    del columns, soa
    gc.collect()
    assert alive() is not None
    del x


def test_a_structure_of_pointers():
    """Rows and the owner are told; what lies there is kept with the views."""
    xs, vs = (ctypes.c_float * N)(*range(N)), ((ctypes.c_double * 3) * N)()
    pointers = Pointers(
        ctypes.cast(xs, ctypes.POINTER(ctypes.c_float)),
        ctypes.cast(vs, ctypes.POINTER(ctypes.c_double * 3)),
    )
    soa = bind(pointers, rows=N, owner=(xs, vs))
    assert soa["x"].tolist() == [0, 1, 2, 3, 4]
    soa["v"][1, 2] = 4
    assert vs[1][2] == 4
    with pytest.raises(ValueError, match="column 'x': a pointer does not say how many rows"):
        bind(pointers)
    with pytest.raises(ValueError, match="column 'x': nothing says who owns the memory"):
        bind(pointers, rows=N)  # what a structure points to is not its own
    address = ctypes.addressof(xs)
    with pytest.raises(ValueError, match="column 'x': nothing says who owns the memory"):
        bind({"x": (address, "float32")}, rows=N)
    for wrong in ((address,), (address, "float32", (2,), 3)):
        with pytest.raises(TypeError, match=r"column 'x': a pointer is \(address, dtype\)"):
            bind({"x": wrong}, rows=N, owner=xs)
    with pytest.raises(ValueError, match="column 'x': .*0x0|column 'x': .*address"):
        bind({"x": (0, "float32")}, rows=N, owner=xs)


def test_another_soa():
    """Its fields are bound again, with scalars, also of a slice, and of several at once."""
    layout = Layout([Column("x", "f4"), Column("v", "f8", (3,)), Scalar("n", "i4")])
    soa = layout.pack({"x": values_of(N, "f4"), "v": values_of((N, 3), "f8"), "n": 7})
    again = bind(soa[1:4])
    for name, column in fields_of(soa[1:4]).items():
        np.testing.assert_array_equal(fields_of(again)[name], column)
    both = bind({"a": soa["x"], "b": again["x"].repeat(2)[:N], "c": views(soa, Spec(v="v"))[0]})
    assert np.shares_memory(both["c"], soa["v"])
    assert np.shares_memory(both["a"], soa["x"])
    assert [home.allocation for home in both.layout.homes] == [0, 1, 2]
    with pytest.raises(ValueError, match="column 'n': it is a scalar, broadcast to the rows"):
        bind({"x": soa["x"], "n": views(soa, Spec(n="n"))[0]})


def test_records_within_records():
    """They become `a.b`; records of NumPy are packed, and read all the same."""
    inner = np.dtype([("eta", "f4"), ("q", "i1")])
    records = np.zeros(N, [("pt", "f8"), ("track", inner)])
    records["track"]["eta"] = 4
    soa = bind(records)
    assert list(soa) == ["pt", "track.eta", "track.q"]
    assert soa["track.eta"].tolist() == [4] * N
    with pytest.raises(BufferError, match="not on multiples of its item size, 4 bytes"):
        views(soa, Spec(t=["track.eta"]))


def test_frames():
    """Columns of pandas, polars and Arrow, where their memory can be had as it is."""
    pd, pl, pa = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    arrays = {"x": np.arange(3.0), "k": np.arange(3)}
    frame = pd.DataFrame(arrays)
    frame.insert(1, "y", np.ones(3, "f4"))  # a block of its own
    soa = bind(frame)
    assert list(soa) == ["x", "y", "k"]
    assert soa["x"].tolist() == [0, 1, 2]
    assert np.shares_memory(soa["k"], frame["k"].to_numpy())
    if soa.readonly:  # pandas' copy on write
        with pytest.raises(BufferError, match="read-only"):
            soa["x"] = np.zeros(3)
        writable = bind(frame, readonly=False)
        writable["x"][0] = 9
        assert frame["x"][0] == 9
    table = pa.table(arrays)
    for frame in (pl.DataFrame(arrays), table, table.to_batches()[0]):
        soa = bind(frame)
        assert soa["k"].tolist() == [0, 1, 2]
        assert soa.readonly
    for wrong, match in (
        ({"x": pa.array([1, None])}, "column 'x': 1 nulls"),
        ({"x": pa.chunked_array([[1.0], [2.0]])}, r"in 2 chunks; combine_chunks\(\)"),
        ({"x": pl.concat([pl.Series([1.0]), pl.Series([2.0])], rechunk=False)}, r"rechunk\(\)"),
    ):
        with pytest.raises(ValueError, match=match):
            bind(wrong)
    for wrong, match in (
        ({"x": pa.array([True, False])}, "no array over its memory"),
        ({"x": pl.Series(["a", "b"])}, "column 'x'"),
        ({"x": pd.Series([1, None], dtype="Int32")}, "more than plain memory"),
        ({"x": pd.Series(["a", "b"], dtype=object)}, "holds Python objects"),
    ):
        with pytest.raises(TypeError, match=match):
            bind(wrong)


# What is refused


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({}, ValueError, "no columns"),
        ([1, 2], TypeError, "bind takes a mapping .* got list"),
        (np.zeros(3), TypeError, "got ndarray"),
        ({3: np.zeros(3)}, TypeError, "a column's name must be a string, got 3"),
        ({"": np.zeros(3)}, ValueError, "must not be empty"),
        ({"x": [1, 2]}, TypeError, "column 'x': got list, expected an array.*layout.pack"),
        ({"x": "abc"}, TypeError, "column 'x': got str"),
        ({"x": None}, TypeError, "column 'x': got NoneType"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, ValueError, "'y' has 4 rows, and 'x' has 3"),
        ({"s": 3.0}, ValueError, "single values alone say nothing about rows; pass rows="),
        ({"x": np.zeros(3, object)}, TypeError, "column 'x': it holds Python objects"),
        ({"x": np.zeros(3, ">f4")}, ValueError, "column 'x': its byte order"),
        ({"x": np.zeros(3, "M8[s]")}, TypeError, "column 'x': there is no dtype datetime64"),
        ({"x": np.zeros(3, "S4")}, TypeError, "column 'x': there is no dtype"),
        ({"x": np.zeros(3, "f8")[::-1]}, ValueError, "column 'x': .*must be positive"),
        ({"x": np.broadcast_to(3.0, (4,))}, ValueError, "column 'x': .*elements overlap"),
        ({"x": np.zeros((2, 2, 2, 2))}, ValueError, r"column 'x': shape \(2, 2, 2, 2\)"),
        ({"x": np.zeros((2, 0))}, ValueError, r"column 'x': shape \(2, 0\)"),
        ({"x": np.ma.masked_array(np.zeros(3))}, TypeError, "column 'x': a masked array's"),
        ({"x": np.zeros(3, [("a", "f4")])}, TypeError, "column 'x': it holds records"),
        (
            {"x": np.lib.stride_tricks.sliding_window_view(np.zeros(9), 3)},
            ValueError,
            "column 'x': .*elements overlap",
        ),
    ],
    ids=str,
)
def test_what_is_refused(data, error, message):
    """Each by its name, with a way out."""
    with pytest.raises(error, match=message):
        bind(data)


def test_arguments_that_are_refused():
    """Rows that are none, or others than there are; flags that are none."""
    data = {"x": np.zeros(3)}
    for options, error in (
        ({"rows": 2}, ValueError),
        ({"rows": -1}, ValueError),
        ({"rows": 3.0}, TypeError),
        ({"readonly": 1}, TypeError),
    ):
        with pytest.raises(error, match="rows|readonly"):
            bind(data, **options)
    assert len(bind({"s": 1.5}, rows=4)["s"]) == 4


class Bits(ctypes.Structure):
    _fields_ = [("a", ctypes.c_int, 3), ("b", ctypes.c_int, 5)]


class Either(ctypes.Union):
    _fields_ = [("i", ctypes.c_int), ("f", ctypes.c_float)]


class WithUnion(ctypes.Structure):
    _fields_ = [("u", Either)]


@pytest.mark.parametrize("kind", [Bits, WithUnion])
def test_members_that_are_refused(kind):
    """Bit fields and unions have no address or no one type."""
    for data in (kind(), (kind * 3)()):
        with pytest.raises(TypeError, match="column '[au]' is a (bit field|union)"):
            bind(data)


class Other(ctypes.Structure):
    _fields_ = [("x", ctypes.c_float), ("p", ctypes.POINTER(ctypes.c_float))]


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (ctypes.POINTER(ctypes.c_float) * 2, None),
        (ctypes.POINTER(ctypes.POINTER(ctypes.c_float)), None),
        (ctypes.POINTER(Other), None),
        (ctypes.POINTER(ctypes.c_float), 3),
        (ctypes.c_void_p, None),
        (ctypes.c_char_p, None),
        (ctypes.CFUNCTYPE(None), None),
        (ctypes.c_void_p * 2, 3),
    ],
)
def test_pointers_are_no_numbers(kind, count):
    """Those that a structure has in an array, or lead to other ones, to nothing that has a type."""

    class Data(ctypes.Structure):
        _fields_ = [("x", ctypes.c_float * 3), ("p", kind)]

    data = (Data * count)() if count else Data()
    with pytest.raises(TypeError, match=r"column 'p' has pointers, .* \(address, dtype\)"):
        bind(data, rows=3, owner=data)
