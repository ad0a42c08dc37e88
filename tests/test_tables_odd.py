"""Odd and hostile tables: they end in values, or in one clear sentence."""

from __future__ import annotations

import decimal

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr

from soaview import pack

F = [1.0, 2.0]


class Lazy:
    def collect(self):
        return pd.DataFrame({"x": F})


def group():
    file = h5py.File.in_memory()
    file["a/b/x"] = np.arange(3)
    return file


def dataset(value):
    file = h5py.File.in_memory()
    file["x"] = value
    return file


REFUSED = [
    (None, TypeError, "got NoneType, expected a mapping"),
    ([1, 2], TypeError, "got list, expected a mapping"),
    (np.arange(3), TypeError, "got ndarray, expected a mapping"),
    ("x", TypeError, "got str"),
    (Lazy(), TypeError, r"Lazy has no values yet; pass what its collect\(\) gives"),
    (pl.LazyFrame({"x": F}), TypeError, r"LazyFrame has no values yet; .*collect\(\)"),
    (pl.Series(F), TypeError, "Series is no table .*; pass {name: column}"),
    (pd.Series(F), TypeError, "got Series"),
    (pa.array(F), TypeError, "DoubleArray is no table"),
    (ak.Array(F), TypeError, "has no fields"),
    ({}, ValueError, "no columns to pack"),
    (pd.DataFrame(), ValueError, "no columns to pack"),
    (pl.DataFrame(), ValueError, "no columns to pack"),
    (pa.table({}), ValueError, "no columns to pack"),
    ({"x": 1}, ValueError, "say nothing about rows"),
    ({1: F}, TypeError, "name must be a string, got 1;"),
    (pd.DataFrame([F]), TypeError, "name must be a string, got 0;"),
    (
        pd.DataFrame([F], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
        TypeError, r"name must be a string, got \('a', 'b'\)",
    ),
    (pd.DataFrame([F], columns=["x", "x"]), ValueError, "column 'x' stands twice"),
    (pa.Table.from_arrays([pa.array(F)] * 2, ["x", "x"]), ValueError, "column 'x' stands twice"),
    ({"x": F, "y": [1.0]}, ValueError, r"'y': got shape \(1,\), expected \(2,\)"),
    ({"x": None}, TypeError, "column 'x': it is None"),
    ({"x": "abc"}, TypeError, "column 'x': it holds <U3"),
    ({"x": ["a", "b"]}, TypeError, "column 'x': it holds <U1"),
    ({"x": np.array([b"a"])}, TypeError, r"column 'x': it holds \|S1"),
    ({"x": np.array([{}, 1], object)}, TypeError, r"column 'x': it holds objects \(dict, int\)"),
    ({"x": [[1], [1, 2]]}, TypeError, "column 'x': it holds lists of several lengths"),
    ({"x": [1, None]}, TypeError, r"column 'x': it holds objects \(NoneType, int\)"),
    ({"x": np.zeros(2, "f4,i4")}, TypeError, "column 'x': it holds records"),
    ({"x": np.zeros((2, 0))}, ValueError, "'x'"),
    ({"x": np.zeros((2, 1, 1, 1))}, ValueError, "'x'"),
    ({"x": np.zeros(2, "V3")}, TypeError, "column 'x': it holds "),
    ({"x": np.longdouble([1])}, TypeError, "column 'x': it holds "),
    ({"x": lambda: 1}, TypeError, "column 'x': it holds objects"),
    (pd.DataFrame({"x": ["a"]}), TypeError, "column 'x': it holds pandas' str"),
    (pd.DataFrame({"x": ["a"]}, dtype=object), TypeError, r"column 'x': it holds objects \(str\)"),
    (pd.DataFrame({"x": pd.period_range("2020", periods=2, freq="M")}), TypeError, "column 'x'"),
    (pd.DataFrame({"x": pd.interval_range(0, 2)}), TypeError, "column 'x': it holds pandas' inter"),
    (pl.DataFrame({"x": ["a"]}), TypeError, "column 'x': it holds String"),
    (pl.DataFrame({"x": [b"a"]}), TypeError, "column 'x': it holds Binary"),
    (pl.DataFrame({"x": [[1], [2, 3]]}), TypeError, "column 'x': it holds List"),
    (pl.DataFrame({"x": [{"a": 1, "b": "c"}]}), TypeError, "column 'x': it holds "),
    (pl.DataFrame({"x": [{"a": 1, "b": 1.5}]}), TypeError, "column 'x': .*one type"),
    (pl.DataFrame({"x": [decimal.Decimal(1)]}), TypeError, "column 'x': it holds Decimal"),
    (pl.DataFrame({"x": [None]}), TypeError, "column 'x': it holds Null"),
    (pl.DataFrame({"x": [object()]}), TypeError, "column 'x': it holds Object"),
    (pa.table({"x": ["a"]}), TypeError, "column 'x': it holds string"),
    (pa.table({"x": pa.array(["a"], pa.string_view())}), TypeError, "it holds string_view"),
    (pa.table({"x": pa.array([b"a"], pa.binary(1))}), TypeError, "it holds fixed_size_binary"),
    (pa.table({"x": [decimal.Decimal(1)]}), TypeError, "column 'x': it holds decimal128"),
    (pa.table({"x": [[1], [2, 3]]}), TypeError, "column 'x': it holds list<"),
    (pa.table({"x": [None]}), TypeError, "column 'x': it holds nulls alone"),
    (pa.table({"x": [{"a": 1, "b": 1.5}]}), TypeError, "column 'x': it holds structs of several"),
    (pa.table({"x": [{"a": "b"}]}), TypeError, "column 'x': it holds string"),
    (pa.table({"x": pa.array([{}])}), TypeError, "column 'x': it holds struct<>"),
    (
        pa.table({"x": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8()))}),
        TypeError, "column 'x': it holds map<",
    ),
    (
        pa.table({"x": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])}),
        TypeError, "column 'x': it holds sparse_union",
    ),
    (ak.Array([{"x": [1]}, {"x": [1, 2]}]), TypeError, "column 'x': it holds .*var"),
    (ak.Array([{"x": "a"}]), TypeError, "column 'x': it holds "),
    (ak.Array([{"x": {"y": 1}}]), TypeError, "column 'x': it holds "),
    (xr.Dataset({"x": ("a", F), "y": ("b", F)}), ValueError, r"several dimensions, \['a', 'b'\]"),
    (xr.Dataset({"x": ("a", ["p", "q"])}), TypeError, "column 'x': it holds <U1"),
    (group()["a"], TypeError, "column 'b' is a group within a group"),
    (group()["a/b/x"], TypeError, "this HDF5 dataset has no fields"),
    (dataset("text"), TypeError, "column 'x': it holds objects"),
    (dataset(["a", "b"]), TypeError, "column 'x': it holds objects"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number):
    """Each says which column, and what it holds; columns of no numbers may be left out."""
    data, error, message = REFUSED[number]
    with pytest.raises(error, match=message) as refusal:
        pack(data)
    assert "\n" not in str(refusal.value)
    if "it holds" in message:
        assert "columns= can leave it out" in str(refusal.value)


