"""Layouts as C++ headers: compiled with sanitizers, and compared element by element."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess

import ml_dtypes  # noqa: F401  # NumPy's bfloat16
import numpy as np
import pytest
from cases import BLOCKS_IMAGES, IMAGES
from places import aligned

from soaview import Blocks, Column, Layout, Scalar, Value
from soaview.__main__ import main

KINDS = {
    "bool": "bool", "int8": "std::int8_t", "int16": "std::int16_t", "int32": "std::int32_t",
    "int64": "std::int64_t", "uint8": "std::uint8_t", "uint16": "std::uint16_t",
    "uint32": "std::uint32_t", "uint64": "std::uint64_t", "float16": "std::uint16_t",
    "bfloat16": "std::uint16_t", "float32": "float", "float64": "double",
    "complex64": "std::complex<float>", "complex128": "std::complex<double>",
}  # fmt: skip

PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <type_traits>
// Memory of so many bytes, and no more, from a file; from its own address on, of 128.
struct Image {
  std::byte* bytes = nullptr;
  Image(const char* path, std::size_t size) {
    std::FILE* file = std::fopen(path, "rb");
    if (posix_memalign(reinterpret_cast<void**>(&bytes), 128, size ? size : 1)) std::abort();
    if (std::fread(bytes, 1, size, file) != size) std::abort();
    std::fclose(file);
  }
  ~Image() { std::free(bytes); }
  template <class Item>
  void show(const char* what, Item& item) const {
    auto* at = reinterpret_cast<const unsigned char*>(&item);
    std::printf("%s %zu ", what, std::size_t(reinterpret_cast<const std::byte*>(at) - bytes));
    for (std::size_t i = 0; i < sizeof(Item); ++i) std::printf("%02x", at[i]);
    std::printf("\\n");
  }
};
"""


