"""Fields, layouts and the offsets that follow."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar
from soaview._dtypes import ITEMSIZE

XYZ = Layout([Column("x", "float32"), Column("y", "float64", (3,)), Scalar("n", "int32")])


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype(dtype):
    """Every dtype that both worlds know makes columns and scalars of its size."""
    layout = Layout([Column("x", dtype), Scalar("s", dtype)])
    size = {"bool": 1, "bfloat16": 2, "complex64": 8, "complex128": 16}.get(dtype)
    size = size or int("".join(c for c in dtype if c.isdigit())) // 8
    assert layout.fields[0].itemsize == size
    assert layout.nbytes(1000) == -(-1000 * size // 128) * 128 + 128


@pytest.mark.parametrize(
    ("given", "name"),
    [("f4", "float32"), (np.float32, "float32"), (np.dtype("i8"), "int64"), (bool, "bool")],
)
def test_dtypes_as_numpy_spells_them(given, name):
    """What NumPy takes for a dtype becomes its plain name."""
    assert Column("x", given).dtype == name


class Yes(str):
    """A string that says that it is like every other, and is found where `int8` is."""

    __slots__ = ()

    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("int8")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Column("", "f4"), ValueError, "name must not be empty"),
        (lambda: Column(3, "f4"), TypeError, "name must be a string, got 3"),
        (lambda: Scalar("", "f4"), ValueError, "a scalar's name must not be empty"),
        (lambda: Column("x", "float33"), ValueError, "field 'x': unknown dtype 'float33'"),
        (lambda: Column("x", None), ValueError, "unknown dtype None"),
        (lambda: Column("x", "U5"), ValueError, "unknown dtype 'U5'"),
        (lambda: Column("x", "f4,f4"), ValueError, "unknown dtype"),
        (lambda: Column("x", "longdouble"), ValueError, "unknown dtype"),
        (lambda: Column("x", "f4,("), ValueError, "field 'x': unknown dtype 'f4,.'"),
        (lambda: Column("x", np.dtype(("i4", [("p", "i2"), ("q", "i2")]))), ValueError, "unknown"),
        (lambda: Column("\ud83d\ude00", "f4"), ValueError, "must be Unicode text, got '.ud83d"),
        (lambda: Column("x", ">f4"), ValueError, "not in native byte order"),
        (lambda: Column("x", "f4", 3), TypeError, r"a tuple or list such as \(3,\), got 3"),
        (lambda: Column("x", "f4", (0,)), ValueError, r"field 'x': bad shape \(0,\)"),
        (lambda: Column("x", "f4", (2, -1)), ValueError, "bad shape"),
        (lambda: Column("x", "f4", (2, 2, 2)), ValueError, r"bad shape \(2, 2, 2\)"),
        (lambda: Column("x", "f4", (2.0,)), TypeError, "must be an integer, got 2.0"),
        (lambda: Column("x", "f4", (True,)), TypeError, "must be an integer, got True"),
        (lambda: Column("x", "f4", (2, 2), order="A"), ValueError, "order must be 'F' or 'C'"),
        (lambda: Column("x", "f4", (2, 2), order=np.array("C")), ValueError, "order must be"),
        (lambda: Column("x", "f4", (2, 2), order=Yes("Q")), ValueError, "order must be"),
        (lambda: Column("x", Yes("float33")), ValueError, "unknown dtype 'float33'"),
        (lambda: Layout([type("Own", (Column,), {})("x", "f4")]), TypeError, "a field must be"),
        (lambda: Layout([Column("x", "i1")] * 65_537), ValueError, "too many"),
        (lambda: Layout([]), ValueError, "at least one field"),
        (lambda: Layout("ab"), TypeError, "a list of Column and Scalar, got 'ab'"),
        (lambda: Layout(Column("x", "f4")), TypeError, "a list of Column and Scalar"),
        (lambda: Layout(["x"]), TypeError, "such as Column.'pt', 'float32'., got 'x'"),
        (lambda: Layout([Column("x", "f4"), Scalar("x", "f8")]), ValueError, "'x' stands twice"),
        (lambda: Layout([Column("x", "f4")], alignment=96), ValueError, "power of two, got 96"),
        (lambda: Layout([Column("x", "f4")], alignment=0), ValueError, "power of two, got 0"),
        (lambda: Layout([Column("x", "f4")], alignment=-8), ValueError, "power of two"),
        (lambda: Layout([Column("x", "f4")], alignment=64.0), TypeError, "must be an integer"),
        (lambda: Layout([Column("x", "f4"), Column("z", "c16")], alignment=8), ValueError,
         r"multiple of every item size: got 8, but field 'z' is complex128 \(16 bytes\)"),
    ],
)  # fmt: skip
def test_bad_fields_and_layouts(make, error, message):
    """An invalid layout cannot exist, and each mistake has its own sentence."""
    with pytest.raises(error, match=message):
        make()


def test_frozen_and_hashable():
    """Fields and layouts are values: equal, hashable, and not to be changed."""
    same = Layout([Column("x", "f4"), Column("y", "f8", [3]), Scalar("n", "i4")])
    assert same == XYZ
    assert hash(same) == hash(XYZ)
    assert {XYZ: 1}[same] == 1
    assert Layout(XYZ.fields, alignment=64) != XYZ
    assert XYZ != 3
    with pytest.raises(AttributeError):
        XYZ.alignment = 64
    with pytest.raises(AttributeError):
        XYZ.fields[0].name = "z"
    for twin in (copy.copy(XYZ), copy.deepcopy(XYZ), pickle.loads(pickle.dumps(XYZ))):
        assert twin == XYZ
        assert hash(twin) == hash(XYZ)


def test_pickled_layouts_keep_their_hash_across_processes(run_python):
    """A layout's hash belongs to its process: one from another process is still found."""
    code = (
        "import pickle, sys; from soaview import *;"
        "sys.stdout.write(pickle.dumps(Layout([Column('x', 'f4')])).hex())"
    )
    there = pickle.loads(bytes.fromhex(run_python("-c", code, PYTHONHASHSEED="7").stdout))
    assert there in {Layout([Column("x", "f4")])}


