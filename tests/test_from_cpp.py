"""Layouts that C++ declares: in the styles of real headers, against what the real classes wrote."""

from __future__ import annotations

import functools
import operator
from pathlib import Path

import numpy as np
import pytest
from cases import BLOCKS_IMAGES, IMAGES, written

from soaview import Blocks, Column, Layout, Scalar, Value

HERE = Path(__file__).parent

WRITTEN = {
    # blank lines between the fields, a semicolon at the end
    "datatypes": (
        """
        #include <Eigen/Core>
        namespace torchtest {
          GENERATE_SOA_LAYOUT(DataTypesTemplate,
                              SOA_EIGEN_COLUMN(Eigen::Vector3d, a),
                              SOA_EIGEN_COLUMN(Eigen::Vector3d, b),

                              SOA_EIGEN_COLUMN(Eigen::Matrix2f, c),

                              SOA_COLUMN(double, x), SOA_COLUMN(double, y), SOA_COLUMN(double , z),

                              SOA_SCALAR(float, type),
                              SOA_SCALAR(int, someNumber),

                              SOA_COLUMN(double, v),
                              SOA_COLUMN(double, w));
          using DataTypes = DataTypesTemplate<>;
        }  // namespace torchtest
        """,
        {},
    ),
    # typedefs, and no semicolon
    "mixed0": (
        """
        typedef long int Long;
        typedef char Small;
        class Holder {
        public:
          GENERATE_SOA_LAYOUT(Mixed, SOA_COLUMN(Small, c0), SOA_SCALAR(Long, s1),
            SOA_COLUMN(double, c2), SOA_COLUMN(double, c3), SOA_SCALAR(signed, s4),
            SOA_COLUMN(bool, c5))
        };
        """,
        {},
    ),
    # templates' commas in the macro and out of it, sizes by constants
    "mixed1": (
        """
        constexpr std::size_t kRows = 3;
        static constexpr auto kCols{2 * kRows};
        using Wide = Eigen::Matrix<std::int32_t, kRows, kCols>;
        using M36d = Eigen::Matrix<double, 3, 6, Eigen::ColMajor>;
        GENERATE_SOA_LAYOUT(Mixed1,
            SOA_EIGEN_COLUMN(Wide, e0),
            SOA_COLUMN(unsigned int, c1),
            SOA_COLUMN(short, c2),
            SOA_EIGEN_COLUMN(Eigen::Matrix<double, 3, 3>, e3),
            SOA_EIGEN_COLUMN(Eigen::Matrix<int, 5, 1>, e4),
            SOA_COLUMN(std::uint16_t, c5),
            SOA_EIGEN_COLUMN(M36d, e6))
        """,
        {"alignment": 64},
    ),
    # comments of both kinds, with brackets and commas in them; types of another header
    "mixed2": (
        """
        // GENERATE_SOA_LAYOUT(Mixed2, SOA_COLUMN(float, older))
        /* GENERATE_SOA_LAYOUT(Mixed2,
             SOA_COLUMN(float, evenOlder)) */
        GENERATE_SOA_LAYOUT(Mixed2,  // ( not this
                            SOA_SCALAR(long long, s0), /* SOA_COLUMN(int, no), */
                            SOA_COLUMN(Flag, c1),
                            // SOA_COLUMN(float, "no"),
                            SOA_SCALAR(uint8_t, s2),  // it's 1, 2, 3
                            SOA_COLUMN(unsigned char, c3) /* , */,
                            SOA_SCALAR(detid::Weight, s4),
                            SOA_SCALAR(unsigned, s5))
        """,
        {"alignment": 256, "types": {"Flag": "bool", "detid :: Weight": "float32"}},
    ),
    # methods in between, with commas, parentheses, strings and directives in them
    "mixed3": (
        r"""
        GENERATE_SOA_LAYOUT(Mixed3,
          SOA_EIGEN_COLUMN(Eigen::Vector3f, e0),
          SOA_SCALAR(unsigned short, s1),
          SOA_EIGEN_COLUMN(Eigen::Matrix<float, 3, 6>, e2),
          SOA_ELEMENT_METHODS(
            SOA_HOST_DEVICE void set(int a, int b) { c3() = max(a, b) + f(")", '(', "\","); };
          ),
          SOA_COLUMN(int16_t, c3),
          SOA_SCALAR(float, s4), SOA_COLUMN(double, c5), SOA_SCALAR(std::size_t, s6),
          SOA_CONST_ELEMENT_METHODS(
            auto get() const { return std::pair<int, int>{c3(), 1'000}; }
          ),
          SOA_METHODS(int zero() { return 0; }),
          SOA_COLUMN(signed char, c7), SOA_SCALAR(unsigned long, s8), SOA_SCALAR(std::byte, s9),
          SOA_COLUMN(bool, c10))
        """,
        {},
    ),
    # backslashes before the line ends, and Windows' line ends
    "mixed4": (
        "using Square = Eigen::Matrix<uint16_t, 3, 3>; \\\r\n"
        "GENERATE_SOA_LAYOUT( \\\r\n  Mixed4, \\\r\n"
        "  SOA_EIGEN_COLUMN( Square , e0 ), \\\r\n  SOA_COLUMN(int8_t, \\\r\n c1), \\\r\n"
        "  SOA_EIGEN_COLUMN(Eigen::Vector3d, e2), \\\r\n"
        "  SOA_EIGEN_COLUMN(Eigen::Matrix3f, e3)  \\\r\n)",
        {"alignment": 32},
    ),
    "particles": (
        "GENERATE_SOA_LAYOUT(P,SOA_COLUMN(float,pt),SOA_COLUMN(float,eta),SOA_COLUMN(float,phi))",
        {},
    ),
    "scalars_only": (
        """
        template <typename T, int N = 3>
        struct Parameters {
          using Narrow = signed char;
          GENERATE_SOA_LAYOUT(Layout, SOA_SCALAR(Narrow, s1), SOA_SCALAR(T, s2),
                              SOA_SCALAR(const long, s3), SOA_SCALAR(double, s4))
        };
        """,
        {"types": {"T": np.float32}},
    ),
    # std::array, of arrays and of names, a row's numbers side by side; arrays as scalars
    "array_columns": (
        """
        namespace pixel { constexpr int kHits = 4; using Cov = std::array<float, 6>; }
        GENERATE_SOA_LAYOUT(Arrays, SOA_COLUMN(pixel::Cov, cov), SOA_COLUMN(float, pt),
                            SOA_COLUMN(std::array<uint16_t, pixel::kHits>, hits),
                            SOA_COLUMN(std::array<double, 3>, p),
                            SOA_COLUMN(std::array<std::array<float, 3>, 2>, pair))
        """,
        {},
    ),
    "array_scalars": (
        """
        using Offsets = std::array<uint32_t, kLayers + 1>;
        GENERATE_SOA_LAYOUT(L, SOA_SCALAR(Offsets, offsets), SOA_SCALAR(int, n),
          SOA_COLUMN(float, x), SOA_SCALAR(std::array<double, 3>, origin),
          SOA_SCALAR(std::array<float, 40>, table))
        """,
        {"constants": {"kLayers": 10}},
    ),
    # enums of every kind, one in an array
    "enums": (
        """
        namespace pixel {
          enum class Quality : uint8_t { bad = 0, dup, loose, strict = 1 << 2, };
          enum Charge : signed char { minus = -1, plus = 1 };
          enum Plain { none, some = 0x7fffffff };
        }
        enum class Beam : std::int8_t;
        enum class Flag : bool { no, yes };
        GENERATE_SOA_LAYOUT(EnumsLayout,
          SOA_COLUMN(pixel::Quality, quality), SOA_COLUMN(enum pixel::Charge, charge),
          SOA_SCALAR(::Det, det), SOA_COLUMN(pixel::Plain, plain), SOA_SCALAR(Beam, beam),
          SOA_COLUMN(Small, small), SOA_COLUMN(std::array<pixel::Quality, 3>, votes),
          SOA_COLUMN(Flag, flag))
        """,
        {"types": {"::Det": "uint32", "Small": "int16"}},
    ),
    "eigen_order": (
        """
        using RowWise = Eigen::Matrix<int16_t, 3, 2, Eigen::DontAlign | Eigen::RowMajor>;
        GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(RowWise, rm),
                            SOA_EIGEN_COLUMN(Eigen::Matrix<short int, 3, 2>, cm),
                            SOA_COLUMN(std::array<std::array<short, 2>, 3>, arr))
        """,
        {},
    ),
    "mixed_128": (
        """
        enum class Quality : unsigned char { bad };
        GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(Eigen::Vector3f, dir),
          SOA_COLUMN(std::array<float, 6>, cov), SOA_SCALAR(std::array<unsigned, 11>, offsets),
          SOA_COLUMN(Quality, quality), SOA_EIGEN_COLUMN(Eigen::Matrix<double, 2, 3>, m),
          SOA_COLUMN(bool, ok), SOA_SCALAR(double, field), SOA_COLUMN(short, layer))
        """,
        {},
    ),
    "mixed_64": (
        """
        enum class Quality : unsigned char { bad };
        enum Charge : signed char { minus = -1 };
        GENERATE_SOA_LAYOUT(L, SOA_COLUMN(std::array<std::uint8_t, 3>, rgb), SOA_COLUMN(double, t),
          SOA_EIGEN_COLUMN(Eigen::Matrix2f, m), SOA_SCALAR(Quality, best),
          SOA_COLUMN(std::array<double, 3>, p), SOA_SCALAR(std::array<int16_t, 5>, lim),
          SOA_COLUMN(Charge, charge))
        """,
        {"alignment": 64},
    ),
}
"""By the name of the image: a declaration written anew, and what `from_cpp` is told beside it."""


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_layouts_that_real_classes_wrote(image):
    """A declaration gives the layout of the bytes that such a class wrote, and their values."""
    text, told = WRITTEN[image.name]
    layout = Layout.from_cpp(text, **told)
    assert layout == image.layout
    assert layout.nbytes(image.rows) == image.nbytes
    soa = layout.wrap(image.memory(), image.rows)
    for number, field in enumerate(layout.fields):
        read = soa[field.name if field.per_row else Value(field.name)]
        np.testing.assert_array_equal(read, image.expected(number))


