"""What `pack` takes, and what it refuses."""

from __future__ import annotations

import dask.array
import dask.dataframe
import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from soaview import Column, Layout, Scalar


def column(dtype, shape=()):
    return Layout([Column("x", dtype, shape)])


def packed(dtype, value, shape=()):
    return column(dtype, shape).pack({"x": value})["x"]


# Nulls


ARROW = {"bool": pa.bool_(), "float32": pa.float32(), "float64": pa.float64(), "int8": pa.int8()}
ARROW |= {"uint16": pa.uint16(), "int64": pa.int64(), "float16": pa.float16()}
POLARS = {"bool": pl.Boolean, "float32": pl.Float32, "float64": pl.Float64, "int8": pl.Int8}
POLARS |= {"uint16": pl.UInt16, "int64": pl.Int64}
PANDAS = {"bool": "boolean", "float32": "Float32", "float64": "Float64", "int8": "Int8"}
PANDAS |= {"uint16": "UInt16", "int64": "Int64"}
SOURCES = [
    *((name, lambda v, t=t: pa.array(v, t)) for name, t in ARROW.items()),
    *((name, lambda v, t=t: pa.chunked_array([v[:1], v[1:]], t)) for name, t in ARROW.items()),
    *((name, lambda v, t=t: pl.Series(v, dtype=t)) for name, t in POLARS.items()),
    *((name, lambda v, t=t: pd.Series(v, dtype=t)) for name, t in PANDAS.items()),
    *((name, lambda v, t=t: pd.array(v, dtype=t)) for name, t in PANDAS.items()),
    *((name, lambda v, t=t: pd.Series(v, dtype=pd.ArrowDtype(t))) for name, t in ARROW.items()),
]


@pytest.mark.parametrize(("dtype", "make"), SOURCES)
def test_nulls_are_counted_and_refused(dtype, make):
    """Whatever has nulls is refused by name and count, and taken where it has none."""
    one, zero = (True, False) if dtype == "bool" else (1, 0)
    numbers = [one, zero, one]
    np.testing.assert_array_equal(packed(dtype, make(numbers)), np.array(numbers, dtype))
    for values, count in (([one, None, zero], "1 null,"), ([None, one, None], "2 nulls,")):
        for field in (Column("x", dtype), Column("x", "complex64"), Scalar("x", dtype)):
            with pytest.raises(ValueError, match=f"field 'x': {count}.*fill or drop") as refusal:
                Layout([field]).pack({"x": make(values)}, rows=3)
            assert "astype" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        ([1, None, 3], "1 null,"),
        ([None] * 3, "3 nulls,"),
        ([[1.0, None], [2.0, 3.0]], "1 null,"),
        ([1.0, pd.NA], "1 null,"),
        (np.array([1, None, None], object), "2 nulls,"),
        (np.array([pd.NA, 1.0], object), "1 null,"),
        (np.array([pd.NaT], object), "1 null,"),
        (pd.Series([1.0, None], dtype=object), "1 null,"),
        (pd.Series([[1.0, None], [1.0, 2.0]]), "1 null,"),
        (None, "1 null,"),
        (pa.FixedSizeListArray.from_arrays(pa.array([1.0, None, 2.0, 3.0]), 2), "1 null,"),
        (pa.array([[1.0], None, [None]], pa.list_(pa.float32())), "1 null"),
        (pl.Series([[1.0, None], [1.0, 2.0]], dtype=pl.Array(pl.Float32, 2)), "1 null,"),
        (pd.Categorical([1, None]), "1 null,"),
        (pa.array([1, None]).dictionary_encode(), "1 null,"),
        (pa.array([0, None, 1])[1:], "1 null,"),
        (pl.Series([None, "a"], dtype=pl.Categorical), "1 null,"),
        (pd.Series([None], dtype="datetime64[s]").astype(object), "1 null,"),
    ],
    ids=str,
)
def test_nulls_wherever_they_hide(value, count):
    """In lists, in arrays of objects, in lists of lists, and in the items of Arrow and polars."""
    for dtype in ("float32", "int64", "bool"):
        for shape in ((), (2,)):
            with pytest.raises(ValueError, match=f"'x': {count}"):
                packed(dtype, value, shape)


