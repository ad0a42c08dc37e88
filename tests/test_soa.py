"""SoAs: reading, slicing, packing."""

from __future__ import annotations

import gc
import weakref

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pytest

from soaview import Column, Layout, Scalar, SoA, Spec, Value, views
from soaview.adapter import check_copy

LAYOUT = Layout([Column("pt", "float32"), Column("cov", "float64", (2, 3)), Scalar("n", "int32")])


def packed(rows=10):
    pt = np.arange(rows, dtype=np.float32)
    cov = np.arange(6.0 * rows).reshape(rows, 2, 3)
    return LAYOUT.pack({"pt": pt, "cov": cov, "n": 7}), pt, cov


def test_reading_and_writing():
    """`soa[entry]` is a NumPy view with the shape rules of a spec entry."""
    soa, pt, cov = packed()
    np.testing.assert_array_equal(soa["pt"], pt)
    np.testing.assert_array_equal(soa["cov"], cov)
    assert soa["cov"].strides == (8, 128, 256)
    assert soa["n"].tolist() == [7] * 10
    assert not soa["n"].flags.writeable
    assert soa[["pt"]].shape == (10, 1)
    assert soa[["n"]].shape == (10, 1)
    assert soa[Value("n")].shape == ()
    soa[Value("n")][...] = 8
    soa["pt"][3] = 99
    assert soa["n"][9] == 8
    assert soa[["pt"]][3, 0] == 99


def test_protocol():
    """Length is rows; iteration and `in` are over names; `repr` says what it is."""
    soa, *_ = packed()
    assert len(soa) == soa.rows == 10
    assert list(soa) == ["pt", "cov", "n"]
    assert "pt" in soa
    assert "pT" not in soa
    assert 0 not in soa
    assert soa
    assert LAYOUT.allocate(0)
    assert (soa.device, soa.readonly) == ("cpu", False)
    fields = "pt float32, cov float64 (2, 3), n int32"
    assert repr(soa) == f"SoA(10 rows, 1024 bytes on cpu: {fields})"
    assert repr(soa[2:4]) == f"SoA(2 rows (2:4 of 10), 1024 bytes on cpu: {fields})"
    frozen = LAYOUT.wrap(bytes(soa.buffer.root), 10)
    assert repr(frozen) == f"SoA(10 rows, 1024 bytes on cpu, read-only: {fields})"


@pytest.mark.parametrize(
    "rows",
    [
        *(slice(a, b) for a in (None, 0, 3, 9, 10, 50, -1, -4, -50) for b in (None, 0, 5, 10, -2)),
        slice(8, 3),
        slice(2, 5, 1),
        slice(np.int64(2), np.int64(5)),
    ],
    ids=str,
)
def test_slices_behave_as_pythons_do(rows):
    """Negative and out-of-range slices are those of a list; slices of slices too."""
    soa, pt, cov = packed()
    part = soa[rows]
    assert isinstance(part, SoA)
    np.testing.assert_array_equal(part["pt"], pt[rows])
    np.testing.assert_array_equal(part["cov"], cov[rows])
    np.testing.assert_array_equal(part[1:-1]["cov"], cov[rows][1:-1])
    assert part.buffer is soa.buffer
    assert part["cov"].strides[1:] == (128, 256)


def test_batches():
    """Batches are views in order, the last one short."""
    soa, pt, _ = packed()
    for size, lengths in ((1, [1] * 10), (3, [3, 3, 3, 1]), (10, [10]), (99, [10])):
        batches = list(soa.batches(size))
        assert [len(batch) for batch in batches] == lengths
        np.testing.assert_array_equal(np.concatenate([b["pt"] for b in batches]), pt)
        batches[-1]["pt"][-1] += 0
    assert list(LAYOUT.allocate(0).batches(3)) == []
    assert [len(b) for b in soa[2:9].batches(np.int32(4))] == [4, 3]
    soa.batches(4)[0]["pt"][0] = 5
    assert soa["pt"][0] == 5
    for size, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch size must be"):
            soa.batches(size)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (3, TypeError, r"an SoA takes a field's name.*got int; row i is soa\[i:i\+1\]"),
        (None, TypeError, "an SoA takes a field's name"),
        (np.zeros(10, bool), TypeError, r"got ndarray; .*soa\.take\(rows\)"),
        (slice(0, 5, 2), ValueError, "steps of 1"),
        (slice(5, 0, -1), ValueError, "steps of 1"),
        (slice("a", "b"), TypeError, "slice indices must be integers"),
        ("pT", KeyError, "no column 'pT'; did you mean 'pt'"),
        ("", KeyError, "no column ''"),
        ([], ValueError, "list of columns is empty"),
        (["pt", 3], TypeError, "a list of names"),
        (Value("pt"), ValueError, "Value takes a Scalar"),
    ],
)
def test_bad_keys(key, error, message):
    """Whatever is no row range and no entry is refused."""
    with pytest.raises(error, match=message):
        packed()[0][key]


