"""A layout in words: what `to_dict` gives, and JSON that nobody vouches for."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NoReturn, Self

from ._dtypes import ITEMSIZE, exact_int
from ._fields import MAX_FIELDS, Column, Scalar

MAX_BYTES = 1 << 24
"""Of JSON that is read unless the caller says otherwise: 65 536 fields of 256 bytes each."""

_SHORT = 1 << 17
"""Characters that cost little, whatever they are."""

_TOO_DENSE = "it has more brackets, commas and quotes than its fields could need"

_DIGITS = 20
"""More than those of any number that a layout can have."""


def field_to_dict(field: Column | Scalar) -> dict[str, Any]:
    """A field in words."""
    known: dict[str, Any] = {"name": field.name, "dtype": field.dtype}
    if isinstance(field, Scalar):
        shape = {"shape": list(field.shape)} if field.shape else {}
        return {"kind": "scalar", **known, **shape}
    adjacent = {"interleaved": True} if field.interleaved else {}
    known |= {"shape": list(field.shape), "order": field.order, **adjacent}
    return {"kind": "column", **known}


def fields_from_dict(description: Any) -> dict[str, Any]:
    """`fields` that a layout's description names, and its `alignment`, which is not checked."""
    if isinstance(description, Mapping) and "blocks" in description:
        raise ValueError("this describes Blocks, and not one layout: Blocks.from_json reads it")
    top = check_keys("the layout", description, {"fields"}, {"alignment"})
    if not isinstance(top["fields"], (list, tuple)):
        raise TypeError(f"the layout's fields must be a list, got {top['fields']!r:.60}")
    if len(top["fields"]) > MAX_FIELDS:
        raise ValueError(f"{len(top['fields'])} fields are too many; at most {MAX_FIELDS}")
    fields = [_field_from_dict(number, field) for number, field in enumerate(top["fields"])]
    return {"fields": fields, "alignment": top.get("alignment", 128)}


