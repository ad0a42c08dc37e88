"""SoAs and layouts as mappings of columns, batches as a collection, and how they are shown."""

from __future__ import annotations

import pickle
import sys

import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from soaview import Blocks, Column, Layout, Scalar, Spec, Value, View, pack, views
from soaview._runs import run_numbers

LAYOUT = Layout([Column("pt", "float32"), Column("cov", "float64", (2, 3)), Scalar("n", "int32")])


def filled(rows=10):
    soa = LAYOUT.allocate(rows)
    soa["pt"] = np.arange(rows, dtype="f4")
    return soa


def test_an_soa_is_a_mapping_of_columns():
    """Names, views and pairs of them, as a dict has them; the views are the memory."""
    soa = filled()
    assert list(soa.keys()) == list(soa) == ["pt", "cov", "n"]
    assert len(soa.keys()) == 3
    assert [v.shape for v in soa.values()] == [(10,), (10, 2, 3), (10,)]
    assert [(name, v.shape) for name, v in soa.items()][1] == ("cov", (10, 2, 3))
    columns = dict(soa)
    assert list(columns) == ["pt", "cov", "n"]
    columns["pt"][3] = 99
    assert soa["pt"][3] == 99
    assert {**soa[2:4]}["pt"].tolist() == [2, 99]
    assert soa._ipython_key_completions_() == ["pt", "cov", "n"]
    frame = pd.DataFrame({name: v for name, v in soa.items() if v.ndim == 1})
    assert frame["pt"].tolist() == soa["pt"].tolist()
    assert LAYOUT.pack({**soa, "n": 3})["pt"][3] == 99


def test_a_layout_is_a_mapping_of_fields():
    """By name, in order of declaration, with a suggestion for a name that is not there."""
    assert list(LAYOUT) == list(LAYOUT.keys()) == ["pt", "cov", "n"]
    assert tuple(LAYOUT.values()) == LAYOUT.fields
    assert dict(LAYOUT.items())["n"] == Scalar("n", "int32")
    assert LAYOUT["cov"].shape == (2, 3)
    assert (len(LAYOUT), "pt" in LAYOUT, "Pt" in LAYOUT, 3 in LAYOUT) == (3, True, False, False)
    assert LAYOUT.get("nothing") is None
    assert LAYOUT._ipython_key_completions_() == ["pt", "cov", "n"]
    for name in ("Pt", 3, ["pt"], None):
        with pytest.raises(KeyError, match="no column .*(did you mean 'pt'|there are pt, cov, n)"):
            LAYOUT[name]


