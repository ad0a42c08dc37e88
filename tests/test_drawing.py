"""Pictures of memory: what is drawn is what the layout says, for any name and any size."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from adapters import spec_of
from cases import CASES, SCATTERED, layout_of

from soaview import Blocks, Column, Layout, Scalar, SoA, Spec, Value
from soaview.__main__ import main
from soaview._draw import GATHER, SHOWN, VIEW, WIDTH
from soaview.adapter import Gather, views_or_gathers

SVG = "{http://www.w3.org/2000/svg}"
TRACKS = Layout(
    [
        Column("pt", "float32"),
        Column("eta", "float32"),
        Column("charge", "int8"),
        Column("cov", "float32", (5, 5)),
        Scalar("n", "int32"),
        Scalar("field", "float64"),
    ]
)
HOSTILE = [
    "<script>alert(1)</script>",
    "a&b",
    "\"quoted\" 'name'",
    "]]>",
    "日本語の列",
    "a\nb",
]
LAYOUTS = {
    "tracks": TRACKS,
    "scalars": Layout([Scalar("n", "int32"), Scalar("m", "float64")]),
    "one": Layout([Column("x", "bool")]),
    "no padding": Layout([Column("x", "int32"), Column("y", "int32")], alignment=4),
    "hostile": Layout([Column(name, "float32") for name in HOSTILE]),
    "forty": Layout([Column(f"column_{n}", "float64", (3, 3)) for n in range(40)]),
    "500": Layout([Column(f"column_{n}", "float32") for n in range(500)]),
    "every kind": layout_of("float32", "int8"),
}


def rectangles(root):
    """Of each block of a strip: its place, its tooltip."""
    found = []
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None:
            numbers = [float(rect.get(name)) for name in ("x", "y", "width", "height")]
            found.append((*numbers, title.text))
    return found


def texts(root):
    return [text.text for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("rows", [0, 1, 33, 1000, 10**9])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_byte_is_in_one_block(name, rows):
    """Blocks follow each other without gaps, in the picture and in bytes, and end with both."""
    layout = LAYOUTS[name]
    root = ET.fromstring(layout.to_svg(rows))
    blocks = rectangles(root)
    assert len(blocks) == min(len(layout), SHOWN + 1)
    x, byte = 0.0, 0
    for left, _, width, height, title in blocks:
        [numbers] = re.findall(r"bytes ([\d,]+) to ([\d,]+)", title)
        first, end = (int(number.replace(",", "")) for number in numbers)
        assert abs(left - x) < 0.2
        assert first == byte
        assert width >= min(17.9, WIDTH / len(blocks) - 0.1)
        assert height > 20
        x, byte = left + width, end
    assert abs(x - WIDTH) < 0.2
    assert byte == layout.nbytes(rows)
    assert f"byte {byte:,}" in texts(root)


@pytest.mark.parametrize("rows", [0, 1, 32, 33, 1024])
def test_padding_is_hatched(rows):
    """Where there is padding, however little, it is seen; where there is none, nothing is."""
    for layout in (TRACKS, LAYOUTS["no padding"]):
        root = ET.fromstring(layout.to_svg(rows))
        drawn = [p.get("d") for p in root.iter(f"{SVG}path") if "url(" in (p.get("fill") or "")]
        padded = [
            f for f in layout.fields
            if layout.pitch(f.name, rows) > f.itemsize * (rows if f.per_row else 1)
        ]  # fmt: skip
        assert len(drawn) >= len(padded)
        assert bool(drawn) == bool(padded)
        assert all(float(re.search(r"h([\d.]+)", d)[1]) >= 3 for d in drawn)


def test_scalars_are_marked():
    """Each has a dot, and no column has one."""
    root = ET.fromstring(TRACKS.to_svg(33))
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert not list(ET.fromstring(LAYOUTS["forty"].to_svg(33)).iter(f"{SVG}circle"))


def colors(svg):
    """Of each tensor's line: its colour, what it says."""
    root = ET.fromstring(svg)
    marks = [r.get("fill") for r in root.iter(f"{SVG}rect") if r.get("width") == "9"]
    starts = [t.text for t in root.iter(f"{SVG}text") if re.match(r"t: ", t.text)]
    return list(zip(marks, starts, strict=True))


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        *((c.layout, c.entry) for c in CASES if c.dtype in ("float32", "int8")),
        *((layout_of("float32", "int8"), list(names)) for names in SCATTERED),
    ],
    ids=str,
)
def test_views_and_gathers(layout, entry):
    """A tensor's colour says what it is, as the views say it; a gather has its reason."""
    for rows in (0, 1, 33):
        [tensor] = views_or_gathers(layout.allocate(rows), spec_of(entry))
        [(color, said)] = colors(layout.to_svg(rows, spec_of(entry)))
        assert said.startswith(f"t: {tensor.dtype_name} {tensor.shape}")
        if isinstance(tensor, Gather):
            assert color == GATHER
            assert ", gathered, for " in said
        else:
            assert color == VIEW
            assert f"strides {tensor.strides}" in said


