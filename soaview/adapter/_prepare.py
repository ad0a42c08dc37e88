"""From SoA to SoA, event after event: what is known before the first one comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._layout import Layout
from .._soa import SoA
from .._spec import Spec
from .._views import spec_hint, views
from ._forward import Pair
from ._targets import writable_views

Side = tuple[Layout, Spec]
"""What an event brings: a layout, and which of its columns make tensors."""

Sides = Side | Sequence[Side]
"""What `prepare` of an adapter takes: `(layout, spec)`, or a list of such pairs."""

Memories = SoA | tuple[Any, int] | Sequence[Any]
"""What a prepared model takes: an SoA or `(buffer, rows)`, or a list of these."""


def check_sides(what: str, given: Any) -> list[Side]:
    """One or several pairs of layout and spec, as a list, of which each can be read, or written.

    Args:
        what: `"inputs"` or `"outputs"`.
        given: `(layout, spec)`, or a list of such pairs.

    Raises:
        TypeError: anything else.
        ValueError: no pairs, or a spec without tensors.
        BufferError, KeyError, TypeError, ValueError: as `views`; of outputs, as `writable_views`.

    >>> from soaview import Column, Spec
    >>> len(check_sides("inputs", (Layout([Column("pt", "float32")]), Spec(x="pt"))))
    1
    """
    found = [given] if _is_side(given) else given
    if not isinstance(found, (tuple, list)) or not all(map(_is_side, found)):
        raise TypeError(
            f"{what} must be a pair (layout, spec), or a list of such pairs, got {given!r:.200}"
            f"{_hint(given)}"
        )
    if not found:
        raise ValueError(f"{what} are empty; pass at least one pair (layout, spec)")
    for layout, spec in found:
        if not spec:
            raise ValueError(f"{what}: a spec has no tensors")
        # With a row of its own, for messages count bytes.
        (views if what == "inputs" else writable_views)(layout.allocate(1), spec)
    return list(found)


def _is_side(given: Any) -> bool:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return False
    layout, spec = given
    return isinstance(layout, Layout) and isinstance(spec, Spec)


def _hint(given: Any) -> str:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return ""
    layout, spec = given
    if isinstance(layout, SoA):
        return "; it is for every event's SoA: pass soa.layout, and the SoA to what you get"
    return spec_hint(spec) if isinstance(layout, Layout) else ""


def soas_of(what: str, sides: Sequence[Side], given: Any) -> list[Pair]:
    """An event's memory as SoAs, each with its spec.

    Args:
        what: `"inputs"` or `"outputs"`.
        sides: what was prepared.
        given: for one side an SoA or `(buffer, rows)`; for several a list of these.

    Raises:
        TypeError, ValueError: not as many, another kind, or an SoA of another layout.
        BufferError, TypeError, ValueError: as `Layout.wrap`.

    >>> from soaview import Column, Spec
    >>> sides = [(Layout([Column("pt", "float32")]), Spec(x="pt"))]
    >>> soas_of("inputs", sides, (bytes(128), 3))
    [(SoA(3 rows, 128 bytes on cpu, read-only: pt float32), Spec(x='pt'))]
    """
    several = isinstance(given, list) or len(sides) > 1
    memories = given if several and isinstance(given, (list, tuple)) else [given]
    if len(memories) != len(sides):
        raise ValueError(
            f"{what}: got {len(memories)} SoAs or pairs (buffer, rows), and {len(sides)} were "
            f"prepared"
        )
    found = []
    for (layout, spec), memory in zip(sides, memories, strict=True):
        if isinstance(memory, SoA):
            if memory.layout is not layout and memory.layout != layout:
                raise ValueError(
                    f"{what}: the SoA has another layout than was prepared: {memory!r:.200}, "
                    f"expected {layout!r:.200}"
                )
            found.append((memory, spec))
        elif isinstance(memory, tuple) and len(memory) == 2:
            found.append((layout.wrap(*memory), spec))
        else:
            raise TypeError(
                f"{what}: expected an SoA or a pair (buffer, rows), got {memory!r:.100}"
            )
    return found
