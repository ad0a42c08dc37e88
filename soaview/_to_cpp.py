"""A layout as a C++ header: offsets from a row count, and accessors over memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ._fields import Column, Scalar, listed
from ._layout import Layout

_INTEGERS = {f"{u}int{n}": f"std::{u}int{n}_t" for u in ("", "u") for n in (8, 16, 32, 64)}
_TYPES = _INTEGERS | {
    "bool": "bool",
    "float16": "std::uint16_t",
    "bfloat16": "std::uint16_t",
    "float32": "float",
    "float64": "double",
    "complex64": "std::complex<float>",
    "complex128": "std::complex<double>",
}
"""C++'s types by dtype; of what it has none for, the bits."""

_KEYWORDS = re.compile(
    r"alignas|alignof|and|and_eq|asm|auto|bitand|bitor|bool|break|case|catch|char|char8_t"
    r"|char16_t|char32_t|class|co_await|co_return|co_yield|compl|concept|const|const_cast"
    r"|consteval|constexpr|constinit|continue|decltype|default|delete|do|double|dynamic_cast"
    r"|else|enum|explicit|export|extern|false|float|for|friend|goto|if|import|inline|int|long"
    r"|module|mutable|namespace|new|noexcept|not|not_eq|nullptr|operator|or|or_eq|private"
    r"|protected|public|register|reinterpret_cast|requires|return|short|signed|sizeof|static"
    r"|static_assert|static_cast|struct|switch|template|this|thread_local|throw|true|try"
    r"|typedef|typeid|typename|union|unsigned|using|virtual|void|volatile|wchar_t|while|xor"
    r"|xor_eq"
)
"""Of C++20, https://en.cppreference.com/w/cpp/keyword, so that the header is one there, too."""

_MACROS = {"NULL", "assert", "errno", "i386", "linux", "major", "minor", "offsetof", "unix"}
"""Of compilers and the C library, in small letters or met often."""

_IN_VIEW = {"At", "Byte", "Like", "Memory", "memory_", "rows", "rows_"}
"""What stands beside the fields."""

_IN_STRUCT = _IN_VIEW | {"ConstView", "Rows", "View", "alignment", "itemsize", "nbytes", "std"}
"""What stands beside blocks, or is hidden by the name of one."""

_TAG = "// soaview layout"


def to_cpp(layout: Any, name: str) -> str:
    """`Layout.to_cpp` and `Blocks.to_cpp`."""
    _check(name, "class", _IN_STRUCT)
    plain = isinstance(layout, Layout)
    code = _of_layout(layout, name) if plain else _of_blocks(layout, name, (name,))
    fields = [*_fields(layout)]
    kinds = {_TYPES[f.dtype]: f.itemsize for f in fields}
    includes = ["complex"] * any("complex" in kind for kind in kinds)
    includes += ["cstddef", "cstdint", "type_traits"]
    bits = [f.name for f in fields if f.dtype in ("float16", "bfloat16")]
    head = [
        "#pragma once",
        "",
        *(f"#include <{include}>" for include in includes),
        "",
        "#if defined(__CUDACC__) || defined(__HIPCC__)",
        "#define SOAVIEW_HOST_DEVICE __host__ __device__",
        "#else",
        "#define SOAVIEW_HOST_DEVICE",
        "#endif",
        "",
        *(
            f'static_assert(sizeof({kind}) == {size}, "a {kind} of {size} bytes");'
            for kind, size in kinds.items()
            if kind not in _INTEGERS.values()
        ),
    ]
    rows = "rows" if plain else f"{name}::Rows{{...}}"
    described, whole = layout.to_json(), "\n".join([*head, "", *code])
    lines = [
        f"// {name}: columns in one buffer, as soaview lays them out. Made from the layout below.",
        "//",
        f"//   {name}::View view(memory, {rows});",
        "//",
        f"// The memory has {name}::nbytes({rows}) bytes, from a multiple of {name}::itemsize on.",
        *(f"// C++ has no type for {name}: std::uint16_t is its bits." for name in bits),
        "",
        f"{_TAG} {name} {_digest(described, whole)} {described}",
        whole,
        f"{_TAG} {name} ends",
    ]
    return "\n".join(lines) + "\n"