def _field_from_dict(number: int, description: Any) -> Column | Scalar:
    """The field that these words describe."""
    where = f"field number {number}"
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if kind is not None and kind not in ("column", "scalar"):
        raise ValueError(f"{where}: kind must be 'column' or 'scalar', got {kind!r:.60}")
    optional = {"shape", "order", "interleaved"} if kind == "column" else {"shape"}
    given = dict(check_keys(where, description, {"kind", "name", "dtype"}, optional))
    if given.pop("kind") is None:
        raise ValueError(f"{where}: kind must be 'column' or 'scalar', got None")
    if not isinstance(given["dtype"], str) or given["dtype"] not in ITEMSIZE:
        raise ValueError(
            f"{where}: unknown dtype {given['dtype']!r:.60}; known are {', '.join(ITEMSIZE)}"
        )
    if given.get("order", "F") is None:  # which the constructor takes for one that is left out
        raise ValueError(f"{where}: order must be 'F' or 'C', got None")
    try:
        return Column(**given) if kind == "column" else Scalar(**given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None


def check_keys(where: str, got: Any, needed: set[str], optional: set[str]) -> Mapping[str, Any]:
    """A mapping that has all that is needed, and no more than that and the optional."""
    if not isinstance(got, Mapping):
        raise TypeError(f"{where} must be a mapping, got {got!r:.60}")
    for key in got:
        if key not in needed | optional:
            raise ValueError(f"{where} has an unknown key {key!r:.60}")
    if missing := needed - got.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    return got


def parse_json(text: str | bytes, max_bytes: int) -> Any:
    """JSON as Python has it, but no key twice, no NaN, and nothing that costs more than it says."""
    if not isinstance(text, (str, bytes, bytearray)):
        raise TypeError(
            f"a layout's JSON must be a string or bytes, such as a file's content, "
            f"got {type(text).__name__}"
        )
    if len(text) > exact_int(max_bytes, "max_bytes"):
        raise ValueError(
            f"more than {max_bytes} bytes are no layout, got {len(text)}; if this one is meant, "
            f"pass max_bytes={len(text)}"
        )
    try:
        if not isinstance(text, str):
            text = text.decode()
        _check_structure(text)
        return json.loads(
            text, object_pairs_hook=_once, parse_int=_integer, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("not a layout's JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not a layout's JSON: {error}") from None


def _check_structure(text: str) -> None:
    """Raise for a long text that would take far more memory than a layout's: lists of lists.

    A field takes 43 characters at the least, 12 of them quotes, with two brackets and six commas
    at the most.
    """
    if len(text) <= _SHORT:
        return
    if text.count('"') > 3 * len(text) // 10:
        raise ValueError(_TOO_DENSE)
    # A string that does not end is one, too, or each quote in it would be looked at again.
    bare = re.sub(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', "", text, flags=re.DOTALL)
    if bare.count("[") + bare.count("{") > len(text) // 15 or bare.count(",") > len(text) // 10:
        raise ValueError(_TOO_DENSE)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r:.60} stands twice")
            seen.add(key)
    return found


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"{digits:.30}... is a number of {len(digits)} digits")
    return int(digits)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


class Described(ABC):
    """What can be told in words, and be made of them again: a layout, and blocks of layouts."""

    __slots__ = ()

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A description that JSON can hold and `from_dict` turns back."""

    @classmethod
    @abstractmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Self:
        """What `to_dict` described."""

    def to_json(self) -> str:
        """`to_dict` as JSON: what goes beside the memory into a file, with the row counts.

        >>> from soaview import Layout, Scalar
        >>> Layout([Scalar("n", "int32")]).to_json()
        '{"alignment": 128, "fields": [{"kind": "scalar", "name": "n", "dtype": "int32"}]}'
        """
        return json.dumps(self.to_dict())

    def to_cpp(self, name: str) -> str:
        """A C++17 header of that name: offsets from row counts, and accessors over memory.

        It includes the standard library alone, and is for CUDA's and HIP's device code, too.
        `Layout.from_cpp` and `Blocks.from_cpp` read the layout back from it.

        Args:
            name: of the struct.

        Raises:
            ValueError: a name that C++ does not take, or the header has for something else.

        >>> from soaview import Column, Layout
        >>> header = Layout([Column("pt", "float32")]).to_cpp("Tracks")
        >>> "float>& pt(std::size_t row) const {" in header
        True
        >>> Layout.from_cpp(header)
        Layout([Column('pt', 'float32')])
        """
        from ._to_cpp import to_cpp

        return to_cpp(self, name)

    @classmethod
    def from_cpp(
        cls,
        text: str,
        *,
        name: str | None = None,
        types: Mapping[str, Any] | None = None,
        constants: Mapping[str, int] | None = None,
        alignment: int = 128,
    ) -> Self:
        """What a declaration of the CMS experiment's C++ declares, or a header of `to_cpp` tells.

        `Layout` reads `GENERATE_SOA_LAYOUT`, `Blocks` reads `GENERATE_SOA_BLOCKS`.

        Args:
            text: a header's content, or several headers' that follow each other; it is read, not
                compiled. Types, enums and constants that it declares are known, and the layouts of
                blocks, before the blocks; those of the headers that it includes are not.
            name: which of several, with or without its scopes.
            types: dtypes of types from elsewhere, as the text spells them: `{"Id": "uint32"}`.
            constants: integers from elsewhere, likewise: `{"kN": 71}`.
            alignment: bytes; the C++ class's own, a parameter of it, which the text need not say.
                A header of `to_cpp` says it.

        Raises:
            ValueError: with the line and the field: what is unknown, or no field of soaview's.
            KeyError: no declaration of that name.

        >>> from soaview import Blocks, Layout
        >>> text = "GENERATE_SOA_LAYOUT(Hits, SOA_COLUMN(float, x), SOA_SCALAR(int, n))"
        >>> Layout.from_cpp(text)
        Layout([Column('x', 'float32'), Scalar('n', 'int32')])
        >>> text += "GENERATE_SOA_BLOCKS(Event, SOA_BLOCK(hits, Hits))"
        >>> Blocks.from_cpp(text)
        Blocks({'hits': Layout([Column('x', 'float32'), Scalar('n', 'int32')])})
        """
        from ._cpp import Header
        from ._to_cpp import told_in

        told: Self | None = told_in(text, name, cls)
        if told is not None:
            return told
        made: Self = Header(text, types, constants).made(cls, name, alignment)
        return made

    @classmethod
    def from_json(cls, text: str | bytes, *, max_bytes: int = MAX_BYTES) -> Self:
        """What `to_json` wrote; made for files that one does not trust.

        It holds no offsets, for these follow from the fields, and nothing is allocated for it.

        Args:
            text: JSON; bytes are UTF-8.
            max_bytes: of the text (of a string, characters). The default holds the largest layout;
                what a text costs in time and memory, refused or not, grows with its size.

        Raises:
            ValueError: longer than `max_bytes`; no JSON; a key that stands twice or is unknown or
                missing; numbers that JSON does not have; a layout that cannot be.
            TypeError: a value of the wrong type; neither a string nor bytes.

        >>> from soaview import Layout
        >>> Layout.from_json('{"fields": [{"kind": "scalar", "name": "n", "dtype": "int32"}]}')
        Layout([Scalar('n', 'int32')])
        """
        return cls.from_dict(parse_json(text, max_bytes))
