"""An order of fields in which given tensors are strided views.

Columns of one tensor take equal room, at every row count, and so does what lies between each two of
them. Only fields of equal room change places here: each such group stands together, and a tensor's
columns are at places of their group that are one common step apart. Within a group the search is
exact. Two groups of one item size, such as columns and vectors, could fill each other's gaps, which
is not tried.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from ._fields import Column, Scalar, listed
from ._layout import Layout
from ._resolve import common_distance, resolved, same_strides
from ._spec import Spec, columns_of, repeated
from ._views import check_spec
from ._why import why_not

LIMIT = 300_000
"""Numbers that a search puts somewhere before it gives up: a second or two."""

Tensors = Sequence[Sequence[int]]


def arrange(fields: Iterable[Any], specs: Spec | list[Spec], alignment: int) -> Layout:
    """`Layout.arrange`."""
    layout = Layout(fields, alignment=alignment)
    if not isinstance(specs, (Spec, list, tuple)):
        raise TypeError(f"specs must be a Spec or a list of them, got {type(specs).__name__}")
    wanted = _wanted(layout, [specs] if isinstance(specs, Spec) else list(specs))
    if all(common_distance(layout, [layout[c] for c in columns]) for columns in wanted.values()):
        return layout
    groups: dict[tuple[Any, ...], list[Column | Scalar]] = {}
    for field in layout.fields:
        groups.setdefault((field.per_row, field.width, field.subcolumns), []).append(field)
    queues = []
    for group in groups.values():
        number = {field.name: place for place, field in enumerate(group)}
        tensors = {n: [number[c] for c in cols] for n, cols in wanted.items() if cols[0] in number}
        order = _order(len(group), list(tensors.values()), LIMIT)
        if order is None:
            raise ValueError(_conflict(len(group), tensors))
        queues.append(_stretches([group[n] for n in order], [[*wanted[n]] for n in tensors]))
    position = {field.name: place for place, field in enumerate(layout.fields)}
    found: list[Column | Scalar] = []
    while queues := [queue for queue in queues if queue]:  # the earliest declared comes first
        queue = min(queues, key=lambda queue: min(position[f.name] for f in queue[0]))
        found += queue.pop(0)
    return Layout(found, alignment=alignment)


def _wanted(layout: Layout, specs: list[Spec]) -> dict[str, tuple[str, ...]]:
    """The columns of each tensor that has several, by a name for people."""
    found: dict[str, tuple[str, ...]] = {}
    for spec in specs:
        check_spec(spec)
        for name, entry in spec.items():
            resolved(layout, name, entry, False)  # raises where nothing fits
            columns = columns_of(entry)
            if (twice := repeated(columns)) is not None:
                raise ValueError(f"tensor {name!r}: no order helps: column {twice!r} is repeated")
            if not same_strides(layout, [layout[column] for column in columns]):
                why = why_not(layout, columns, 1, False)
                raise ValueError(f"tensor {name!r}: no order helps: {why}")
            if len(columns) > 1 and columns not in found.values():
                found[name if name not in found else f"{name}, {listed(columns)}"] = columns
    return found


def _stretches(
    order: list[Column | Scalar], tensors: list[list[str]]
) -> list[list[Column | Scalar]]:
    """The order in pieces that nothing may come between: two columns may be any distance apart."""
    place = {field.name: number for number, field in enumerate(order)}
    joined = {
        number
        for columns in tensors
        if len(columns) > 2
        for number in range(place[columns[0]], place[columns[-1]])
    }
    out = [[order[0]]]
    for number, field in enumerate(order[1:]):
        if number in joined:
            out[-1].append(field)
        else:
            out.append([field])
    return out


def _conflict(count: int, tensors: dict[str, list[int]]) -> str:
    """Which few tensors have no order."""
    for name in list(tensors):
        fewer = {other: columns for other, columns in tensors.items() if other != name}
        try:
            if _order(count, list(fewer.values()), LIMIT // 10) is None:
                tensors = fewer
        except ValueError:  # not found out; so it stays among them
            continue
    return (
        f"no order of the fields makes these tensors one view each: {listed(map(repr, tensors))}; "
        f"leave one of them to copy=None"
    )


def _order(count: int, tensors: Tensors, limit: int) -> list[int] | None:
    """The numbers below `count` so that each tensor's are one common step apart; None if none is.

    Raises:
        ValueError: not found out in so many steps.
    """
    if all(b - a == t[1] - t[0] > 0 for t in tensors for a, b in pairwise(t)):
        return list(range(count))  # as they are declared
    search = _Search(count, tensors, limit)
    try:
        found = search.place_all()
    except (_TooLongError, RecursionError):
        raise ValueError(
            f"whether these {len(tensors):,} tensors can be views together was not found "
            f"out in {limit:,} steps; ask for fewer of them"
        ) from None
    return sorted(range(count), key=search.where.__getitem__) if found else None


class _TooLongError(Exception):
    """A search has taken its steps."""


class _Search:
    """Places for numbers; `where` is a number's place, `who` a place's number."""

    def __init__(self, count: int, tensors: Tensors, limit: int) -> None:
        self.count, self.tensors, self.left = count, tensors, limit
        self.pairs = [tensor for tensor in tensors if len(tensor) == 2]
        self.where: dict[int, int] = {}
        self.who: dict[int, int] = {}
        self.of: list[list[Sequence[int]]] = [[] for _ in range(count)]
        for tensor in tensors:
            for number in tensor:
                self.of[number].append(tensor)

    def put(self, number: int, place: int) -> list[int] | None:
        """Put a number there, and all that follow from it; those that were put, or None."""
        put: list[int] = []
        todo = [(number, place)]
        while todo:
            number, place = todo.pop()
            self.left -= 1
            if self.left < 0:
                raise _TooLongError
            if self.where.get(number, place) != place or self.who.get(place, number) != number:
                self.take(put)
                return None
            if number in self.where:
                continue
            self.where[number], self.who[place] = place, number
            put.append(number)
            for tensor in self.of[number]:
                known = [(n, self.where[c]) for n, c in enumerate(tensor) if c in self.where]
                (n, first), (m, last) = known[0], known[-1]
                step, rest = divmod(last - first, m - n) if m > n else (1, 0)
                start, end = first - n * step, first + (len(tensor) - 1 - n) * step
                if step < 1 or (rest and len(tensor) > 2) or start < 0 or end >= self.count:
                    self.take(put)
                    return None
                if m > n and len(tensor) > 2:
                    todo += [(c, start + k * step) for k, c in enumerate(tensor)]
        return put

    def take(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.who[self.where.pop(number)]

    def place_all(self) -> bool:
        """Tensors of three and more first: the one that is known best."""
        left = [t for t in self.tensors if len(t) > 2 and any(c not in self.where for c in t)]
        if not left:
            return self.place_rest()
        tensor = max(left, key=self._known)
        length = len(tensor) - 1
        at = next(((n, self.where[c]) for n, c in enumerate(tensor) if c in self.where), None)
        for step in range(1, (self.count - 1) // length + 1):
            starts = range(self.count - length * step)
            if at is not None:
                starts = range(at[1] - at[0] * step, at[1] - at[0] * step + 1)
            for start in sorted(starts, key=lambda start: abs(start - tensor[0])):
                first = self.put(tensor[0], start)
                both = None if first is None else self.put(tensor[1], start + step)
                fits = first is not None and both is not None and self._pairs_have_room()
                if fits and self.place_all():
                    return True
                self.take([*(both or ()), *(first or ())])
        return False

    def _known(self, tensor: Sequence[int]) -> tuple[bool, int, int]:
        placed = any(number in self.where for number in tensor)
        return placed, sum(len(self.of[number]) > 1 for number in tensor), len(tensor)

    def _pairs_have_room(self) -> bool:
        free = [place for place in range(self.count) if place not in self.who]
        for one, other in self.pairs:
            first, second = self.where.get(one), self.where.get(other)
            if first is None or second is None:
                low = -1 if first is None else first
                high = self.count if second is None else second
                if not any(low < place < high for place in free):
                    return False
        return True

    def place_rest(self) -> bool:
        """Of two columns one comes before the other: jobs with deadlines, the earliest first."""
        left = [number for number in range(self.count) if number not in self.where]
        after: dict[int, list[int]] = {number: [] for number in left}
        before = dict.fromkeys(left, 0)
        due, from_ = dict.fromkeys(left, self.count - 1), dict.fromkeys(left, 0)
        for first, second in self.pairs:
            if first in after and second in after:
                after[first].append(second)
                before[second] += 1
            elif first in after:
                due[first] = min(due[first], self.where[second] - 1)
            elif second in after:
                from_[second] = max(from_[second], self.where[first] + 1)
        changed = True
        while changed and all(latest >= 0 for latest in due.values()):  # a circle never ends
            changed = False
            for first in left:
                latest = min((due[second] - 1 for second in after[first]), default=due[first])
                if latest < due[first]:
                    due[first], changed = latest, True
        waiting = sorted((n for n in left if not before[n]), key=from_.__getitem__, reverse=True)
        ready: list[tuple[int, int]] = []
        put: list[int] = []
        for place in (place for place in range(self.count) if place not in self.who):
            while waiting and from_[waiting[-1]] <= place:
                number = waiting.pop()
                heappush(ready, (due[number], number))
            latest, number = heappop(ready) if ready else (-1, -1)
            if latest < place:
                self.take(put)
                return False
            self.where[number], self.who[place] = place, number
            put.append(number)
            for second in after[number]:
                before[second] -= 1
                from_[second] = max(from_[second], place + 1)
                if not before[second]:
                    insort(waiting, second, key=lambda number: -from_[number])
        return True