TAKEN = [
    (pd.DataFrame({"x": F}, index=["a", "b"]), F),
    (pd.DataFrame({"x": F})[:0], []),
    (pd.DataFrame({"x": F})[1:], [2]),
    (pd.DataFrame({"x": F, "y": ["a", "b"]})[["x"]], F),
    (pl.DataFrame({"x": F})[:0], []),
    (pa.table({"x": F})[:0], []),
    (pa.table({"x": F})[1:], [2]),
    (pa.schema([("x", pa.float64())]).empty_table(), []),
    (pa.concat_tables([pa.table({"x": F})[:0], pa.table({"x": F})]), F),
    (np.zeros(2, [("x", ">f8")]), [0, 0]),
    (np.zeros(0, "f8,f8").view([("x", "f8"), ("y", "f8")]), []),
    ({"x": np.broadcast_to(1.0, 3)}, [1, 1, 1]),
    ({"x": memoryview(np.array(F))}, F),
    ({"x": range(3)}, [0, 1, 2]),
    (dataset(np.arange(3, dtype=">i2")), [0, 1, 2]),
    (dataset(np.zeros(0)), []),
]


@pytest.mark.parametrize("number", range(len(TAKEN)))
def test_taken(number):
    """The empty, the cut and the strange give their values."""
    data, expected = TAKEN[number]
    assert pack(data)["x"].tolist() == expected


def test_many_columns():
    """Thousands of columns are packed, each in its place."""
    data = {f"c{i}": np.full(2, i) for i in range(5000)}
    for table in (data, pa.table(data), pl.DataFrame(data)):
        soa = pack(table)
        assert len(soa.layout) == 5000
        assert soa["c4999"].tolist() == [4999, 4999]


def test_wrong_arguments():
    """Columns and dtypes that make no sense are named."""
    with pytest.raises(TypeError, match="columns must be a list of names, got the string 'x'"):
        pack({"x": F}, columns="x")
    with pytest.raises(ValueError, match="stands twice in columns="):
        pack({"x": F}, columns=["x", "x"])
    with pytest.raises(KeyError, match="dtypes: there is no column 'y'"):
        pack({"x": F}, dtypes={"y": "int8"})
    with pytest.raises((TypeError, ValueError), match="float33"):
        pack({"x": F}, dtypes="float33")


def test_tensors_whose_axes_are_turned():
    """In Arrow's own order they are matrices; in another they are refused, by the column."""
    numbers = pa.array(np.arange(12, dtype="f4"))
    for order in (None, [0, 1], [1, 0]):
        kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), permutation=order)
        column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(numbers, 6))
        if order == [1, 0]:
            with pytest.raises(TypeError, match="column 'x': it holds tensors whose axes"):
                pack(pa.table({"x": column}))
        else:
            assert (
                pack(pa.table({"x": column}))["x"].tolist()
                == numbers.to_numpy().reshape(2, 2, 3).tolist()
            )
