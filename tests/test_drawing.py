"""The memory drawn: every byte once, to scale, and nothing in it that is not soaview's own."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from soaview import Blocks, Column, Layout, Scalar, Spec, Value, views
from soaview.__main__ import main

TRACKS = Layout(
    [
        Column("pt", "float32"),
        Column("eta", "float32"),
        Column("phi", "float32"),
        Column("q", "int8"),
        Column("cov", "float64", (3, 3)),
        Column("row_wise", "float64", (3, 3), order="C"),
        Scalar("n", "int32"),
        Scalar("field", "float32"),
    ]
)
HOSTILE = [
    "<script>alert(1)</script>",
    "</title><b>",
    "\"'&amp;",
    "]]>",
    "{}</style>",
    "a\n\x1b[2J\x00",
    "\u202egnol",
    "质量",
    "e\u0301",
    "\u0301",
    "😀" * 40,
    "x" * 500,
    "שלום",
    "\uffff",
]
LAYOUTS = {
    "tracks": TRACKS,
    "scalars": Layout([Scalar("a", "int8"), Scalar("b", "complex128")]),
    "one byte": Layout([Column("b", "bool")], alignment=1),
    "wide": Layout([Column("v", "i1", (999,)), Column("m", "i2", (100, 7)), Scalar("n", "i4")]),
    "hostile": Layout([Column(name, "float32") for name in HOSTILE]),
    "forty": Layout([Column(f"column_{i}", "float64", (i % 3 + 1,)) for i in range(40)]),
    "forty-one": Layout([Column(f"c{i}", "int16") for i in range(41)]),
    "many": Layout([(Column if i % 9 else Scalar)(f"c{i}", "int64") for i in range(500)]),
}  # fmt: skip
ROWS = [0, 1, 33, 10_000]
BLOCKS = Blocks({"tracks": TRACKS, "<hits>": LAYOUTS["wide"], "meta": LAYOUTS["scalars"]})
COUNTS = {"tracks": 33, "<hits>": 0, "meta": 7}

cases = pytest.mark.parametrize("rows", ROWS)
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)

SVG = "{http://www.w3.org/2000/svg}"
NUMBERS = re.compile(r"offset (\d+), (\d+) bytes")


def parsed(svg):
    return ElementTree.fromstring(svg)


def rects(path):
    """Left, top, width and height of a path's rectangles."""
    found = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-([\d.]+)z", path.get("d"))
    assert all(width == back for _, _, width, _, back in found)
    return [tuple(map(float, rect[:4])) for rect in found]


def boxes(root):
    """Of each piece of memory that is drawn its tooltip and its rectangle, bar by bar."""
    bars = {}
    for path in root.iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None:
            [rect] = rects(path)
            bars.setdefault(rect[1], []).append((title.text, rect))
    return [*bars.values()]


def of_class(root, kind):
    return [path for path in root.iter(f"{SVG}path") if path.get("class") == kind]


def tensors(root):
    """Of each tensor its kind, tooltip and rectangles."""
    for group in root.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is not None:
            yield group.get("class"), title.text, rects(group.findall(f"{SVG}path")[-1])


def texts(root):
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def places(bar):
    return [tuple(map(int, NUMBERS.search(title).groups())) for title, _ in bar]


def check_whole(bar, nbytes):
    """Every byte belongs to one box, in memory order."""
    end = 0
    for offset, size in places(bar):
        assert offset == end
        end += size
    assert end == nbytes


@layouts
@cases
def test_every_byte_is_drawn_once(layout, rows):
    """The boxes are the fields, where the layout has them, and together the whole buffer."""
    [bar] = boxes(parsed(layout.to_svg(rows)))
    check_whole(bar, layout.nbytes(rows))
    assert len(bar) == min(len(layout), 41)
    for name, (offset, size) in zip([*layout][:40], places(bar), strict=False):
        field = layout[name]
        assert offset == layout.offset(name, rows)
        assert size == layout.pitch(name, rows) * field.components
    title = bar[0][0]
    used = layout.fields[0].itemsize * layout.fields[0].components
    used *= rows if layout.fields[0].per_row else 1
    assert (
        f"pitch {layout.pitch(next(iter(layout)), rows)}, {places(bar)[0][1] - used} pad" in title
    )