def printed(tmp_path, headers, runs):
    """What a program prints that has these headers, and runs these lines."""
    compiler = shutil.which("g++")
    assert compiler, "no g++: the system's package of that name has it"
    for name, text in headers.items():
        (tmp_path / f"{name}.h").write_text(text)
    text = "".join(f'#include "{name}.h"\n' for name in headers) + PROGRAM
    for number, lines in enumerate(runs):
        text += "\n".join([f"void run{number}() {{", *lines, "}\n"])
    text += "int main() {" + "".join(f" run{number}();" for number in range(len(runs))) + " }\n"
    (tmp_path / "main.cpp").write_text(text)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "main.cpp", "-o", "main"]
    done = subprocess.run([compiler, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr[:3000]
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr[:3000]
    return done.stdout.splitlines()


def lines_of(view, layout, rows):
    """Lines that show every element of a view, by its indices, and check the accessors' types."""
    for field in layout.fields:
        lengths = [*([rows] if field.per_row else []), *field.shape]
        names = "nijk"[-len(lengths) :] if lengths else ""
        for name, length in zip(names, lengths, strict=True):
            if length:
                yield f"for (std::size_t {name} = 0; {name} < {length}; ++{name})"
        if 0 not in lengths:
            call = f"{field.name}({', '.join(names)})"
            yield f'image.show("{field.name}", {view}.{call});'
        zeros = f"{field.name}({', '.join('0' * len(lengths))})"
        kind = KINDS[field.dtype]
        yield f"static_assert(std::is_same_v<decltype({view}.{zeros}), const {kind}&>);"


def wanted(soa, first):
    """What they must print, by NumPy: place and bytes."""
    for field in soa.layout.fields:
        array = soa[field.name if field.per_row else Value(field.name)]
        flat = array.view(np.dtype((np.void, field.itemsize)))
        for index in np.ndindex(array.shape):
            at = first + sum(i * step for i, step in zip(index, array.strides, strict=True))
            address = array.__array_interface__["data"][0] + at - first
            yield f"{field.name} {address - first} {bytes(flat[index]).hex()}"


def alone(tmp_path, name, layout, rows, memory):
    """Lines for one layout over an image, and what they must print."""
    path = f"{name}-{rows}.bin"
    memory.tofile(tmp_path / path)
    soa = layout.wrap(aligned(memory), rows)
    offsets = [f"{f.name} {layout.offset(f.name, rows)} " for f in layout.fields]
    lines = [
        f'Image image("{path}", {layout.nbytes(rows)});',
        f"static_assert({name}::nbytes({rows}) == {layout.nbytes(rows)});",
        f"static_assert({name}::itemsize == {layout.itemsize});",
        *(
            f"static_assert({name}::offset_of_{f.name}({rows}) == {layout.offset(f.name, rows)});"
            for f in layout.fields
        ),
        f"{name}::View writes(image.bytes, {rows});",
        f"{name}::ConstView view = writes;",
        *lines_of("view", layout, rows),
        f"if (view.rows() != {rows} || !image.bytes) std::abort();",
    ]
    assert offsets
    return lines, [*wanted(soa, soa.buffer.address)]


def random_layout(seed):
    """Any layout: all dtypes, shapes, orders, alignments."""
    draw, fields = random.Random(seed), []
    for number in range(draw.randint(1, 7)):
        dtype = draw.choice([*KINDS])
        shape = draw.choice([(), (), (3,), (1,), (2, 3), (3, 2), (1, 4)])
        if draw.randrange(4):
            order, adjacent = draw.choice("FC"), bool(shape) and not draw.randrange(3)
            fields.append(Column(f"f{number}", dtype, shape, order, interleaved=adjacent))
        else:
            fields.append(Scalar(f"f{number}", dtype, shape))
    largest = max(field.itemsize for field in fields)
    return Layout(fields, alignment=largest * draw.choice([1, 2, 8, 16]))


def compare(tmp_path, seeds):
    """Layouts of these seeds, in one program."""
    headers, runs, right = {}, [], []
    for seed in seeds:
        layout, rows, name = random_layout(seed), (0, 1, 2, 5, 33)[seed % 5], f"Random{seed}"
        headers[name] = layout.to_cpp(name)
        assert Layout.from_cpp(headers[name]) == layout
        bytes_of = np.random.default_rng(seed).integers(0, 256, layout.nbytes(rows), np.uint8)
        lines, found = alone(tmp_path, name, layout, rows, bytes_of)
        runs.append(lines)
        right += found
    assert printed(tmp_path, headers, runs) == right


@pytest.mark.slow
def test_random_layouts(tmp_path):
    """Offsets, sizes, types, places and bytes of every element, in C++ as in Python."""
    count = int(os.environ.get("LAYOUTS", "40"))  # each program has 40
    for first in range(0, count, 40):
        compare(tmp_path, range(first, min(first + 40, count)))


@pytest.mark.slow
def test_images_of_the_cms_classes(tmp_path):
    """What the C++ classes of CMS wrote the accessors read, in images of every kind."""
    headers, runs, right = {}, [], []
    for image in IMAGES:
        if image.rows > 40:
            continue
        name = f"Cms_{image.file}_{image.name}"
        headers[name] = image.layout.to_cpp(name)
        lines, found = alone(tmp_path, name, image.layout, image.rows, image.memory())
        runs.append(lines)
        right += found
    assert len(headers) > 5
    assert printed(tmp_path, headers, runs) == right


def rows_in_cpp(rows):
    inside = [rows_in_cpp(n) if isinstance(n, dict) else str(n) for n in rows.values()]
    return f"{{{', '.join(inside)}}}"


def leaves_of(soas, path=()):
    """SoAs in blocks, with the names that lead to them."""
    for name in soas:
        if isinstance(soas[name], type(soas)):
            yield from leaves_of(soas[name], (*path, name))
        else:
            yield (*path, name), soas[name]


@pytest.mark.slow
def test_images_of_blocks(tmp_path):
    """Blocks, and blocks in blocks, each of its own rows."""
    headers, runs, right = {}, [], []
    for number, image in enumerate(BLOCKS_IMAGES):
        if image.nbytes > 40_000:
            continue
        name, path = f"Blocks_{image.name}", f"{number}.bin"
        headers[name] = image.blocks.to_cpp(name)
        assert Blocks.from_cpp(headers[name]) == image.blocks
        image.memory().tofile(tmp_path / path)
        soas = image.blocks.wrap(aligned(image.memory()), image.rows)
        lines = [
            f'Image image("{path}", {image.nbytes});',
            f"constexpr {name}::Rows rows{rows_in_cpp(image.rows)};",
            f"static_assert({name}::nbytes(rows) == {image.nbytes});",
            f"{name}::View all(image.bytes, rows);",
            f"{name}::ConstView view = all;",
        ]
        for names, soa in leaves_of(soas):
            leaf = "".join(f".{block}()" for block in names)
            lines += lines_of(f"view{leaf}", soa.layout, soa.rows)
            right += wanted(soa, soas.buffer.address)
        runs.append(lines)
    assert len(headers) > 2
    assert printed(tmp_path, headers, runs) == right


@pytest.mark.slow
def test_what_is_written_there(tmp_path):
    """Through a view C++ writes; through one of const memory it cannot, nor make another."""
    layout = Layout([Column("x", "float32"), Column("v", "int16", (2,)), Scalar("n", "int32")])
    text = layout.to_cpp("Small")
    np.zeros(layout.nbytes(3), np.uint8).tofile(tmp_path / "small.bin")
    lines = [
        f'Image image("small.bin", {layout.nbytes(3)});',
        "Small::View view(image.bytes, 3);",
        "view.x(2) = 1.5f; view.v(1, 1) = -3; view.n() = 7;",
        "const std::byte* sealed = image.bytes;",
        "Small::ConstView seen(sealed, 3);",
        'image.show("x", seen.x(2)); image.show("v", seen.v(1, 1)); image.show("n", seen.n());',
        "static_assert(std::is_constructible_v<Small::View, void*, std::size_t>);",
        "static_assert(!std::is_constructible_v<Small::View, const void*, std::size_t>);",
        "static_assert(!std::is_convertible_v<Small::ConstView, Small::View>);",
        "static_assert(!std::is_assignable_v<decltype(seen.x(0)), float>);",
    ]
    soa = layout.allocate(3)
    soa["x"][2], soa["v"][1, 1], soa[Value("n")] = 1.5, -3, 7
    right = [line for line in wanted(soa, soa.buffer.address) if set(line.split()[2]) != {"0"}]
    assert printed(tmp_path, {"Small": text}, [lines]) == right


# What is refused, and what is read back


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("pt cut", "no identifier"), ("a.b", "no identifier"), ("1st", "no identifier"),
        ("ä", "no identifier"), ("class", "a keyword"), ("and", "a keyword"),
        ("co_await", "a keyword"), ("a__b", "reserved"), ("_Pt", "reserved"),
        ("NULL", "a macro"), ("INT8_MAX", "a macro"), ("UINT64_C", "a macro"),
        ("SOAVIEW_HOST_DEVICE", "a macro"), ("rows", "something else"), ("At", "something else"),
        ("offset_of_x", "something else"),
    ],
)  # fmt: skip
def test_names_that_cpp_does_not_take(name, why):
    """They are refused by name, of fields, blocks, and the struct."""
    layout = Layout([Column("x", "float32")])
    with pytest.raises(ValueError, match=f"field '{name}' .*{why}"):
        Layout([Column(name, "float32")]).to_cpp("Fine")
    with pytest.raises(ValueError, match=f"block '{name}' .*{why}"):
        Blocks({name: layout}).to_cpp("Fine")
    with pytest.raises(ValueError, match=f"class '{name}' .*{why}"):
        layout.to_cpp(name)


