"""Data of any kind, packed: each library's, with nulls, dtypes and times."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import awkward as ak
import duckdb
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import tensordict
import torch
import uproot
import xarray as xr

from soaview import Column, Layout, Scalar, Value, pack
from soaview._intake import filled
from soaview._tables import source

NEEDS = ["torch"]
X, N = np.array([1.5, 2.5, 3.5], "f4"), np.array([1, -2, 3], "i8")
DATA = {"x": X, "n": N}
TABLE = pa.table(DATA)


def in_hdf5(compound):
    file = h5py.File.in_memory()
    if compound:
        file["t"] = pd.DataFrame(DATA).to_records(index=False)
    else:
        for name, column in DATA.items():
            file[f"t/{name}"] = column
    return file["t"]


def in_root(path, ntuple):
    with uproot.recreate(path) as file:
        made = file.mkrntuple if ntuple else file.mktree
        made("t", {"x": "f4", "n": "i8"}).extend(DATA)
    return uproot.open(path)["t"]


def relation(_):
    frame = TABLE  # which DuckDB finds by its name
    return duckdb.sql("select * from frame") if frame is not None else None


class Stream:
    """An array that has Arrow's stream and nothing else."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Batch(Stream):
    def __init__(self, table):
        [self.batch] = table.to_batches()

    __arrow_c_stream__ = property()

    def __arrow_c_array__(self, requested_schema=None):
        return self.batch.__arrow_c_array__(requested_schema)