def told_in(text: Any, name: Any, kind: Any) -> Any:
    """The layout that a header tells which `to_cpp` has made; None where the text has no such.

    Args:
        text: C++ text.
        name: which of several.
        kind: `Layout` or `Blocks`.

    Raises:
        ValueError: a header that was changed since; several; one beside other declarations.
    """
    if not isinstance(text, str) or _TAG not in text:
        return None
    found: dict[str, tuple[str, str, int]] = {}
    for tag in _TOLD.finditer(text):
        said, digest, described = tag.groups()
        if described.startswith('{"blocks"') != (kind is Layout) and name in (None, said):
            if said in found:
                raise ValueError(f"the text tells {said!r:.60} twice; pass one header's")
            found[said] = digest, described, tag.end()
    if len(found) > 1:
        raise ValueError(
            f"there are {len(found)} layouts, pick one by name= (--name on the command line): "
            f"{listed(found)}"
        )
    for said, (digest, described, first) in found.items():
        if "GENERATE_SOA_" in text:
            raise ValueError(
                f"the text has declarations beside the header that soaview made of {said!r:.60}; "
                f"pass one of them"
            )
        code = text[first:].partition(f"{_TAG} {said} ends")[0]
        if digest != _digest(described, code):
            raise ValueError(
                f"the header of {said!r:.60} was changed after soaview made it, and its code may "
                f"be another layout's than it tells; make it anew"
            )
        return kind.from_json(described)
    return None


_TOLD = re.compile(rf"^{_TAG} (\w+) ([0-9a-f]{{16}}) (\{{.*\}})[ \t\r]*$", re.MULTILINE)


def _digest(described: str, code: str) -> str:
    """Of a layout and its code, whatever the code's white space is."""
    whole = f"{described}\n{''.join(code.split())}"
    return hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:16]


def _fields(layout: Any) -> Iterator[Column | Scalar]:
    if isinstance(layout, Layout):
        yield from layout.fields
    else:
        for block in layout.layouts.values():
            yield from _fields(block)


def _check(name: Any, what: str, taken: Iterable[str]) -> None:
    """Raise for what is no name in C++, or is taken."""
    if not isinstance(name, str):
        raise TypeError(f"the {what}'s name must be a string, got {name!r:.60}")
    why = ""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        why = "is no identifier of C++'s"
    elif _KEYWORDS.fullmatch(name):
        why = "is a keyword of C++'s"
    elif "__" in name or re.match("_[A-Z]", name):
        why = "is reserved in C++"
    elif name in _MACROS or _LIKE_A_MACRO.fullmatch(name):
        why = "is a macro in C++, or may be one"
    elif name in taken or name.startswith("offset_of_"):
        why = "stands for something else in the header"
    if why:
        raise ValueError(f"{what} {name!r:.80} {why}; choose another name")


_LIKE_A_MACRO = re.compile(r"U?INT\w*|SOAVIEW_\w*|\w+_(MAX|MIN|C)")


# Text


def _of_layout(layout: Layout, name: str) -> list[str]:
    for field in layout.fields:
        _check(field.name, "field", _IN_VIEW)
    offsets = [
        line
        for field in layout.fields
        for line in _function(f"offset_of_{field.name}", _bytes(layout, field.name))
    ]
    accessors = [line for field in layout.fields for line in _accessor(field, name)]
    return _struct(
        name,
        [
            *_constants(layout.alignment, layout.itemsize),
            "",
            "// Bytes, rounded up to a multiple of the alignment.",
            *_function("padded", "(n + alignment - 1) / alignment * alignment", "std::size_t n"),
            "",
            "// Bytes that so many rows take.",
            *_function("nbytes", _bytes(layout, None)),
            "",
            "// Bytes from the memory's first to a field's first.",
            *offsets,
            "",
            *_view("std::size_t", accessors, _LIKE),
        ],
    )


def _of_blocks(blocks: Any, name: str, around: tuple[str, ...]) -> list[str]:
    inside: list[str] = []
    rows, offsets, accessors, sizes = [], [], [], list[str]()
    for block, layout in blocks.layouts.items():
        _check(block, "block", _IN_STRUCT | {*around})
        plain = isinstance(layout, Layout)
        inside += (
            _of_layout(layout, block) if plain else _of_blocks(layout, block, (*around, block))
        )
        inside.append("")
        rows.append(f"{'std::size_t' if plain else f'{name}::{block}::Rows'} {block};")
        before = " + ".join(sizes) or "0"
        offsets += _function(f"offset_of_{block}", before, "const Rows& rows")
        sizes.append(f"{block}::nbytes(rows.{block})")
        accessors += [
            f"SOAVIEW_HOST_DEVICE {name}::{block}::At<Byte> {block}() const {{",
            f"  return {{memory_ + {name}::offset_of_{block}(rows_), rows_.{block}}};",
            "}",
        ]
    itemsize = max(field.itemsize for field in _fields(blocks))
    return _struct(
        name,
        [
            *inside,
            "// Of each block.",
            "struct Rows {",
            *_in(rows),
            "};",
            "",
            *_constants(blocks.alignment, itemsize),
            "",
            "// Bytes that so many rows take.",
            *_function("nbytes", " + ".join(sizes), "const Rows& rows"),
            "",
            "// Bytes from the memory's first to a block's first.",
            *offsets,
            "",
            *_view("Rows", accessors),
        ],
    )


