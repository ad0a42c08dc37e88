"""Bound memory drawn: allocations, what lies in each, tensors, and what XLA copies."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from test_drawing import HOSTILE, SVG, TAGS, boxes, of_class, parsed, rects, root_id, tensors, texts
from test_notebook import table

from soaview import Layout, Scalar, Spec, Value, bind, views

ROWS = [0, 1, 33]


def at(past, shape, dtype):
    """Zeros that start so many bytes past a multiple of 64, in an allocation of their own."""
    array = np.zeros(shape, dtype)
    memory = np.zeros(array.nbytes + 128, np.uint8)
    first = -memory.ctypes.data % 64 + past
    return np.frombuffer(memoryview(memory)[first : first + array.nbytes], dtype).reshape(shape)


def records(rows, align=True):
    kinds = [("pt", "f4"), ("eta", "f4"), ("q", "i1"), ("m", "f8")]
    return np.zeros(rows, np.dtype(kinds, align=align))


def everything(rows):
    """Columns of every kind: name to array."""
    aligned, packed = records(rows), records(rows, align=False)
    block = np.zeros((4, rows), "f4")
    locked = np.zeros(rows, "f4")
    locked.flags.writeable = False
    return {
        **{f"r.{name}": aligned[name] for name in aligned.dtype.names},
        **{f"p.{name}": packed[name] for name in packed.dtype.names},
        **{f"b{i}": block[i] for i in (0, 1, 3)},
        "locked": locked,
        "number": np.float32(3),
        "few": np.zeros(3, "f4")[1:2].reshape(()),
        "step": np.zeros(2 * rows, "f4")[::2],
        "turned": np.zeros((3, rows)).T,
        "rows": np.zeros((rows, 3)),
        "holes": np.zeros((rows, 4, 4), "f4")[:, ::2, 1:3],
    }


def through():
    """Two columns whose components lie through each other, and not row by row."""
    memory = np.zeros((4, 5), "f8")
    return {"even": memory[::2].T, "odd": memory[1::2].T}


CASES = {
    "records": lambda: bind(records(33)),
    "packed": lambda: bind(records(33, align=False)),
    "one field": lambda: bind({"q": records(33)["q"]}),
    "a column": lambda: bind({"x": np.zeros(33)}),
    "through": lambda: bind(through()),
    "hostile": lambda: bind({name: np.zeros(5, "f4") for name in HOSTILE}),
    "hostile records": lambda: bind(
        dict(zip(HOSTILE, np.zeros((33, len(HOSTILE)), "f4").T, strict=True))
    ),
    "forty": lambda: bind({f"column_{i}": np.zeros((5, i % 3 + 1)) for i in range(40)}),
    "forty in one": lambda: bind(np.zeros(5, [(f"column_{i}", "f4") for i in range(40)])),
    "forty with gaps": lambda: bind(
        {f"column_{i}": column for i, column in enumerate(np.zeros((5, 80)).T[1::2])}
    ),
    "many": lambda: bind({f"c{i}": np.zeros(5) for i in range(500)}),
    "many in one": lambda: bind({f"c{i}": c for i, c in enumerate(np.zeros((500, 5)))}),
    "many records": lambda: bind(
        {f"{n}.{i}": c for n in range(20) for i, c in enumerate(np.zeros((4, 5)))}
    ),
    **{f"everything, {n} rows": lambda n=n: bind(everything(n), rows=n) for n in ROWS},
}
"""Bound SoAs to draw: also in a browser."""

SPEC = Spec(
    fused=["b0", "b1"],
    uneven=["b0", "b1", "b3"],
    of_records=["r.pt", "r.eta"],
    apart=["b0", "locked"],
    unaligned="p.m",
    scalar="number",
    value=Value("number"),
    turned="turned",
    step=["step"],
)

cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def bars(root):
    """Side by side, or None; and of each allocation that is drawn by itself its boxes."""
    found = boxes(root)
    numbers = [m[1] for t in texts(root) if (m := re.match(r"allocation (\d+): ", t))]
    several = found[len(found) - len(numbers) :]
    first = found[0] if len(found) > len(numbers) else None
    return first, dict(zip(map(int, numbers), several, strict=True))


def headings(root):
    return [text for text in texts(root) if text.startswith("allocation ")]


@cases
def test_every_allocation_is_drawn_once(make):
    """Side by side, or as the only one; each field is in one box, which says where it lies."""
    soa = make()
    first, strips = bars(parsed(soa.to_svg()))
    pieces = soa.buffer.pieces
    if first is not None:
        sizes = [int(re.search(r"allocations?(?: \d+)?: (\d+) bytes", t)[1]) for t, _ in first]
        assert sum(sizes) == sum(piece.nbytes for piece in pieces)
        assert len(first) == min(len(pieces), 41)
    else:
        assert [*strips] == [0]
    drawn = [title for bar in strips.values() for title, _ in bar]
    drawn += [title for title, _ in first or [] if not title.startswith("allocation")]
    for f, home in zip(soa.layout.fields, soa.layout.homes, strict=True):
        nbytes = f.itemsize * f.components * (soa.rows if f.per_row else 1)
        said = f"\noffset {home.offset}, {nbytes} bytes, strides {home.strides}"
        if len(soa.layout) <= 40 and f.name.isprintable() and len(f.name) <= 16:
            [title] = [title for title in drawn if title.partition(": ")[0] == f.name]
            assert said in title


@pytest.mark.parametrize("rows", [2, 33])
def test_records_are_drawn_as_one_of_them(rows):
    """A strip of records is one row, to scale; what no column has is hatched at its end."""
    root = parsed(bind(records(rows)).to_svg())
    _, strips = bars(root)
    widths = [rect[2] for _, rect in strips[0]]
    assert widths == pytest.approx([664 / 6, 664 / 6, 664 / 3, 664 / 3], abs=0.1)
    [(left, _, wide, _)] = rects(of_class(root, "p")[0])
    assert wide == pytest.approx(7 / 24 * 664, abs=0.3)
    assert left + wide == pytest.approx(664 * 2 / 3, abs=0.2)
    assert len(rects(of_class(root, "r")[0])) == 4
    [heading] = headings(root)
    assert heading.startswith(f"allocation 0: {24 * rows} bytes")
    assert heading.endswith("rows of 24 bytes, of which one is drawn")


def test_some_records_of_many():
    """Those that are not bound are hatched behind the last field; other bytes make no row."""
    root = parsed(bind(records(32)[:16]).to_svg())
    _, strips = bars(root)
    widths = [rect[2] for _, rect in strips[0]]
    assert widths == pytest.approx([664 / 12, 664 / 12, 664 / 6, 664 * 2 / 3], abs=0.1)
    root = parsed(bind(through()).to_svg())
    assert headings(root) == [text for text in headings(root) if "of which one" not in text] != []


def test_columns_in_a_block_are_to_scale():
    """What lies before, between and behind bound columns is seen, and is not bound."""
    block = np.zeros((8, 100), "f4")
    root = parsed(bind({"a": block[1], "b": block[2], "c": block[5]}).to_svg())
    _, strips = bars(root)
    assert [title.split("\n")[0] for title, _ in strips[0]] == [
        "not bound", "a: float32 (100,)", "b: float32 (100,)", "c: float32 (100,)",
    ]  # fmt: skip
    widths = [rect[2] for _, rect in strips[0]]
    assert widths == pytest.approx([83, 83, 3 * 83, 3 * 83], abs=0.2)
    hatched = [rect[2] for rect in rects(of_class(root, "p")[0])]
    assert hatched == pytest.approx([2 * 83, 2 * 83], abs=0.2)
    assert not of_class(root, "r")
    assert texts(root)[-2:] == ["column", "not bound"]
    assert "of which one" not in headings(root)[0]


def test_components_that_follow_each_other():
    """A column whose components lie one after another has ticks between them; rows have none."""
    root = parsed(bind({"t": np.zeros((3, 33)).T}).to_svg())
    assert of_class(root, "i")[0].get("d").count("M") == 2
    assert not of_class(parsed(bind({"v": np.zeros((33, 3))}).to_svg()), "i")


def test_side_by_side():
    """Below each allocation stand its number and its size, where there is room, and read-only."""
    data = {"x": np.zeros(100), "y": np.zeros(200)[:100], "z": np.zeros(100, "f4"), "n": 1}
    data["z"].flags.writeable = False
    root = parsed(bind(data).to_svg())
    first, strips = bars(root)
    said = texts(root)
    for text in ("800 bytes", "1600 bytes", "400 bytes", "read-only", "0", "1", "2", "3"):
        assert text in said
    assert "8 bytes" not in said  # of the number, whose box is narrow
    assert first[2][0].endswith("read-only")
    assert [title.split(":")[0] for title, _ in first] == ["x", "allocation 1", "z", "n"]
    assert [*strips] == [1]
    ends = [(rect[0], rect[0] + rect[2]) for _, rect in first]
    assert [b[0] - a[1] for a, b in pairwise(ends)] == pytest.approx([4, 4, 4], abs=0.2)
    assert "read-only: allocation 2" in said
    data["x"].flags.writeable = False
    assert "read-only: allocations 0, 2" in texts(parsed(bind(data).to_svg()))


@pytest.mark.parametrize("rows", ROWS)
def test_tensors(rows):
    """Each says what `views` gives, or why it does not, below its columns."""
    soa = bind(everything(rows), rows=rows)
    root = parsed(soa.to_svg(SPEC))
    said, drawn = " ".join(texts(root)), {}
    for kind, title, found in tensors(root):
        drawn[title] = kind, found
    assert len(drawn) + 1 >= len(SPEC) - (rows == 0) * 2
    for name in SPEC:
        try:
            [view] = views(soa, SPEC.subset(name))
        except BufferError as error:
            why = str(error).removeprefix(f"tensor {name!r}: ")
            assert drawn[why][0] == "w"
            assert f"{name} gather of " in said
            assert f": {why.partition('; ')[0]}" in said
        else:
            numbers = f"{view.dtype_name}, shape {view.shape}, strides {view.strides}"
            key = f"{numbers}, offset {view.offset}; all but dtype and shape in elements"
            assert drawn[key][0] == "v"
            assert f"{name} strided view: {numbers}" in said


def test_tensors_stand_below_their_columns():
    """One within an allocation below its strip, one across several below all of them."""
    soa = bind(everything(33), rows=33)
    root = parsed(soa.to_svg(SPEC.subset("fused", "apart", "scalar", "of_records")))
    first, strips = bars(root)
    at = {t.partition(":")[0]: rect for bar in strips.values() for t, rect in bar}
    beside = [rect for _, rect in first]
    expected = [
        ("gather", [beside[2], beside[3]]),
        ("scalar", [beside[4]]),
        ("of_records", [at["r.pt"], at["r.eta"]]),
        ("fused", [at["b0"], at["b1"]]),
    ]
    for (_, _, found), (name, there) in zip(tensors(root), expected, strict=True):
        assert [left for left, *_ in found] == pytest.approx(
            [rect[0] + 1 for rect in there], abs=0.2
        ), name
        assert all(0 < top - rect[1] < 140 for (_, top, *_), rect in zip(found, there, strict=True))


def test_a_slice_has_its_own_tensors():
    """Of a slice all rows are drawn, which it says, and tensors have its own rows."""
    soa = bind({"x": np.zeros(33, "f4"), "y": np.zeros(33, "f4")})[3:10]
    said = texts(parsed(soa.to_svg(Spec(x="x"))))
    assert said[0] == "7 rows (3:10 of 33, which are drawn), bound, 2 allocations on cpu"
    assert "x strided view: float32, shape (7,), strides (1,)" in said
    laid = Layout([Scalar("n", "f4")]).allocate(33)[3:10]
    assert "n strided view: float32, shape (7,), strides (0,)" in texts(
        parsed(laid.to_svg(Spec(n="n")))
    )


def test_what_xla_copies():
    """The host's memory that is strided, or starts anywhere; a slice by where its rows start."""
    data = {"whole": at(0, 64, "f4"), "late": at(16, 64, "f4"), "step": at(0, 128, "f4")[::2]}
    soa = bind(data)
    root = parsed(soa.to_svg())
    assert "XLA copies on the way into jit: 2 of 3 columns, 512 bytes: late, step" in texts(root)
    [late] = [t for bar in boxes(root) for t, _ in bar if t.startswith("late:")]
    assert late.endswith("; XLA copies it: it starts 16 bytes past a multiple of 64")
    [step] = [t for bar in boxes(root) for t, _ in bar if t.startswith("step:")]
    assert step.endswith("; XLA copies it: it is strided")
    assert "2 of 3 columns, 416 bytes: whole, step" in soa[12:].to_svg()
    assert "way into jit: 1 of 3 columns, 4 bytes: late" in soa[:1].to_svg()
    rows = bind(at(16, 33, records(0).dtype))
    assert "way into jit: 4 of 4 columns, 792 bytes: pt, eta, q, m" in rows.to_svg()
    for none in (soa[:0], bind({"whole": data["whole"]})[16:]):
        assert "XLA copies nothing on the way into jit" in none.to_svg()