@layouts
@cases
def test_boxes_are_to_scale(layout, rows):
    """Boxes touch, none is less wide than can be seen, and the wider ones have one scale."""
    [bar] = boxes(parsed(layout.to_svg(rows)))
    end, scales = 0, set()
    sizes = [size for _, size in places(bar)]
    for (_, (x, _, width, _)), size in zip(bar, sizes, strict=True):
        assert x == pytest.approx(end, abs=0.21)
        assert width >= 16
        end = x + width
        if width > 16.5 and sum(sizes):
            scales.add(size / width)
    assert end == pytest.approx(664, abs=0.3)
    if scales:
        assert max(scales) / min(scales) == pytest.approx(1, abs=0.02)
    by_size = sorted(zip(sizes, [rect[2] for _, rect in bar], strict=True))
    assert all(a[1] <= b[1] + 0.1 for a, b in pairwise(by_size))


def test_widths_by_hand():
    """What the least width takes from the others, they lack in proportion."""
    layout = Layout([Column("a", "int8", (3,)), Column("b", "int8"), Column("c", "int8", (6,))])
    [bar] = boxes(parsed(layout.to_svg(128)))
    assert [width for _, (_, _, width, _) in bar] == [199.2, 66.4, 398.4]
    [bar] = boxes(parsed(Layout([Scalar("n", "i1"), *layout.fields[::2]]).to_svg(128 * 1000)))
    assert [width for _, (_, _, width, _) in bar] == [16, 216, 432]


@cases
def test_padding_and_sub_columns(rows):
    """Each sub-column ends with its padding, wide enough to be seen, and in its own box."""
    root = parsed(TRACKS.to_svg(rows))
    [bar] = boxes(root)
    found = [rect for path in of_class(root, "p")[:-1] for rect in rects(path)]
    ticks = [path.get("d") for kind in ("i", "i g") for path in of_class(root, kind)]
    if rows == 33:
        assert "".join(ticks).count("M") == 2 * 8
        assert len(found) == sum(f.components for f in TRACKS.fields)
    for name, (_, (x, y, width, height)) in zip(TRACKS, bar, strict=True):
        f = TRACKS[name]
        padded = TRACKS.pitch(name, rows) - f.itemsize * (rows if f.per_row else 1)
        inside = [rect for rect in found if x <= rect[0] < x + width - 0.2]
        assert bool(inside) == bool(padded)
        for i, (left, top, wide, high) in enumerate(inside, 1):
            part = width / len(inside)
            assert 3 <= wide <= part - 2.9
            assert left + wide == pytest.approx(x + i * part, abs=0.21)
            assert (top, high) == (y, height)
            assert wide >= part * padded / TRACKS.pitch(name, rows) - 0.2 or wide >= part - 3.1


@pytest.mark.parametrize(("shape", "order"), [((100, 7), "F"), ((7, 100), "C")])
def test_more_sub_columns_than_there_is_room_for(shape, order):
    """Of a large matrix the columns or rows that lie together are told apart, by another tick."""
    root = parsed(Layout([Column("m", "int8", shape, order)]).to_svg(33))
    assert not of_class(root, "i")
    [coarse] = of_class(root, "i g")
    assert coarse.get("d").count("M") == 6
    assert len(rects(of_class(root, "p")[0])) == 7


def test_scalars_are_marked():
    """A scalar has a colour and a mark of its own; the legend has what is there, and no more."""
    root = parsed(TRACKS.to_svg(33))
    marks = of_class(root, "d")[0].get("d").count("M")
    assert marks == 2 == len([p for p in of_class(root, "s") if p.find(f"{SVG}title") is not None])
    assert texts(root)[-3:] == ["column", "scalar", "padding"]
    plain = parsed(Layout([Column("x", "int8")]).to_svg(128))
    assert not of_class(plain, "d")
    assert texts(plain)[-1] == "column"
    assert texts(parsed(Layout([Column("x", "int8")]).to_svg(0)))[-1] == "no bytes"