def test_a_tensor_is_under_its_columns():
    """Its bars stand where the columns' blocks do."""
    root = ET.fromstring(TRACKS.to_svg(33, Spec(t=["pt", "eta"])))
    blocks = {title.partition(":")[0]: (x, width) for x, _, width, _, title in rectangles(root)}
    bars = [
        (float(r.get("x")) - 1, float(r.get("width")) + 2)
        for r in root.iter(f"{SVG}rect")
        if r.get("height") == "6"
    ]
    assert np.allclose(bars, [blocks["pt"], blocks["eta"]], atol=0.11)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Spec(t="nothing"), KeyError, "no column 'nothing'"),
        (Spec(t=["pt", "charge"]), ValueError, "need one dtype"),
        ({"t": "pt"}, TypeError, "spec must be a Spec, got dict; write Spec"),
    ],
)
def test_a_spec_that_does_not_fit(spec, error, message):
    """It is refused as everywhere."""
    with pytest.raises(error, match=message):
        TRACKS.to_svg(33, spec)


def everything():
    for layout in LAYOUTS.values():
        yield layout._repr_html_()
        yield layout.allocate(33)._repr_html_()
        yield layout.to_svg(33)
    soas = Blocks({"a<b": TRACKS, "b": TRACKS}).allocate({"a<b": 3, "b": 0})
    yield soas._repr_html_()
    yield soas.layout._repr_html_()
    yield soas.layout.to_svg({"a<b": 3, "b": 0})


def test_names_are_text():
    """Whatever a name holds is shown, and is no markup; the whole is well-formed."""
    for markup in everything():
        root = ET.fromstring(markup)
        tags = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert tags <= {
            "div", "table", "tr", "th", "td", "svg", "pattern", "path", "rect", "title", "text",
            "circle",
        }  # fmt: skip
    shown = LAYOUTS["hostile"].allocate(1)._repr_html_()
    cells = [cell.text for cell in ET.fromstring(shown).iter("td")]
    for name in HOSTILE:
        assert (name if name.isprintable() else repr(name)) in cells


def test_small_and_cut():
    """Forty fields take less than 20 KB; of more, the rest are counted."""
    assert len(LAYOUTS["forty"].allocate(1000)._repr_html_().encode()) < 20_000
    many = LAYOUTS["500"]
    html = many.allocate(1000)._repr_html_()
    assert len(html.encode()) < 20_000
    assert "and 460 more fields" in html
    assert "460 more fields: bytes" in html
    spec = Spec({f"t{n}": f"column_{n}" for n in range(500)})
    svg = many.to_svg(33, spec)
    assert "and 480 more tensors" in svg
    assert len(svg.encode()) < 40_000


def test_pictures_of_one_page_do_not_share_names():
    """Each has a hatching of its own, or the same one."""
    pictures = [TRACKS.to_svg(rows) for rows in (1, 33, 33)]
    names = [re.findall(r'pattern id="([^"]+)"', picture) for picture in pictures]
    assert [len(found) for found in names] == [1, 1, 1]
    assert names[0] != names[1]
    assert names[1] == names[2]
    assert f"url(#{names[0][0]})" in pictures[0]


def test_first_values():
    """A table has the first values of the host's memory."""
    soa = TRACKS.allocate(33)
    soa["pt"][:] = np.arange(33)
    soa["cov"][0] = 7
    soa[Value("n")][...] = 12
    cells = [cell.text for cell in ET.fromstring(soa._repr_html_()).iter("td")]
    assert "[0. 1. 2.] ..." in cells
    assert "[7. 7. ... 7. 7.] ..." in cells
    assert "[12]" in cells
    part = ET.fromstring(soa[3:5]._repr_html_())
    assert "[3. 4.]" in [cell.text for cell in part.iter("td")]
    assert any("rows 3 to 5 of those below" in text for text in texts(part))


def test_a_devices_memory_is_not_read(monkeypatch):
    """Nor that of an SoA that JAX made: the table says where it is."""
    soa = TRACKS.allocate(33)

    def read(*arguments):
        raise AssertionError("memory was read")

    monkeypatch.setattr(SoA, "__getitem__", read)
    with pytest.raises(AssertionError):
        soa._repr_html_()
    monkeypatch.setattr(type(soa.buffer), "on_host", False)
    cells = [cell.text for cell in ET.fromstring(soa._repr_html_()).iter("td")]
    assert cells.count("on cpu") == len(TRACKS)


def test_labels_do_not_touch():
    """No label is wider than its block, and what is written beside each other has room."""
    for layout in LAYOUTS.values():
        for rows in (1, 1000):
            root = ET.fromstring(layout.to_svg(rows))
            places = {x: x + width for x, _, width, _, _ in rectangles(root)}
            for text in root.iter(f"{SVG}text"):
                left = round(float(text.get("x")) - 2, 1)
                if left in places and text.text in layout:
                    cells = len(text.text) + sum(ord(c) > 0x2E80 for c in text.text)
                    assert left + 2 + 6.6 * cells <= places[left] + 0.1


@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_bar_of_a_terminal(name, rows):
    """`describe` draws one line, in which each field has its share."""
    layout = LAYOUTS[name]
    bar = layout.describe(rows).splitlines()[1]
    assert len(bar) <= 73
    assert set(bar) <= set("█▓░•…")
    assert ("…" in bar) == (len(layout) > 36)
    if len(layout) <= 36:
        marks = re.findall("█+░*|▓+░*|•+░*|░+", bar)
        assert len(marks) >= len({f.per_row for f in layout.fields})


def test_the_command_line(tmp_path, capsys):
    """`describe --svg` writes the picture."""
    (tmp_path / "layout.json").write_text(TRACKS.to_json())
    out = tmp_path / "out.svg"
    assert main(["describe", str(tmp_path / "layout.json"), "--rows", "33", "--svg", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == TRACKS.to_svg(33)
    assert "33 rows" in capsys.readouterr().out