def test_names_of_blocks_around():
    """A block is not called as what it stands in; a field may be."""
    layout = Layout([Column("Event", "float32")])
    assert "Event(std::size_t row)" in layout.to_cpp("Event")
    with pytest.raises(ValueError, match="block 'Event' stands for something else"):
        Blocks({"inner": Blocks({"Event": layout})}).to_cpp("Event")
    for name in ("std", "nbytes", "Rows", "View"):
        with pytest.raises(ValueError, match=f"block '{name}' stands for something else"):
            Blocks({name: layout}).to_cpp("Event")
    with pytest.raises(TypeError, match="class's name must be a string"):
        layout.to_cpp(None)


@pytest.mark.parametrize("seed", range(60))
def test_there_and_back(seed):
    """A header tells the layout that it was made of, in any text around it."""
    layout = random_layout(seed)
    header = layout.to_cpp("Made")
    for text in (
        header,
        f"// before\n#include <map>\n{header}\nint after;\n",
        header.replace("\n", "\r\n"),
        header.replace("  ", "\t"),
    ):
        assert Layout.from_cpp(text, alignment=64) == layout
        assert Layout.from_cpp(text, name="Made") == layout


def test_several_headers():
    """By name, where there are several; blocks and layouts do not meet."""
    one = Layout([Column("x", "float32")], alignment=64)
    two = Layout([Column("y", "int8", (2,))])
    blocks = Blocks({"one": one, "two": Layout(two.fields, alignment=64)})
    text = one.to_cpp("One") + two.to_cpp("Two") + blocks.to_cpp("Both")
    assert Layout.from_cpp(text, name="One") == one
    assert Layout.from_cpp(text, name="Two") == two
    assert Blocks.from_cpp(text) == blocks
    with pytest.raises(ValueError, match="there are 2 layouts, pick one by name="):
        Layout.from_cpp(text)
    with pytest.raises(ValueError, match="the text has no GENERATE_SOA_LAYOUT"):
        Layout.from_cpp(text, name="Three")
    with pytest.raises(ValueError, match="tells 'One' twice"):
        Layout.from_cpp(text + one.to_cpp("One"), name="One")
    with pytest.raises(ValueError, match="declarations beside the header .* 'One'"):
        Layout.from_cpp(
            one.to_cpp("One") + "GENERATE_SOA_LAYOUT(Other, SOA_COLUMN(float, x))", name="One"
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("4 * rows", "8 * rows"),
        ("rows_", "rows"),
        ('"dtype": "float32"', '"dtype": "float16"'),
        ("alignment = 128", "alignment = 64"),
        ("<cstdint>", "<stdint.h>"),
        ("// soaview layout Made ends", "// ends"),
    ],
)
def test_a_header_that_was_changed(old, new):
    """It is not believed: code and layout may differ."""
    header = Layout([Column("x", "float32"), Scalar("n", "int32")]).to_cpp("Made")
    assert old in header
    with pytest.raises(ValueError, match="'Made' was changed after soaview made it.* make it anew"):
        Layout.from_cpp(header.replace(old, new))


