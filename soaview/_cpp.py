"""The CMS experiment's declarations in C++: `GENERATE_SOA_LAYOUT` and `GENERATE_SOA_BLOCKS`.

Types and integers are read where a field asks for them. A name is seen only after it stands there,
and what it stands for is read once, so that the work grows as the text does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from operator import add, and_, floordiv, lshift, mod, mul, or_, sub, xor
from typing import Any, NamedTuple

from ._blocks import Blocks
from ._cpp_names import BLOCKS, LAYOUT, Named, Names, Where
from ._cpp_text import integer
from ._dtypes import ITEMSIZE, exact_int
from ._fields import MAX_FIELDS, Column, Scalar, check_name, listed, no_such
from ._layout import Layout
from ._nested import MAX_DEPTH

MAX_TEXT = 1 << 22
"""Characters; a header has a hundredth of it."""

_LONGEST = 5000  # characters of a type or an integer
_DEPTH = 50  # of names that stand for names, and of templates and parentheses in each other
_METHODS = {f"SOA_{c}{of}METHODS" for c in ("", "CONST_") for of in ("", "ELEMENT_", "VIEW_")}

_TOKEN = re.compile(r"\.?\d(?:'?\w|\.)*|[^\W\d]\w*|::|<<|\S")
_STORAGE = {"static", "inline", "extern", "constexpr", "const"}
_QUALIFIERS = {"const", "volatile", "typename", "struct", "class", "enum"}
_NAME = re.compile(r"((?:::)?\w++(?:::\w++)*+)(?:<(.*)>)?", re.DOTALL)

_WIDTHS = {"short": "int16", "": "int32", "long": "int64", "long long": "int64"}  # LP64
_NUMBERS = {
    " ".join(sorted(f"{sign} {width} {word}".split())): "u" * (sign == "unsigned") + dtype
    for width, dtype in _WIDTHS.items()
    for sign in ("", "signed", "unsigned")
    for word in ("", "int")
    if width or sign or word
}
_NUMBERS |= {f"{u}int{n}_t": f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
_NUMBERS |= {"char": "int8", "char signed": "int8", "char unsigned": "uint8", "byte": "uint8"}
_NUMBERS |= {"float": "float32", "double": "float64", "bool": "bool", "__half": "float16"}
_NUMBERS |= {"size_t": "uint64", "ptrdiff_t": "int64", "uintptr_t": "uint64", "intptr_t": "int64"}
_NUMBERS |= {"uint": "uint32", "ushort": "uint16", "ulong": "uint64", "wchar_t": "int32"}
"""Dtypes by C++'s words in alphabetical order, without `std::`."""

_COMPLEX = {"float32": "complex64", "float64": "complex128"}
_EIGEN = re.compile(r"(Matrix|Array|Vector|RowVector)(?:([234X])([234X])?)?(i|f|d|cf|cd)?")
_OF_EIGEN = {"i": "int32", "f": "float32", "d": "float64", "cf": "complex64", "cd": "complex128"}
_OPTIONS = {"ColMajor": 0, "AutoAlign": 0, "RowMajor": 1, "DontAlign": 2, "Dynamic": -1}

_LEVELS = {"|": 0, "^": 1, "&": 2, "<<": 3, "+": 4, "-": 4, "*": 5, "/": 5, "%": 5}
_RESULTS = {"|": or_, "^": xor, "&": and_, "<<": lshift, "+": add, "-": sub, "*": mul}
_RESULTS |= {"/": floordiv, "%": mod}


class _Type(NamedTuple):
    """What a value is: a number, a matrix of Eigen's, or an array."""

    dtype: str
    shape: tuple[int, ...] = ()
    order: str = "F"
    eigen: bool = False