WAYS = {
    "a mapping of arrays": lambda _: DATA,
    "a structured array": lambda _: pd.DataFrame(DATA).to_records(index=False),
    "a pandas DataFrame": lambda _: pd.DataFrame(DATA),
    "a polars DataFrame": lambda _: pl.DataFrame(DATA),
    "an Arrow table": lambda _: TABLE,
    "an Arrow batch": lambda _: TABLE.to_batches()[0],
    "an Arrow reader": lambda _: TABLE.to_reader(),
    "Arrow's stream": lambda _: Stream(TABLE),
    "a DuckDB relation": relation,
    "an xarray Dataset": lambda _: xr.Dataset({name: ("row", c) for name, c in DATA.items()}),
    "an awkward array": lambda _: ak.Array(DATA),
    "a TensorDict": lambda _: tensordict.TensorDict(
        {name: torch.from_numpy(c) for name, c in DATA.items()}, batch_size=3
    ),
    "an HDF5 group": lambda _: in_hdf5(False),
    "an HDF5 compound dataset": lambda _: in_hdf5(True),
    "a TTree": lambda path: in_root(path, False),
    "an RNTuple": lambda path: in_root(path, True),
    "an SoA": lambda _: pack(DATA),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_source(way, tmp_path):
    """Each source gives its layout and its values, all or some, as they are or converted."""
    data = WAYS[way](tmp_path / "t.root")
    assert set(Layout.of(data).fields) == {Column("x", "float32"), Column("n", "int64")}
    if way != "an Arrow reader":
        some = pack(data, columns=["n"], dtypes="float32", alignment=64)
        assert some.layout == Layout([Column("n", "float32")], alignment=64)
        assert some["n"].tolist() == [1, -2, 3]
        with pytest.raises(KeyError, match="there is no column 'y'; there are"):
            pack(data, columns=["y"])
        assert Layout([Column("n", "int64")]).pack({"n": pack(data)["n"]})["n"].tolist() == [
            *N.tolist()
        ]
    soa = pack(data, columns=["x", "n"])
    np.testing.assert_array_equal(soa["x"], X)
    np.testing.assert_array_equal(soa["n"], N)
    assert [*soa.layout] == ["x", "n"]


def test_the_document_names_each_source():
    """The page's table of sources is the one that is tested."""
    page = Path(__file__).parents[1] / "docs" / "tables.md"
    rows = [line.split("|")[1].strip() for line in page.read_text().splitlines() if "|" in line]
    assert [row for row in rows if row in WAYS] == [*WAYS]


T = np.array(["2020-01-01", "1969-12-31"], "M8[ms]")
TYPES = {
    "timestamp[ms, UTC]": (pa.array([5, -1], pa.timestamp("ms", "UTC")), "int64", (), [5, -1]),
    "date32": (pa.array([5, -1], pa.date32()), "int32", (), [5, -1]),
    "time32": (pa.array([5, 1], pa.time32("s")), "int32", (), [5, 1]),
    "duration": (pa.array([5, -1], pa.duration("ns")), "int64", (), [5, -1]),
    "numpy times": (T, "int64", (), [1577836800000, -86400000]),
    "numpy times, big-endian": (T.astype(">M8[ms]"), "int64", (), [1577836800000, -86400000]),
    "pandas times": (pd.Series(T), "int64", (), [1577836800000, -86400000]),
    "pandas zones": (
        pd.Series(T).dt.tz_localize("UTC"), "int64", (), [1577836800000, -86400000],
    ),
    "polars times": (pl.Series(T), "int64", (), [1577836800000, -86400000]),
    "polars dates": (pl.Series(T).cast(pl.Date), "int32", (), [18262, -1]),
    "arrow words": (pa.array(["a", "b"]).dictionary_encode(), "int32", (), [0, 1]),
    "arrow numbers": (pa.array([7, 7]).dictionary_encode(), "int64", (), [7, 7]),
    "pandas words": (pd.Series(["b", "a"], dtype="category"), "int8", (), [1, 0]),
    "pandas numbers": (pd.Series([7, 5], dtype="category"), "int64", (), [7, 5]),
    "polars words": (pl.Series(["a", "b"], dtype=pl.Enum(["b", "a"])), "uint8", (), [1, 0]),
    "arrow structs": (
        pa.array([{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]), "float64", (2,), [[1, 2], [3, 4]],
    ),
    "arrow structs, cut": (
        pa.array([{"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}])[1:],
        "float64", (2,), [[1, 2], [3, 4]],
    ),
    "polars structs": (
        pl.Series([{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]), "float64", (2,), [[1, 2], [3, 4]],
    ),
    "arrow lists": (
        pa.array([[9, 9], [1, 2], [3, 4]], pa.list_(pa.int16(), 2))[1:],
        "int16", (2,), [[1, 2], [3, 4]],
    ),
    "polars lists": (
        pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int16, 2)), "int16", (2,), [[1, 2], [3, 4]],
    ),
    "tensors": (
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2)),
        "float64", (2, 2), np.arange(8.0).reshape(2, 2, 2).tolist(),
    ),
    "runs": (pa.RunEndEncodedArray.from_arrays([2, 3, 5], pa.array([1, 2, 3]))[1:4],
             "int64", (), [1, 2, 3]),
    "bits": (pa.array([False] * 9 + [True, False, True])[9:], "bool", (), [True, False, True]),
    "chunks": (pa.chunked_array([[1], [], [2, 3]], pa.int8()), "int8", (), [1, 2, 3]),
    "polars chunks": (pl.Series([1, 2]).append(pl.Series([3])), "int64", (), [1, 2, 3]),
    "cut": (pa.array([1, 2, 3, 4], pa.uint16())[1:3], "uint16", (), [2, 3]),
    "halves": (pa.array(np.array([1.5, 2], "f2")), "float16", (), [1.5, 2]),
    "big-endian": (np.array([1, 2], ">i4"), "int32", (), [1, 2]),
    "strided": (np.arange(6.0)[::-2], "float64", (), [5, 3, 1]),
    "nullable": (pd.Series([1, 2], dtype="Int16"), "int16", (), [1, 2]),
    "nullable bools": (pd.Series([True, False], dtype="boolean"), "bool", (), [True, False]),
    "pandas of Arrow": (pd.Series([1, 2], dtype="int32[pyarrow]"), "int32", (), [1, 2]),
    "sparse": (pd.Series(pd.arrays.SparseArray([0, 7])), "int64", (), [0, 7]),
    "tensor": (torch.tensor([[1.0, 2.0]]), "float32", (2,), [[1, 2]]),
    "list": ([1, 2], "int64", (), [1, 2]),
    "complex": (np.array([1j, 2]), "complex128", (), [1j, 2]),
    "empty": (pa.chunked_array([], pa.float32()), "float32", (), []),
    "empty words": (pd.Series([], dtype="category"), "int8", (), []),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_types(kind):
    """Each type becomes the numbers that it is, in its unit, in vectors where it has several."""
    value, dtype, shape, expected = TYPES[kind]
    soa = pack({"c": value})
    assert soa.layout.fields == (Column("c", dtype, shape),)
    assert soa["c"].tolist() == expected


def test_scalars_are_told_from_columns():
    """A number is a scalar where nothing says otherwise, or what a layout says."""
    soa = pack({"x": X, "field": 3.8, "n": np.int32(7), "on": True})
    expected = [Scalar("field", "float64"), Scalar("n", "int32"), Scalar("on", "bool")]
    assert [*soa.layout.fields[1:]] == expected
    assert soa[Value("n")] == 7
    layout = Layout([Column("x", "float32"), Column("n", "int32")])
    for data in (soa, {"x": X, "n": 7}):
        assert layout.pack(data)["n"].tolist() == [7, 7, 7]


NULLS = {
    "arrow": pa.array([1, None, 3]),
    "arrow chunks": pa.chunked_array([[1], [None, 3]], pa.int64()),
    "arrow times": pa.array([1, None, 3], pa.timestamp("s")),
    "arrow bits": pa.array([True, True, None, True])[1:],
    "arrow words": pa.array(["a", None, "b"]).dictionary_encode(),
    "a null word": pa.DictionaryArray.from_arrays([0, 1, 0], ["a", None]),
    "arrow numbers": pa.DictionaryArray.from_arrays([0, 1, 0], [5, None]),
    "runs": pa.RunEndEncodedArray.from_arrays([1, 2, 3], pa.array([1, None, 3])),
    "lists": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int8(), 2)),
    "in lists": pa.array([[1, 2], [None, 1], [3, 4]], pa.list_(pa.int8(), 2)),
    "structs": pa.array([{"x": 1}, None, {"x": 2}]),
    "in structs": pa.array([{"x": 1}, {"x": None}, {"x": 2}]),
    "polars": pl.Series([1, None, 3]),
    "polars bools": pl.Series([True, None, True]),
    "polars words": pl.Series(["a", None, "b"], dtype=pl.Categorical),
    "polars lists": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int8, 2)),
    "in polars lists": pl.Series([[1, 2], [None, 1], [3, 4]], dtype=pl.Array(pl.Int8, 2)),
    "polars structs": pl.Series([{"x": 1}, {"x": None}, {"x": 2}]),
    "pandas": pd.Series([1, None, 3], dtype="Int64"),
    "pandas bools": pd.Series([True, None, True], dtype="boolean"),
    "pandas of Arrow": pd.Series([1, None, 3], dtype="int64[pyarrow]"),
    "pandas times": pd.Series([T[0], None, T[1]]),
    "pandas zones": pd.Series([T[0], None, T[1]]).dt.tz_localize("UTC"),
    "pandas words": pd.Series(["a", None, "b"], dtype="category"),
    "pandas numbers": pd.Series([1, None, 3], dtype=pd.CategoricalDtype([1, 3])),
    "numpy": np.ma.array([1, 2, 3], mask=[0, 1, 0]),
    "numpy times": np.array([1, "NaT", 3], "M8[s]"),
    "awkward": ak.Array([1, None, 3]),
}


