"""Chosen rows, and SoAs one after another, as NumPy has them."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from bound import bound_columns, fields_of
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Blocks, Column, Layout, Scalar, Value, bind, concatenate

LAYOUT = Layout(
    [
        Column("pt", "float32"),
        Column("cov", "float64", (2, 3)),
        Column("hit", "int16", (3,), interleaved=True),
        Column("good", "bool"),
        Column("half", "bfloat16"),
        Scalar("n", "int32"),
        Scalar("beam", "complex64", (2,)),
    ],
    alignment=64,
)


def filled(rows, start=0):
    soa = LAYOUT.allocate(rows)
    for number, field in enumerate(LAYOUT.fields):
        target = soa[field.name if field.per_row else Value(field.name)]
        values = np.arange(target.size).reshape(target.shape) + (start + number) * field.per_row
        target[...] = values % 2 if field.dtype == "bool" else values
    return soa


def check(made, rows, wanted):
    """Fields of one SoA against arrays, scalars as they are."""
    assert made.rows == made.capacity == rows
    for name, values in wanted.items():
        field = made.layout[name]
        np.testing.assert_array_equal(made[name if field.per_row else Value(name)], values)


CHOICES = {
    "none": [],
    "a list": [2, 0, 2],
    "from the end": [-1, -5, 4],
    "unsigned": np.array([4, 1], np.uint64),
    "bytes": np.array([3, -2], np.int8),
    "a mask": np.array([True, False, False, True, True]),
    "a list of bools": [False] * 5,
    "a range": range(1, 4),
    "no such": np.zeros(0, np.int32),
}


@pytest.mark.parametrize("rows", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("kind", ["whole", "slice", "bound"])
def test_take_is_what_numpy_takes(rows, kind):
    """Every kind of column gives the rows that an index gives; scalars stay; nothing is shared."""
    soa = {"whole": filled(5), "slice": filled(9)[3:8], "bound": bind(filled(5))}[kind]
    index = np.asarray(rows) if len(rows) else np.zeros(0, int)
    wanted = {
        name: values[index] if soa.layout[name].per_row else values
        for name, values in fields_of(soa).items()
    }
    made = soa.take(rows)
    check(made, len(wanted["pt"]), wanted)
    assert made.layout.fields == soa.layout.fields
    assert not made.buffer.shares(soa["pt"])
    assert made.layout.alignment == (128 if kind == "bound" else 64)


@settings(max_examples=30, deadline=None)
@given(bound_columns(), st.data())
def test_take_and_concatenate_of_bound_columns(found, data):
    """Columns with any strides, aligned or not, give what NumPy takes from them."""
    rows, arrays = found
    soa = bind(arrays, rows=rows)
    index = data.draw(st.lists(st.integers(-rows, rows - 1), max_size=9) if rows else st.just([]))
    taken = soa.take(index)
    both = concatenate([soa, taken, soa])
    order = np.array([*range(rows), *index, *range(rows)], int)
    for name, array in arrays.items():
        if array.ndim:
            np.testing.assert_array_equal(taken[name], array[np.array(index, int)])
            np.testing.assert_array_equal(both[name], array[order])
        else:
            assert taken[Value(name)] == both[Value(name)] == array


def test_take_of_nothing():
    """Without rows there is nothing to choose, and an empty choice is one."""
    check(filled(0).take([]), 0, {"n": 0})
    check(filled(0).take(np.zeros(0, bool)), 0, {"n": 0})
    with pytest.raises(IndexError, match="row 0 is not there: the SoA has 0 rows"):
        filled(0).take([0])


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([0, 5], IndexError, "row 5 is not there: the SoA has 5 rows"),
        ([-6], IndexError, "row -6 is not there"),
        (np.array([2**64 - 1], np.uint64), IndexError, "row 18446744073709551615 is not there"),
        ([True], IndexError, "the mask has 1 values, and the SoA has 5 rows"),
        (3, TypeError, "got int64 of shape \\(\\); row i alone is \\[i\\]"),
        ([[0]], TypeError, "of shape \\(1, 1\\)"),
        ([0.0], TypeError, "got float64"),
        (np.zeros(0), TypeError, "got float64"),
        ([None], TypeError, "got object"),
        ([[0], [1, 2]], TypeError, "along one axis: "),
        (np.ma.array([0, 1], mask=[0, 1]), TypeError, "mask would be lost"),
        (slice(0, 2), TypeError, "got object"),
    ],
)
def test_rows_that_are_refused(rows, kind, message):
    """What is no choice of rows is refused, a row that is not there by its number."""
    with pytest.raises(kind, match=message):
        filled(5).take(rows)


def test_nothing_is_made_before_all_is_known_to_fit(monkeypatch):
    """Rows that are not there and scalars that differ are found out before memory is taken."""
    one, other = filled(5), filled(5)
    other["n"] = 7
    monkeypatch.setattr(Layout, "allocate", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(IndexError):
        one.take([9])
    with pytest.raises(ValueError, match="scalar 'n' is 0 in soas\\[0\\] and 7 in soas\\[1\\]"):
        concatenate([one, other])


def test_each_column_is_read_once():
    """Beside the result and the row numbers nothing of the data's size is made."""
    rows = 100_000
    layout = Layout([Column(name, "float64") for name in "abcd"])
    soa, index = layout.allocate(rows), np.arange(rows)[::-1].copy()
    tracemalloc.start()
    made = soa.take(index)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.rows == rows
    assert peak < layout.nbytes(rows) + index.nbytes + 10_000