def _struct(name: str, lines: list[str]) -> list[str]:
    return [f"struct {name} {{", *_in(lines), "};"]


def _in(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" if line else "" for line in lines]


def _constants(alignment: int, itemsize: int) -> list[str]:
    return [
        f"static constexpr std::size_t alignment = {alignment};",
        f"static constexpr std::size_t itemsize = {itemsize};  // of the largest item",
    ]


def _function(name: str, value: str, argument: str = "std::size_t rows") -> list[str]:
    kind, _, named = argument.rpartition(" ")
    given = argument if re.search(rf"\b{named}\b", value) else kind
    return [
        f"SOAVIEW_HOST_DEVICE static constexpr std::size_t {name}({given}) {{",
        f"  return {value};",
        "}",
    ]


def _bytes(layout: Layout, field: str | None) -> str:
    """Where a field starts, or all of them end, in bytes."""
    constant, *counts = layout.end if field is None else layout.starts[field]
    terms = [f"{constant} * alignment".removeprefix("1 * ")] if constant else []
    for count, size in zip(counts, layout.sizes, strict=True):
        if count:
            terms.append(f"{count} * padded({size} * rows)".removeprefix("1 * "))
    return " + ".join(terms) or "0"


def _view(rows: str, accessors: list[str], private: Iterable[str] = ()) -> list[str]:
    """The class of accessors, over memory that may be written or not."""
    given = rows if rows == "std::size_t" else f"const {rows}&"
    return [
        "// Over memory of bytes: std::byte, or const std::byte.",
        "template <class Byte>",
        "class At {",
        *_in(private),
        " public:",
        "  using Memory = std::conditional_t<std::is_const_v<Byte>, const void*, void*>;",
        "",
        f"  SOAVIEW_HOST_DEVICE At(Memory memory, {given} rows)",
        "      : memory_(static_cast<Byte*>(memory)), rows_(rows) {}",
        "",
        "  // What may be written may be read.",
        "  SOAVIEW_HOST_DEVICE operator At<const std::byte>() const { return {memory_, rows_}; }",
        "",
        f"  SOAVIEW_HOST_DEVICE {given} rows() const {{ return rows_; }}",
        "",
        *_in(accessors),
        "",
        " private:",
        "  Byte* memory_;",
        f"  {rows} rows_;",
        "};",
        "using View = At<std::byte>;",
        "using ConstView = At<const std::byte>;",
    ]


_LIKE = [
    "template <class Item>",
    "using Like = std::conditional_t<std::is_const_v<Byte>, const Item, Item>;",
    "",
]


def _accessor(field: Column | Scalar, name: str) -> list[str]:
    """An element's reference, by row and by the indices within one."""
    letters = _INDICES[len(field.shape)]
    indices = ["std::size_t row"] * field.per_row + [f"std::size_t {letter}" for letter in letters]
    kind = f"Like<{_TYPES[field.dtype]}>"
    shape = f" {field.shape}" if field.shape else ""
    return [
        f"// {field.dtype}{shape}{'' if field.per_row else ', for all rows'}",
        f"SOAVIEW_HOST_DEVICE {kind}& {field.name}({', '.join(indices)}) const {{",
        f"  auto first = memory_ + {name}::offset_of_{field.name}(rows_);",
        f"  return reinterpret_cast<{kind}*>(first)[{_index(field, name)}];",
        "}",
    ]


_INDICES = ["", "i", "rc"]


def _index(field: Column | Scalar, name: str) -> str:
    """Elements from a field's first one."""
    inner: str = _INDICES[len(field.shape)]
    if len(field.shape) == 2:
        rows, columns = field.shape
        by_rows = not isinstance(field, Column) or field.order == "C"
        inner = f"r * {columns} + c" if by_rows else f"c * {rows} + r"
    if not isinstance(field, Column):
        return inner or "0"
    if not inner:
        return "row"
    if field.interleaved:
        return f"row * {field.components} + {inner}"
    size = field.itemsize
    return f"({inner}) * ({name}::padded({size} * rows_) / {size}) + row"