ONES = pd.Series([1.0, None], dtype="Float64")
INNER = [[1.0, None], [2.0, 3.0]]
RECORDS = [{"a": 1.0, "b": None}, {"a": 2.0, "b": 3.0}]


@pytest.mark.parametrize(
    "value",
    [
        [pl.Series([1.0, None]), pl.Series([2.0, 3.0])],
        (pa.array([1.0, None]), pa.array([2.0, 3.0])),
        [pd.array([1.0, None], "Float64"), pd.array([2.0, 3.0], "Float64")],
        [ONES, ONES[:1]],
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([1.0, None])),
        pa.chunked_array([pa.DictionaryArray.from_arrays([0, 1], pa.array([1.0, None]))]),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array([1.0, None])),
        pa.array(INNER, pa.list_(pa.float64())),
        pa.array(RECORDS),
        pl.Series(INNER),
        pl.Series(RECORDS),
        pd.Series(INNER, dtype=pd.ArrowDtype(pa.list_(pa.float64()))),
        pd.Series(RECORDS, dtype=pd.ArrowDtype(pa.struct({"a": pa.float64(), "b": pa.float64()}))),
        pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float64(), [2]),
            pa.array(INNER, pa.list_(pa.float64(), 2)),
        ),
        dask.dataframe.from_pandas(ONES, npartitions=1),
        np.array([{"a": None}], object),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nulls_within_others(value):
    """They are found in dictionaries, runs, records, lists, extensions and lists of columns."""
    for dtype, shape in (("float64", ()), ("float64", (2,)), ("int64", (2,))):
        with pytest.raises(ValueError, match="'x': 1 null,"):
            packed(dtype, value, shape)


class Masked:
    """Something that NumPy makes a masked array of."""

    def __array__(self, dtype=None, copy=None):
        return np.ma.array([1.0, 2.0], mask=[0, 1])


def test_masks_are_not_lost():
    """Nor where a mask comes to light only when the values are asked for."""
    lazy = dask.array.ma.masked_array(dask.array.from_array(np.array([1.0, 2.0])), mask=[0, 1])
    for value in (np.ma.array([1.0, 2.0], mask=[0, 1]), lazy, Masked()):
        with pytest.raises(TypeError, match="'x': a masked array's mask would be lost"):
            packed("float64", value)


def test_parts_of_several_dtypes():
    """Columns of a table, or items of a list, are not brought to one dtype in silence."""
    frame = pd.DataFrame({"a": np.array([2**53 + 1, 1]), "b": [1.0, 2.0]})
    arrays = [np.array([2**53 + 1, 1]), np.array([1.0, 2.0])]
    for value in (frame, arrays, [np.int64(2**53 + 1), np.float64(1)]):
        shape = () if type(value[0] if isinstance(value, list) else 0) is np.int64 else (2,)
        with pytest.raises(TypeError, match="'x': got a part of dtype int64 among others"):
            packed("float64", value, shape)
    nested = [[np.int64(2**53 + 1), np.float64(1)]]
    with pytest.raises(TypeError, match="'x': got a part of dtype int64 among others"):
        packed("float64", nested, (2,))
    table = pd.DataFrame({"a": [1.0], "b": [2.0]})
    assert packed("float64", table, (2,)).tolist() == [[1, 2]]
    assert packed("float64", [np.float64(1), np.float64(2)]).tolist() == [1, 2]


def test_nan_is_a_value():
    """A float that is no number is one all the same, in plain and in nullable columns."""
    for value in (
        [1.0, float("nan")],
        pd.Series([1.0, np.nan], dtype="float32"),
        pa.array([1.0, np.nan], pa.float32()),
        pl.Series([1.0, np.nan], dtype=pl.Float32),
    ):
        assert np.isnan(packed("float32", value)[1])


def test_polars_and_dask_arrays():
    """What NumPy makes of other libraries' arrays is taken by its dtype."""
    matrix = pl.Series([[1, 2, 3], [4, 5, 6]], dtype=pl.Array(pl.Int16, 3))
    assert packed("int16", matrix, (3,)).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert packed("int64", dask.array.arange(4)).tolist() == [0, 1, 2, 3]
    assert packed("int64", pa.array([7, 8, 7]).dictionary_encode()).tolist() == [7, 8, 7]
    assert packed("int64", pd.Series([7, 8, 7], dtype="category")).tolist() == [7, 8, 7]
    assert packed("int64", pd.arrays.SparseArray([0, 8, 0])).tolist() == [0, 8, 0]
    assert packed("float32", pd.DataFrame({"a": [1, 2]}, dtype="f4")["a"]).tolist() == [1, 2]


