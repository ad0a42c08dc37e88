"""C++ that is not understood for certain: refused by name, and never read as something else.

In each case a compiler makes another type or number of `T` or `N` than the one in the outermost
scope, which is what a reader that skips what it does not understand would find.
"""

from __future__ import annotations

import time

import pytest

from soaview import Blocks, Column, Layout


def column(of, name="x"):
    return f"GENERATE_SOA_LAYOUT(L, SOA_COLUMN({of}, {name}))"


F, Q, S = column("T"), column("Q"), column("S::T")
M = "GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(Eigen::Matrix<float, N, 2>, x))"

ENUMS = [
    "enum Q { none = 0, invalid = UINT64_MAX };",
    "constexpr long K = 0x100000000; enum Q { a = K };",
    "enum Q { a = kBig };",
    "enum Q { a = MASK(40) };",
    "enum Q { a = -1ul };",
    "enum Q { a = -1, b = 0x7fffffff, c };",
    "enum Q { a, b } __attribute__((packed));",
    "enum Q { a, b } PACKED;",
    "enum PACKED Q { a, b };",
    "enum [[gnu::packed]] Q { a, b };",
    "enum Q { a = 0x7fffffff, b };",
    "enum Q { a = UINT32_MAX };",
    "enum Q { a = 1 << 31 };",
    "enum Q { a = -0x80000001 };",
    "enum Q { a = 1, b = a << 40 };",
    "enum Q { a = 1 + 0xffffffff };",
    "enum Q { a = 3'000'000'000 };",
    "enum Q { a = 'x' };",
    "enum Q { a [[deprecated]] = 1 };",
    "enum Q { a,\n#ifdef X\nb = 1ull << 40\n#endif\n};",
]
NUMBERS = [
    "constexpr double k = 5; constexpr int N = k / 2 * 4;",
    "constexpr unsigned char N = 259;",
    "constexpr bool b = 4; constexpr int N = b + 1;",
    "using Small = unsigned char; constexpr Small N = 259;",
    "constexpr float N = 5;",
    "constexpr unsigned A = 3; constexpr long B = A - 5; constexpr long N = B + 10;",
    "constexpr unsigned A = 3; constexpr long B = -A; constexpr long N = B + 10;",
    "constexpr long B = -1u; constexpr long N = B + 10;",
    "constexpr int N = 5 ATTR;",
]
TYPES_IN = [  # in a scope where there is another T
    "struct B { using T = float; }; struct D : B { @ };",
    "struct D : Unknown<int> { @ };",
    "struct [[nodiscard]] D : Unknown { @ };",
    "namespace n { typedef double T, U; @ }",
    "namespace n { typedef double U, T; @ }",
    "namespace a { using T = char; using U = int; } namespace n { using a::U, a::T; @ }",
    "namespace m { using T = char; } namespace n { using namespace m; @ }",
    "template <class T, bool B = (sizeof(T) < 8)> struct S { @ };",
    "template <class T> requires requires(T t) { t + t; } struct S { @ };",
    "template <class T> struct S : Y<decltype(T{})> { @ };",
    "template <int A, typename... T> struct EXPORT(x) S { @ };",
    "namespace n { struct alignas(16) T { float x; }; @ }",
    "namespace n { struct [[nodiscard]] T { float x; }; @ }",
    "namespace n { struct [[nodiscard]] T final { float x; }; @ }",
    "namespace n { typedef struct { float x; } T; @ }",
    "namespace n { class EXPORT(x) T { float x; }; @ }",
    "namespace n { class T EXPORT { float x; }; @ }",
    "namespace n { template <class X> class EXPORT(x) T { float x; }; @ }",
    "namespace n { enum T : unsigned char { a = int{1} }; @ }",
    "namespace n { enum class [[x]] T : char {a}; @ }",
    "namespace n { enum PACKED T { a }; @ }",
    "namespace n { typedef void (*T)(int); @ }",
    "namespace n { typedef double (T); @ }",
    "namespace n { typedef double T[3]; @ }",
    "namespace n { typedef decltype(X{}) T; @ }",
    "namespace n { using T [[x]] = double; @ }",
    "namespace n { unsigned typedef T, *V; @ }",
    "namespace n { enum { A, T }; @ }",
    "namespace n { struct S <% using T = double; %>; @ }",
    "%:define T double\n@",
    "namespace n { DECLARE(T) @ }",
    "namespace n { DECLARE(double, T); @ }",
    "namespace n {\n#if false\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#if (0)\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#if 0 && X\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#if 1\n#else\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#ifdef NEVER\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#if A\nusing T = double;\n#elif B\nusing T = double;\n#endif\n@ }",
    "namespace n {\n#ifdef A\n#ifdef B\nusing T = char;\n#else\nusing T = char;\n#endif\n#endif\n"
    "@ }",
    "#define HAS_T\nnamespace n {\n#ifndef HAS_T\n#define HAS_T\nusing T = double;\n#endif\n@ }",
    "namespace a { using T = char; }\n#ifdef A\nnamespace a {\n#else\nnamespace b {\n#endif\n@ }",
    "#define T double\n@",
    "#define P using T = double;\n#define T(x) x\n@",
    '#define Q "\\"/*"\nnamespace n { using T = double; @ }\n#define P "*/"\n',
]
NUMBERS_IN = [  # likewise, with N
    "struct S { enum { N = 5 }; @ };",
    "struct S { enum E : long { A, N }; @ };",
    "namespace n { constexpr int A = 1, N = 5; @ }",
    "namespace n { constexpr int N(5); @ }",
    "namespace n { constexpr int N [[maybe_unused]] = 5; @ }",
    "namespace n { constexpr int N ATTR = 5; @ }",
    "namespace n { int const N = 5; @ }",
    "namespace n { constexpr int (N) = 5; @ }",
    "namespace n { int constexpr N = 5; @ }",
    "struct S { void f(const int N = 5, int b = 0); @ };",
    "struct S { void f(int N) { @ } };",
    "template <int N> struct EXPORT(x) S { @ };",
    "#define N 5\n@",
]
SCOPED = [
    "struct S { using T = int; }; struct S1 { using T = float; }; "
    "namespace n { using S = S1; @ }",
    "namespace S { using T = int; } namespace m { using T = float; } namespace n "
    "{ namespace S = m; @ }",
    "struct S { using T = int; }; namespace n { struct S : B { using U = int; }; @ }",
    "struct S { using T = int; }; namespace n { struct alignas(8) S { using T = float; }; @ }",
    "struct S { using T = int; }; template <class S> struct V { @ };",
    "struct S { using T = int; }; struct D : B { @ };",
]  # fmt: skip
CASES = [text + Q for text in ENUMS] + [text + M for text in NUMBERS]
CASES += ["using T = int;\n" + text.replace("@", F) for text in TYPES_IN]
CASES += ["constexpr int N = 2;\n" + text.replace("@", M) for text in NUMBERS_IN]
CASES += [text.replace("@", S) for text in SCOPED]
CASES += [
    "using T = int; namespace n { /\\\n/ using T = double;\n" + F + "}",
    "using T = int; namespace n { /\\\n* using T = double; */" + F + "}",
    "using T = int; namespace n { /* *\\\n/ using T = double; /* */" + F + "}",
    "constexpr int N\\\n2 = 3;" + M,
    "namespace n { enum byte : int { a = int{1} }; " + column("byte") + "}",
    "#define float double\n" + column("float"),
    "#define long\n" + column("unsigned long"),
    "#ifdef X\nusing T = int;\n#endif\n" + F,
]