@pytest.mark.parametrize(
    "described",
    [
        '{"fields": []}',
        "{" * 100_000 + "}",
        '{"fields": [' + '{"kind": "x"},' * 50_000 + "]}",
        "{}",
    ],
)
def test_hostile_layouts(described):
    """What somebody else has put in the place of a layout ends in one sentence."""
    text = f"// soaview layout Made {'0' * 16} {described}\n// soaview layout Made ends\n"
    with pytest.raises(ValueError, match="'Made' was changed"):
        Layout.from_cpp(text)
    with pytest.raises(ValueError, match="no GENERATE_SOA_LAYOUT|'Made' was changed"):
        Layout.from_cpp(f"// soaview layout Made {described[:1000]}\n" * 100)


def test_command_line(tmp_path, capsys):
    """`header` prints that of a layout's file, or of blocks'; what is wrong is said in a line."""
    layout = Layout([Column("x", "float32")])
    blocks = Blocks({"tracks": layout})
    path = tmp_path / "layout.json"
    for made in (layout, blocks):
        path.write_text(made.to_json())
        assert not main(["header", str(path), "--name", "Tracks"])
        assert capsys.readouterr().out == made.to_cpp("Tracks")
    for name, text, message in (
        ("class", layout.to_json(), "class 'class' is a keyword of C\\+\\+'s"),
        ("Tracks", '{"blocks": {"x": 1}}', "layout.json: "),
        ("Tracks", "[]", "layout.json: "),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit) as ended:
            main(["header", str(path), "--name", name])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert re.search(message, error)
        assert len(error.splitlines()) == 1