POSITION = """
GENERATE_SOA_LAYOUT(Position, SOA_COLUMN(float, x), SOA_COLUMN(float, y), SOA_COLUMN(float, z),
                    SOA_SCALAR(int, detectorType))
"""
PCA = """
GENERATE_SOA_LAYOUT(PCA, SOA_EIGEN_COLUMN(Eigen::Vector3d, eigenvalues),
                    SOA_COLUMN(std::array<float, 6>, cov),
                    SOA_SCALAR(std::array<uint32_t, 11>, offsets))
"""
BLOCKS = f"""
namespace cms {{
  {POSITION}
  {PCA}
  GENERATE_SOA_BLOCKS(EventLayout,
                      SOA_BLOCK(position, Position), /* , */ SOA_BLOCK(pca, cms::PCA),
                      SOA_VIEW_METHODS(auto f(int i, int j) {{ return position(i, j); }}),
                      SOA_CONST_VIEW_METHODS(auto g() const {{ return 0; }}))
}}
"""


HEAD = "GENERATE_SOA_LAYOUT(Head, SOA_COLUMN(uint32_t, begin))"
TAIL = """
enum class Quality : uint8_t { bad }; enum class Det : unsigned { a }; enum Charge : int8_t { b };
GENERATE_SOA_LAYOUT(Tail, SOA_COLUMN(Quality, quality), SOA_SCALAR(Det, det),
                    SOA_COLUMN(Charge, charge))
"""
ALL_BLOCKS = {
    "two_blocks": (BLOCKS, {}),
    "three_blocks_64": (
        f"""
        {HEAD} {TAIL}
        GENERATE_SOA_LAYOUT(Tracks, SOA_COLUMN(std::array<uint16_t, 4>, hits),
          SOA_EIGEN_COLUMN(Eigen::Matrix<float, 2, 3>, m), SOA_COLUMN(bool, ok),
          SOA_SCALAR(double, scale), SOA_COLUMN(std::array<std::array<float, 3>, 2>, pair),
          SOA_SCALAR(Quality, best))
        GENERATE_SOA_BLOCKS(Event, SOA_BLOCK(tracks, Tracks), SOA_BLOCK(quality, Tail),
                            SOA_BLOCK(index, Head))
        """,
        {"alignment": 64},
    ),
    "nested_blocks": (
        f"""
        {BLOCKS} {HEAD} {TAIL}
        GENERATE_SOA_BLOCKS(Nested, SOA_BLOCK(head, Head), SOA_BLOCK(inner, cms::EventLayout),
                            SOA_BLOCK(tail, Tail))
        """,
        {"name": "Nested"},
    ),
}


