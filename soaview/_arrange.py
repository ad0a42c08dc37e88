"""An order of fields in which given tensors are strided views.

Columns of one tensor take equal room, at every row count, and so does what lies between each two of
them. Fields of one item size can fill such gaps for each other, as can scalars; no others can. So
each such kind is ordered for itself, its fields at places that count in the room of one column.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ._fields import Column, Scalar, listed, shown
from ._layout import Layout
from ._order import Steps, TooLongError, circle_of, orders_of
from ._resolve import resolved, same_strides
from ._spec import Spec, columns_of, repeated
from ._views import check_spec
from ._why import why_not

LIMIT = 500_000
"""Steps of all searches together, about a microsecond each; so many again to name a conflict."""


def arrange(fields: Iterable[Any], specs: Spec | list[Spec], alignment: int) -> Layout:
    """`Layout.arrange`."""
    layout = Layout(fields, alignment=alignment)
    if not isinstance(specs, (Spec, list, tuple)):
        raise TypeError(f"specs must be a Spec or a list of them, got {type(specs).__name__}")
    wanted, views = _wanted(layout, [specs] if isinstance(specs, Spec) else list(specs))
    if views:
        return layout
    kinds: dict[int, list[int]] = {}
    for position, field in enumerate(layout.fields):
        kinds.setdefault(_kind(field), []).append(position)
    number = {layout.fields[p].name: n for kind in kinds.values() for n, p in enumerate(kind)}
    tensors: dict[int, dict[str, list[int]]] = {kind: {} for kind in kinds}
    for columns, name in wanted.items():
        tensors[_kind(layout[columns[0]])][name] = [number[c] for c in columns]
    steps = Steps(LIMIT)
    pieces: list[tuple[int, list[int]]] = []
    for kind, positions in kinds.items():
        sizes = [_room(layout, layout.fields[position]) for position in positions]
        asked = list(tensors[kind].values())
        try:
            orders = orders_of(sizes, asked, steps)
        except TooLongError:
            raise ValueError(
                f"whether these {len(asked):,} tensors can be views together was not found "
                f"out in {LIMIT:,} steps; ask for fewer of them"
            ) from None
        if orders is None:
            raise ValueError(_conflict(sizes, tensors[kind]))
        ends: dict[int, list[int]] = {}
        for tensor in asked:
            if len(tensor) > 2:  # two columns may be any distance apart
                ends.setdefault(tensor[0], []).append(tensor[-1])
        for order in orders:
            latest = 0  # a piece comes when those before it have come, and it is the earliest
            for piece in _pieces(order, ends):
                found = [positions[n] for n in piece]
                latest = max(latest, min(found))
                pieces.append((latest, found))
    pieces.sort(key=lambda piece: piece[0])
    return Layout((layout.fields[p] for _, piece in pieces for p in piece), alignment=alignment)


def _kind(field: Column | Scalar) -> int:
    """Fields of one kind can fill gaps for each other: columns by item size, and scalars."""
    return field.width if field.per_row else 0


def _room(layout: Layout, field: Column | Scalar) -> int:
    """What a field takes: in columns of its item size, or in lines, which a scalar takes whole."""
    return field.subcolumns if field.per_row else -(-field.width // layout.alignment)


def _wanted(layout: Layout, specs: list[Spec]) -> tuple[dict[tuple[str, ...], str], bool]:
    """Columns of each tensor that has several, with a name for people; whether all are views."""
    found: dict[tuple[str, ...], str] = {}
    names: set[str] = set()
    views = True
    for spec in specs:
        check_spec(spec)
        for tensor, entry in spec.items():
            pattern = resolved(layout, tensor, entry, False)  # raises where nothing fits
            columns, name = columns_of(entry), shown(tensor)
            if pattern.columns:
                views = False
                _check_some_order_helps(layout, name, columns)
            if len(columns) > 1 and columns not in found:
                if name in names:
                    name = f"{name}, {listed(map(shown, columns))}"
                while name in names:  # as far as names are shown
                    name += " too"
                names.add(name)
                found[columns] = name
    return found, views


def _check_some_order_helps(layout: Layout, name: str, columns: tuple[str, ...]) -> None:
    if (twice := repeated(columns)) is not None:
        raise ValueError(f"tensor {name!r}: no order helps: column {shown(twice)!r} is repeated")
    if not same_strides(layout, [layout[column] for column in columns]):
        why = why_not(layout, columns, 1, False)
        raise ValueError(f"tensor {name!r}: no order helps: {why}")


def _pieces(order: list[int], ends: dict[int, list[int]]) -> list[list[int]]:
    """The order in pieces that nothing may come between, for tensors' ends by where they start."""
    place = {number: at for at, number in enumerate(order)}
    out: list[list[int]] = []
    reach = -1
    for at, number in enumerate(order):
        if at > reach:
            out.append([])
        out[-1].append(number)
        reach = max([reach, at, *(place[end] for end in ends.get(number, ()))])
    return out


def _conflict(sizes: list[int], tensors: dict[str, list[int]]) -> str:
    """Which few tensors have no order."""
    names = list(tensors)
    if circle := circle_of(len(sizes), list(tensors.values())):
        names = [names[n] for n in circle]
    left = LIMIT
    for name in list(names):
        fewer = [tensors[other] for other in names if other != name]
        left -= 2 * (len(sizes) + sum(map(len, fewer)))  # what looking at them takes, at least
        if left < 0:
            break
        steps = Steps(LIMIT // 10)
        try:
            if orders_of(sizes, fewer, steps) is None:
                names.remove(name)
        except TooLongError:  # not found out; so it stays among them
            pass
        left -= LIMIT // 10 - steps.left
    return (
        f"no order of the fields makes these tensors one view each: {listed(map(repr, names))}; "
        f"leave one of them to copy=None"
    )