@pytest.mark.parametrize("text", CASES)
def test_what_is_not_certain(text):
    """What a compiler may read otherwise is refused, by its name and line, with a way out."""
    if '"' in text:  # this one is read, and as a compiler does
        assert Layout.from_cpp(text)["x"].dtype == "float64"
        return
    with pytest.raises(ValueError, match=r"^line \d+: ") as raised:
        Layout.from_cpp(text)
    assert "\n" not in str(raised.value)
    if not any(word in str(raised.value) for word in ("cut", "write the sign")):
        assert any(f"{way}=" in str(raised.value) for way in ("types", "constants"))


def test_the_way_out():
    """`types=` and `constants=` say what is meant, and the error names the line of the doubt."""
    text = "using T = int;\nstruct D\n: B {" + F + "};"
    with pytest.raises(ValueError, match=r"line 3: field 'x': 'T' may be a name of elsewhere, "
                       r"which comes in in line 2; pass types="):  # fmt: skip
        Layout.from_cpp(text)
    assert Layout.from_cpp(text, types={"T": "int16"})["x"].dtype == "int16"
    text = "constexpr int N = 2;\nstruct S {\nenum { N = 5 };" + M + "};"
    with pytest.raises(ValueError, match=r"line 3: .*'N' stands in .* not understood in line 3"):
        Layout.from_cpp(text)
    assert Layout.from_cpp(text, constants={"N": 5})["x"].shape == (5, 2)
    long = f"std::tuple<{', '.join(['int'] * 30)}>"
    with pytest.raises(ValueError, match=r"types=\{NAME: 'uint32'\}") as raised:
        Layout.from_cpp(column(long))
    assert str(raised.value).count("'") % 2 == 0
    with pytest.raises(ValueError, match="write Eigen::Vector3f in the text"):
        Layout.from_cpp("using namespace Eigen;" + column("Vector3f"))


