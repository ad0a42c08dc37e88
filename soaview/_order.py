"""Places of things of several sizes so that those of each tensor are one common step apart.

First all things of one size for themselves, which is mostly quick; then together.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from typing import Any

Tensors = Sequence[Sequence[int]]
"""Of each tensor its columns, two or more, by number: those of one tensor have one size."""


class TooLongError(Exception):
    """A search has taken its steps."""


class Steps:
    """What a search may still do."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int = 1) -> None:
        self.left -= count
        if self.left < 0:
            raise TooLongError


def orders_of(sizes: Sequence[int], tensors: Tensors, steps: Steps) -> list[list[int]] | None:
    """The numbers of `sizes` in an order for each size, or in one for all; None if there is none.

    What takes one size can come before, after or between what takes another, unless it comes
    between the columns of a tensor of three or more.

    Raises:
        TooLongError: not found out in so many steps.
    """
    groups: dict[int, list[int]] = {}
    for number, size in enumerate(sizes):
        groups.setdefault(size, []).append(number)
    place = {number: at for group in groups.values() for at, number in enumerate(group)}
    asked: dict[int, list[list[int]]] = {size: [] for size in groups}
    for tensor in tensors:
        asked[sizes[tensor[0]]].append([place[number] for number in tensor])
    orders = []
    for size, group in groups.items():
        order = _order(len(group), asked[size], steps)
        if order is None:
            if len(groups) == 1 or circle_of(len(sizes), tensors):
                return None
            return _together(sizes, tensors, steps)
        orders.append([group[n] for n in order])
    return orders


def _order(count: int, tensors: Tensors, steps: Steps) -> list[int] | None:
    """The numbers below `count`, all of one size; None if there is no order among them."""
    if all(b - a == t[1] - t[0] > 0 for t in tensors for a, b in pairwise(t)):
        return list(range(count))  # as they are declared
    found = _side_by_side(count, tensors)
    if found is not None or circle_of(count, tensors):
        return found
    search = _Search(count, tensors, [], steps)
    return search.who if search.place_all() else None


def _together(sizes: Sequence[int], tensors: Tensors, steps: Steps) -> list[list[int]] | None:
    """One order of all numbers, in which one size fills the gaps of another."""
    start = [0, *accumulate(sizes)]
    steps.take(start[-1])
    parts = [range(a, b) for a, b in pairwise(start) if b - a > 1]
    search = _Search(start[-1], [[start[n] for n in tensor] for tensor in tensors], parts, steps)
    if not search.place_all():
        return None
    return [sorted(range(len(sizes)), key=lambda number: search.where[start[number]])]


def _sorted(count: int, pairs: Iterable[Sequence[int]]) -> list[int]:
    """The first of each pair before its second, and the smallest first; fewer in a circle."""
    after: list[list[int]] = [[] for _ in range(count)]
    before = [0] * count
    for first, second in pairs:
        after[first].append(second)
        before[second] += 1
    ready = [number for number in range(count) if not before[number]]
    out = []
    while ready:
        out.append(heappop(ready))
        for second in after[out[-1]]:
            before[second] -= 1
            if not before[second]:
                heappush(ready, second)
    return out


def circle_of(count: int, tensors: Tensors) -> list[int]:
    """Tensors, by number, that want each other's columns to come first; empty if none do."""
    sure = set(_sorted(count, (pair for tensor in tensors for pair in pairwise(tensor))))
    if len(sure) == count:
        return []
    why = {  # of each that was not sorted, one that it waits for, and the tensor that says so
        second: (first, n)
        for n, tensor in enumerate(tensors)
        for first, second in pairwise(tensor)
        if first not in sure
    }
    number = next(number for number in range(count) if number not in sure)
    met: dict[int, int] = {}
    while number not in met:
        met[number] = len(met)
        number = why[number][0]
    return sorted({why[other][1] for other, at in met.items() if at >= met[number]})