def test_memory_of_a_device_is_not_read():
    """Where pointers lead is drawn, and nobody follows them; XLA copies nothing of it."""
    pointers = {"x": (4096, "f4"), "v": (8192, "f8", (3,))}
    soa = bind(pointers, rows=10, device="cuda:0", owner=object())
    svg = soa.to_svg(Spec(x="x", v="v"))
    assert "bound, 2 allocations on cuda:0" in svg
    assert "XLA" not in svg
    assert {len(row) for row in table(soa._repr_html_())} == {6}


@cases
def test_nothing_from_outside_is_markup(make):
    """Whatever the names are, the text is well formed, and has soaview's own elements alone."""
    soa = make()
    names = [*soa][:40]
    spec = Spec({name: name for name in names} | {"\ud800 <i>": [names[-1]], "j": [names[0]] * 2})
    svg = soa.to_svg(spec)
    for text in (svg, soa._repr_html_()):
        root = parsed(text.encode())
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= TAGS | {"div", "table", "tr", "th", "td"}
        own = {pattern.get("id") for pattern in root.iter(f"{SVG}pattern")}
        assert set(re.findall(r"url\(#([^)]*)\)", text)) <= own
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        style = root.find(f".//{SVG}style")
        style = root.find(f"{SVG}style").text if style is None else style.text
        used = {kind for e in root.iter() for kind in e.get("class", "").split()}
        assert used <= {"soaview", *re.findall(r"\.(\w)\b", style)}


