"""What C++ text names, scope by scope.

One pass takes comments and literals away, a second one notes the names. Neither looks at anything
again, so that the work grows as the text does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

LAYOUT, BLOCKS = "GENERATE_SOA_LAYOUT", "GENERATE_SOA_BLOCKS"

_NESTING = 256  # of scopes; compilers stop there, too

# In these two what begins is taken as far as it goes, closed or not.
_COMMENT = r"/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/)?|//(?:\\[^\S\n]*+\n|[^\n])*+"
_NOISE = re.compile(
    rf"""(?P<comment>{_COMMENT}|\\[^\S\n]*+\n)
    |\#[^\S\n]*+(?P<directive>\w*+)(?P<rest>(?:\\[^\S\n]*+\n|{_COMMENT}|"[^"\n]*+"|[^\n])*+)
    |\b(?:u8|[uUL])?R"(?P<mark>[^\s()\\"]{{0,16}})\((?s:.*?)(?:(?P<raw>\)(?P=mark)")|\Z)
    |(?P<number>\b\d(?:'?\w|\.)*+)
    |"(?:[^"\\\n]|\\(?s:.))*+(?P<quote>"?)|'(?:[^'\\\n]|\\(?s:.))*+(?P<tick>'?)""",
    re.VERBOSE,
)
_INNER = "[^<>;{}]*+"
for _ in range(4):  # templates in templates
    _INNER = f"(?:[^<>;{{}}]|<{_INNER}>)*+"
_NAMES = re.compile(
    r"""\b(?:(?P<macro>GENERATE_SOA_LAYOUT|GENERATE_SOA_BLOCKS)\s*+\(\s*+(?P<declared>\w++)
    |(?P<inline>inline\s++)?namespace\b(?P<spaces>[\w\s:]*+)(?P<space>\{)?
    |template\s*+<(?P<parameters>{_INNER})>
    |(?:struct|class|union)\b(?P<struct>[\w\s]*+)(?::(?!:)[^;{}]*+)?(?P<body>[{;])?
    |using\s++(?P<alias>\w++)\s*+=(?P<aliased>[^;]*+)
    |using\s++(?P<brought>[\w\s:]*+)
    |typedef\b(?!\s++(?:enum|struct|class|union)\b)(?P<typedef>[^;{}]*+)
    |enum\b(?P<scoped>\s++(?:class|struct)\b)?\s*+(?P<enum>\w*+)\s*+(?::(?P<base>[^;{}]*+))?
     (?P<values>;|\{[^{}]*+\}(?:\s*+(?P<after>\w++)\s*+;)?)?
    |(?:constexpr|const)\b(?P<constant>[^;={}()\#]*+)
     (?:=(?P<value>[^;,{}]*+)|\{(?P<braced>[^{}]*+)\})?
    )|\)\s*+const\b|(?P<linkage>extern\s*+""\s*+)?(?P<brace>\{)|(?P<close>[};])
    |\#(?P<branch>if|el|endif)""".replace("{_INNER}", _INNER),
    re.VERBOSE,
)
_PARENTHESIS = re.compile(r"[()]")
_WORD = re.compile(r"\w+")
_INTEGER = re.compile(r"(?:(0[xX][0-9a-fA-F]+|0[bB][01]+)|(0[0-7]+)|(\d+))[uUlLzZ]*")

Path = tuple[str, ...]
"""Scopes, the outermost first; one without a name has a number instead."""


@dataclass(slots=True, eq=False)
class Named:
    """What a name stands for: `text`, or what is in the parentheses of a declaration."""

    kind: str
    name: str
    path: Path
    at: int  # the character of the text at which it stands
    text: str
    clash: bool = False  # it stands for something else, too
    known: Any = None  # what has been made of it


class Where(NamedTuple):
    """From where names are looked up, for which field, and how deep in others."""

    path: Path
    at: int
    field: str = ""
    depth: int = 0


class Names:
    """The names in C++ text.

    Attributes:
        text: without comments and literals.
        declared: layouts and blocks.

    Raises:
        ValueError: brackets and comments that are not closed; scopes nested too deeply.
    """

    def __init__(self, text: str) -> None:
        self.text = _cleaned(text)
        self.declared: list[Named] = []
        self._by_path: dict[Path, Named] = {}
        self._note_all()

    def line(self, at: int) -> int:
        """The line of a character."""
        return self.text.count("\n", 0, at) + 1

    def error(self, where: Where, message: str) -> ValueError:
        """The error that says so."""
        field = f"field {where.field!r:.80}: " if where.field else ""
        return ValueError(f"line {self.line(where.at)}: {field}{message}")

    def find(self, parts: list[str], where: Where) -> Named | None:
        """What a name stands for where it is used, as C++ looks it up.

        Raises:
            ValueError: for two things.
        """
        path, parts = ((), parts[1:]) if parts[0] == "" else (where.path, parts)
        for k in range(len(path), -1, -1):
            found = self._by_path.get((*path[:k], *parts))
            if found is not None and found.at < where.at:
                if found.clash:
                    raise self.error(
                        where,
                        f"{'::'.join(parts)!r:.80} stands for two things, one of them in line "
                        f"{self.line(found.at)}; pass types= or constants= with the one that is "
                        f"meant, or cut the other out",
                    )
                return found
        return None

    def _note_all(self) -> None:
        """Note the names. Braces count as in the last branch of an `#if`."""
        scopes: list[tuple[int, Path]] = [(0, ())]
        branches: list[list[tuple[int, Path]]] = []
        parameters: list[str] = []  # of the template whose brace is to come
        at = 0
        while found := _NAMES.search(self.text, at):
            at, path, inner = found.end(), scopes[-1][1], None
            if found["declared"]:
                end = self._closing(found.start(), at)
                text = self.text[at:end]
                self.declared.append(self._note(found["macro"], found["declared"], path, at, text))
                at = end + 1
            elif found["parameters"]:
                each = (p.partition("=")[0].split() for p in found["parameters"].split(","))
                parameters += [words[-1].lstrip(".") for words in each if len(words) > 1]
            elif found["branch"] == "if":
                branches.append(scopes[:])
            elif found["branch"] == "el" and branches:
                scopes = branches[-1][:]
            elif found["branch"] == "endif" and branches:
                branches.pop()
            elif found["close"]:
                parameters = []
                if found["close"] == "}" and len(scopes) == 1:
                    raise self.error(Where(path, found.start()), "} closes nothing")
                if found["close"] == "}":
                    scopes.pop()
            else:
                inner = self._opened(found, path, bool(parameters))
                parameters = [] if found[0].endswith(";") else parameters
            if inner is not None:
                if max(len(scopes), len(inner)) > _NESTING:
                    raise self.error(Where(path, at), f"more than {_NESTING} scopes in each other")
                scopes.append((at - 1, inner))
                for name in parameters:
                    self._note("parameter", name, inner, at, "")
                parameters = []
        if len(scopes) > 1:
            raise self.error(Where((), scopes[-1][0]), "{ is not closed")

    def _closing(self, start: int, at: int) -> int:
        depth = 1
        for found in _PARENTHESIS.finditer(self.text, at):
            depth += 1 if found[0] == "(" else -1
            if not depth:
                return found.start()
        raise self.error(Where((), start), "( is not closed")

    def _opened(self, found: re.Match[str], path: Path, template: bool) -> Path | None:
        """Note what is named here; where that opens a brace, the scopes inside it."""
        at, alone = found.start(), f"{{{found.end()}"
        if found["alias"]:
            kind = "template" if template else "alias"
            self._note(kind, found["alias"], path, at, found["aliased"])
        elif found["brought"]:
            if found["brought"].split()[0] not in ("namespace", "enum"):
                _, scope, name = found["brought"].rpartition("::")
                # Without a scope it is something that is not read here: let it be known as that.
                self._note("alias", name.strip(), path, at, found["brought"] if scope else "")
        elif found["typedef"]:
            name = _last_word(found["typedef"])
            self._note("alias", name, path, at, found["typedef"].rstrip().removesuffix(name))
        elif found["constant"]:
            value = found["braced"] if found["value"] is None else found["value"]
            if value is not None:
                self._note("constant", _last_word(found["constant"]), path, at, value)
        elif found["values"]:
            base = found["base"] or ("int" if found["scoped"] else "")
            if found["values"] != ";" and not base:
                base = "int" if _fits_int(found["values"]) else ""
            for name in {found["enum"], found["after"] or ""}:
                if base or found["values"] != ";":
                    self._note("enum", name, path, at, base)
        elif found["struct"] is not None:
            names = [name for name in found["struct"].split() if name != "final"]
            if names and (found["body"] == "{" or (found["body"] == ";" and len(names) == 1)):
                self._note("struct", names[-1], path, at, "")
            return (*path, names[-1] if names else alone) if found["body"] == "{" else None
        elif found["space"]:
            names = found["spaces"].replace("::", " ").split()
            return path if found["inline"] else (*path, *names)
        elif found["brace"]:
            return path if found["linkage"] else (*path, alone)
        return None

    def _note(self, kind: str, name: str, path: Path, at: int, text: str) -> Named:
        named = Named(kind, name, path, at, text.strip() if kind not in (LAYOUT, BLOCKS) else text)
        if name:
            first = self._by_path.setdefault((*path, name), named)
            first.clash |= (first.kind, first.text) != (kind, named.text)
        return named


def _last_word(text: str) -> str:
    """The word at the end of the text, if there is one."""
    text = text.rstrip()
    for i in range(len(text), 0, -1):
        if not (text[i - 1].isalnum() or text[i - 1] == "_"):
            return text[i:]
    return text


def integer(token: str) -> int | None:
    """The value of an integer as C++ writes it."""
    digits = _INTEGER.fullmatch(token.replace("'", "")) if len(token) <= 80 else None
    if digits is None:
        return None
    prefixed, octal, decimal = digits.groups()
    return int(prefixed, 0) if prefixed else int(octal or decimal, 8 if octal else 10)


def _fits_int(body: str) -> bool:
    """Whether an enum of such values, and without an underlying type, is surely an int."""
    body = re.sub(r"\b1[uU]?\s*+<<\s*+(?:[12]?\d|30)\b", "1", body)
    numbers = [integer(token) for token in re.findall(r"\b\d[\w'.]*", body)]
    small = all(number is not None and number < 1 << 31 for number in numbers)
    return small and re.search(r"[^\s\w{}(),=|&:;\"'-]", body) is None


def _cleaned(text: str) -> str:
    """The text without comments, literals and what `#if 0` leaves out; its lines are the same.

    A literal becomes `""`, one that is not closed `"`, and a directive `#` and its first word.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    pieces: list[str] = []
    at = out = 0  # the second: how many `#if`s deep in what is left out
    for found in _NOISE.finditer(text):
        if found["number"]:
            continue
        noise, word, kept = found[0], found["directive"], text[at : found.start()]
        at = found.end()
        pieces.append("\n" * kept.count("\n") if out else kept)
        left = '""' if found["quote"] or found["tick"] or found["raw"] else '"'
        if found["comment"]:
            left = " "
            if noise.startswith("/*") and (len(noise) < 4 or not noise.endswith("*/")):
                line = text.count("\n", 0, found.start()) + 1
                raise ValueError(f"line {line}: a comment is not closed")
        elif word is not None:
            left = f"#{word} "
            if out:
                otherwise = out == 1 and word.startswith("el")
                out += word.startswith("if") - (word == "endif" or otherwise)
            elif word == "if" and found["rest"].partition("/")[0].strip() == "0":
                pieces.append(left)
                out = 1
        pieces.append(("" if out else left) + "\n" * noise.count("\n"))
    return "".join([*pieces, "" if out else text[at:]])
