"""C++ text without comments and literals, what the preprocessor decides in it, and its integers."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass

NESTING = 256
"""Of scopes, and of `#if`s; compilers stop there, too."""

# In these two what begins is taken as far as it goes, closed or not.
_COMMENT = r"/\*[^*]*+(?:\*(?!/)[^*]*+)*+(?:\*/)?|//(?:\\[^\S\n]*+\n|[^\n])*+"
_NOISE = re.compile(
    rf"""(?P<comment>{_COMMENT})|(?P<splice>\\[^\S\n]*+\n)
    |\#[^\S\n]*+(?P<directive>\w*+)(?P<rest>(?:\\[^\S\n]*+\n|{_COMMENT}
       |"(?:[^"\\\n]|\\(?s:.))*+"?|'(?:[^'\\\n]|\\[^\n]){{1,9}}+'|[^\n])*+)
    |\b(?:u8|[uUL])?R"(?P<mark>[^\s()\\"]{{0,16}})\((?s:.*?)(?:(?P<raw>\)(?P=mark)")|\Z)
    |(?P<number>\b\d(?:'?\w|\.)*+)
    |"(?:[^"\\\n]|\\(?s:.))*+(?P<quote>"?)|'(?:[^'\\\n]|\\(?s:.))*+(?P<tick>'?)""",
    re.VERBOSE,
)
_CUT = re.compile(r"[/*](?:\\[^\S\n]*+\n)++[/*]")
_BRANCH = re.compile(
    r"\#define\ (?P<defined>\w++)|\#(?P<kind>if\ 0\b|if|endif|else\b|el)"
    r"(?:ndef\ (?P<guard>\w++)\ \#\s*+\#define\ (?P=guard)\ )?"
)

_INTEGER = re.compile(r"(?:(0[xX][0-9a-fA-F]+|0[bB][01]+)|(0[0-7]+)|(\d+))[uUlLzZ]*")
_TERM = re.compile(r"[\s(]*+(?:(-\s*)?([\d']\w*)|(\w+))(?:\s*<<\s*(\d+))?[\s)]*+")


def _refused(text: str, at: int, what: str) -> ValueError:
    return ValueError(f"line {text.count(chr(10), 0, at) + 1}: {what}")


def cleaned(text: str) -> str:
    """The text without comments, literals and what `#if 0` leaves out; its lines are the same.

    A literal becomes `""`, one that is not closed `"`, and a directive its first word, in `#`; with
    `#define` and `#ifndef` stays the macro, and with `#if 0` the 0.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if (cut := _CUT.search(text)) is not None:
        raise _refused(text, cut.start(), "a backslash may cut a comment's mark in two; join them")
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
                raise _refused(text, found.start(), "a comment is not closed")
        elif found["splice"]:
            left = " "
            if re.match(r"\w[\w\"']", kept[-1:] + text[at : at + 1]) and not out:
                raise _refused(text, found.start(), "a backslash cuts a word in two; join them")
        elif word is not None:
            rest = found["rest"]
            if re.search(r'R"', rest) and not out:
                raise _refused(text, found.start(), "a raw string in a directive is not read")
            left = f"#{word} #"
            if word in ("define", "ifndef") and (macro := re.match(r"\s*(\w+)", rest)):
                left = f"#{word} {macro[1]} #"
            if out:
                otherwise = out == 1 and word.startswith("el")
                out += word.startswith("if") - (word == "endif" or otherwise)
            elif word == "if" and rest.partition("/")[0].strip() == "0":
                pieces.append("#if 0 #")
                out = 1
        pieces.append(("" if out else left) + "\n" * noise.count("\n"))
    clean = "".join([*pieces, "" if out else text[at:]])
    if (digraph := re.search("<%|%>|%:", clean)) is not None:
        raise _refused(clean, digraph.start(), f"{digraph[0]} is not read; write the sign itself")
    return clean


@dataclass(slots=True, eq=False)
class _Branch:
    """What stands between two directives of an `#if`."""

    outer: _Branch | None
    group: list[_Branch]  # those of the same `#if`
    kind: str
    guard: bool
    end: float = math.inf

    def surely(self) -> bool:
        """Whether a compiler reads it: an include guard's, or what is left by `#if 0`."""
        if self.group[0].kind == "if 0":
            return len(self.group) == 2 and self.kind == "else"
        return self.guard and len(self.group) == 1


class Branches:
    """Where in clean text the preprocessor decides what a compiler reads.

    Raises:
        ValueError: `#if`s nested too deeply.
    """

    def __init__(self, text: str) -> None:
        self._starts: list[int] = []
        self._branches: list[_Branch | None] = []
        now, depth, defined = None, 0, set[str]()
        for found in _BRANCH.finditer(text):
            kind = found["kind"]
            if kind is None:
                defined.add(found["defined"])
                continue
            if kind.startswith("if"):
                depth += 1
                if depth > NESTING:
                    raise _refused(text, found.start(), f"more than {NESTING} #if in each other")
                guard = found["guard"] is not None and found["guard"] not in defined
                defined.add(found["guard"])
                now = _Branch(now, [], kind, guard)
                now.group.append(now)
            elif now is not None:
                now.end = found.start()
                if kind == "endif":
                    depth, now = depth - 1, now.outer
                else:
                    now = _Branch(now.outer, now.group, kind, False)
                    now.group.append(now)
            self._starts.append(found.start())
            self._branches.append(now)

    def _at(self, at: int) -> _Branch | None:
        """The innermost branch there that a compiler may leave out."""
        i = bisect_right(self._starts, at)
        return self._real(self._branches[i - 1] if i else None)

    def _real(self, branch: _Branch | None) -> _Branch | None:
        while branch is not None and branch.surely():
            branch = branch.outer
        return branch

    def read(self, places: list[int], at: int) -> bool:
        """Whether a compiler that reads the text at `at` surely has read one of these places."""
        found = [self._at(place) for place in places if place < at]
        if any(branch is None or at < branch.end for branch in found):
            return True
        group = found[0].group if found and found[0] else []
        if not group or group[-1].kind != "else" or group[-1].end > at:
            return False
        outer = self._real(group[0].outer)
        return {*group} <= {*found} and (outer is None or at < outer.end)


def integer(token: str) -> int | None:
    """The value of an integer as C++ writes it."""
    digits = _INTEGER.fullmatch(token.replace("'", "")) if len(token) <= 80 else None
    if digits is None:
        return None
    prefixed, octal, decimal = digits.groups()
    return int(prefixed, 0) if prefixed else int(octal or decimal, 8 if octal else 10)


def fits_int(body: str) -> bool:
    """Whether an enum of such enumerators, and without an underlying type, surely fits an int."""
    known: dict[str, int] = {}
    value = -1
    for each in body.split(","):
        name, equals, text = (part.strip() for part in each.partition("="))
        if name or equals:
            value = 0 if equals else value + 1
            for term in text.split("|") if equals else ():
                part = _term(term, known)
                if part is None:
                    return False
                value |= part
            if not name.isidentifier() or not -(1 << 31) <= value < 1 << 31:
                return False
            known[name] = value
    return True


def _term(text: str, known: dict[str, int]) -> int | None:
    """An enumerator's value, or a part of it; None where that is not certain."""
    found = _TERM.fullmatch(text)
    if found is None:
        return None
    minus, digits, name, shift = found.groups()
    value = integer(digits) if digits else known.get(name)
    if value is None or value >= 1 << 31 or (minus and (shift or not (digits or "").isdigit())):
        return None
    return -value if minus else value << min(int((shift or "0")[:9]), 99)