@cases
def test_sizes(make):
    """A drawing, and what a notebook shows, has a bound, however many fields there are."""
    soa = make()
    names = [*soa]
    spec = Spec({f"t{i}": [name] for i, name in enumerate(names)})
    assert len(soa._repr_html_().encode()) < 24_000
    assert len(soa.to_svg(spec).encode()) < 40_000


def test_more_than_forty():
    """Beyond forty allocations, fields of one, and tensors, the others are counted."""
    svg = CASES["many"]().to_svg(Spec({f"t{i}": f"c{i}" for i in range(450)}))
    assert "460 more allocations: 18400 bytes" in svg
    assert "... 410 more tensors" in svg
    svg = CASES["many in one"]().to_svg(Spec(far=["c1", "c499"]))
    assert "460 more columns" in svg
    [(_, _, [first, last])] = tensors(parsed(svg))
    assert last[0] > first[0]
    root = parsed(CASES["many records"]().to_svg())
    assert len(headings(root)) == 7
    assert "... 13 more allocations of several columns" in texts(root)


def test_the_table():
    """A notebook's table has allocation, offset, strides and first values of the SoA's own rows."""
    data = records(33)
    data["pt"] = np.arange(33) / 2
    rows = table(bind({"r": data["pt"], "m": data["m"], "n": 7})[2:]._repr_html_())
    assert rows[0] == [
        "field", "dtype", "shape", "allocation", "offset", "strides", "first values",
    ]  # fmt: skip
    assert rows[1] == ["r", "float32", "(33,)", "0", "0", "(24,)", "1, 1.5, 2, ..."]
    assert rows[2][3:6] == ["0", "16", "(24,)"]
    assert rows[3] == ["n", "int64", "scalar", "1", "0", "()", "7"]
    assert "SoA: 33 rows, bound, 1 allocation on cpu</div>" in bind(data)._repr_html_()