@pytest.mark.parametrize("kind", NULLS)
def test_nulls(kind):
    """They are counted and refused, or filled with the number that is given, and stay integers."""
    value = NULLS[kind]
    with pytest.raises(ValueError, match="column 'c': 1 null, .*fill="):
        pack({"c": value})
    soa = pack({"c": value}, fill={"c": 1})
    field = soa.layout["c"]
    assert field.dtype[:3] in ("int", "uin", "boo")
    assert np.all(soa["c"][1] == 1)
    rest = pack({"c": value}, fill=0)["c"][[0, 2]]
    np.testing.assert_array_equal(soa["c"][[0, 2]], rest)
    if field.dtype.startswith("int"):
        with pytest.raises(ValueError, match="column 'c': nan.* is no int"):
            pack({"c": value}, fill=float("nan"))


def test_nulls_of_floats():
    """They may be filled with NaN, and a NaN of a plain column stays one."""
    floats = [1.0, None, 3.0]
    for value in (pa.array(floats), pl.Series(floats), pd.Series(floats, dtype="Float64")):
        with pytest.raises(ValueError, match=r"1 null, .*fill=float\('nan'\)"):
            pack({"c": value})
        assert np.isnan(pack({"c": value}, fill=float("nan"))["c"]).tolist() == [0, 1, 0]
    frame = pd.DataFrame({"c": [1.0, np.nan]})
    assert np.isnan(pack(frame)["c"]).tolist() == [0, 1]
    with pytest.raises(KeyError, match="fill: there is no column 'd'"):
        pack(frame, fill={"d": 0})
    with pytest.raises(ValueError, match="column 'c': 2 nulls"):
        pack({"c": pa.chunked_array([[1, None], [None]], pa.int8())})
    with pytest.raises(ValueError, match="fill must be a number, got 'x'"):
        pack({"c": pa.array(floats)}, fill="x")


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (np.array([1.0, np.nan]), "int32", "nan in row 1 is no int32; round or fill it first"),
        (np.array([np.inf]), "int64", "inf in row 0 is no int64"),
        (np.array([1.5]), "int64", "1.5 in row 0 is no int64"),
        (np.array([2.0**63]), "int64", r"9.22\S* in row 0 is no int64"),
        (np.array([2.0**64]), "uint64", r".* in row 0 is no uint64"),
        (np.array([-1.0]), "uint8", "-1.0 in row 0 is no uint8"),
        (np.array([1, 2, 300]), "int8", "300 in row 2 is no int8; leave the column int64"),
        (np.array([-1]), "uint64", "-1 in row 0 is no uint64"),
        (np.array([2**63], "u8"), "int64", "9223372036854775808 in row 0 is no int64"),
        (np.array([1e300]), "float32", r"1e\+300 in row 0 is no float32"),
        (np.array([70000]), "float16", "70000 in row 0 is no float16"),
        (np.array([70000.0], "f4"), "float16", "70000.0 in row 0 is no float16"),
        (np.array([2]), "bool", "2 in row 0 is no bool"),
        (np.array([np.nan]), "bool", "nan in row 0 is no bool"),
        (np.array([1j]), "float32", "1j in row 0 is no float32; take its real part"),
        (np.array([1 + 1j]), "int8", r"\(1\+1j\) in row 0 is no int8"),
        (np.array([[1, 2], [3, 400]]), "int8", "400 in row 1 is no int8"),
        (pa.chunked_array([[1, 2], [3, 400]]), "int8", "400 in row 3 is no int8"),
        (np.r_[np.zeros(600_000), 0.5], "int8", "0.5 in row 600000 is no int8"),
    ],
)
def test_values_that_do_not_survive(values, dtype, message):
    """The first value that another dtype does not have is named with its column and row."""
    with pytest.raises(ValueError, match=f"column 'c': {message}"):
        pack({"c": values}, dtypes={"c": dtype})


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (np.array([0.1, np.nan, np.inf]), "float32", np.array([0.1, np.nan, np.inf], "f4")),
        (np.array([-128.0, 127.0]), "int8", [-128, 127]),
        (np.array([-(2.0**63)]), "int64", [-(2**63)]),
        (np.array([2**24 + 1]), "float32", [2**24]),
        (np.array([0, 1]), "bool", [False, True]),
        (np.array([1 + 0j]), "int16", [1]),
        (np.array([255], "u1"), "int16", [255]),
        (np.array([True]), "float32", [1]),
        (pa.array([1, None]), "float32", [1, 0]),
    ],
)
def test_values_that_survive(values, dtype, expected):
    """Floats are rounded, which was asked for, and everything else is as it was."""
    soa = pack({"c": values}, dtypes=dtype, fill=0)
    assert soa.layout["c"].dtype == dtype
    np.testing.assert_array_equal(soa["c"], expected)