def test_repr_is_the_code_that_makes_it():
    """`repr` can be evaluated."""
    layout = Layout([Column("m", "f4", (2, 3), order="C"), *XYZ.fields], alignment=256)
    assert eval(repr(layout)) == layout
    assert repr(Column("x", "f4")) == "Column('x', 'float32')"


def test_offsets_pitch_and_size():
    """Offsets, pitch and size are bytes, with padding after every component."""
    assert XYZ.nbytes(33) == 256 + 3 * 384 + 128
    assert [XYZ.offset(name, 33) for name in "xyn"] == [0, 256, 256 + 3 * 384]
    assert [XYZ.pitch(name, 33) for name in "xyn"] == [256, 384, 128]
    assert XYZ.nbytes(0) == 128
    assert XYZ.pitch("x", 0) == 0
    with pytest.raises(KeyError, match="no column 'X'"):
        XYZ.offset("X", 3)
    with pytest.raises(KeyError, match="no column 'zz'; there are x, y, n"):
        XYZ.pitch("zz", 3)


@pytest.mark.parametrize("rows", [2**31 + 1, 2**62, 10**30])
def test_no_overflow_at_any_row_count(rows):
    """Sizes are plain integers, exact at every row count."""
    assert XYZ.nbytes(rows) == -(-rows * 4 // 128) * 128 + 3 * -(-rows * 8 // 128) * 128 + 128
    assert type(XYZ.nbytes(np.int64(5))) is int


@pytest.mark.parametrize("call", ["nbytes", "dense_rows", "describe", "allocate"])
@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (-1, ValueError, "rows must not be negative, got -1"),
        (1.0, TypeError, r"rows must be an integer, got 1.0 \(float\)"),
        (True, TypeError, "rows must be an integer, got True"),
        (np.bool_(True), TypeError, "rows must be an integer"),
        ("3", TypeError, "rows must be an integer, got '3'"),
        (None, TypeError, "rows must be an integer, got None"),
    ],
)
def test_bad_rows(call, rows, error, message):
    """A row count is an integer that is not negative."""
    with pytest.raises(error, match=message):
        getattr(XYZ, call)(rows)
    with pytest.raises(error, match=message):
        XYZ.wrap(bytes(1000), rows)