def test_an_soa_is_not_one_array():
    """NumPy gets no array of names or objects from an SoA; from a view it gets the memory."""
    soa = packed()[0]
    with pytest.raises(TypeError, match="not one array"):
        np.asarray(soa)
    [view] = views(soa, Spec(pt="pt"))
    assert np.shares_memory(np.asarray(view), soa["pt"])
    assert not np.shares_memory(np.array(view), soa["pt"])
    assert np.asarray(view, np.float64).dtype == np.float64


def test_pack_takes_rows_from_the_columns():
    """Rows follow from the columns, or are given; a layout of scalars needs them given."""
    assert len(LAYOUT.pack({"pt": np.empty(0, "f4"), "cov": np.empty((0, 2, 3)), "n": 1})) == 0
    scalars = Layout([Scalar("n", "int32")])
    assert scalars.pack({"n": 3}, rows=5)["n"].tolist() == [3] * 5
    with pytest.raises(ValueError, match="say nothing about rows; pass rows="):
        scalars.pack({"n": 3})


def test_pack_keeps_values_and_byte_order():
    """Non-contiguous, read-only and byte-swapped arrays come out right."""
    pt = np.arange(20, dtype=">f4")[::-2]
    cov = np.asfortranarray(np.random.default_rng(0).normal(size=(10, 2, 3)))
    cov.flags.writeable = False
    soa = LAYOUT.pack({"n": np.int32(3), "cov": cov, "pt": pt})
    np.testing.assert_array_equal(soa["pt"], pt)
    np.testing.assert_array_equal(soa["cov"], cov)
    assert soa["pt"].dtype == np.float32


def test_pack_takes_python_numbers():
    """Python numbers and lists take the field's dtype where their kind allows."""
    layout = Layout([Column("x", "float16"), Column("k", "uint8"), Scalar("c", "complex64")])
    soa = layout.pack({"x": [1, 2.5], "k": (1, 255), "c": 3})
    assert soa["x"].tolist() == [1, 2.5]
    assert soa["k"].tolist() == [1, 255]
    assert soa[Value("c")] == 3


GOOD = {"pt": np.zeros(4, "f4"), "cov": np.zeros((4, 2, 3)), "n": 1}


@pytest.mark.parametrize(
    ("change", "rows", "error", "message"),
    [
        ({"pt": np.zeros(4)}, None, TypeError, "'pt': got dtype float64, expected float32.*astype"),
        ({"pt": np.zeros(4, "i4")}, None, TypeError, "'pt': got dtype int32, expected float32"),
        ({"pt": ["a"] * 4}, None, TypeError, "'pt': got dtype <U1"),
        ({"pt": [None] * 4}, None, ValueError, "'pt': 4 nulls"),
        ({"n": 1.5}, None, TypeError, "'n': got Python numbers .* dtype float64, expected int32"),
        (
            {"n": 2**31},
            None,
            ValueError,
            "'n': Python integer 2147483648 out of",
        ),
        ({"pt": [1e300] * 4}, None, ValueError, "'pt': a number is beyond what float32"),
        ({"pt": [10**39] * 4}, None, ValueError, "'pt': a number is beyond what float32"),
        ({"pt": [np.float64(0.1)] * 4}, None, TypeError, "'pt': got dtype float64"),
        ({"pt": np.ma.zeros(4, "f4")}, None, TypeError, "'pt': a masked array's mask"),
        ({"pt": [[1.0], [1.0, 2.0]]}, None, ValueError, "'pt': .*inhomogeneous"),
        ({"n": np.float64(1)}, None, TypeError, "'n': got dtype float64, expected int32"),
        ({"n": [np.array(300)]}, None, TypeError, "'n': got dtype int64, expected int32"),
        ({"n": [1] * 4}, None, ValueError, r"'n': got shape \(4,\), expected \(\)"),
        ({"cov": 3.0}, None, ValueError, r"'cov': got shape \(\), expected \(4, 2, 3\)"),
        ({"pt": np.zeros(5, "f4")}, None, ValueError, "'cov': got shape .*one row for each"),
        ({"pt": np.zeros((1, 4), "f4")}, 4, ValueError, r"'pt': got shape \(1, 4\)"),
        ({}, 5, ValueError, r"'pt': got shape \(4,\), expected \(5,\)"),
        ({}, -1, ValueError, "rows must not be negative"),
        ({}, 4.0, TypeError, "rows must be an integer"),
        ({"Pt": 0}, None, KeyError, "no column 'Pt'; did you mean 'pt'"),
    ],
)
def test_bad_packs(change, rows, error, message):
    """What does not fit a field is refused, naming it; nothing is converted in silence."""
    with pytest.raises(error, match=message):
        LAYOUT.pack({**GOOD, **change}, rows=rows)