def _side_by_side(count: int, tensors: Tensors) -> list[int] | None:
    """The order in which tensors of three and more have nothing between their columns."""
    of: list[list[int]] = [[] for _ in range(count)]
    for n, tensor in enumerate(tensors):
        for number in tensor if len(tensor) > 2 else ():
            of[number].append(n)
    block, at = [-1] * count, [0] * count
    blocks: list[list[int]] = []
    seen = [False] * len(tensors)
    for number in range(count):
        if block[number] >= 0:
            continue
        block[number], who, todo = len(blocks), {0: number}, [number]
        while todo:
            known = todo.pop()
            for n in of[known]:
                if seen[n]:
                    continue
                seen[n] = True
                start = at[known] - tensors[n].index(known)
                for place, column in enumerate(tensors[n], start):
                    if who.setdefault(place, column) != column:
                        return None
                    if block[column] < 0:
                        block[column], at[column] = len(blocks), place
                        todo.append(column)
                    elif at[column] != place:
                        return None
        blocks.append([who[place] for place in sorted(who)])
    pairs = [tensor for tensor in tensors if len(tensor) == 2]
    if any(block[a] == block[b] and at[a] > at[b] for a, b in pairs):
        return None
    order = _sorted(len(blocks), [(block[a], block[b]) for a, b in pairs if block[a] != block[b]])
    return [c for n in order for c in blocks[n]] if len(order) == len(blocks) else None


