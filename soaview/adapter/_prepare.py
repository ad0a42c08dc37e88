"""From SoA to SoA, event after event: what is known before the first one comes.

An adapter makes one function of an event's layouts and specs, as source text (`places`), for memory
of the host that is whole. The lines here find out whether this is such memory: `later` is what the
function does where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from .._buffer import HostBuffer
from .._compile import Places
from .._dtypes import INT64_MAX
from .._fields import difference
from .._gather import views_or_gathers
from .._layout import Layout
from .._soa import SoA
from .._spec import Spec
from .._views import spec_hint
from ._forward import Pair, Pairs, results
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
        KeyError, TypeError, ValueError: as `views`; of outputs, as `writable_views`. What no single
            strided view covers is for the adapter to refuse.

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
        (views_or_gathers if what == "inputs" else writable_views)(layout.allocate(1), spec)
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
    for number, ((layout, spec), memory) in enumerate(zip(sides, memories, strict=True)):
        label = f"{what}[{number}]" if len(sides) > 1 else what
        if isinstance(memory, SoA):
            if memory.layout is not layout and memory.layout != layout:
                raise ValueError(f"{label}: {_other_layout(memory.layout, layout)}")
            found.append((memory, spec))
        elif isinstance(memory, tuple) and len(memory) == 2:
            try:
                found.append((layout.wrap(*memory), spec))
            except (BufferError, TypeError, ValueError) as error:
                kinds = BufferError, TypeError, ValueError
                kind = next(kind for kind in kinds if isinstance(error, kind))
                raise kind(f"{label}: {error}") from error
        else:
            raise TypeError(
                f"{label}: expected an SoA or a pair (buffer, rows), got {memory!r:.100}"
            )
    return found


def _other_layout(got: Layout, expected: Layout) -> str:
    """How they differ, in words."""
    if not isinstance(got, Layout):
        return (
            "the SoA is of bound columns, and none were prepared; call forward, or pass soa.pack()"
        )
    if got.fields == expected.fields:
        return (
            f"the SoA's layout has another alignment than was prepared: {got.alignment}, "
            f"expected {expected.alignment}"
        )
    differs = difference(got.fields, expected.fields)
    return f"the SoA has another layout than was prepared: {differs}"


MOST_OUTPUTS = 16
"""Pairs that are written at once; of more the long way is quicker than to make a function."""

EVENT_NAMES = {"HostBuffer": HostBuffer, "byte": np.dtype(np.uint8), "ndarray": np.ndarray}
"""What the lines of `soa_lines` and `array_lines` name."""


def soa_lines(i: int, at: Places, later: str) -> list[str]:
    """From `side_i`, a pair of an SoA and a spec, to `root_i`, `rows_i` and `nbytes_i`.

    Args:
        i: number of the side, and suffix of its variables.
        at: its tensors.
        later: a statement.

    >>> from soaview import Column
    >>> from soaview.adapter import places
    >>> at = places(Layout([Column("x", "float32")]), Spec(x="x"), "_0")
    >>> soa_lines(0, at, "return LATER")[-1]
    'if not ((0 + rows_0) * 4 <= nbytes_0): return LATER'
    """
    return [
        f"soa_{i}, _ = side_{i}",
        f"buffer_{i} = soa_{i}.buffer; rows_{i} = soa_{i}.rows",
        f"if type(buffer_{i}) is not HostBuffer or soa_{i}.capacity != rows_{i}: {later}",
        f"if not rows_{i}: {later}",
        f"root_{i} = buffer_{i}.root",
        f"nbytes_{i} = buffer_{i}.nbytes",
        *at.lines,
        f"if not ({at.inside}): {later}",
    ]


def array_lines(i: int, at: Places, later: str) -> list[str]:
    """As `soa_lines`, from an array of bytes that owns its memory, and the rows.

    Of other memory there is more to be seen, which `Layout.wrap` does.
    """
    return [
        f"if type(side_{i}) is not tuple or len(side_{i}) != 2: {later}",
        f"root_{i}, rows_{i} = side_{i}",
        f"if type(rows_{i}) is not int or not 0 < rows_{i} <= {INT64_MAX}: {later}",
        f"if type(root_{i}) is not ndarray or root_{i}.dtype is not byte: {later}",
        f"if root_{i}.strides != (1,) or root_{i}.base is not None: {later}",
        *at.lines,
        f"nbytes_{i} = {at.nbytes}",
        f"if root_{i}.size < nbytes_{i} or not ({at.inside}): {later}",
    ]


def in_order(made: Any, outputs: list[Pair]) -> list[Any]:
    """What a model gave, in the order of the outputs and of their specs; see `results`."""
    return [value for _, _, values in results(made, outputs) for value in values]


Made = TypeVar("Made")
Make = Callable[[list[Side], list[Side]], Made | None]


def event_for(name: str, make: Make[Made], inputs: Pairs, outputs: Pairs) -> Made | None:
    """What an adapter makes of an event's layouts and specs, once for all of its kind.

    Args:
        name: what it is kept under, the adapter's own.
        make: from the inputs' and outputs' layouts and specs; what it raises the long way says.
        inputs: as `forward` takes them, a pair or a list.
        outputs: likewise.

    Returns:
        None where these are no such pairs, where nothing is made of them, or it is a mistake.
    """
    try:
        soa, spec = inputs
        out, out_spec = outputs
    except (TypeError, ValueError):
        return None
    if not (type(soa) is type(out) is SoA and type(spec) is type(out_spec) is Spec):
        return None
    layout, key = soa.layout, (name, spec.key, out_spec.key)
    known: tuple[Layout, Made | None] | None = layout.plans.get(key)
    if known is None or known[0] is not out.layout:
        found = events_for(name, make, [(layout, spec)], [(out.layout, out_spec)])
        known = layout.plans[key] = out.layout, found  # as hashes of layouts take a while
    return known[1]


def events_for(name: str, make: Make[Made], inputs: list[Side], outputs: list[Side]) -> Made | None:
    """As `event_for`, of lists of layouts and specs that have been checked."""
    keys = (tuple((layout, spec.key) for layout, spec in side) for side in (inputs, outputs))
    plans, key = inputs[0][0].plans, (f"{name}s", *keys)
    found: Any = plans.get(key, key)
    if found is key:
        try:
            found = plans[key] = make(inputs, outputs)
        except (BufferError, KeyError, TypeError, ValueError):
            found = plans[key] = None
    made: Made | None = found
    return made