class Header:
    """C++ text, and what is declared in it; arguments and errors are those of `from_cpp`."""

    def __init__(
        self, text: str, types: Mapping[str, Any] | None, constants: Mapping[str, int] | None
    ) -> None:
        if not isinstance(text, str):
            raise TypeError(f"C++ text must be a string, such as a file's, got {text!r:.60}")
        if len(text) > MAX_TEXT:
            raise ValueError(f"{len(text)} characters are no header; at most {MAX_TEXT} are read")
        for what, given in (("types", types), ("constants", constants)):
            if given is not None and not isinstance(given, Mapping):
                raise TypeError(f"{what} must be a mapping from name to value, got {given!r:.60}")
        self._types = {_key(name): _dtype(name, dtype) for name, dtype in (types or {}).items()}
        self._constants = {f"Eigen::{name}": value for name, value in _OPTIONS.items()}
        for name, value in (constants or {}).items():
            self._constants[_key(name)] = exact_int(value, f"constants[{name!r:.60}]")
        self._names = Names(text)

    def made(self, kind: Any, name: str | None, alignment: int) -> Any:
        """The layout, or the blocks, of that name; of None, the only one."""
        if kind is Blocks:
            return self._blocks(self._chosen(BLOCKS, name), alignment, 0)
        return Layout(self._fields(self._chosen(LAYOUT, name)), alignment=alignment)

    def _blocks(self, declared: Named, alignment: int, depth: int) -> Blocks:
        found: dict[str, Layout | Blocks] = {}
        where = Where(declared.scope, declared.at)
        for macro, tokens, at in self._entries(declared):
            where = Where(declared.scope, at)
            if macro != "SOA_BLOCK" or tokens[1:2] != [","] or not tokens[0].isidentifier():
                raise self._names.error(
                    where, f"expected SOA_BLOCK(name, layout), got {macro!r:.60}"
                )
            where = where._replace(field=tokens[0])
            layout = self._names.find("".join(tokens[2:]).split("::"), where)
            if layout is None or layout.kind not in (LAYOUT, BLOCKS):
                raise self._names.error(
                    where,
                    f"the text declares no layout {_spelled(tokens[2:])!r:.60} before this line; "
                    f"put that header's text in front of this one's",
                )
            if tokens[0] in found:
                raise self._names.error(where, "stands twice; names must be unique")
            if layout.known is None and layout.kind == BLOCKS:
                if depth == MAX_DEPTH:
                    raise self._names.error(where, f"blocks lie more than {MAX_DEPTH} deep")
                layout.known = self._blocks(layout, alignment, depth + 1)
            elif layout.known is None:
                layout.known = Layout(self._fields(layout), alignment=alignment)
            found[tokens[0]] = layout.known
        try:
            return Blocks(found)
        except ValueError as error:
            raise self._names.error(where, str(error)) from None

    def _chosen(self, macro: str, name: str | None) -> Named:
        there = [found for found in self._names.declared if found.kind == macro]
        names = [found.name for found in there]
        if not there:
            raise ValueError(
                f"the text has no {macro}(NAME, ...), comments aside; pass a header's content"
            )
        if name is None and len(there) > 1:
            raise ValueError(
                f"there are {len(there)} {macro}, pick one by name= (--name on the command line): "
                f"{listed(names)}"
            )
        *scopes, last = [names[0]] if name is None else check_name("layout", name).split("::")
        chosen = [f for f in there if f.name == last and f.scope.ends(scopes)]
        if not chosen:
            raise KeyError(no_such(macro, name, names))
        if len(chosen) > 1:
            lines = listed(str(self._names.line(found.at)) for found in chosen)
            raise ValueError(
                f"{last!r:.60} is declared in lines {lines}; name its scope as well, such as "
                f"'space::{last:.60}' or, outside of all, '::{last:.60}', or cut the others out"
            )
        return chosen[0]

    def _fields(self, declared: Named) -> list[Column | Scalar]:
        found: list[Column | Scalar] = []
        known: dict[str, _Type] = {}
        for macro, tokens, at in self._entries(declared):
            if len(found) == MAX_FIELDS:
                raise ValueError(f"a layout has at most {MAX_FIELDS} fields, and here are more")
            where = Where(declared.scope, at)
            if macro not in ("SOA_COLUMN", "SOA_SCALAR", "SOA_EIGEN_COLUMN"):
                raise self._names.error(
                    where, f"unknown macro {macro!r:.60} in {declared.name!r:.60}"
                )
            if tokens[-2:-1] != [","] or len(tokens) < 3 or not tokens[-1].isidentifier():
                raise self._names.error(
                    where, f"expected {macro}(type, name), got {_spelled(tokens)!r:.60}"
                )
            where = where._replace(field=tokens[-1])
            of = " ".join(tokens[:-2])
            if of not in known:
                known[of] = self._type(of, where)
            dtype, shape, order, eigen = known[of]
            if macro == "SOA_EIGEN_COLUMN" and not eigen:
                raise self._names.error(
                    where, "SOA_EIGEN_COLUMN takes a matrix or vector of Eigen's"
                )
            if macro != "SOA_EIGEN_COLUMN" and eigen:
                raise self._names.error(
                    where,
                    f"{macro} takes a number or a std::array; a column of Eigen's goes by "
                    f"SOA_EIGEN_COLUMN",
                )
            try:
                if macro == "SOA_SCALAR":
                    found.append(Scalar(tokens[-1], dtype, shape))
                else:
                    adjacent = bool(shape) and not eigen
                    found.append(Column(tokens[-1], dtype, shape, order, interleaved=adjacent))
            except ValueError as error:
                raise self._names.error(Where(where.scope, at), str(error)) from None
        return found

    def _entries(self, declared: Named) -> Iterator[tuple[str, list[str], int]]:
        """The macros in a declaration, without methods: name, arguments, position."""
        tokens = [(m[0], declared.at + m.start()) for m in _TOKEN.finditer(declared.text)]
        tokens += [("", declared.at + len(declared.text))] * 3
        if '"' in declared.text.replace('""', ""):
            raise self._names.error(
                Where(declared.scope, declared.at), "a quotation mark is not closed"
            )
        i = 0
        while tokens[i][0]:
            (comma, _), (macro, at), (bracket, _) = tokens[i : i + 3]
            if comma != "," or bracket != "(":
                got = _spelled([comma, macro, bracket])
                also = "; resolve what is the preprocessor's first" if "#" in (comma, macro) else ""
                raise self._names.error(
                    Where(declared.scope, tokens[i + (comma == ",")][1]),
                    f"expected a comma and a macro such as SOA_COLUMN(float, pt), got {got!r:.60}"
                    f"{also}",
                )
            begin, depth, i = i + 3, 1, i + 3
            while depth:
                depth += (tokens[i][0] == "(") - (tokens[i][0] == ")")
                i += 1
            if macro not in _METHODS:
                yield macro, [token for token, _ in tokens[begin : i - 1]], at

    # Types, and the integers in them.

    def _below(self, where: Where, found: Named | None = None) -> Where:
        """Where a name stands, or what is in brackets: one deeper."""
        if where.depth == _DEPTH:
            raise self._names.error(where, f"names or brackets more than {_DEPTH} deep in others")
        scope, at = (where.scope, where.at) if found is None else (found.scope, found.at)
        return Where(scope, at, where.field, where.depth + 1)

    def _tokens(self, text: str, where: Where) -> list[str]:
        if len(text) > _LONGEST:
            raise self._names.error(where, f"{text[:40]!r}... is too long for a type or an integer")
        return _TOKEN.findall(text)

    def _type(self, text: str, where: Where) -> _Type:
        words = [word for word in self._tokens(text, where) if word not in _QUALIFIERS]
        spelled = _spelled(words)
        if spelled in self._types:
            return _Type(self._types[spelled])
        if words and words[-1] in ("*", "&"):
            raise self._names.error(
                where, f"{spelled!r:.80} is a pointer: what it leads to lies in other memory"
            )
        named = _NAME.fullmatch(spelled)
        if not named:
            self._names.no_macro(words, where)
        found = self._names.find(named[1].split("::"), where) if named else None
        if found is None:
            plain = words[words[:1] == ["::"] :]
            plain = plain[2:] if plain[:2] == ["std", "::"] else plain
            if (dtype := _NUMBERS.get(" ".join(sorted(plain)))) is not None:
                return _Type(dtype)
            known = self._template(named[1], _arguments(named[2] or ""), where) if named else None
            if known is not None:
                return known
        elif found.kind in ("alias", "enum") and found.text and named and not named[2]:
            if found.known is None:
                found.known = self._type(found.text, self._below(where, found))
            return _Type(*found.known)
        what = f"the {found.kind} of line {self._names.line(found.at)}" if found else "unknown"
        why = ", which may need more than an int" if found and found.kind == "enum" else ""
        if found is None and named and _EIGEN.fullmatch(named[1]):
            why = f"; if it is Eigen's, write Eigen::{named[1]} in the text"
        short = len(spelled) < 78
        told, key = (repr(spelled),) * 2 if short else (f"{spelled[:70]!r}...", "NAME")
        raise self._names.error(
            where,
            f"type {told} is {what}{why}; if it is a number, pass its dtype, as in "
            f"types={{{key}: 'uint32'}}, else put its declaration before the text",
        )

    def _template(self, name: str, given: list[str], where: Where) -> _Type | None:
        """What `std::array`, `std::complex` and Eigen's classes are with these arguments."""
        inner = self._below(where)
        name = name.removeprefix("::")
        if where.scope.path()[:1] == ["Eigen"] and _EIGEN.fullmatch(name):
            name = f"Eigen::{name}"
        if name.removeprefix("std::") == "array" and len(given) == 2:
            each, n = self._type(given[0], inner), self._value(given[1], inner)
            return _Type(each.dtype, (n, *each.shape), "C")
        if name.removeprefix("std::") == "complex" and len(given) == 1:
            dtype = _COMPLEX.get(self._type(given[0], inner).dtype)
            return None if dtype is None else _Type(dtype)
        known = _EIGEN.fullmatch(name.removeprefix("Eigen::"))
        if known is None or not name.startswith("Eigen::"):
            return None
        kind, rows_of, cols_of, letter = known.groups()
        of, lengths = given[: letter is None], given[letter is None :]
        if rows_of is not None and not lengths:
            lengths = [rows_of, cols_of or (rows_of if kind == "Matrix" else "1")]
        elif rows_of is None and kind.endswith("Vector") and len(lengths) == 1:
            lengths = [*lengths, "1"]
        if len(of) != (letter is None) or not 2 <= len(lengths) <= 5 or (letter and not rows_of):
            return None
        each = _Type(_OF_EIGEN[letter]) if letter else self._type(of[0], inner)
        sizes = [-1 if length == "X" else self._value(length, inner) for length in lengths]
        if each.shape or min(sizes[:2]) < 1:
            raise self._names.error(where, f"{name!r:.80} needs numbers, and a fixed size")
        rows, cols = sizes[1::-1] if kind == "RowVector" else sizes[:2]
        by_rows = rows > 1 and cols > 1 and len(sizes) > 2 and sizes[2] & _OPTIONS["RowMajor"]
        return _Type(each.dtype, (rows, cols)[: 1 + (cols > 1)], "C" if by_rows else "F", True)

    def _value(self, text: str, where: Where) -> int:
        tokens = self._tokens(text, where)
        value, i = self._sum(tokens, 0, 0, where)
        if i < len(tokens):
            raise self._no_integer(tokens, where)
        return value

    def _constant(self, found: Named, where: Where) -> int:
        """A constant's value, which its type must hold: C++ would make another of it."""
        of = [word for word in found.of.split() if word not in _STORAGE]
        dtype, shape, *_ = self._type("int" if of == ["auto"] else " ".join(of), where)
        value, bits = self._value(found.text, where), 8 * ITEMSIZE[dtype] - (dtype[0] == "i")
        low = -(1 << bits) if dtype[0] == "i" else 0
        if (
            shape
            or dtype[0] not in "uib"
            or not low <= value < 1 << (1 if dtype == "bool" else bits)
        ):
            raise self._names.error(
                where, f"{found.name!r:.60} is no integer of its type; pass it by constants="
            )
        return value

    def _no_integer(self, tokens: list[str], where: Where) -> ValueError:
        return self._names.error(
            where,
            f"{_spelled(tokens)!r:.80} is no integer that is known; pass it as a name's, such as "
            f"constants={{'kN': 5}}, or put the declaration before the text",
        )

    def _sum(self, tokens: list[str], i: int, level: int, where: Where) -> tuple[int, int]:
        """The value from token `i` on, of operators that bind at least so strongly; its end."""
        value, i = self._operand(tokens, i, where)
        while i < len(tokens) and _LEVELS.get(tokens[i], -1) >= level:
            sign = tokens[i]
            right, i = self._sum(tokens, i + 1, _LEVELS[sign] + 1, where)
            shifted, divided = sign == "<<", sign in ("/", "%")  # of negatives, C++ rounds up
            if (shifted and not 0 <= right < 64) or (divided and (value < 0 or right < 1)):
                raise self._no_integer(tokens, where)
            value = _RESULTS[sign](value, right)
            if not 0 <= value < 1 << 31:  # where an int ends in C++, or an unsigned one begins
                raise self._no_integer(tokens, where)
        return value, i

    def _operand(self, tokens: list[str], i: int, where: Where) -> tuple[int, int]:
        token = tokens[i] if i < len(tokens) else ""
        if token == "-":
            number = integer("".join(tokens[i + 1 : i + 2]))
            if number is None or number >= 1 << 31 or tokens[i + 1][-1] in "uU":
                raise self._no_integer(tokens, where)
            return -number, i + 2
        if token == "(":
            value, i = self._sum(tokens, i + 1, 0, self._below(where))
            if tokens[i : i + 1] != [")"]:
                raise self._no_integer(tokens, where)
            return value, i + 1
        if (number := integer(token)) is not None:
            return number, i + 1
        end = i + 1
        while end < len(tokens) and "::" in tokens[end - 1 : end + 1]:
            end += 1
        name = "".join(tokens[i:end])
        found = None if name in self._constants else self._names.find(name.split("::"), where)
        if found is not None and found.kind == "constant":
            if found.known is None:
                found.known = self._constant(found, self._below(where, found))
            return int(found.known), end
        if name not in self._constants:
            raise self._no_integer(tokens[i:end], where)
        return self._constants[name], end


def _spelled(tokens: list[str]) -> str:
    """Tokens as one would write them."""
    text = re.sub(r"\s++(?!\w)|(?<!\w)\s++", "", " ".join(tokens))
    return text.replace(",", ", ")


def _key(name: Any) -> str:
    """The name of a type or constant, spelled as those in the text are."""
    if not isinstance(name, str):
        raise TypeError(f"types and constants go by name, got {name!r:.60}")
    return _spelled(_TOKEN.findall(name))


def _dtype(name: Any, dtype: Any) -> str:
    """The dtype that a caller gives; C++ and NumPy do not mean the same by other names."""
    if isinstance(dtype, str) and dtype not in ITEMSIZE:
        known = ", ".join(ITEMSIZE)
        raise ValueError(f"types[{name!r:.60}]: unknown dtype {dtype!r:.60}; known are {known}")
    return Scalar(f"types[{name!r:.60}]", dtype).dtype


def _arguments(text: str) -> list[str]:
    """The arguments of a template."""
    found, depth, begin = [], 0, 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in ("<", "(", "[", "{")) - (token[0] in (">", ")", "]", "}"))
        if token[0] == "," and not depth:
            found.append(text[begin : token.start()])
            begin = token.end()
    return [*found, text[begin:]] if text else []