class _Search:
    """Places for numbers; `where` is a number's place, `who` a place's number, or -1.

    The numbers of each of `parts` follow each other.
    """

    def __init__(self, count: int, tensors: Tensors, parts: Tensors, steps: Steps) -> None:
        self.count, self.steps = count, steps
        self.pairs = [tensor for tensor in tensors if len(tensor) == 2]
        self.long = [*(tensor for tensor in tensors if len(tensor) > 2), *parts]
        self.tensors = len(self.long) - len(parts)
        self.where, self.who = [-1] * count, [-1] * count
        self.fixed = [False] * len(self.long)
        self.one: list[tuple[int, int] | None] = [None] * len(self.long)  # column, and its place
        self.done: list[tuple[list[Any], int, Any]] = []  # what was set, and what it was before
        self.of: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for n, tensor in enumerate(self.long):
            for at, number in enumerate(tensor):
                self.of[number].append((n, at))
        self.shared = [sum(len(self.of[c]) > 1 for c in tensor) for tensor in self.long]

    def set(self, where: list[Any], key: int, value: Any) -> None:
        self.done.append((where, key, where[key]))
        where[key] = value

    def undo(self, mark: int) -> None:
        while len(self.done) > mark:
            where, key, value = self.done.pop()
            where[key] = value

    def put(self, *todo: tuple[int, int]) -> bool:
        """Put numbers at places, and all that follow from it; False if that cannot be."""
        left = list(todo)
        while left:
            number, place = left.pop()
            self.steps.take()
            if self.where[number] == place:
                continue
            if self.where[number] >= 0 or not 0 <= place < self.count or self.who[place] >= 0:
                return False
            self.set(self.where, number, place)
            self.set(self.who, place, number)
            for n, at in self.of[number]:
                self.steps.take()
                if self.fixed[n]:
                    continue  # so this is where it puts the number, or that will not fit
                one, step, rest = self.one[n], 1, 0
                if one is not None:
                    step, rest = divmod(place - one[1], at - one[0])
                first = place - at * step
                last = first + (len(self.long[n]) - 1) * step  # with a known step, or the smallest
                if rest or step < 1 or first < 0 or last >= self.count:
                    return False
                if one is not None or n >= self.tensors:
                    self.set(self.fixed, n, True)
                    left += [(c, first + k * step) for k, c in enumerate(self.long[n])]
                else:
                    self.set(self.one, n, (at, place))
        return True

    def place_all(self) -> bool:
        """Tensors of three and more first: the one that is known best."""
        levels: list[tuple[int, Iterator[tuple[tuple[int, int], tuple[int, int]]]]] = []
        while True:
            self.steps.take(1 + len(self.long) // 8)
            left = [n for n, fixed in enumerate(self.fixed) if not fixed]
            if left:
                levels.append((len(self.done), self._places(max(left, key=self._known))))
            elif self.place_rest():
                return True
            while levels:
                mark, places = levels[-1]
                self.undo(mark)
                two = next(places, None)
                if two is None:
                    levels.pop()
                elif self.put(*two) and self._pairs_have_room():
                    break
            else:
                return False

    def _known(self, n: int) -> tuple[bool, bool, int, int]:
        return self.one[n] is not None, n < self.tensors, self.shared[n], len(self.long[n])

    def _places(self, n: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Of a tensor's first two columns."""
        tensor, one = self.long[n], self.one[n]
        length = len(tensor) - 1
        most = (self.count - 1) // length if n < self.tensors else 1
        for step in range(1, most + 1):
            starts = range(self.count - length * step)
            if one is not None:
                start = one[1] - one[0] * step
                if start not in starts:
                    break
                starts = range(start, start + 1)
            self.steps.take(1 + len(starts) // 8)
            for start in sorted(starts, key=lambda start: abs(start - tensor[0])):
                yield (tensor[0], start), (tensor[1], start + step)

    def _pairs_have_room(self) -> bool:
        self.steps.take(1 + (self.count + len(self.pairs)) // 8)
        free = [place for place, number in enumerate(self.who) if number < 0]
        for first, second in self.pairs:
            low, high = self.where[first], self.where[second]
            if low >= 0 or high >= 0:
                low, high = low if low >= 0 else free[0], high if high >= 0 else free[-1]
                if low >= high:
                    return False
        return True

    def place_rest(self) -> bool:
        """Of two columns one comes before the other: jobs with deadlines, the earliest first."""
        self.steps.take(self.count + len(self.pairs))
        free = [place for place, number in enumerate(self.who) if number < 0]
        left = [number for number, place in enumerate(self.where) if place < 0]
        job = {number: n for n, number in enumerate(left)}
        due, start = [len(left) - 1] * len(left), [0] * len(left)
        after: list[list[int]] = [[] for _ in left]
        before = [0] * len(left)
        for first, second in self.pairs:
            if first in job and second in job:
                after[job[first]].append(job[second])
                before[job[second]] += 1
            elif first in job:
                due[job[first]] = min(due[job[first]], bisect(free, self.where[second]) - 1)
            elif second in job:
                start[job[second]] = max(start[job[second]], bisect(free, self.where[first]))
        waits = [(n, m) for n, others in enumerate(after) for m in others]
        for n in reversed(_sorted(len(left), waits)):
            due[n] = min([due[n], *(due[m] - 1 for m in after[n])])
        for urgent in (False, True):  # as they are declared, if that will do
            order = self._scheduled(due if urgent else [0] * len(left), due, start, after, before)
            if len(order) == len(left):
                for place, n in zip(free, order, strict=True):
                    self.set(self.where, left[n], place)
                    self.set(self.who, place, left[n])
                return True
        return False

    @staticmethod
    def _scheduled(
        rank: list[int], due: list[int], start: list[int], after: list[list[int]], before: list[int]
    ) -> list[int]:
        """Jobs one after another, of those that may start the lowest rank; fewer if one is late."""
        before = before.copy()
        waiting = [(start[n], n) for n in range(len(due)) if not before[n]]
        heapify(waiting)
        ready: list[tuple[int, int]] = []
        out: list[int] = []
        while len(out) < len(due):
            while waiting and waiting[0][0] <= len(out):
                number = heappop(waiting)[1]
                heappush(ready, (rank[number], number))
            if not ready or due[ready[0][1]] < len(out):
                break
            out.append(heappop(ready)[1])
            for second in after[out[-1]]:
                before[second] -= 1
                if not before[second]:
                    heappush(waiting, (start[second], second))
        return out