MIXED = {
    "reversed": ["phi", "eta", "pt"],
    "uneven": ["pt", "eta", "field_like"],
    "repeated": ["pt", "pt"],
    "scalar and column": ["a_scalar", "pt"],
    "orders": ["f", "c"],
}
SPECIAL = Layout(
    [
        Column("pt", "float32"),
        Column("eta", "float32"),
        Column("phi", "float32"),
        Column("other", "float64"),
        Column("field_like", "float32"),
        Column("f", "float32", (2, 2)),
        Column("c", "float32", (2, 2), order="C"),
        Scalar("a_scalar", "float32"),
        Scalar("b_scalar", "float32"),
    ]
)


@pytest.mark.parametrize("columns", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_a_gather_says_why(columns, rows):
    """A tensor without a single view has the reason, and the ways out, that `views` gives."""
    spec = Spec(x=columns)
    root = parsed(SPECIAL.to_svg(rows, spec))
    [(kind, title, _)] = tensors(root)
    with pytest.raises(BufferError) as refused:
        views(SPECIAL.allocate(rows), spec)
    assert kind == "w"
    assert f"tensor 'x': {title}" == str(refused.value)
    said = " ".join(texts(root))
    assert f"x gather of {len(columns)} columns: {title.partition(';')[0]}" in said


STRIDED = Spec(
    near=["pt", "eta", "phi"],
    apart=["pt", "phi"],
    one=["eta"],
    bare="f",
    scalars=["a_scalar", "b_scalar"],
    value=Value("b_scalar"),
)


@pytest.mark.parametrize("rows", [0, 1, 33])
def test_a_view_has_its_numbers(rows):
    """A strided view has shape and strides as `views` has them, under its own columns."""
    root = parsed(SPECIAL.to_svg(rows, STRIDED))
    [bar] = boxes(root)
    at = {name: rect for name, (_, rect) in zip(SPECIAL, bar, strict=True)}
    names = [["pt", "eta", "phi"], ["pt", "phi"], ["eta"], ["f"], ["a_scalar", "b_scalar"]]
    names.append(["b_scalar"])
    expected = views(SPECIAL.allocate(rows), STRIDED)
    for (kind, title, found), columns, view in zip(tensors(root), names, expected, strict=True):
        assert kind == "v"
        said = f"{view.dtype_name}, shape {view.shape}, strides {view.strides}"
        assert title.startswith(f"{said}, offset {view.offset};")
        assert f"{view.name} strided view: {said}" in texts(root)
        middles = [left + width / 2 for left, _, width, _ in found]
        expected_middles = [at[name][0] + at[name][2] / 2 for name in columns]
        assert middles == pytest.approx(expected_middles, abs=0.2)
    joined = [
        len(group.findall(f"{SVG}path")) for group in root.iter(f"{SVG}g") if group.get("class")
    ]
    assert joined == [2, 2, 1, 1, 2, 1]


def test_wrong_specs():
    """A spec is refused as it is by `views`."""
    for spec, error, message in (
        (Spec(x="p"), KeyError, "tensor 'x': no column 'p'; did you mean 'pt'"),
        (Spec(x=["pt", "other"]), ValueError, "need one dtype"),
        (Spec(x=Value("pt")), ValueError, "Value takes a Scalar"),
        ({"x": "pt"}, TypeError, r"spec must be a Spec, got dict; write Spec\("),
    ):
        with pytest.raises(error, match=message):
            SPECIAL.to_svg(3, spec)
    for rows in (-1, 1.0, "3", True):
        with pytest.raises((TypeError, ValueError), match="rows must"):
            SPECIAL.to_svg(rows)
    with pytest.raises(TypeError, match=r"from block to Spec, such as {'tracks': Spec.*got Spec"):
        BLOCKS.to_svg(COUNTS, Spec(x="pt"))
    with pytest.raises(KeyError, match="no block 'track'; did you mean 'tracks'"):
        BLOCKS.to_svg(COUNTS, {"track": Spec(x="pt")})
    with pytest.raises(KeyError, match="no row count for block"):
        BLOCKS.to_svg({"tracks": 1})


def test_blocks():
    """Blocks are drawn as one buffer, and each of them below it, with the tensors that it has."""
    root = parsed(BLOCKS.to_svg(COUNTS, {"tracks": Spec(x=["pt", "eta"]), "meta": Spec(n="a")}))
    whole, *parts = boxes(root)
    check_whole(whole, BLOCKS.nbytes(COUNTS))
    assert [offset for offset, _ in places(whole)] == [BLOCKS.offset(n, COUNTS) for n in BLOCKS]
    for (name, layout), bar in zip(BLOCKS.items(), parts, strict=True):
        check_whole(bar, layout.nbytes(COUNTS[name]))
    assert [kind for kind, *_ in tensors(root)] == ["v", "v"]
    assert "<hits>: from byte 8064 on, 0 rows, 128 bytes" in texts(root)


def test_many_blocks():
    """Blocks are drawn until there are forty fields, and then the others are counted."""
    blocks = Blocks(
        {f"block {i}": Layout([Column("x", "f4"), Scalar("n", "i4")]) for i in range(99)}
    )
    rows = dict.fromkeys(blocks, 5)
    whole, *parts = boxes(parsed(blocks.to_svg(rows)))
    check_whole(whole, blocks.nbytes(rows))
    assert len(whole) == 11
    assert len(parts) == 10
    assert "... 89 more blocks" in blocks.to_svg(rows)
    html = blocks.allocate(rows)._repr_html_()
    assert html.count("<td>x</td>") == 10
    assert html.count("... 89 more blocks") == 2
    assert len(html.encode()) < 20_000


def test_more_than_forty():
    """After forty fields, and tensors, those that are left out are counted, and are one piece."""
    layout = LAYOUTS["many"]
    spec = Spec({f"t{i}": f"c{i}" for i in range(450)})
    svg = layout.to_svg(33, spec)
    [bar] = boxes(parsed(svg))
    assert bar[-1][0].startswith("460 more fields\n")
    assert "... 410 more tensors" in svg
    html = layout.allocate(33)._repr_html_()
    assert "... 460 more fields" in html
    assert html.count("<td>c") == 40
    assert len(html.encode()) < 20_000
    far = parsed(layout.to_svg(33, Spec(x=["c1", "c499"])))
    [(_, _, [first, last])] = tensors(far)
    assert last[0] == pytest.approx(bar[-1][1][0] + 1, abs=0.2)
    assert first[0] < last[0]


def test_sizes():
    """Forty fields take less than 20 kB, with their values, and whatever their shapes."""
    for shape in ((), (3,), (5, 5), (100, 100)):
        fields = [Column(f"quite_a_long_name_{i}", "float64", shape) for i in range(40)]
        soa = Layout(fields).allocate(3)
        for f in fields:
            soa[f.name][...] = -1.234567e-123
        assert len(soa._repr_html_().encode()) < 20_000
        assert len(Layout(fields)._repr_html_().encode()) < 20_000
    assert len(LAYOUTS["hostile"].allocate(33)._repr_html_().encode()) < 20_000


TAGS = {"svg", "style", "pattern", "path", "text", "tspan", "title", "g"}


@layouts
def test_nothing_from_outside_is_markup(layout):
    """Whatever the names are, the text is well formed, and has soaview's own elements alone."""
    names = [*layout][:40]
    spec = Spec({name: name for name in names} | {"\ud800 <i>": [names[-1]], "j": [names[0]] * 2})
    svg = layout.to_svg(33, spec)
    for text in (svg, layout._repr_html_(), layout.allocate(33)._repr_html_()):
        root = parsed(text.encode())
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= TAGS | {"div", "table", "tr", "th", "td"}
        attributes = {name for element in root.iter() for name in element.attrib}
        assert not {name for name in attributes if name.startswith("on") or "href" in name}
        assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{root_id(root)}"}
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    for name in names:
        if len(name) <= 16 and name.isprintable() and name.isascii():
            assert name in texts(parsed(svg))


def root_id(root):
    [pattern] = root.iter(f"{SVG}pattern")
    return pattern.get("id")


def test_no_colour_hides_in_a_theme():
    """Text and lines have the page's colour, fills let it through; a file follows the reader's."""
    svg = TRACKS.to_svg(33, Spec(x=["pt", "eta"], y=["eta", "pt"]))
    style = parsed(svg).find(f"{SVG}style").text
    rules = dict(re.findall(r"([^{}\n]+){([^}]*)}", style))
    assert rules["svg.soaview:root"] == "color-scheme:light dark;color:CanvasText"
    assert "fill:currentColor" in rules[".soaview text"]
    for selector in (".soaview .c", ".soaview .s", ".soaview .e,.soaview .m"):
        assert float(re.search(r"fill-opacity:([\d.]+)", rules[selector])[1]) < 0.5
    for colour in re.findall(r"#([0-9a-f]{6})", style):
        light = contrast(colour, "ffffff")
        assert min(light, contrast(colour, "111111")) > 2.9 or light > 2
    assert contrast("0d9488", "ffffff") > 3 < contrast("0d9488", "1e1e1e")
    assert contrast("ea580c", "ffffff") > 3 < contrast("ea580c", "1e1e1e")
    used = {kind for e in parsed(svg).iter() for kind in e.get("class", "").split()}
    assert used <= {"soaview", *re.findall(r"\.(\w)\b", style)}


def contrast(one, other):
    """WCAG's ratio of two colours."""

    def luminance(colour):
        values = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def bar(layout, rows):
    return layout.describe(rows).splitlines()[-1]


@layouts
@cases
def test_the_bar_in_a_terminal(layout, rows):
    """The last line has a piece for each field, and is short."""
    line = bar(layout, rows)
    assert len(line) <= 100
    drawn, _, said = line.rpartition("│")
    pieces = drawn.split("│")[1:]
    assert len(pieces) == min(len(layout), 17)
    assert sum(map(len, pieces)) == 60 - 1 - len(pieces)
    assert min(map(len, pieces)) >= 2
    assert ("·" in drawn) == (len(layout) > 16) == ("more fields" in said)
    for piece, f in zip(pieces, layout.fields[:16], strict=False):
        used = f.itemsize * (rows if f.per_row else 1)
        empty = layout.pitch(f.name, rows) > used
        assert ("░" in piece) == (empty and bool(used))
        assert ("▓" in piece) == (not f.per_row)
        assert ("█" in piece) == (f.per_row and rows > 0)


def test_the_command_line_draws(tmp_path, capsys):
    """`describe --svg` writes what `to_svg` gives; a folder that is not there is one sentence."""
    path, out = tmp_path / "layout.json", tmp_path / "out.svg"
    path.write_text(LAYOUTS["hostile"].to_json())
    assert main(["describe", str(path), "--rows", "33", "--svg", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == LAYOUTS["hostile"].to_svg(33)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["describe", str(path), "--rows", "33", "--svg", str(tmp_path / "no" / "out.svg")])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_terminal_without_such_characters(tmp_path, monkeypatch):
    """Where the output cannot hold the bar, the rest is printed all the same."""
    path = tmp_path / "layout.json"
    path.write_text(TRACKS.to_json())
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["describe", str(path), "--rows", "33"]) == 0
    sys.stdout.flush()
    assert raw.getvalue().decode("ascii").splitlines()[:-1] == TRACKS.describe(33).splitlines()[:-1]
