"""Values from tables and lists."""

from __future__ import annotations

import time
import tracemalloc

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from test_pack import column, packed

from soaview import Column, Layout, Scalar


def test_a_layout_packs_tables():
    """Its fields are taken of a frame, a table or an SoA, in their own dtypes or not at all."""
    layout = Layout([Column("b", "int64"), Column("a", "float32")])
    frame = pd.DataFrame({"a": np.array([1, 2], "f4"), "b": [3, 4], "c": ["x", "y"]})
    for table in (frame, pl.DataFrame(dict(frame)), pa.Table.from_pandas(frame)):
        soa = layout.pack(table)
        assert soa.layout == layout
        assert {name: column.tolist() for name, column in soa.items()} == {"b": [3, 4], "a": [1, 2]}
        with pytest.raises(TypeError, match="'b': got dtype int64, expected float32.*dtypes={'b'"):
            Layout([Column("b", "float32")]).pack(table)
        with pytest.raises(KeyError, match="no column for 'd'; there are"):
            Layout([Column("d", "float32")]).pack(table)
    again = layout.pack(soa)
    assert again["a"].tolist() == [1, 2]
    assert again.buffer.address != soa.buffer.address
    with pytest.raises(TypeError, match="got list, expected a mapping"):
        layout.pack([1, 2])


def test_nulls_of_tables():
    """A table that fills a vector column has its nulls counted, too."""
    frame = pd.DataFrame({"a": [1.0, None], "b": [None, None]}, dtype="Float32")
    for table in (frame, pl.DataFrame({"a": [1.0, None], "b": [None, None]})):
        with pytest.raises(ValueError, match="field 'x': 3 nulls"):
            packed("float32", table, (2,))
    with pytest.raises(ValueError, match="field 'x': 3 nulls"):
        packed(
            "float32", pa.table({"a": [1.0, None], "b": pa.array([None, None], pa.float32())}), (2,)
        )
    assert packed("float32", pd.DataFrame(np.ones((2, 2), "f4")), (2,)).tolist() == [[1, 1]] * 2
    assert packed("float64", pl.DataFrame({"a": [1.0], "b": [2.0]}), (2,)).tolist() == [[1, 2]]


def test_row_counts_that_differ():
    """The column that told the rows is named beside the one that has others."""
    layout = Layout([Column("x", "f4"), Column("y", "f4")])
    with pytest.raises(
        ValueError, match=r"'y': got shape \(4,\), expected \(3,\).*, and 'x' has 3"
    ):
        layout.pack({"x": [1.0] * 3, "y": [1.0] * 4})
    with pytest.raises(
        ValueError, match=r"'n': .*pass its one value, such as soa\[Value\(name\)\]"
    ):
        Layout([Scalar("n", "f4")]).pack({"n": [1.0, 1.0]}, rows=2)


# Lists


def nested(depth, length):
    return [nested(depth - 1, length) for _ in range(length)] if depth else 0.5


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([0.5] * 300_000, ()),
        ([1, 2.5, True] * 100_000, ()),
        ([[1.0, 2.0, 3.0]] * 100_000, (3,)),
        ([((1.0, 2.0), (3.0, 4.0))] * 50_000, (2, 2)),
        ([float("inf")] * 300_000, ()),
    ],
    ids=["numbers", "mixed", "vectors", "matrices", "infinite"],
)
def test_lists_cost_what_numpys_own_conversion_does(values, shape):
    """At most ten times its time and memory, however the lists are nested."""
    layout = column("float32", shape)

    def cost(call):
        begin = time.thread_time()
        call()
        return time.thread_time() - begin

    ours, theirs = lambda: layout.pack({"x": values}), lambda: np.asarray(values, "f4")
    costs = [(cost(ours), cost(theirs)) for _ in range(5)]
    assert min(one for one, _ in costs) < 10 * min(other for _, other in costs)
    peaks = []
    for call in (ours, theirs):
        tracemalloc.start()
        call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 10 * peaks[1]


def test_lists_that_are_no_arrays():
    """Ragged, endless and very deep lists end in a sentence about the field."""
    endless = []
    endless.append(endless)
    deep = 1.0
    for _ in range(100):
        deep = [deep]
    twice = []
    twice += [twice, twice]
    many = [1.0]
    for _ in range(60):
        many = [many, many]
    for value in ([[1.0], [2.0, 3.0]], [1.0, [2.0]], endless, deep, twice, many):
        with pytest.raises(ValueError, match="field 'x': "):
            packed("float32", value)
    assert packed("float32", nested(3, 2), (2, 2)).shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"got shape \(2, 2, 2, 2\)"):
        packed("float32", nested(4, 2), (2, 2))
    with pytest.raises(ValueError, match="lists are nested more than 4 deep"):
        packed("float32", nested(5, 2), (2, 2))
    two = Layout([Column("a", "f4", (2, 2)), Column("b", "f4", (2, 2))]).allocate(2)
    two[["a", "b"]] = nested(4, 2)
    assert (two["b"] == 0.5).all()


class Asked:
    """An array that counts how often it is asked for its memory."""

    def __init__(self):
        self.times = 0

    def __array__(self, dtype=None, copy=None):
        self.times += 1
        return np.arange(3, dtype="f4")


def test_arrays_are_asked_once():
    """What computes or fetches its values when asked does it once."""
    asked = Asked()
    assert packed("float32", asked).tolist() == [0, 1, 2]
    assert asked.times == 1


# One value for all rows


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2, "f4"), True])
def test_one_value_for_all_rows(value):
    """A column of numbers takes a single value, once the rows are known from elsewhere."""
    layout = Layout([Column("x", "f4"), Column("y", "f4"), Column("v", "f4", (2,))])
    rows = np.zeros((5, 2), "f4")
    soa = layout.pack({"x": value, "y": [1.0] * 5, "v": rows})
    assert soa["x"].tolist() == [float(value)] * 5
    assert layout.pack({"x": value, "y": value, "v": rows}).rows == 5
    assert layout.pack({"x": value, "y": value, "v": rows[:0]}).rows == 0
    with pytest.raises(ValueError, match="single values alone say nothing about rows; pass rows="):
        column("f4").pack({"x": value})
    assert column("f4").pack({"x": value}, rows=3)["x"].tolist() == [float(value)] * 3
    with pytest.raises(ValueError, match=r"'v': got shape \(\), expected \(5, 2\)"):
        layout.pack({"x": value, "y": [1.0] * 5, "v": value})
    with pytest.raises(TypeError, match="'x': got dtype float64, expected float32"):
        column("f4").pack({"x": np.float64(2)}, rows=3)