def test_rows_beyond_memory():
    """More rows than int64 counts are refused even where they take no memory."""
    layout = Layout([Scalar("n", "i4")])
    assert len(layout.wrap(bytes(128), 2**62)) == 2**62
    for make in (lambda: layout.wrap(bytes(128), 2**63), lambda: layout.allocate(2**63)):
        with pytest.raises(ValueError, match="9223372036854775808 rows are more than memory can"):
            make()


def test_names_that_do_not_print():
    """The memory map shows control characters as such."""
    assert repr("a\n\x1b[2J") in Layout([Column("a\n\x1b[2J", "f4")]).describe(3)


def test_dense_rows():
    """`dense_rows` is the smallest count that leaves no column any padding."""
    layouts = [XYZ, Layout([Column("b", "bool"), *XYZ.fields]), Layout([Column("c", "c16")])]
    for layout in layouts:
        for rows in (0, 1, 5, 8, 31, 32, 33, 127, 128, 1000):
            dense = next(
                n
                for n in range(rows, rows + 200)
                if all(
                    layout.pitch(f.name, n) == n * f.itemsize for f in layout.fields if f.per_row
                )
            )
            assert layout.dense_rows(rows) == dense
    assert Layout([Scalar("n", "i4")]).dense_rows(7) == 7


def test_describe():
    """The memory map names every field, with its numbers in bytes."""
    assert XYZ.describe(33).splitlines() == [
        "33 rows, 1536 bytes, alignment 128",
        "field  dtype    shape    offset  pitch  bytes  padding",
        "x      float32  (33,)         0    256    256      124",
        "y      float64  (33, 3)     256    384   1152      360",
        "n      int32    scalar     1408    128    128      124",
        "│█████░░░░│██████████░░░░██████████░░░░██████████░░░░│▓░░░░│ ▓ scalar, ░ padding",
    ]


names = st.text(min_size=1, max_size=8)
dtypes = st.sampled_from(sorted(ITEMSIZE))
shapes = st.lists(st.integers(1, 9), max_size=2).map(tuple)
some = st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple)
fields = st.one_of(
    st.builds(Column, names, dtypes, shapes, st.sampled_from("FC")),
    st.builds(Column, names, dtypes, some, interleaved=st.just(True)),
    st.builds(Scalar, names, dtypes, shapes),
)
layouts = st.builds(
    Layout,
    st.lists(fields, min_size=1, max_size=9, unique_by=lambda f: f.name),
    alignment=st.sampled_from([16, 32, 64, 128, 4096]),
)


@given(layouts)
def test_dict_round_trip(layout):
    """`from_dict(to_dict())` is the layout, also through JSON and `repr`."""
    assert Layout.from_dict(layout.to_dict()) == layout
    assert Layout.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout
    assert eval(repr(layout)) == layout


@given(layouts, st.integers(0, 2000))
def test_fields_tile_the_buffer(layout, rows):
    """Fields follow each other without gap or overlap, each on an aligned byte."""
    end = 0
    for f in layout.fields:
        assert layout.offset(f.name, rows) == end
        assert end % layout.alignment == 0
        end += layout.pitch(f.name, rows) * f.subcolumns
    assert layout.nbytes(rows) == end


