"""Columns whose components are adjacent in memory, and scalars that are arrays."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from soaview import Column, Layout, Scalar, Spec, Value, explain, views
from soaview.adapter import places, runs

LAYOUT = Layout(
    [
        Column("pt", "float32"),
        Column("p", "float32", (6,), interleaved=True),
        Column("q", "float32", (6,), interleaved=True),
        Scalar("edges", "float64", (20,)),
        Column("m", "int16", (2, 3), interleaved=True),
        Column("f", "int16", (2, 3), order="F", interleaved=True),
        Scalar("table", "uint8", (2, 3)),
        Column("u", "float32", (6,)),
    ]
)


def filled(rows):
    soa = LAYOUT.allocate(rows)
    for number, field in enumerate(LAYOUT.fields):
        there = soa[field.name if field.per_row else Value(field.name)]
        there[...] = np.arange(there.size).reshape(there.shape) % 97 + number
    return soa


def test_where_they_lie():
    """An interleaved column is one stretch of rows, an array scalar one stretch: by hand."""
    # pt 256; p and q 33 * 24 = 792, so 896 each; edges 160, so 256; m and f 33 * 12 = 396, so 512.
    starts = [0, 256, 1152, 2048, 2304, 2816, 3328, 3456]
    assert [LAYOUT.offset(name, 33) for name in LAYOUT] == starts
    assert [LAYOUT.pitch(name, 33) for name in LAYOUT] == [256, 896, 896, 256, 512, 512, 128, 256]
    assert LAYOUT.nbytes(33) == 3456 + 6 * 256
    assert LAYOUT.nbytes(0) == 256 + 128
    assert LAYOUT.itemsize == 8
    assert LAYOUT.sizes == (1, 4, 8, 12, 24)
    soa = filled(33)
    root = soa.buffer.root
    p = root[256:][: 33 * 24].view("f4").reshape(33, 6)
    np.testing.assert_array_equal(soa["p"], p)
    f = root[2816:][: 33 * 12].view("i2").reshape(33, 3, 2)
    np.testing.assert_array_equal(soa["f"], f.transpose(0, 2, 1))
    np.testing.assert_array_equal(soa[Value("edges")], root[2048:][:160].view("f8"))
    assert soa["edges"].shape == (33, 20)
    assert not soa["edges"].flags.writeable


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_other_alignments(alignment):
    """The sizes are those of the format's rule, also where a row is no power of two."""
    layout = Layout(LAYOUT.fields, alignment=alignment)

    def up(n):
        return -(-n // alignment) * alignment

    for rows in (0, 1, 33, 10**20):
        columns = up(4 * rows) * 7 + 2 * up(24 * rows) + 2 * up(12 * rows)
        assert layout.nbytes(rows) == columns + up(160) + up(6)
    soa = layout.allocate(33)
    assert soa.buffer.nbytes == layout.nbytes(33)


def test_generated_code_says_the_same():
    """What event loops run has the gate's numbers, up to the last byte."""
    spec = Spec(p="p", pq=["p", "q"], m="m", f="f", v=Value("edges"), e="edges", u="u")
    found = places(LAYOUT, spec)
    for rows in (1, 33, 100):
        names = {"rows": rows}
        exec("\n".join(found.lines), names)
        names["nbytes"] = eval(found.nbytes, names)
        assert names["nbytes"] == LAYOUT.nbytes(rows)
        assert eval(found.inside, names)
        soa = LAYOUT.allocate(rows)
        for view, place in zip(views(soa, spec), found.tensors, strict=True):
            assert eval(place.shape, names) == view.shape
            assert tuple(eval(stride, names) for stride in place.strides) == view.strides
            assert eval(place.offset, names) == view.offset
    one = places(LAYOUT, Spec(m="m"))
    names = {"rows": 33}
    exec("\n".join(one.lines), names)
    end = 2304 + 33 * 12
    assert eval(one.inside, {**names, "nbytes": end})
    assert not eval(one.inside, {**names, "nbytes": end - 1})


def test_padded_rows_end_with_the_field():
    """There are no padded rows: with the component-wise count a view would reach the next field."""
    soa = filled(33)
    p, pq, u, both = views(soa, Spec(p="p", pq=["p", "q"], u="u", e="edges"), padded=True)
    assert [v.shape for v in (p, pq, u, both)] == [(33, 6), (33, 2, 6), (64, 6), (48, 20)]
    assert p.offset + 33 * 6 <= LAYOUT.offset("q", 33) // 4


def test_slices_step_by_whole_rows():
    """A slice starts so many rows on, and a deep copy and a pickle of it have its rows alone."""
    soa, part = filled(100), filled(100)[40:60]
    own = copy.deepcopy(part), pickle.loads(pickle.dumps(part, 5)), pickle.loads(pickle.dumps(part))
    for field in LAYOUT.fields:
        wanted = soa[field.name][40:60]
        for found in (part, *own):
            np.testing.assert_array_equal(found[field.name], wanted)
    assert [len(found.buffer.root) for found in own] == [LAYOUT.nbytes(20)] * 3


def test_pack_and_assign():
    """Arrays go in by row; what does not fit is refused, and a scalar has no rows."""
    soa = filled(3)
    values = {f.name: soa[f.name if f.per_row else Value(f.name)].copy() for f in LAYOUT.fields}
    again = LAYOUT.pack(values)
    np.testing.assert_array_equal(again.buffer.root, soa.buffer.root)
    again[["q", "p"]] = np.zeros((3, 2, 6), "f4")
    assert not again["p"].any()
    again[Value("edges")] = list(range(20))
    assert again["edges"][2, 19] == 19
    with pytest.raises(
        ValueError, match=r"'edges': got shape \(3,\), expected \(20,\); .* no rows"
    ):
        again[Value("edges")] = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match=r"'p': got shape \(6, 3\), .*pass its transpose"):
        LAYOUT.pack({**values, "p": np.zeros((6, 3), "f4")})
    with pytest.raises(ValueError, match="do not make one array; assign one by one"):
        again[["p", "m"]] = np.zeros((3, 2, 6), "f4")