# Batches


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5, 10, 99])
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_batches_are_a_collection(rows, size, drop_last):
    """They have a length, an order and indices, and can be iterated again and again."""
    soa = filled(rows)
    batches = soa.batches(size, drop_last=drop_last)
    lengths = [size] * (rows // size) + ([rows % size] if rows % size and not drop_last else [])
    assert len(batches) == len(lengths)
    for _ in range(3):
        assert [len(batch) for batch in batches] == lengths
    found = [batch["pt"] for batch in batches]
    np.testing.assert_array_equal(np.concatenate([np.zeros(0), *found]), soa["pt"][: sum(lengths)])
    assert [len(b) for b in reversed(batches)] == lengths[::-1]
    assert [len(b) for b in batches[1:]] == lengths[1:]
    if lengths:
        assert len(batches[-1]) == lengths[-1]
        assert batches[0].buffer is soa.buffer
    for index in (len(lengths), -len(lengths) - 1):
        with pytest.raises(IndexError, match=f"there are {len(lengths)} batches, got index"):
            batches[index]
    with pytest.raises(TypeError):
        batches["pt"]
    if lengths and lengths[-1] == size and rows == 10:
        assert repr(batches).startswith(f"Batches({len(lengths)} of {size} rows: SoA(10 rows")


@pytest.mark.parametrize("drop_last", [None, 1, 0, "no", np.True_])
def test_drop_last_is_true_or_false(drop_last):
    """And nothing that compares equal to it."""
    with pytest.raises(TypeError, match="drop_last must be True or False"):
        filled().batches(3, drop_last=drop_last)


# How they are shown


def test_representations_are_cut():
    """Fields are named with their dtypes, the first twenty of them."""
    few = Layout([Column(f"c{number}", "float32") for number in range(20)])
    many = Layout([*few.fields, Column("v", "int8", (3,)), Scalar("n", "int8")])
    assert "c19 float32)" in repr(few.allocate(1))
    assert repr(many.allocate(1)).endswith("c19 float32, ... 2 more)")
    assert eval(repr(few)) == few
    assert repr(many).endswith("Column('c19', 'float32'), ... 2 more])")
    assert "cov float64 (2, 3), n int32)" in repr(filled())
    longest = Layout([Column("x" * 10_000, "int8"), Column("a\nb", "int8")])
    assert "\n" not in repr(longest.allocate(1))
    assert len(repr(longest.allocate(1))) < 200


def test_descriptions():
    """An SoA describes where it is, and its layout's map; names of any length leave it readable."""
    soa = filled()
    assert soa.describe() == f"{soa!r}\n{LAYOUT.describe(10)}"
    assert soa[2:4].describe() == f"{soa[2:4]!r}\n{LAYOUT.describe(10)}"
    fields = [Column("x" * 60_000, "int8"), *(Column(str(n), "int8") for n in range(1000))]
    text = Layout(fields).describe(2**999)
    assert len(text) < 1000 * 2500
    assert f"\n{'x' * 57}...  int8" in Layout(fields).describe(1)
    event = Blocks({"a": LAYOUT}).allocate({"a": 3})
    assert event.describe() == event.layout.describe(event.rows)


def test_messages_of_indices_name_no_tensor():
    """An index has no tensor, and its errors advise nothing that an index has not."""
    layout = Layout([Column(name, "float32") for name in "abcd"] + [Column("i", "int32")])
    soa = layout.allocate(3)
    for key, error, message in (
        ("e", KeyError, "no column 'e'"),
        (["a", "e"], KeyError, "no column 'e'"),
        (["a", "b", "d"], BufferError, "a, b, d make no single array: .*uneven.*np.stack"),
        (["b", "a"], BufferError, "reversed order.*take them one by one"),
        (["a", "a"], BufferError, "column 'a' is repeated"),
        (["a", "i"], ValueError, "its columns need one dtype, but 'a' has float32 and 'i' has"),
        (["a", "i"], ValueError, r"take them apart, \['a'\] and \['i'\], .* along axis 1, after a"),
        (Value("a"), ValueError, "Value takes a Scalar, but 'a' is a Column"),
        ([], ValueError, "^the list of columns is empty"),
        (["a", 3], TypeError, "^expected a column's name, a list of names"),
    ):
        with pytest.raises(error, match=message) as refusal:
            soa[key]
        assert "soa[...]" not in str(refusal.value)
        assert "tensor" not in str(refusal.value)
        assert "copy=" not in str(refusal.value)
    with pytest.raises(BufferError, match="tensor 't': .*copy=None"):
        views(soa, Spec(t=["a", "b", "d"]))


# Dtypes of other libraries


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (float, "float64"),
        (bool, "bool"),
        (np.float32, "float32"),
        ("<f4", "float32"),
        ("f2", "float16"),
        (np.dtype("c16"), "complex128"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype("bfloat16"), "bfloat16"),
        (pl.Float32, "float32"),
        (pl.Float64(), "float64"),
        (pl.Boolean, "bool"),
        (pl.UInt16, "uint16"),
        (pa.float16(), "float16"),
        (pa.float32(), "float32"),
        (pa.float64(), "float64"),
        (pa.bool_(), "bool"),
        (pa.int8(), "int8"),
        (pa.uint64(), "uint64"),
        (pd.Float32Dtype(), "float32"),
        (pd.BooleanDtype(), "bool"),
        (pd.UInt8Dtype(), "uint8"),
        (pd.ArrowDtype(pa.float64()), "float64"),
        (pd.ArrowDtype(pa.bool_()), "bool"),
        (pd.Series([1.0]).dtype, "float64"),
        (pd.Series([1], dtype="Int16").dtype, "int16"),
    ],
    ids=str,
)
def test_dtypes_of_other_libraries(dtype, name):
    """Fields take a dtype as another library has it, by its name."""
    assert Column("x", dtype) == Column("x", name)
    assert Scalar("x", dtype) == Scalar("x", name)


@pytest.mark.parametrize(
    "dtype",
    [
        "float",
        "Float32",
        "torch.float32",
        ">f4",
        ">i8",
        "f4,f4",
        "M8[s]",
        "O",
        "S4",
        "",
        None,
        3,
        object(),
        object,
        str,
        pl.String,
        pl.Datetime,
        pl.List(pl.Int8),
        pa.string(),
        pa.date32(),
        pa.list_(pa.float32()),
        pa.decimal128(5),
        pd.StringDtype(),
        pd.CategoricalDtype([1]),
        np.dtype([("a", "f4")]),
        ml_dtypes.float8_e5m2,
        ml_dtypes.int4,
        np.longdouble,
    ],
    ids=str,
)
def test_dtypes_that_no_field_has(dtype):
    """They are refused by the field's name; a string is a name of NumPy's and of nobody else."""
    if dtype == "float":  # which is Python's, and so NumPy's
        assert Column("x", dtype).dtype == "float64"
        return
    with pytest.raises(ValueError, match="field 'x': (unknown )?dtype "):
        Column("x", dtype)