def test_described():
    """Below the fields each allocation has a line, and so have neighbours that make one tensor."""
    locked = at(0, 33, "f4")
    locked.flags.writeable = False
    block = np.zeros((4, 33), "f4")
    data = {"b": block[2], "a": block[0], "c": block[3], "i": np.zeros(33, "i4"), "z": locked}
    lines = bind(data).describe().splitlines()
    assert [line for line in lines if line.startswith("neighbours")] == [
        "neighbours, one tensor: a, b",
        "neighbours, one tensor: b, c",
    ]
    assert len([line for line in lines if line.startswith("allocation ")]) == 3
    where = r"allocation 2: 260 bytes(, \d+ bytes past a multiple of 64)?, read-only"
    assert re.fullmatch(where, lines[-3])
    assert bind(records(33)).describe().splitlines()[-1] == "neighbours, one tensor: pt, eta"
    same = {"x": block[0], "again": block[0], "y": block[1]}
    assert bind(same).describe().splitlines()[-1] == "neighbours, one tensor: x, y"
    assert "neighbours" not in bind(records(33, align=False)).describe()


def test_wrong_specs():
    """A spec is refused as it is by `views`; fields alone say what draws them."""
    soa = bind(records(3))
    for spec, error, message in (
        (Spec(x="p"), KeyError, "tensor 'x': no column 'p'; did you mean 'pt'"),
        (Spec(x=["pt", "m"]), ValueError, "need one dtype"),
        ({"x": "pt"}, TypeError, r"spec must be a Spec, got dict; write Spec\("),
    ):
        with pytest.raises(error, match=message):
            soa.to_svg(spec)
    with pytest.raises(TypeError, match=r"and not the layout: soa\.to_svg\(spec\) draws it"):
        soa.layout.to_svg(3)
    assert root_id(parsed(bind({"x": np.zeros(3)}).to_svg()))


def test_laid_memory_is_drawn_as_its_layout_is():
    """What has a layout is drawn by it, with the same tensors."""
    layout = bind(everything(5), rows=5).layout.laid()
    spec = Spec(pair=["b0", "b1"], apart=["b1", "b0"])
    assert layout.allocate(5).to_svg(spec) == layout.to_svg(5, spec)