def test_pack_needs_every_field():
    """A missing array is named."""
    with pytest.raises(KeyError, match="no array for 'cov', 'n'"):
        LAYOUT.pack({"pt": GOOD["pt"]})
    with pytest.raises(TypeError, match="expected a mapping from name to column"):
        LAYOUT.pack([1, 2])


def test_pack_of_what_would_be_lost():
    """Masks within lists, and the overflow of one part of a complex number, are refused."""
    masked = np.ma.array([1.0, 2.0], mask=[1, 0])
    for dtype, shape, value in (("f8", (2,), [masked, masked]), ("f8", (), [np.ma.masked])):
        with pytest.raises(TypeError, match="field 'x': a masked array's mask would be lost"):
            Layout([Column("x", dtype, shape)]).pack({"x": value})
    layout = Layout([Column("x", "complex64")])
    with pytest.raises(ValueError, match="field 'x': a number is beyond what complex64 holds"):
        layout.pack({"x": [complex(float("inf"), 1e300)]})
    assert layout.pack({"x": [complex(float("inf"), 1)]})["x"][0] == complex(float("inf"), 1)


def test_pack_of_bfloat16():
    """A number beyond bfloat16 is refused as for other floats; infinity itself is not."""
    layout = Layout([Column("h", "bfloat16")])
    assert layout.pack({"h": [1e38, float("inf")]})["h"][1] == float("inf")
    with pytest.raises(ValueError, match="'h': a number is beyond what bfloat16 holds"):
        layout.pack({"h": [1e300]})


def test_transposed_columns_have_their_own_sentence():
    """Rows and columns swapped are recognised."""
    layout = Layout([Column("v", "f4", (3,))])
    with pytest.raises(ValueError, match="rows come first: pass its transpose"):
        layout.pack({"v": np.zeros((3, 10), "f4")}, rows=10)


def test_bfloat16_needs_its_dtype(run_python):
    """Without `ml_dtypes`, NumPy's views of bfloat16 say what is missing; nothing else does."""
    code = """if True:
        from soaview import *
        layout = Layout([Column("h", "bfloat16"), Column("x", "float32")])
        soa = layout.allocate(3)
        print(layout.describe(3), views(soa, Spec(h="h")), soa["x"])
        try:
            soa["h"]
        except TypeError as error:
            print(error)
        import ml_dtypes
        print(soa["h"].dtype, layout.pack({"h": [1, 2], "x": [1, 2]})["h"])
    """
    out = run_python("-c", code).stdout
    assert "NumPy has no bfloat16 of its own: `import ml_dtypes`" in out
    assert out.endswith("bfloat16 [1 2]\n")


def test_no_cycles():
    """SoAs and views are freed by reference count alone."""
    gc.collect()
    gc.disable()
    try:
        soa = packed()[0]
        gone = weakref.ref(soa)
        soa["pt"], soa[1:3]
        del soa
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("value", [0, 1, "no", 0.0, np.False_])
def test_copy_is_one_of_three(value):
    """`copy` is False, None or True, and nothing that compares equal to them."""
    with pytest.raises(TypeError, match="copy must be False"):
        check_copy(value)
