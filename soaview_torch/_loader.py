"""Batches of an SoA's rows, epoch after epoch, and a dataset for torch's own loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.multiprocessing import reductions

from soaview import Column, Layout, Scalar, SoA, Spec, Value
from soaview.adapter import check_soa, columns_of, exact_int, row_numbers, views_or_gathers
from soaview.adapter import gather as gather_on_host

from ._memory import device_of
from ._move import empty
from ._rows import gather, on_device
from ._tensors import tensors


def loader(
    soa: SoA,
    spec: Spec,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Loader:
    """Batches of an SoA's rows: an iterable with a length, each pass over which is an epoch.

    A batch is a list of tensors, as `tensors` gives them; inputs and labels stand in one spec. In
    order they are views of the SoA's memory. Shuffled, the rows of an epoch are copied, column by
    column, into memory that has the spec's columns alone, and batches are views of that. On the
    host it is used again in the next epoch, unless something still lives of this one, such as a
    batch that was kept or a graph that needs it: then the next epoch has memory of its own. On a
    device the rows are chosen there, and torch's allocator uses memory again.

    An epoch is drawn when it begins. With the generator as it was then, the same epoch comes again,
    and a part of it by `itertools.islice`, for a batch that is skipped costs a few views.

    Args:
        soa: any; what is written into it while an epoch lasts is seen in order, and not shuffled.
        spec: the tensors; those of `Value(name)` are the same in each batch.
        batch_size: rows of each, the last one's fewer.
        shuffle: draw the rows' order anew in each epoch.
        generator: what draws it; torch's own by default.
        drop_last: leave out a last batch that is short.

    Raises:
        BufferError: in order, a tensor that cannot be a view.
        KeyError, TypeError, ValueError: as `tensors` and `SoA.batches`.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(10)
    >>> [x.shape[0] for x, y in loader(soa, Spec(x=["x"], y="y"), 4, shuffle=True)]
    [4, 4, 2]
    """
    _check(soa, spec)
    if shuffle is not True and shuffle is not False:
        raise TypeError(f"shuffle must be True or False, got {shuffle!r:.60}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator is not None and not shuffle:
        raise ValueError("in order nothing is drawn; pass generator= with shuffle=True")
    count = len(soa.batches(batch_size, drop_last=drop_last))
    made = Loader(soa, spec, int(batch_size), count, shuffle, generator)
    if not shuffle:
        made.whole()
    return made


_weak: Any = reductions.StorageWeakRef
"""What knows whether anything of torch's, be it a graph, has a storage still."""