# Objects, and the advice


def followed(dtype, values, shape=()):
    """What the error's own advice gives."""
    with pytest.raises((TypeError, ValueError), match="field 'x': got") as refusal:
        packed(dtype, values, shape)
    text = str(refusal.value)
    advice = text.rpartition("pass ")[2].partition(",")[0]
    if advice.startswith("."):
        advice = f"values{advice}"
    return packed(dtype, eval(advice, {"np": np, "values": values}), shape)


ROWS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("dtype", "shape", "values", "wanted"),
    [
        ("float32", (3,), pa.array(ROWS, pa.list_(pa.float32(), 3)), ROWS),
        ("float32", (3,), pa.array(ROWS, pa.list_(pa.float32())).to_pandas(), ROWS),
        ("int32", (3,), pd.Series(ROWS), ROWS),
        ("float64", (3,), pd.Series([np.array(row, "f8") for row in ROWS]), ROWS),
        ("int8", (), np.array([1, 2, 3], object), [1, 2, 3]),
        ("float32", (), pd.Series([1.5, 2], dtype=object), [1.5, 2]),
        ("float64", (), np.arange(3, dtype="i2"), [0, 1, 2]),
        ("float32", (), np.arange(3.0), [0, 1, 2]),
        ("complex64", (), np.arange(3, dtype="f4"), [0, 1, 2]),
        ("int32", (), np.arange(3), [0, 1, 2]),
        ("float32", (), np.arange(3), [0, 1, 2]),
        ("int8", (), np.arange(3.0), [0, 1, 2]),
        ("bool", (), np.array([1, 0, 1]), [True, False, True]),
        ("float32", (), pl.Series([1.5, 2.5]), [1.5, 2.5]),
        ("float32", (), pa.array([1.5, 2.5]), [1.5, 2.5]),
        ("float32", (), [np.float64(1.5), 2.5], [1.5, 2.5]),
        ("int32", (), pd.Series([1, 2], dtype="Int64"), [1, 2]),
        ("float32", (2,), pd.DataFrame({"a": [1.5], "b": [2.5]}), [[1.5, 2.5]]),
    ],
    ids=str,
)
def test_advice_is_right_when_followed(dtype, shape, values, wanted):
    """What a refusal says to pass is taken, with the values that were meant."""
    np.testing.assert_array_equal(followed(dtype, values, shape), wanted)


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("int32", np.array([1.5, 2**40]), "declare the field float64; in int32 not all of these"),
        ("int32", np.array([1, 2**31]), "declare the field int64; in int32 not all of these"),
        ("uint64", np.array([1, -1]), "declare the field int64; in uint64 not all"),
        ("float32", np.array([2**24 + 1]), "declare the field int64; in float32 not all"),
        ("float32", np.array([1e300]), "declare the field float64; in float32 not all"),
        ("int64", np.array([np.nan]), "declare the field float64; in int64 not all"),
        ("float32", np.array([1], "c8"), "declare the field complex64"),
        ("float64", np.array([2**53 + 1]), "declare the field int64; in float64 not all"),
        ("int64", np.array([2**64 - 1], "u8"), "declare the field uint64; in int64 not all"),
        ("bool", np.arange(3, dtype="u1"), "declare the field uint8"),
        ("int64", np.array(["2020"], "M8[s]"), "make int64 of them first, as you mean it"),
        ("float32", np.array(["1.5"]), "make float32 of them first"),
        ("float32", np.array(["1.5", "x"], object), r"got objects \(str\), expected float32"),
        ("int8", pd.Series([[1], [2, 3]]), "lists of 1 to 2 items.*np.concatenate.*lengths"),
        ("int8", pd.Series([[1], 2]), "lists among single values"),
        ("float32", np.array([{}, object()], object), r"got objects \(dict, object\)"),
    ],
)
def test_no_advice_corrupts(dtype, values, message):
    """Where a conversion would change values nobody is told to convert."""
    with pytest.raises(TypeError, match=message) as refusal:
        packed(dtype, values)
    assert "astype" not in str(refusal.value)