@pytest.mark.parametrize("image", BLOCKS_IMAGES, ids=str)
def test_blocks_that_real_classes_wrote(image):
    """Blocks, and blocks in blocks, are those of the bytes that the real classes wrote."""
    text, told = ALL_BLOCKS[image.name]
    blocks = Blocks.from_cpp(text, **told)
    assert blocks == image.blocks
    soas = blocks.wrap(image.memory(), image.rows)
    for block, path in enumerate(image.places):
        soa = functools.reduce(operator.getitem, path, soas)
        for number, field in enumerate(soa.layout.fields):
            read = soa[field.name if field.per_row else Value(field.name)]
            np.testing.assert_array_equal(read, written(soa.layout, number, soa.rows, block))


def layout_of(*fields, **more):
    """One from fields as `name dtype`, with `!` before a scalar's."""
    found = []
    for field in fields:
        name, dtype = field.split() if isinstance(field, str) else ("", "")
        plain = Scalar(name[1:], dtype) if name[:1] == "!" else name and Column(name, dtype)
        found.append(plain or Column(*field))
    return Layout(found, **more)


STYLES = {
    "integers in all spellings": (
        "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(long unsigned int, a), SOA_COLUMN(long long, b), "
        "SOA_COLUMN(unsigned long long int, c), SOA_COLUMN(int unsigned, d), "
        "SOA_COLUMN(const short unsigned, e), SOA_COLUMN(std::ptrdiff_t, f), SOA_COLUMN(char, g), "
        "SOA_COLUMN(::std::uint32_t, h), SOA_COLUMN(std::complex<float>, i))",
        layout_of("a uint64", "b int64", "c uint64", "d uint32", "e uint16", "f int64", "g int8",
                  "h uint32", "i complex64"),
    ),
    "the same name in two scopes": (
        "using T = float; struct A { using T = int; }; namespace n { using T = double;"
        "namespace { GENERATE_SOA_LAYOUT(L, SOA_COLUMN(T, a), SOA_COLUMN(A::T, b), "
        "SOA_COLUMN(::T, c)) } }",
        layout_of("a float64", "b int32", "c float32"),
    ),
    "a namespace opened twice": (
        "namespace a::b { using T = char; } namespace a { namespace b { "
        "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(T, x)) } }",
        layout_of("x int8"),
    ),
    "a name that is declared again, the same": (
        "#ifdef X\nusing T  = int;\n#else\nusing T = int;\n#endif\n"
        "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(T, x))",
        layout_of("x int32"),
    ),
    "braces that an #if has twice": (
        '#ifdef __cplusplus\nextern "C" {\n#endif\n#ifdef A\nnamespace a {\n#else\n'
        "namespace b {\n#endif\nGENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x))\n}\n"
        "#ifdef __cplusplus\n}\n#endif\n",
        layout_of("x int32"),
    ),
    "#if 0, with what is no C++": (
        "#if 0 // don't\n GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x)) it's { not (\n#if X\n#else\n"
        "#endif\n#else\nGENERATE_SOA_LAYOUT(L, SOA_COLUMN(float, y))\n#endif\n",
        layout_of("y float32"),
    ),
    "raw strings and apostrophes": (
        'auto s = R"x({ GENERATE_SOA_LAYOUT( " )")x"; char c = \'{\'; int n = 1\'000\'000;\n'
        "#error don't { do this\n"
        "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(float, größe))",
        layout_of("größe float32"),
    ),
    "constants of constants": (
        "struct Shape { static const int N = 020 / 0b100; }; constexpr int A = -1 + 2 * (Shape::N)"
        ", C = 4; namespace n { constexpr unsigned B{A % 4u + (1 << 2) | 1}; } "
        "GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(Eigen::Array<float, A, n::B>, m))",
        layout_of(("m", "float32", (7, 7))),
    ),
    "Eigen's names": (
        "GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(Eigen::RowVector4f, a), "
        "SOA_EIGEN_COLUMN(Eigen::Vector<double, 6>, b), SOA_EIGEN_COLUMN(Eigen::Matrix2cd, c), "
        "SOA_EIGEN_COLUMN(Eigen::Array33i, d), SOA_EIGEN_COLUMN(Eigen::Vector2<uint8_t>, e), "
        "SOA_EIGEN_COLUMN(Eigen::Matrix<float, 1, 1>, f), "
        "SOA_EIGEN_COLUMN(Eigen::Matrix<bool, 2, 2, 1, 2, 2>, g))",
        layout_of(("a", "float32", (1, 4)), ("b", "float64", (6,)), ("c", "complex128", (2, 2)),
                  ("d", "int32", (3, 3)), ("e", "uint8", (2,)), ("f", "float32", (1,)),
                  ("g", "bool", (2, 2), "C")),
    ),
    "names brought from elsewhere": (
        "using std::uint16_t; namespace a { enum E : bool { no, yes }; } using a::E; "
        "typedef enum { red, green } Color; GENERATE_SOA_LAYOUT(L, SOA_COLUMN(uint16_t, x), "
        "SOA_SCALAR(E, e), SOA_COLUMN(Color, c))",
        layout_of("x uint16", "!e bool", "c int32"),
    ),
    "methods' const, functions, and classes around": (
        "template <class V, typename = std::enable_if_t<(sizeof(V) > 1), A<B<C>>>> class X; "
        "struct alignas(8) P final : Base<int> { int f(const int n = 5) const { return n; } "
        "auto g() const -> T { return {}; } const T& h() const noexcept; }; using T = float; "
        "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(T, x))",
        layout_of("x float32"),
    ),
    "500 fields": (
        f"GENERATE_SOA_LAYOUT(L{''.join(f',/*{i}*/SOA_COLUMN(float, x{i})' for i in range(500))})",
        layout_of(*(f"x{i} float32" for i in range(500))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_styles(style):
    """Headers are written in many ways, and a layout is what it is."""
    text, layout = STYLES[style]
    assert Layout.from_cpp(text) == layout


def test_one_of_several():
    """`name=` picks a layout, with its scope where two have its name; without it one must be."""
    text = f"{POSITION} {PCA} namespace a {{ GENERATE_SOA_LAYOUT(PCA, SOA_COLUMN(int, x)) }}"
    assert list(Layout.from_cpp(text, name="Position")) == ["x", "y", "z", "detectorType"]
    assert list(Layout.from_cpp(text, name="a::PCA")) == ["x"]
    assert list(Layout.from_cpp(text, name="::PCA")) == ["eigenvalues", "cov", "offsets"]
    with pytest.raises(ValueError, match="'PCA' is declared in lines 5, 8; name its scope"):
        Layout.from_cpp(text, name="PCA")
    with pytest.raises(ValueError, match="there are 3 GENERATE_SOA_LAYOUT.*Position, PCA, PCA"):
        Layout.from_cpp(text)
    with pytest.raises(KeyError, match="no GENERATE_SOA_LAYOUT 'Positions'.*'Position'"):
        Layout.from_cpp(text, name="Positions")
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        Layout.from_cpp(text, name=3)


def field(kind, macro="SOA_COLUMN"):
    return f"\nGENERATE_SOA_LAYOUT(L,\n  {macro}({kind}, x))"


REFUSED = {
    # what soaview cannot express
    field("Eigen::Vector3f"): "line 3: field 'x': SOA_COLUMN takes a number or a std::array",
    field("Eigen::Vector3f", "SOA_SCALAR"): "'x': SOA_SCALAR takes a number or a std::array",
    field("std::array<std::array<std::array<int, 3>, 2>, 2>"): r"'x': bad shape \(2, 2, 3\)",
    field("std::array<int, 0>", "SOA_SCALAR"): r"'x': bad shape \(0,\)",
    field("std::array<float, 3>", "SOA_EIGEN_COLUMN"): "takes a matrix",
    field("double *"): r"line 3: field 'x': 'double\*' is a pointer",
    field("const char * const"): r"'char\*' is a pointer",
    "using P = Foo*;" + field("P"): "line 1: field 'x': 'Foo[*]' is a pointer",
    "struct P { float x; };" + field("P"): "line 3: field 'x': type 'P' is the struct of line 1",
    field("long double"): "type 'long double' is unknown",
    field("short long"): "type 'short long' is unknown",
    # what it does not know
    field("reco::Id"): "line 3: field 'x': type 'reco::Id' is unknown; if it is a number, pass "
    "its dtype, as in types={'reco::Id': 'uint32'}",
    "namespace other { using Id = float; }" + field("Id"): "type 'Id' is unknown",
    "struct S { using Id = float; };" + field("reco::S::Id"): "type 'reco::S::Id' is unknown",
    field("Id") + "using Id = float;": "type 'Id' is unknown",
    "template <typename T> struct S { " + field("T") + "};": "type 'T' is the parameter of line 1",
    "using T = int; template <class T> struct S { " + field("T") + "};": "is the parameter",
    "template <class T> using V = Eigen::Matrix<T, 3, 1>;" + field("V<int>", "SOA_EIGEN_COLUMN"):
    "type 'V<int>' is the template of line 1",
    "using T = int; namespace n { using T [[x]] = float;" + field("T") + "}": "the alias of line 1",
    field("Eigen::Matrixf<3, 3>", "SOA_EIGEN_COLUMN"): "type 'Eigen::Matrixf<3, 3>' is unknown",
    "constexpr int N = 3;" + field("N"): "type 'N' is the constant of line 1",
    "#ifdef X\nusing T = int;\n#else\nusing T = float;\n#endif" + field("T"):
    "line 7: field 'x': 'T' stands for two things, one of them in line 2; pass types=",
    "enum Q { a = 1ull << 40 };" + field("Q"): "is the enum of line 1, which may need more",
    "enum Q { a = 0xffffffff };" + field("Q"): "may need more than an int",
    field("Eigen::Matrix<float, kN, 3>", "SOA_EIGEN_COLUMN"): "line 3: field 'x': 'kN' is no "
    "integer that is known; pass .*constants=",
    "using M = Eigen::Matrix<float, f(3), 3>;" + field("M", "SOA_EIGEN_COLUMN"): "line 1: .*'f'",
    field("Eigen::MatrixXf", "SOA_EIGEN_COLUMN"): "'Eigen::MatrixXf' needs .* a fixed size",
    field("Eigen::Matrix<float, Eigen::Dynamic, 3>", "SOA_EIGEN_COLUMN"): "a fixed size",
    field("Eigen::Matrix<float, 0, 3>", "SOA_EIGEN_COLUMN"): "a fixed size",
    field("Eigen::Quaternionf", "SOA_EIGEN_COLUMN"): "type 'Eigen::Quaternionf' is unknown",
    field("Eigen::Matrix<float, 5 / 0, 3>", "SOA_EIGEN_COLUMN"): "'5/0' is no integer",
    field("Eigen::Matrix<float, 1 << 99, 3>", "SOA_EIGEN_COLUMN"): "'1<<99' is no integer",
    field("Eigen::Matrix<float, (4 << 29) % 7, 3>", "SOA_EIGEN_COLUMN"): "is no integer",
    field("Eigen::Matrix<float, 2.5, 3>", "SOA_EIGEN_COLUMN"): "'2.5' is no integer",
    field("int", "SOA_FOO"): "line 3: unknown macro 'SOA_FOO' in 'L'",
    # what is no declaration
    "": "the text has no GENERATE_SOA_LAYOUT",
    "Hits.h": "has no GENERATE_SOA_LAYOUT.*pass a header's content",
    "/* GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x)) */": "has no GENERATE_SOA_LAYOUT",
    "GENERATE_SOA_LAYOUT(L)": "a layout needs at least one field",
    "GENERATE_SOA_LAYOUT(L,)": "line 1: expected a comma and a macro",
    "GENERATE_SOA_LAYOUT(L SOA_COLUMN(int, x))": "line 1: expected a comma and a macro",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x) SOA_COLUMN(int, y))": "expected a comma",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x);)": "expected a comma",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int))": r"expected SOA_COLUMN\(type, name\), got 'int'",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(, x))": "expected SOA_COLUMN",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x), SOA_SCALAR(int, x))": "'x' stands twice",
    "GENERATE_SOA_LAYOUT(L,\n#ifdef X\nSOA_COLUMN(int, x)\n#endif\n)": "line 2: .*got ', #ifdef'; "
    "resolve what is the preprocessor's first",
    "GENERATE_SOA_LAYOUT(L,\n#include <fields.h>\nSOA_COLUMN(int, x))": "line 2: .*', #include'",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x)": r"line 1: \( is not closed",
    "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x) ', SOA_COLUMN(int, y)\n)": "quotation mark",
    "\n/* GENERATE_SOA_LAYOUT(L, SOA_COLUMN(int, x))": "line 2: a comment is not closed",
    "namespace a {\n" + field("int"): "line 1: { is not closed",
    field("int") + "\n}": "line 4: } closes nothing",
    "using A = B; using B = A;" + field("B"): "type 'B' is unknown",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text):
    """What soaview cannot read or express is an error in one sentence, with its line."""
    with pytest.raises(ValueError, match=REFUSED[text]) as raised:
        Layout.from_cpp(text)
    assert "\n" not in str(raised.value)