def test_few_rows_of_records_cost_few_bytes():
    """Of a column with steps only the chosen rows are read, and not a copy of it."""
    records = np.zeros(100_000, [("a", "f8"), ("b", "f8")])
    soa = bind(records)
    tracemalloc.start()
    soa.take([5, 3])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


def test_concatenate_of_every_kind():
    """Rows of layouts, slices and bound columns follow each other; the first one's layout stays."""
    soas = [filled(3), filled(9, 20)[2:6], filled(0), bind(filled(2, 40))]
    wanted = {
        name: np.concatenate([fields_of(soa)[name] for soa in soas])
        if LAYOUT[name].per_row
        else values
        for name, values in fields_of(soas[0]).items()
    }
    made = concatenate(soas)
    check(made, 9, wanted)
    assert made.layout == LAYOUT
    assert not made.buffer.shares(soas[0]["pt"])
    check(concatenate((soas[2],)), 0, {"n": 0})


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.float32("nan"), np.float32("nan"), True),
        (np.float32("nan"), -np.float32("nan"), True),
        (np.float64(0.0), np.float64(-0.0), False),
        (ml_dtypes.bfloat16("nan"), ml_dtypes.bfloat16("nan"), True),
        (ml_dtypes.bfloat16(1), ml_dtypes.bfloat16(2), False),
        (np.complex64(complex("nan+1j")), np.complex64(complex("nan+1j")), True),
        (np.complex64(complex("nan+1j")), np.complex64(complex("nan+2j")), False),
        (np.array([1, 2]), np.array([1, 3]), False),
    ],
)
def test_scalars_that_are_equal(one, other, equal):
    """A scalar is kept if all have its bits, or NaN; else it is named, and which SoAs differ."""
    one, other = np.asarray(one), np.asarray(other)
    layout = Layout([Scalar("s", one.dtype, one.shape), Column("x", "int8")])
    soas = [layout.pack({"s": value, "x": [0]}) for value in (one, one, other)]
    if equal:
        assert concatenate(soas)[Value("s")].tobytes() == one.tobytes()
    else:
        with pytest.raises(ValueError, match="scalar 's' .* in soas\\[0\\] and .* in soas\\[2\\]"):
            concatenate(soas)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([Column("x", "int8")], "soas\\[1\\] has other fields than soas\\[0\\]: 1 fields, exp"),
        ([Column("x", "int8"), Column("z", "int8")], "field 1 is Column\\('z', .*, expected .*'y'"),
        ([Column("x", "int16"), Column("y", "int8")], "field 0 is Column\\('x', 'int16'\\), exp"),
    ],
)
def test_layouts_that_differ(fields, message):
    """The first field that differs is named, with what was expected."""
    first = Layout([Column("x", "int8"), Column("y", "int8")]).allocate(1)
    with pytest.raises(ValueError, match=message):
        concatenate([first, Layout(fields).allocate(1)])


@pytest.mark.parametrize(
    ("soas", "kind", "message"),
    [
        (filled(1), TypeError, "must be a list of SoAs, got SoA"),
        ([], ValueError, "soas is empty"),
        ([filled(1), {}], TypeError, "soa must be an SoA, got dict"),
        ([Blocks({"a": LAYOUT}).allocate({"a": 1})], TypeError, "take one of the blocks"),
    ],
)
def test_lists_that_are_refused(soas, kind, message):
    """What is no list of SoAs is refused."""
    with pytest.raises(kind, match=message):
        concatenate(soas)