GOOD = {"kind": "column", "name": "x", "dtype": "float32"}
BAD_DICTS = [
    (None, TypeError, "the layout must be a mapping"),
    ([], TypeError, "the layout must be a mapping"),
    ({}, ValueError, "the layout lacks fields"),
    ({"fields": [], "alignment": 128}, ValueError, "at least one field"),
    ({"fields": {}}, TypeError, "fields must be a list"),
    ({"fields": "x"}, TypeError, "fields must be a list"),
    ({"fields": None}, TypeError, "fields must be a list"),
    ({"fields": [GOOD], "rows": 3}, ValueError, "unknown key 'rows'"),
    ({"fields": [GOOD], "alignment": 128.0}, TypeError, "alignment must be an integer"),
    ({"fields": [GOOD], "alignment": True}, TypeError, "alignment must be an integer"),
    ({"fields": [GOOD], "alignment": "128"}, TypeError, "alignment must be an integer"),
    ({"fields": [GOOD], "alignment": None}, TypeError, "alignment must be an integer"),
    ({"fields": [GOOD], "alignment": 3}, ValueError, "power of two"),
    ({"fields": [GOOD, GOOD]}, ValueError, "'x' stands twice"),
    ({"blocks": {"a": {"fields": [GOOD]}}}, ValueError, "describes Blocks.*Blocks.from_json reads"),
    ({"fields": [GOOD] * 65_537}, ValueError, "65537 fields are too many"),
    ({"fields": ["x"]}, TypeError, "field number 0 must be a mapping"),
    ({"fields": [GOOD, None]}, TypeError, "field number 1 must be a mapping"),
    ({"fields": [{**GOOD, "offset": 0}]}, ValueError, "unknown key 'offset'"),
    ({"fields": [{**GOOD, 1: 0}]}, ValueError, "unknown key 1"),
    ({"fields": [{**GOOD, "kind": "table"}]}, ValueError, "kind must be 'column' or 'scalar'"),
    ({"fields": [{**GOOD, "kind": ["column"]}]}, ValueError, "kind must be"),
    ({"fields": [{"name": "x", "dtype": "float32"}]}, ValueError, "lacks kind"),
    ({"fields": [{"kind": "scalar", "dtype": "float32"}]}, ValueError, "lacks name"),
    ({"fields": [{**GOOD, "kind": "scalar", "order": "C"}]}, ValueError, "unknown key 'order'"),
    ({"fields": [{**GOOD, "kind": "scalar", "shape": [0]}]}, ValueError, "bad shape"),
    ({"fields": [{**GOOD, "interleaved": True}]}, ValueError, "'x': one number a row has nothing"),
    ({"fields": [{**GOOD, "shape": [3], "interleaved": 1}]}, TypeError, "must be True or False"),
    ({"fields": [{**GOOD, "dtype": "f4"}]}, ValueError, "unknown dtype 'f4'"),
    ({"fields": [{**GOOD, "dtype": 4}]}, ValueError, "unknown dtype 4"),
    ({"fields": [{**GOOD, "dtype": ["float32"]}]}, ValueError, "unknown dtype"),
    ({"fields": [{**GOOD, "name": 4}]}, TypeError, "name must be a string"),
    ({"fields": [{**GOOD, "name": ""}]}, ValueError, "must not be empty"),
    ({"fields": [{**GOOD, "shape": 3}]}, TypeError, "shape must be a tuple"),
    ({"fields": [{**GOOD, "shape": "3"}]}, TypeError, "shape must be a tuple"),
    ({"fields": [{**GOOD, "shape": [3.0]}]}, TypeError, "must be an integer"),
    ({"fields": [{**GOOD, "shape": [True]}]}, TypeError, "must be an integer"),
    ({"fields": [{**GOOD, "shape": [[3]]}]}, TypeError, "must be an integer"),
    ({"fields": [{**GOOD, "shape": [0]}]}, ValueError, "bad shape"),
    ({"fields": [{**GOOD, "shape": [-1]}]}, ValueError, "bad shape"),
    ({"fields": [{**GOOD, "shape": [1, 1, 1]}]}, ValueError, "bad shape"),
    ({"fields": [{**GOOD, "order": "K"}]}, ValueError, "order must be"),
    ({"fields": [{**GOOD, "order": None}]}, ValueError, "order must be"),
]


@pytest.mark.parametrize(("description", "error", "message"), BAD_DICTS)
def test_hostile_descriptions(description, error, message):
    """Whatever is not exactly a description of a layout is refused, and the place named."""
    with pytest.raises(error, match=message):
        Layout.from_dict(description)


def test_descriptions_may_leave_defaults_out():
    """`alignment`, `shape` and `order` have the defaults that the constructors have."""
    assert Layout.from_dict({"fields": [GOOD]}) == Layout([Column("x", "float32")])