class Loader:
    """Batches of an SoA's rows; `loader` makes it."""

    def __init__(
        self,
        soa: SoA,
        spec: Spec,
        batch_size: int,
        count: int,
        shuffle: bool,
        generator: torch.Generator | None,
    ) -> None:
        self._soa, self._spec = soa, spec
        self._size, self._count = batch_size, count
        self._shuffle, self._generator = shuffle, generator
        self._last: list[tuple[NDArray[Any], Any]] = []  # an epoch's memory, and its storage

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        return self._batches(self._shuffled() if self._shuffle else self.whole())

    def __repr__(self) -> str:
        order = "shuffled" if self._shuffle else "in order"
        return f"Loader({self._count} batches of {self._size} rows {order}: {self._soa!r})"

    def whole(self) -> list[torch.Tensor]:
        """The tensors of all rows, in order.

        Raises:
            BufferError: one cannot be a view.
        """
        try:
            return tensors(self._soa, self._spec)
        except BufferError as error:
            raise BufferError(
                f"in order a loader gives views, and copies nothing: {error}. Here, in place of "
                f"copy=None, pass shuffle=True, or take a DataLoader of Rows(soa, spec): these "
                f"copy the rows"
            ) from None

    def _batches(self, whole: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
        per_row = [not isinstance(entry, Value) for entry in self._spec.values()]
        both = list(zip(whole, per_row, strict=True))
        for first in range(0, self._count * self._size, self._size):
            end = first + self._size
            yield [tensor[first:end] if rows else tensor for tensor, rows in both]

    def _shuffled(self) -> list[torch.Tensor]:
        """The tensors of an epoch's rows, in an order that is drawn now."""
        soa, generator = self._soa, self._generator
        where = generator.device if generator is not None else "cpu"
        index = torch.randperm(soa.rows, generator=generator, device=where)
        if on_device(soa):
            return chosen_there(soa, self._spec, index.to(device_of(soa.device)))
        memory = None
        with suppress(IndexError):
            # Taken out, so that no other thread takes it too; what has tensors left is let go.
            last, storage = self._last.pop()
            memory = last if storage.expired() else None
        memory, found = chosen(soa, self._spec, index.cpu().numpy(), memory)
        self._last.append((memory, _weak(found[0].untyped_storage())))
        return found


class Rows(torch.utils.data.Dataset[list[torch.Tensor]]):
    """An SoA's rows as a dataset of torch's, for its `DataLoader`, samplers and workers.

    `rows[i]` is a row, the tensors of a spec without their axis of rows; `rows[[i, j]]`, of a list
    or an array of row numbers or a mask, is a batch. Both are copies. A `DataLoader` fetches a
    batch at once, and stacks its rows again. It need not, and is several times as fast, where the
    sampler gives the lists:

        sampler = BatchSampler(RandomSampler(rows), 1024, drop_last=False)
        DataLoader(rows, sampler=sampler, batch_size=None)

    Workers that are forked have the SoA, and nothing is sent to them. To those that are spawned it
    is sent: as the name of the memory, if that is a `SharedMemory` that was wrapped; else with all
    of its bytes, once for each.

    Args:
        soa: any, of the host's memory.
        spec: the tensors.

    Raises:
        KeyError, TypeError, ValueError: as `tensors`.
        BufferError: memory that is not the host's.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("x", "float32"), Column("y", "int32")]).allocate(10)
    >>> rows = Rows(soa, Spec(x=["x"], y="y"))
    >>> len(rows), rows[-1], rows[[0, 3]][0].shape
    (10, [tensor([0.]), tensor(0, dtype=torch.int32)], torch.Size([2, 1]))
    """

    def __init__(self, soa: SoA, spec: Spec) -> None:
        _check(soa, spec)
        if on_device(soa):
            raise BufferError(
                f"the SoA is on {soa.device}, and torch's DataLoader brings rows of the host; "
                f"soaview_torch.loader chooses them there"
            )
        self.soa, self.spec = soa, spec

    def __len__(self) -> int:
        return self.soa.rows

    def __getitem__(self, rows: Any) -> list[torch.Tensor]:
        if not hasattr(rows, "__index__") or np.ndim(rows):
            return chosen(self.soa, self.spec, row_numbers(rows, len(self)))[1]
        batch = self[[exact_int(rows, "the row")]]
        per_row = [not isinstance(entry, Value) for entry in self.spec.values()]
        return [t[0] if rows else t for t, rows in zip(batch, per_row, strict=True)]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
        """A batch's rows one by one, as a `DataLoader` takes them to stack them."""
        batch, entries = self[rows], self.spec.values()
        columns = [
            [tensor] * len(rows) if isinstance(entry, Value) else tensor.unbind()
            for tensor, entry in zip(batch, entries, strict=True)
        ]
        return list(zip(*columns, strict=True))


def chosen(
    soa: SoA, spec: Spec, index: NDArray[Any], memory: NDArray[Any] | None = None
) -> tuple[NDArray[Any], list[torch.Tensor]]:
    """The spec's tensors of chosen rows, which are there, over this memory or new one; and that.

    All of them are of one storage.
    """
    layout, fields, copies, own = _apart(soa, spec)
    if memory is None:
        memory = layout.allocate(len(index)).buffer.root
    made = layout.wrap(memory, len(index))
    for entry, copy in zip(fields.values(), copies.values(), strict=True):
        if isinstance(entry, Value):
            made[copy][...] = soa[entry]
        else:
            gather_on_host(soa[entry], index, made[copy])
    return memory, tensors(made, own)


def chosen_there(soa: SoA, spec: Spec, index: torch.Tensor) -> list[torch.Tensor]:
    """The same on the SoA's device, in memory of torch's."""
    layout, fields, copies, own = _apart(soa, spec)
    made = empty(layout, len(index), device=device_of(soa.device))
    both = zip(tensors(soa, fields, copy=None), tensors(made, copies), strict=True)
    with torch.no_grad():
        for entry, (source, target) in zip(fields.values(), both, strict=True):
            if isinstance(entry, Value):
                target.copy_(source)
            else:
                gather(source, index, target)
    return tensors(made, own)


class _Apart(NamedTuple):
    """A layout of a spec's columns alone, each tensor's next to each other, once for each tensor.

    Attributes:
        layout: the fields, whose names are numbers.
        fields: by number, what they are in the SoA that they come from.
        copies: by number, what they are in one of this layout.
        spec: the tensors over that.
    """

    layout: Layout
    fields: Spec
    copies: Spec
    spec: Spec


def _apart(soa: SoA, spec: Spec) -> _Apart:
    key = "torch.apart", spec.key
    found: _Apart | None = soa.layout.plans.get(key)
    if found is None:
        made: list[Column | Scalar] = []
        fields: dict[str, Any] = {}
        copies: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for tensor, entry in spec.items():
            numbers = []
            for name in columns_of(entry):
                field, number = soa.layout[name], str(len(made))
                numbers.append(number)
                if isinstance(field, Column):
                    kind = field.dtype, field.shape, field.order
                    made.append(Column(number, *kind, interleaved=field.interleaved))
                    fields[number], copies[number] = name, number
                else:
                    made.append(Scalar(number, field.dtype, field.shape))
                    fields[number], copies[number] = Value(name), Value(number)
            alone = Value(numbers[0]) if isinstance(entry, Value) else numbers[0]
            own[tensor] = numbers if isinstance(entry, tuple) else alone
        found = _Apart(Layout(made), Spec(fields), Spec(copies), Spec(own))
        soa.layout.plans[key] = found
    return found


def _check(soa: SoA, spec: Spec) -> None:
    check_soa(soa)
    views_or_gathers(soa, spec)  # raises where there are no such tensors
    if not spec:
        raise ValueError("the spec has no tensors, and a batch of nothing has no rows")


def _sent(rows: Rows) -> tuple[Any, ...]:
    """What another process is sent of a dataset: of shared memory the name."""
    soa = rows.soa
    if isinstance(soa.buffer.owner, SharedMemory):
        where = soa.layout, soa.capacity, soa.start, soa.rows
        return _attached, (soa.buffer.owner.name, *where, rows.spec)
    return Rows, (soa, rows.spec)


def _attached(name: str, layout: Layout, capacity: int, start: int, rows: int, spec: Spec) -> Rows:
    return Rows(layout.wrap(SharedMemory(name), capacity)[start : start + rows], spec)


ForkingPickler.register(Rows, _sent)