READ = {
    "enum Q { a = -1, b = 1u << 30, c = a, d = (1 << 2) | 0x10, e, };" + Q: "int32",
    "typedef enum { a } Q;" + Q: "int32",
    "#ifndef G_h\n#define G_h\nusing T = float;\n#endif\n#ifndef H_h\n#define H_h\n" + F
    + "\n#endif": "float32",
    "#if 0\nusing T = int;\n#else\nusing T = float;\n#endif\n" + F: "float32",
    "#ifdef X\nusing T = float;\n" + F + "\n#endif": "float32",
    "#if A\nusing T = int;\n#elif B\nusing T = int;\n#else\nusing T = int;\n#endif\n" + F: "int32",
    "using T = float; struct S { static T f(const T& t); T x; std::array<T, 3> a; "
    "static constexpr int n = sizeof(T); bool g(T t) const { return t < T(1); } "
    + F + "};": "float32",
    "using T = float; template <class U> struct S { U u; T t; }; struct A : S<int> { int T; };"
    + F: "float32",
    "namespace m { using T = int; } namespace n { using T = float; namespace m2 {" + F + "} }":
    "float32",
    "using T = float; struct S { enum class E : int { T1 }; int f(int n = 3) { return n; } " + F
    + "};": "float32",
    "namespace n { struct S { using T = float; }; } namespace n { " + S + " }": "float32",
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_is_certain(text):
    """What stands near a name, and cannot declare it, does not matter."""
    assert Layout.from_cpp(text)["x"].dtype == READ[text]


def test_names_of_eigens_own():
    """Inside Eigen's namespace its classes go without it."""
    text = "namespace Eigen { typedef Matrix<double, 6, 1> Vector6d; }"
    text += "GENERATE_SOA_LAYOUT(L, SOA_EIGEN_COLUMN(Eigen::Vector6d, x))"
    assert Layout.from_cpp(text) == Layout([Column("x", "float64", (6,))])


def test_blocks_of_the_outermost_scope():
    """A `::` before a layout's name counts."""
    one = "GENERATE_SOA_LAYOUT(P, SOA_COLUMN(int, x))"
    text = f"{one} namespace n {{ {one.replace('int', 'double')}"
    for name, dtype in (("::P", "int32"), ("P", "float64"), ("::n::P", "float64")):
        blocks = Blocks.from_cpp(f"{text} GENERATE_SOA_BLOCKS(B, SOA_BLOCK(a, {name})) }}")
        assert blocks["a"].fields[0].dtype == dtype


@pytest.mark.parametrize("name", ["3", "x y", "-", '"x"', ""])
def test_names_that_cpp_has_not(name):
    """A field's name, and a block's, is one of C++'s."""
    with pytest.raises(ValueError, match="expected "):
        Layout.from_cpp(column("int", name))
    text = column("int") + f"GENERATE_SOA_BLOCKS(B, SOA_BLOCK({name}, L))"
    with pytest.raises(ValueError, match="expected "):
        Blocks.from_cpp(text)


@pytest.mark.slow
def test_scopes_and_fields_in_time():
    """Neither deep scopes under many `#if`s, nor many fields in deep scopes, take long."""
    begun = time.process_time()
    fields = "".join(f",SOA_COLUMN(T,x{i})" for i in range(4_000))
    deep = f"using T=int;namespace a{'::a' * 250}{{GENERATE_SOA_LAYOUT(L{fields})}}"
    assert len(Layout.from_cpp(deep)) == 4_000
    with pytest.raises(ValueError, match="more than 256 #if in each other"):
        Layout.from_cpp("{" * 255 + "#if\n" * 300_000 + "}" * 255 + column("int"))
    ifs = "{" * 255 + "#if\n#endif\n" * 20_000 + "}" * 255 + column("int")
    assert list(Layout.from_cpp(ifs)) == ["x"]
    fields = "".join(f",SOA_COLUMN(int,x{i})" for i in range(70_000))
    with pytest.raises(ValueError, match="at most 65536 fields"):
        Layout.from_cpp(f"GENERATE_SOA_LAYOUT(L{fields})")
    assert time.process_time() - begun < 15