def test_what_the_caller_tells_is_a_mapping():
    """Or refused, by its name."""
    text = "GENERATE_SOA_LAYOUT(L, SOA_COLUMN(A, x))"
    with pytest.raises(TypeError, match="types must be a mapping from name to value"):
        Layout.from_cpp(text, types="A")
    with pytest.raises(TypeError, match="constants must be a mapping from name to value"):
        Layout.from_cpp(text, constants=[("k", 3)])


def test_what_the_caller_tells():
    """`types=` and `constants=` go before the text; dtypes are our own names, integers exact."""
    text = "using T = int;\n#define X\nusing T = float; constexpr int N = 2;\n" + field(
        "Eigen::Matrix<T, N, K>", "SOA_EIGEN_COLUMN"
    )
    layout = Layout.from_cpp(text, types={"T": "float16"}, constants={"N": np.int8(3), "K": 2})
    assert layout == Layout([Column("x", "float16", (3, 2))])
    bits = field("std::bitset< 8 >")
    assert Layout.from_cpp(bits, types={"std::bitset<8>": "uint8"})["x"].dtype == "uint8"
    with pytest.raises(ValueError, match=r"types\['T'\]: unknown dtype 'float'; known are bool"):
        Layout.from_cpp(text, types={"T": "float"})
    with pytest.raises(TypeError, match=r"constants\['N'\] must be an integer, got 2.0"):
        Layout.from_cpp(text, constants={"N": 2.0})
    with pytest.raises(TypeError, match="go by name, got 3"):
        Layout.from_cpp(text, types={3: "int8"})
    with pytest.raises(TypeError, match="must be a string, such as a file's, got b''"):
        Layout.from_cpp(b"")
    with pytest.raises(ValueError, match="alignment must be a power of two, got 3"):
        Layout.from_cpp(field("int"), alignment=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PCA, "the text has no GENERATE_SOA_BLOCKS"),
        ("\nGENERATE_SOA_BLOCKS(B, SOA_BLOCK(a, PCA))",
         "line 2: field 'a': the text declares no layout 'PCA' before this line; put that header"),
        (PCA + "GENERATE_SOA_BLOCKS(B, SOA_BLOCK(a, PCA), SOA_BLOCK(a, PCA))", "stands twice"),
        (PCA + "GENERATE_SOA_BLOCKS(B, SOA_COLUMN(float, x))", "expected SOA_BLOCK"),
        (PCA + "GENERATE_SOA_BLOCKS(B)", "blocks need at least one layout"),
        (PCA + "GENERATE_SOA_BLOCKS(B, SOA_BLOCK(a, B))", "'a': blocks lie more than 16 deep"),
    ],
)  # fmt: skip
def test_blocks_that_are_refused(text, message):
    """Blocks that the text does not declare, and blocks of blocks, are named."""
    with pytest.raises(ValueError, match=message):
        Blocks.from_cpp(text, name="C" if "(C" in text else None)
