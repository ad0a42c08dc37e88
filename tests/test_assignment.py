"""Assignment to the columns of an SoA, item by item and in place."""

from __future__ import annotations

import operator

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import polars as pl
import pytest

from soaview import Column, Layout, Scalar, SoA, Value

LAYOUT = Layout(
    [
        Column("x", "f4"),
        Column("y", "f4"),
        Column("k", "i4"),
        Column("v", "f4", (3,)),
        Column("z", "f4"),
        Scalar("n", "i4"),
    ]
)


def filled():
    soa = LAYOUT.allocate(4)
    for number, name in enumerate("xykz"):
        soa[name][:] = np.arange(4) + 10 * number
    soa["v"][:] = np.arange(12).reshape(4, 3)
    soa[Value("n")][...] = 7
    return soa


IN_PLACE = {
    "+=": operator.iadd, "-=": operator.isub, "*=": operator.imul, "//=": operator.ifloordiv,
    "%=": operator.imod, "**=": operator.ipow, "/=": operator.itruediv, "&=": operator.iand,
    "|=": operator.ior, "^=": operator.ixor, "<<=": operator.ilshift, ">>=": operator.irshift,
    "@=": operator.imatmul,
}  # fmt: skip


@pytest.mark.parametrize("key", ["x", "k", "v", ["x", "y"], Value("n"), "n"], ids=str)
@pytest.mark.parametrize("operation", IN_PLACE)
def test_in_place_operators(operation, key):
    """Each of Python's works as on the NumPy view, or raises and has written nothing."""
    soa, alone = filled(), filled()[key].copy()
    before = soa.buffer.root.copy()
    try:
        alone = IN_PLACE[operation](alone, 2)
        works = key != "n"  # a scalar shown for every row cannot be written there
    except (TypeError, ValueError):
        works = False
    try:
        soa[key] = IN_PLACE[operation](soa[key], 2)  # what Python makes of the statement
    except (TypeError, ValueError):
        assert not works
        np.testing.assert_array_equal(soa.buffer.root, before)
    else:
        assert works
        np.testing.assert_array_equal(soa[key], alone)


def test_in_place_statements():
    """As people write them, on slices, too."""
    soa = filled()
    soa["x"] += 1
    soa[1:3]["x"] *= 10
    soa[["x", "y"]] -= 1
    soa[Value("n")] += 1
    assert soa["x"].tolist() == [0, 19, 29, 3]
    assert soa["y"].tolist() == [9, 10, 11, 12]
    assert soa[Value("n")] == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("x", [9, 8, 7, 6]),
        ("x", np.array([9, 8, 7, 6], ">f4")),
        ("x", pl.Series([9, 8, 7, 6], dtype=pl.Float32)),
        ("x", 5),
        ("v", np.ones((4, 3), "f4")),
        (["x", "y"], np.ones((4, 2), "f4")),
        (("y", "x"), [[1, 2]] * 4),
        (["z", "x"], [[1, 2]] * 4),
        ("n", 3),
        (Value("n"), np.int32(3)),
    ],
    ids=str,
)
def test_assignment(key, value):
    """Item assignment writes what `pack` would take, and nothing else."""
    soa = filled()
    soa[key] = value
    if isinstance(key, (list, tuple)):
        found = np.stack([soa[name] for name in key], axis=1)
    else:
        found = soa[key]
    np.testing.assert_array_equal(found, np.broadcast_to(np.asarray(value, "f4"), found.shape))
    twin = filled()
    for name in soa:
        if name not in (key if isinstance(key, (list, tuple)) else [getattr(key, "name", key)]):
            np.testing.assert_array_equal(soa[name], twin[name])


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("x", np.arange(4.0), TypeError, "'x': got dtype float64, expected float32"),
        ("x", np.arange(4, dtype="i4"), TypeError, "'x': got dtype int32"),
        ("k", [1.5] * 4, TypeError, "'k': got Python numbers that need dtype float64"),
        ("k", [2**31] * 4, ValueError, "'k': Python integer 2147483648 out of"),
        ("x", [1, 2, 3], ValueError, r"'x': got shape \(3,\), expected \(4,\)"),
        ("x", np.zeros((4, 1), "f4"), ValueError, "'x': got shape"),
        ("x", np.zeros((1,), "f4"), ValueError, "'x': got shape"),
        ("v", 1, ValueError, r"'v': got shape \(\), expected \(4, 3\)"),
        ("v", np.zeros((3, 4), "f4"), ValueError, "rows come first: pass its transpose"),
        ("x", [1, None, 2, 3], ValueError, "'x': 1 null"),
        ("n", [1, 2, 3, 4], ValueError, r"'n': got shape \(4,\), expected \(\)"),
        ("t", 1, KeyError, "no column 't'"),
        (["x", "t"], 1, KeyError, "no column 't'"),
        (["x", "k"], np.zeros((4, 2), "f4"), ValueError, "do not make one array; assign one"),
        (["x", "v"], np.zeros((4, 2), "f4"), ValueError, "do not make one array"),
        (["n"], np.zeros((4, 1), "i4"), ValueError, "do not make one array"),
        (["x", "x"], np.zeros((4, 2), "f4"), ValueError, "'x' stands twice"),
        (["x", "y"], np.zeros((2, 4), "f4"), ValueError, "rows come first"),
        (["x", "y"], 0, ValueError, r"got shape \(\), expected \(4, 2\)"),
        ([], 0, ValueError, "list of columns is empty"),
        (slice(1, 2), 0, TypeError, r"column by column: soa\[a:b\]\[name\] = values"),
        (3, 0, TypeError, "an SoA takes a field's name"),
        (Value("x"), 0, ValueError, "'x' is a Column"),
    ],
    ids=str,
)
def test_bad_assignments(key, value, error, message):
    """What does not fit is refused before anything is written."""
    soa = filled()
    before = soa.buffer.root.copy()
    with pytest.raises(error, match=message):
        soa[key] = value
    np.testing.assert_array_equal(soa.buffer.root, before)


def test_assignment_from_the_memory_itself():
    """What is assigned is read before it is overwritten."""
    soa = filled()
    soa["x"] = soa["x"][::-1]
    assert soa["x"].tolist() == [3, 2, 1, 0]
    soa[["x", "y"]] = soa[["x", "y"]][:, ::-1]
    assert soa["x"].tolist() == [10, 11, 12, 13]
    assert soa["y"].tolist() == [3, 2, 1, 0]


def test_assignment_to_read_only_memory():
    """It is refused, and says so; through a view NumPy does the same."""
    soa = LAYOUT.wrap(bytes(filled().buffer.root), 4)
    for key, value in (("x", 0), (["x", "y"], np.zeros((4, 2), "f4")), (Value("n"), 1)):
        with pytest.raises(BufferError, match="read-only"):
            soa[key] = value
    with pytest.raises(ValueError, match="read-only"):
        soa["x"] += 1


def test_numpys_rules_hold_through_the_view():
    """A view takes what NumPy converts, and narrows as NumPy does: the documents say so."""
    soa = filled()
    soa["x"][:] = np.array([1, 2, 3, 2**24 + 1.0])
    assert soa["x"].tolist() == [1, 2, 3, 2**24]
    assert "may narrow" in SoA.__doc__