def test_a_bool_among_others_is_found():
    """Of arrays, too, the byte that is neither 0 nor 1."""
    layout = Layout([Column("b", "bool", (3,), interleaved=True), Scalar("s", "bool", (3,))])
    for at, message in ((3 * 5 + 2, "'b', row 5"), (128 + 1, "'s': ")):
        soa = layout.allocate(10)
        soa.buffer.root[at] = 2
        with pytest.raises(ValueError, match=message):
            soa.check_bools()


def test_mixed_with_component_wise_columns():
    """One stride does not lead through both; the reason is given, and `copy=None` proposed."""
    soa = filled(33)
    with pytest.raises(BufferError, match="interleaved and component-wise columns are mixed.*None"):
        views(soa, Spec(x=["p", "u"]))
    with pytest.raises(BufferError, match="interleaved and component-wise columns are mixed"):
        soa[["u", "p"]]
    [said] = explain(soa, Spec(x=["u", "p"])).verdicts[:1]
    assert (said.gives, said.nbytes) == ("copy", 33 * 12 * 4)
    with pytest.raises(ValueError, match="no order helps: interleaved and component-wise"):
        Layout.arrange(LAYOUT.fields, Spec(x=["p", "u"]))


def test_an_order_in_which_they_are_views():
    """Fields of equal room are those whose rows are equally wide."""
    fields = [LAYOUT[name] for name in ("p", "u", "q", "pt")]
    fields.append(Column("r", "float32", (6,), interleaved=True))
    layout = Layout.arrange(fields, Spec(x=["r", "p", "q"], y=["p", "q"]))
    assert views(layout.allocate(3), Spec(x=["r", "p", "q"]))[0].shape == (3, 3, 6)