def test_dtypes_with_a_shape():
    """A dtype of NumPy's that has a shape gives the column's; two shapes must agree."""
    three = np.dtype(("f4", (3,)))
    assert Column("v", three) == Column("v", "f4", (3,)) == Column("v", three, (3,))
    assert Column("v", "(2,3)i2").shape == (2, 3)
    record = np.dtype([("m", "u1", (2, 2)), ("s", "f8")])
    assert [Column(n, record[n]).shape for n in record.names] == [(2, 2), ()]
    assert pickle.loads(pickle.dumps(Column("v", three))) == Column("v", "f4", (3,))
    with pytest.raises(
        ValueError, match=r"field 'v': the dtype has shape \(3,\), and the field \(2,\)"
    ):
        Column("v", three, (2,))
    with pytest.raises(ValueError, match="field 'v': bad shape"):
        Column("v", np.dtype(("f4", (2, 2, 2))))
    with pytest.raises(ValueError, match="not in native byte order; declare float32"):
        Column("v", np.dtype((">f4", (3,))))
    assert Scalar("n", three) == Scalar("n", "f4", (3,))
    with pytest.raises(ValueError, match=r"field 'n': the dtype has shape \(3,\), and the field"):
        Scalar("n", three, (2,))


class Name(str):
    """A kind of string."""


def test_kinds_of_strings():
    """Of a name, or a dtype, that is a kind of string the plain string is kept."""
    field = Column(Name("pt"), Name("float32"))
    assert (type(field.name), type(field.dtype)) == (str, str)
    assert type(Scalar(np.str_("n"), np.str_("int8")).name) is str
    assert repr(field) == "Column('pt', 'float32')"


# Views


def test_a_view_is_an_array():
    """It has what arrays have, and NumPy's functions take it as one."""
    soa = filled()
    pt, cov, n, one = views(soa, Spec(pt="pt", cov="cov", n="n", one=Value("n")))
    assert isinstance(pt, View)
    assert (pt.dtype, pt.ndim, pt.size, len(pt), pt.itemsize) == (np.float32, 1, 10, 10, 4)
    assert (cov.dtype, cov.ndim, cov.size, len(cov)) == (np.float64, 3, 60, 10)
    assert (one.ndim, one.size) == (0, 1)
    assert np.result_type(pt, np.float16) == np.float32
    assert np.result_type(cov) == np.float64
    assert np.sum(pt) == 45
    assert (np.add(pt, 1) == soa["pt"] + 1).all()
    assert (pt[2:4] == [2, 3]).all()
    assert np.shares_memory(pt[2:], soa["pt"])
    assert cov[0, 1].shape == (3,)
    assert [*pt] == soa["pt"].tolist()
    assert np.dtype(pt.dtype) == "float32"
    with pytest.raises(TypeError, match="'one' is one value, and has no length"):
        len(one)
    assert len(n) == 10


def test_a_view_of_bfloat16_needs_its_dtype(run_python):
    """Without `ml_dtypes` its NumPy dtype is refused in a sentence; all else is there."""
    code = """if True:
        from soaview import *
        [view] = views(Layout([Column("h", "bfloat16")]).allocate(3), Spec(h="h"))
        print(view.dtype_name, view.itemsize, len(view), view.ndim)
        try:
            view.dtype
        except TypeError as error:
            print(error)
        import ml_dtypes
        print(view.dtype)
    """
    out = run_python("-c", code).stdout.splitlines()
    assert out[0] == "bfloat16 2 3 1"
    assert "NumPy has no bfloat16 of its own: `import ml_dtypes`" in out[1]
    assert out[2] == "bfloat16"


# Size


def counted(columns):
    """Calls that it takes to pack each column, and to read it by name, once plans are there."""
    layout = Layout([Column(f"c{number}", "int8") for number in range(columns)])
    given = {name: [1] for name in layout}
    soa = layout.pack(given)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        soa = layout.pack(given)
        first = calls
        for name in soa:
            soa[name]
    finally:
        sys.setprofile(None)
    return first / columns, (calls - first) / columns


@pytest.mark.slow
def test_no_cliff_at_many_columns():
    """Packing columns, and reading them by name, takes as many calls for each, however many."""
    (pack, read), (packs, reads) = counted(100), counted(5000)
    assert packs < pack * 1.1
    assert reads < read * 1.1


def test_plans_live_with_their_layout():
    """What was worked out for a spec is there again after thousands of others."""
    layout = Layout([Column("x", "int8"), Column("y", "int8")])
    soa = layout.allocate(3)
    first = Spec(first=["x", "y"])
    views(soa, first)
    kept = layout.plans[first.key, False, False]
    for number in range(3000):
        views(soa, Spec({f"t{number}": "x"}))
    views(soa, first)
    assert layout.plans[first.key, False, False] is kept
    assert run_numbers(layout) is run_numbers(layout)
    assert run_numbers(layout) == {"x": 0, "y": 0}


def test_an_soa_is_packed():
    """Its scalars stay scalars."""
    layout = Layout([Column("x", "float32"), Scalar("n", "int32")])
    soa = layout.pack({"x": np.arange(3, dtype="f4"), "n": 7})
    for other in (layout.pack(soa), pack(soa)):
        assert other.layout == layout
        assert other[Value("n")] == 7
        assert other["x"].tolist() == [0, 1, 2]
