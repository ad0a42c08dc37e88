"""What C++ text names, scope by scope.

One pass takes comments and literals away, a second one notes the names that it understands, a third
one where else a name stands as if it were declared: there, the text is not certain, and a name that
would be looked up past that place is refused. No pass looks at anything again, so that the work
grows as the text does.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ._cpp_text import NESTING, Branches, cleaned, fits_int

LAYOUT, BLOCKS = "GENERATE_SOA_LAYOUT", "GENERATE_SOA_BLOCKS"

_INNER = "[^<>;{}]*+"
for _ in range(4):  # templates in templates
    _INNER = f"(?:[^<>;{{}}]|<{_INNER}>)*+"
_NAMES = re.compile(
    r"""\b(?:(?P<macro>GENERATE_SOA_LAYOUT|GENERATE_SOA_BLOCKS)\s*+\(\s*+(?P<declared>\w++)
    |(?P<inline>inline\s++)?namespace\b(?P<spaces>[\w\s:]*+)(?P<space>\{)?
    |template\s*+<(?P<parameters>{_INNER})>
    |(?:struct|class|union)\b(?P<struct>[\w\s]*+)(?P<bases>:(?!:)[^;{}\#]*+)?(?P<body>[{;])?
    |using\s++(?P<alias>\w++)\s*+=(?P<aliased>[^;{}\#]*+)
    |using\s++(?P<brought>[\w\s:]*+)
    |typedef\b(?!\s++(?:enum|struct|class|union)\b)(?P<typedef>[^;{}\#]*+)
    |(?P<types>typedef\s++)?enum\b(?P<scoped>\s++(?:class|struct)\b)?\s*+(?P<enum>\w*+)\s*+
     (?::(?P<base>[^;{}\#]*+))?(?P<values>;|\{[^{}]*+\}(?:\s*+(?P<after>\w++)?\s*+(?P<end>;))?)?
    |(?:(?:static|inline|extern)\s++){0,3}+(?:constexpr|const)\b(?P<constant>[^;={}()\#]*+)
     (?:=(?P<value>[^;,{}\#]*+)|\{(?P<braced>[^{}\#]*+)\})?
    )|\)\s*+const\b|(?P<linkage>extern\s*+""\s*+)?(?P<brace>\{)|(?P<close>[};])
    |\#(?P<branch>if|el|endif)|\#define\ (?P<defined>\w++)""".replace("{_INNER}", _INNER),
    re.VERBOSE,
)
_PARENTHESIS = re.compile(r"[()]")

# How a name stands where it may be declared: after what, and before what.
_TOKEN = re.compile(r"\w+|::|->|[^\w\s]")
_BEFORE = {">", "*", "&", "]", ")", ",", "{", "::", "."}
_AFTER = {*"=;,{([:)}.", "final", "alignas", "__attribute__"}
_NO_TYPE = re.compile(
    "return|throw|case|goto|new|delete|sizeof|alignof|alignas|decltype|operator|else|do|if|while|switch"
)
_SPECIFIER = re.compile(
    "typedef|static|inline|constexpr|virtual|explicit|friend|mutable|extern|const|volatile|typename"
)
_BUILT_IN = re.compile(
    r"[\d_]\d*|void|auto|bool|char|short|int|long|signed|unsigned|float|double|const|std"
    r"|u?int\d+_t|u?intptr_t|size_t|ptrdiff_t"
)


@dataclass(slots=True, eq=False)
class Scope:
    """What is named in a namespace or class, or between other braces."""

    name: str
    outer: Scope | None
    at: int
    depth: int = 0
    names: dict[str, Named] = field(default_factory=dict)
    inner: dict[str, Scope] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)  # where names stand, not understood
    heads: dict[str, int] = field(default_factory=dict)  # of those, the ones before a template
    foreign: float = math.inf  # from where on it has names of elsewhere, too

    def path(self) -> list[str]:
        """The names of the scopes, the outermost first."""
        return [] if self.outer is None else [*self.outer.path(), self.name]

    def ends(self, names: list[str]) -> bool:
        """Whether its path ends with these names; from `::` on, whether it is them."""
        if names[:1] == [""]:
            return self.path() == names[1:]
        return not names or self.path()[-len(names) :] == names


@dataclass(slots=True, eq=False)
class Named:
    """What a name stands for: `text`, or what is in the parentheses of a declaration."""

    kind: str
    name: str
    scope: Scope
    at: int  # the character of the text at which it stands
    text: str
    of: str = ""  # the type of a constant
    places: list[int] = field(default_factory=list)  # at which it is declared, the same
    clash: bool = False  # it stands for something else, too
    known: Any = None  # what has been made of it


class Where(NamedTuple):
    """From where names are looked up, for which field, and how deep in others."""

    scope: Scope
    at: int
    field: str = ""
    depth: int = 0


class _Open(NamedTuple):
    """A brace that is open, and those around it."""

    at: int
    scope: Scope
    around: _Open | None
    depth: int


class Names:
    """The names in C++ text.

    Attributes:
        text: without comments and literals.
        declared: layouts and blocks.

    Raises:
        ValueError: brackets and comments that are not closed; scopes nested too deeply.
    """

    def __init__(self, text: str) -> None:
        self.text = cleaned(text)
        self.declared: list[Named] = []
        self._branches = Branches(self.text)
        self._root = Scope("", None, 0)
        self._macros: dict[str, int] = {}
        self._marks: list[tuple[int, Scope | None]] = [(0, self._root)]  # None: understood
        self._note_all()
        self._note_unread()

    def line(self, at: int) -> int:
        """The line of a character."""
        return self.text.count("\n", 0, at) + 1

    def error(self, where: Where, message: str) -> ValueError:
        """The error that says so."""
        field = f"field {where.field!r:.80}: " if where.field else ""
        return ValueError(f"line {self.line(where.at)}: {field}{message}")

    def find(self, parts: list[str], where: Where) -> Named | None:
        """What a name stands for where it is used, as C++ looks it up; None: it is not declared.

        Raises:
            ValueError: for what is not certain.
        """
        self.no_macro(parts, where)
        here: Scope | None = where.scope
        if parts[0] == "":
            here, parts = self._root, parts[1:]
        first, start, at = parts[0], here, where.at
        none = unread = foreign = math.inf
        while here is not None:
            if here is not start and first in here.heads:
                unread = min(unread, here.heads[first])
            if first in here.names and here.names[first].at < at:
                break
            if first in here.inner and here.inner[first].at < at:
                break
            unread = min(unread, here.unread.get(first, none))
            foreign = min(foreign, here.foreign)
            here = here.outer
        if unread < at:
            raise self._unsure(parts, where, "stands in a place that is not understood", unread)
        if here is None:
            return None
        if foreign < at:
            raise self._unsure(parts, where, "may be a name of elsewhere, which comes in", foreign)
        scope: Scope | None = here
        for part in parts[:-1]:
            scope = None if scope is None else scope.inner.get(part)
        named = None if scope is None else scope.names.get(parts[-1])
        if named is None or named.at >= at:
            if here is self._root and first in ("std", "Eigen"):
                return None
            raise self._unsure(parts, where, "is not declared in what has its first name", here.at)
        if named.clash:
            raise self._unsure(parts, where, "stands for two things, one of them", named.at)
        if not self._branches.read(named.places, at):
            raise self._unsure(parts, where, "depends on an #if, or stands after it,", named.at)
        return named

    def no_macro(self, words: list[str], where: Where) -> None:
        """Refuse what `#define` may have made something else."""
        for word in words:
            if (at := self._macros.get(word, where.at)) < where.at:
                raise self._unsure([word], where, "is a macro", at)

    def _unsure(self, parts: list[str], where: Where, what: str, at: float) -> ValueError:
        return self.error(
            where,
            f"{'::'.join(parts)!r:.80} {what} in line {self.line(int(at))}; pass types= or "
            f"constants= with the one that is meant, or cut the other out",
        )

    def _note_all(self) -> None:
        """Note the names. Braces count as in the last branch of an `#if`."""
        scopes = _Open(0, self._root, None, 1)
        branches: list[_Open] = []
        parameters: list[str] = []  # of the template whose brace is to come
        at = 0
        while found := _NAMES.search(self.text, at):
            at, scope, inner, before = found.end(), scopes.scope, None, scopes
            if found["declared"]:
                end = self._closing(found.start(), at)
                text = self.text[at:end]
                self.declared.append(self._note(found["macro"], found["declared"], scope, at, text))
                self._marks += [(at, None), (end + 1, scope)]
                at = end + 1
            elif found["defined"]:
                self._macros.setdefault(found["defined"], found.start())
            elif found["parameters"]:
                each = (p.partition("=")[0].split() for p in found["parameters"].split(","))
                parameters += [words[-1].lstrip(".") for words in each if len(words) > 1]
            elif found["branch"] == "if":
                branches.append(scopes)
            elif found["branch"] and branches:
                begun = branches[-1]
                if found["branch"] == "el":
                    scopes = begun
                elif branches.pop().scope is not scope:  # which one it is depends on the #if
                    other = Scope(scope.name, scope.outer, at, scope.depth, foreign=at - 1)
                    scopes = scopes._replace(scope=other)
            elif found["close"]:
                parameters = []
                if found["close"] == "}" and scopes.around is None:
                    raise self.error(Where(scope, found.start()), "} closes nothing")
                if found["close"] == "}" and scopes.around is not None:
                    scopes = scopes.around
            else:
                inner = self._opened(found, scope, bool(parameters))
                parameters = [] if found[0].endswith(";") else parameters
            if inner is not None:
                if scopes.depth > NESTING:
                    raise self.error(Where(scope, at), f"more than {NESTING} scopes in each other")
                scopes = _Open(at - 1, inner, scopes, scopes.depth + 1)
                for name in parameters:
                    self._note("parameter", name, inner, at, "")
                parameters = []
            if scopes is not before:
                self._marks.append((at, scopes.scope))
        if scopes.around is not None:
            raise self.error(Where(self._root, scopes.at), "{ is not closed")

    def _closing(self, start: int, at: int) -> int:
        depth = 1
        for found in _PARENTHESIS.finditer(self.text, at):
            depth += 1 if found[0] == "(" else -1
            if not depth:
                return found.start()
        raise self.error(Where(self._root, start), "( is not closed")

    def _opened(self, found: re.Match[str], scope: Scope, template: bool) -> Scope | None:
        """Note what is named here; where that opens a brace, the scope inside it."""
        at, after = found.start(), self.text[found.end() : found.end() + 1]
        if found["alias"]:
            kind, text = "template" if template else "alias", found["aliased"]
            # What does not end here is not read: let it be known as that.
            self._note(kind, found["alias"], scope, at, text if after == ";" else "")
            self._marks += [(found.start("aliased"), None), (found.end(), scope)]
        elif found["brought"]:
            _, space, name = found["brought"].rpartition("::")
            if found["brought"].split()[0] in ("namespace", "enum"):
                scope.foreign = min(scope.foreign, at)
            else:
                self._note("alias", name.strip(), scope, at, found["brought"] if space else "")
        elif found["typedef"]:
            name = _last_word(found["typedef"])
            if after == ";":
                self._note("alias", name, scope, at, found["typedef"].rstrip().removesuffix(name))
        elif found["constant"]:
            group = "braced" if found["value"] is None else "value"
            name, value = _last_word(found["constant"]), found[group]
            if value is not None and self._begins(at):
                of = found["constant"].rstrip().removesuffix(name)
                value = value if after in (";", ",") else ""
                self._note("constant", name, scope, at, value, of)
                self._marks += [(found.start(group), None), (found.end(), scope)]
        elif found["values"]:
            base = found["base"] or ("int" if found["scoped"] else "")
            ended = found["end"] and not (found["after"] and not found["types"])
            if not base and ended and fits_int(found["values"][1:-1].partition("}")[0]):
                base = "int"
            for name in {found["enum"], found["after"] or ""}:
                if base or found["values"] != ";":
                    self._note("enum", name, scope, at, base)
        elif found["struct"] is not None:
            names = [name for name in found["struct"].split() if name != "final"]
            if names and (found["body"] == "{" or (found["body"] == ";" and len(names) == 1)):
                self._note("struct", names[-1], scope, at, "")
            if found["body"] == "{":
                inner = self._inside(scope, names[-1:], at)
                inner.foreign = at if found["bases"] or not names else inner.foreign
                return inner
        elif found["space"]:
            names = [] if found["inline"] else found["spaces"].replace("::", " ").split()
            return self._inside(scope, names, at)
        elif found["linkage"]:
            return scope
        elif found["brace"]:
            return Scope("{", scope, at, scope.depth + 1, foreign=at)
        return None

    def _inside(self, scope: Scope, names: list[str], at: int) -> Scope:
        """The scope of that name, perhaps opened again."""
        if scope.depth + len(names) > NESTING:
            raise self.error(Where(scope, at), f"more than {NESTING} scopes in each other")
        for name in names:
            scope = scope.inner.setdefault(name, Scope(name, scope, at, scope.depth + 1))
        return scope

    def _begins(self, at: int) -> bool:
        """Whether a declaration begins there, and not a function's parameter."""
        while at and self.text[at - 1].isspace():
            at -= 1
        return not at or self.text[at - 1] in ";{}:#"

    def _note(self, kind: str, name: str, scope: Scope, at: int, text: str, of: str = "") -> Named:
        text = text.strip() if kind not in (LAYOUT, BLOCKS) else text
        named = Named(kind, name, scope, at, text, of.strip(), [at])
        if name:
            first = scope.names.setdefault(name, named)
            first.clash |= (first.kind, first.text, first.of) != (kind, text, named.of)
            if first is not named and len(first.places) < 16:
                first.places.append(at)
        return named

    def _note_unread(self) -> None:
        """Note where names stand as if they were declared, understood or not."""
        self._marks.append((len(self.text) + 1, None))
        scope: Scope | None = self._root
        i, head, name, at = 0, False, "", 0
        within, two_before, before = scope, "", ""  # of the name: its scope, the tokens before it
        for found in _TOKEN.finditer(self.text):
            token = found[0]
            if within is not None and _declares(two_before, before, name, token):
                within.unread.setdefault(name, at)
                if head:
                    within.heads.setdefault(name, at)
            head = token == "template" or (head and token not in (";", "{", "}"))
            while self._marks[i][0] <= found.start():
                scope = self._marks[i][1]
                i += 1
            two_before, before, name, at, within = before, name, token, found.start(), scope


def _is_name(token: str) -> bool:
    return token[:1].isalpha() or token[:1] == "_"


def _declares(two_before: str, before: str, name: str, after: str) -> bool:
    """Whether a name between these tokens may be declared there."""
    if not _is_name(name) or (two_before, before) == ("using", "namespace"):
        return False
    typed = _is_name(before) and not _NO_TYPE.fullmatch(before)
    if after in _AFTER:
        macro = before == "(" and _is_name(two_before) and not _NO_TYPE.fullmatch(two_before)
        found = typed or macro or before in _BEFORE
    elif after == ">":
        found = before == "." or (typed and before not in ("const", "volatile"))
    else:
        typed = typed and not _SPECIFIER.fullmatch(before)
        found = _is_name(after) and (typed or before in ("]", ")"))
    return found and not _BUILT_IN.fullmatch(name)


def _last_word(text: str) -> str:
    """The word at the end of the text, if there is one."""
    text = text.rstrip()
    for i in range(len(text), 0, -1):
        if not (text[i - 1].isalnum() or text[i - 1] == "_"):
            return text[i:]
    return text