def test_runs():
    """Each interleaved column, and each array, is a dense matrix of its own: rows first."""
    found = [(run.names, run.offset, run.shape) for run in runs(LAYOUT, 33)]
    assert found == [
        (("pt",), 0, (1, 64)),
        (("p",), 256, (33, 6)),
        (("q",), 1152, (33, 6)),
        (("edges",), 2048, (1, 20)),
        (("m",), 2304, (33, 6)),
        (("f",), 2816, (33, 6)),
        (("table",), 3328, (1, 6)),
        (("u",), 3456, (6, 64)),
    ]


def test_told_and_drawn():
    """JSON, code, the memory map and the drawing say what is interleaved; JSON as before if not."""
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT
    assert eval(repr(LAYOUT)) == LAYOUT
    assert LAYOUT.to_dict()["fields"][1]["interleaved"] is True
    assert LAYOUT.to_dict()["fields"][3]["shape"] == [20]
    assert set(LAYOUT.to_dict()["fields"][0]) == {"kind", "name", "dtype", "shape", "order"}
    lines = LAYOUT.describe(33).splitlines()
    lines = [" ".join(line.split()) for line in lines]
    assert lines[3] == "p float32 (33, 6) interleaved 256 896 896 104"
    assert lines[5] == "edges float64 scalar (20,) 2048 256 256 96"
    assert lines[7] == "f int16 (33, 2, 3) F interleaved 2816 512 512 116"
    svg = LAYOUT.to_svg(33, Spec(x=["p", "q"], y=["p", "u"], e=Value("edges")))
    assert "(33, 2, 6), strides (6, 224, 1)" in svg
    assert "float32 (33, 6) interleaved" in svg
    assert "interleaved and component-wise" in svg


def test_offsets_are_compared():
    """A producer with another alignment is found out, though an array's room changes with it."""
    other = Layout(LAYOUT.fields, alignment=64)
    offsets = {name: other.offset(name, 1000) for name in LAYOUT}
    with pytest.raises(ValueError, match="would be so with alignment=64"):
        LAYOUT.check(offsets, 1000)
    offsets = {name: LAYOUT.offset(name, 1000) for name in LAYOUT}
    with pytest.raises(ValueError, match="would be so at 998 to 1"):
        LAYOUT.check(offsets, 33)


def test_rows_without_padding():
    """`dense_rows` counts in whole rows of interleaved columns, too."""
    for rows in (1, 33, 100):
        dense = LAYOUT.dense_rows(rows)
        widths = {f.width for f in LAYOUT.fields if f.per_row}
        counts = range(rows, rows + 200)
        assert dense == next(n for n in counts if not any(n * w % 128 for w in widths))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Column("x", "f4", interleaved=True), ValueError, "'x': one number a row has"),
        (
            lambda: Column("x", "f4", (3,), interleaved=1),
            TypeError,
            "'x': interleaved must be True",
        ),
        (lambda: Column("x", "f4", (2, 2, 2), interleaved=True), ValueError, "'x': bad shape"),
        (lambda: Scalar("s", "f4", (0,)), ValueError, r"'s': bad shape \(0,\)"),
        (lambda: Scalar("s", "f4", 3), TypeError, "'s': shape must be a tuple"),
        (lambda: Scalar("s", "(3,)f4", (2,)), ValueError, r"the dtype has shape \(3,\)"),
    ],
)
def test_bad_fields(make, error, message):
    """Each mistake has its own sentence, with the field's name."""
    with pytest.raises(error, match=message):
        make()


def test_equal_fields():
    """Interleaved or not makes two fields; NumPy's dtypes with a shape give an array scalar."""
    assert Column("x", "f4", (3,), interleaved=True) != Column("x", "f4", (3,))
    assert Column("x", "f4", (2, 3), "C", interleaved=True).order == "C"
    assert Column("x", "f4", (2, 3), interleaved=True) == Column(
        "x", "f4", (2, 3), "C", interleaved=True
    )
    assert Scalar("s", np.dtype("(3,)f4")) == Scalar("s", "float32", [3])
    field = Column("x", "f4", (2, 3), "F", interleaved=True)
    assert pickle.loads(pickle.dumps(field)) == field