def test_a_stream_is_consumed():
    """A reader is read once, batch by batch."""
    reader = pa.RecordBatchReader.from_batches(
        TABLE.schema, [TABLE[:1].to_batches()[0], TABLE[1:].to_batches()[0]]
    )
    assert pack(reader)["n"].tolist() == [1, -2, 3]
    assert pack(Batch(TABLE))["n"].tolist() == [1, -2, 3]


def test_arrow_is_not_imported_for_anybody(monkeypatch):
    """What speaks Arrow alone is refused where the caller has not imported it."""
    monkeypatch.delitem(sys.modules, "pyarrow")
    with pytest.raises(TypeError, match="Stream gives its columns through Arrow: import pyarrow"):
        pack(Stream(TABLE))


def test_one_copy():
    """Beside the result no column is there a second time, in chunks or converted."""
    chunk = pa.array(np.arange(1 << 20, dtype="f8"))
    data = {f"c{i}": pa.chunked_array([chunk] * 4) for i in range(3)}
    for dtypes, size in ((None, 8), ("float32", 4)):
        tracemalloc.start()
        soa = pack(data, dtypes=dtypes)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert soa.buffer.nbytes == 3 * (1 << 22) * size
        assert peak < soa.buffer.nbytes + (1 << 22)


def test_what_stands_under_nulls():
    """It is no value: codes beyond their dictionary, and numbers that another dtype lacks."""
    values = np.ma.array([1, 300, 3], mask=[0, 1, 0])
    assert pack({"c": values}, dtypes="int8", fill=2)["c"].tolist() == [1, 2, 3]
    valid, codes = pa.py_buffer(b"\x05"), pa.py_buffer(np.array([0, 99, 1], "i4"))
    codes = pa.Array.from_buffers(pa.int32(), 3, [valid, codes])
    words = pa.DictionaryArray.from_arrays(codes, pa.array([7, 8]), safe=False)
    assert pack({"c": words}, fill=2)["c"].tolist() == [7, 2, 8]
    both = pa.DictionaryArray.from_arrays(codes, pa.array([7, None]), safe=False)
    with pytest.raises(ValueError, match="column 'c': 2 nulls"):
        pack({"c": both})


def test_hdf5_is_read_in_pieces():
    """Each piece of a long dataset comes to its own rows."""
    file = h5py.File.in_memory()
    file["x"] = np.arange(600_000)
    np.testing.assert_array_equal(pack(file)["x"], np.arange(600_000))


def test_a_streams_columns_are_let_go():
    """Each goes once it is copied: what was taken of it is left nowhere."""
    found = {"x": source("x", X), "n": source("n", N)}
    soa = filled(Layout.of(DATA), found, 3, None)
    assert found == {}
    assert soa["n"].tolist() == [1, -2, 3]
