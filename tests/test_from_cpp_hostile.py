"""Text that no compiler would take: one sentence, in time that grows as the text does."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from soaview import Blocks, Layout

FIELD = "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(A, x))"
HOSTILE = {
    "parentheses": lambda n: "(" * n,
    "open declarations": lambda n: "GENERATE_SOA_LAYOUT(L, " * (n // 23),
    "braces": lambda n: "{" * n,
    "namespaces": lambda n: "namespace a" + "::a" * (n // 3) + "{",
    "comments": lambda n: "/*" * (n // 2),
    "comments in a directive": lambda n: "#define " + "/*" * (n // 2),
    "quotation marks": lambda n: '"' + '\\"' * (n // 2),
    "raw strings": lambda n: 'R"a(' + ')b"' * (n // 3),
    "#if": lambda n: "#if 0\n" * (n // 6) + FIELD,
    "const": lambda n: "const " * (n // 6),
    "using": lambda n: "using A = " * (n // 10),
    "template": lambda n: "template<a " * (n // 11) + "<" * 9 + "a" * n,
    "enum": lambda n: "enum " * (n // 5),
    "struct": lambda n: "struct X : " * (n // 11),
    "names of names": lambda n: (
        "using A0 = int;"
        + "".join(f"using A{i + 1} = A{i};" for i in range(n // 20))
        + f"using A = A{n // 20};{FIELD}"
    ),
    "itself": lambda n: "using A = A;" * (n // 12) + FIELD,
    "one another": lambda n: "using A = B; using B = A;" * (n // 25) + FIELD,
    "arrays": lambda n: f"using A = {'std::array<' * (n // 14)}int{',2>' * (n // 14)};{FIELD}",
    "a sum in brackets": lambda n: f"using A = std::array<int, {'(' * n}>;{FIELD}",
    "a long sum": lambda n: f"using A = std::array<int, 1{'+1' * n}>;{FIELD}",
    "a power": lambda n: f"using A = std::array<int, 9{'*9' * 99}>;{FIELD}{' ' * n}",
    "digits": lambda n: f"using A = std::array<int, {'9' * n}>;{FIELD}",
    "stars": lambda n: f"using A = int{'*' * n};{FIELD}",
    "scopes": lambda n: f"using A = {'a::' * n}a;{FIELD}",
    "commas": lambda n: f"GENERATE_SOA_LAYOUT(L{',' * n})",
    "static": lambda n: "static inline " * (n // 14) + FIELD,
    "names not understood": lambda n: "".join(f"int A{i}(3);" for i in range(n // 14)) + FIELD,
    "a name not understood": lambda n: "{DECLARE(A)}" * (n // 12) + FIELD,
    "const, and no declaration": lambda n: f"f({' ' * n}const int N = 3);" + FIELD,
    "templates": lambda n: "template <class A> " * (n // 19) + f"struct X {{ {FIELD} }}",
    "#define": lambda n: "#define A A\n" * (n // 12) + FIELD,
    "a string in a directive": lambda n: "#define X " + '"\\' * (n // 2) + "\n" + FIELD,
    "apostrophes in a directive": lambda n: "#error " + "'\\" * (n // 2) + "\n" + FIELD,
    "#if in #if": lambda n: "#if X\n" * 200 + "#if X\n#endif\n" * (n // 13) + FIELD,
    "include guards": lambda n: (
        "".join(f"#ifndef A{i}\n#define A{i}\n" for i in range(200))
        + "#if X\nusing A = int;\n#endif\n" * (n // 29)
        + FIELD
    ),
    "enumerators": lambda n: f"enum A {{ {'a, ' * (n // 3)} b = x }};{FIELD}",
    "splices": lambda n: "/" + "\\\n" * (n // 2) + FIELD,
    "control characters": lambda n: "\x00\x01" * (n // 2),
}


def steps(text):
    """How many lines of the reader run; that it ends in one sentence."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace if Path(frame.f_code.co_filename).name.startswith("_cpp") else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(ValueError, match=".") as raised:
            Layout.from_cpp(text)
    finally:
        sys.settrace(before)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 400
    return count


@pytest.mark.slow_but_every(50)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text(kind):
    """Text that is made to do harm ends in one sentence, in steps that grow as its length does."""
    short, long = steps(HOSTILE[kind](4000)), steps(HOSTILE[kind](8000))
    assert long <= 2.1 * short + 200
    with pytest.raises(ValueError, match=".") as raised:
        Layout.from_cpp(HOSTILE[kind](1_000_000))
    assert "\n" not in str(raised.value)


def test_blocks_that_grow():
    """Each block twice in the next: the text is short, and there would be 2**n layouts."""
    text = "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x)) GENERATE_SOA_BLOCKS(B0, SOA_BLOCK(a, L))"
    for i in range(40):
        pieces = [f"SOA_BLOCK(a{j}, B{i})" for j in range(2 if i < 20 else 50)]
        text += f"GENERATE_SOA_BLOCKS(B{i + 1}, {', '.join(pieces)})"
    assert Blocks.from_cpp(text, name="B15").count == 2**15
    for name in ("B16", "B40"):
        with pytest.raises(ValueError, match="more than 16 deep|16 blocks in each other"):
            Blocks.from_cpp(text, name=name)
    wide = "GENERATE_SOA_LAYOUT(B0, SOA_COLUMN(int, x))"
    for i in range(4):
        pieces = [f"SOA_BLOCK(a{j}, B{i})" for j in range(50)]
        wide += f"GENERATE_SOA_BLOCKS(B{i + 1}, {', '.join(pieces)})"
    with pytest.raises(ValueError, match="125000 layouts in blocks 3 deep are too many"):
        Blocks.from_cpp(wide, name="B4")


def test_text_without_end():
    """No more is read than headers have."""
    with pytest.raises(ValueError, match="5000000 characters are no header; at most 4194304"):
        Layout.from_cpp(" " * 5_000_000)


def test_the_patterns_never_go_back():
    """The expressions that see the whole text repeat possessively, but where they must end."""
    from soaview import _cpp_names, _cpp_text

    for pattern in (_cpp_text._NOISE, _cpp_text._CUT, _cpp_text._BRANCH, _cpp_names._NAMES):
        repeats = re.findall(
            r"[])\w][*+](?!\+)", re.sub(r"\[(?:\\.|[^]])*\]", "[]", pattern.pattern)
        )
        assert repeats == []
