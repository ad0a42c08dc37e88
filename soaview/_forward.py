"""From SoA to SoA: what a model is given, in which batches, and where its results go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from ._buffer import exact_int
from ._soa import SoA, check_columns, check_writable
from ._spec import Spec, Value, columns_of, repeated
from ._views import meant, views, views_or_columns

Pair = tuple[SoA, Spec]
Pairs = Pair | Sequence[Pair]
"""What `forward` of an adapter takes: `(soa, spec)`, or a list of such pairs."""


class Work(NamedTuple):
    """What a model is to do, checked as far as it can be before the model runs.

    Attributes:
        inputs, outputs: SoAs and their specs.
        split: of each input, whether its rows go in batches.
        size: rows of a batch, but of the last one.
        rows: of each output; 0 where nothing is to be done.
        progress: whether a bar is shown.
    """

    inputs: list[Pair]
    outputs: list[Pair]
    split: list[bool]
    size: int
    rows: int
    progress: bool

    @property
    def batched(self) -> bool:
        """Whether there is more than one batch."""
        return self.size < self.rows

    def batches(self) -> Iterable[slice]:
        """The rows of each batch, one after another."""
        if not self.batched and not self.progress:
            return [slice(0, self.rows)] if self.rows else []
        firsts = range(0, self.rows, max(self.size, 1))
        found = (slice(first, min(first + self.size, self.rows)) for first in firsts)
        return _shown(found, self.rows) if self.progress else found

    def inputs_of(self, rows: slice) -> list[Pair]:
        """The inputs of a batch."""
        if not self.batched:
            return self.inputs
        both = zip(self.inputs, self.split, strict=True)
        return [(soa[rows] if split else soa, spec) for (soa, spec), split in both]

    def outputs_of(self, rows: slice) -> list[Pair]:
        """The outputs of a batch."""
        return [(soa[rows], spec) for soa, spec in self.outputs] if self.batched else self.outputs


def pairs(what: str, given: Any) -> list[Pair]:
    """One or several pairs, as a list.

    Raises:
        TypeError, ValueError: anything else, or none.
    """
    found = [given] if _is_pair(given) else given
    if not isinstance(found, (tuple, list)) or not all(map(_is_pair, found)):
        raise TypeError(
            f"{what} must be a pair (soa, spec), or a list of such pairs, got {given!r:.200}"
            f"{_meant(given)}"
        )
    if not found:
        raise ValueError(f"{what} are empty; pass at least one pair (soa, spec)")
    for _, spec in found:
        if not spec:
            raise ValueError(f"{what}: a spec has no tensors")
    return list(found)


def _is_pair(given: Any) -> bool:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return False
    soa, spec = given
    return isinstance(soa, SoA) and isinstance(spec, Spec)


def _meant(given: Any) -> str:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return "; the SoA says nothing of what to take from it" if isinstance(given, SoA) else ""
    soa, spec = given
    if isinstance(soa, Spec):
        return "; the SoA comes first"
    if isinstance(soa, SoA):
        return meant(spec)
    return "; take one of the blocks, soas[name]" if hasattr(soa, "buffer") else ""


def work(
    ins: list[Pair], outs: list[Pair], batch_size: int | None, whole: object, progress: bool
) -> Work:
    """The arguments of an adapter's `forward`, past `pairs`, checked.

    Raises:
        TypeError, ValueError: naming the argument, what was got and what is expected.
    """
    first = outs[0][0]
    device = first.device
    for soa, _ in (*ins, *outs):
        if soa is not first and soa.device != device:
            raise ValueError(
                f"inputs and outputs must be on one device: {soa!r:.200} is on {soa.device}, "
                f"{first!r:.200} on {device}; move one of them with `to`"
            )
    if len(outs) > 1:
        _check_written_once(outs)
    if not any(soa.rows for soa, _ in outs):  # or else an empty event would hide a mistake
        for soa, spec in (*ins, *outs):
            views_or_columns(soa, spec)
        for soa, spec in outs:
            check_writable(soa)
            check_columns(soa.layout, spec)
    if batch_size is None and not whole:
        rows = first.rows or sum(soa.rows + len(_scalars(spec)) for soa, spec in outs)
        return Work(ins, outs, [], rows, rows, progress)
    kept = [whole] if isinstance(whole, SoA) else whole
    if not isinstance(kept, (tuple, list)):
        raise TypeError(f"whole= takes an SoA or a list of SoAs, got {whole!r:.200}")
    for soa in kept:
        if not any(soa is given for given, _ in ins):
            raise ValueError(
                f"whole= takes SoAs that are inputs, and not their pairs, got {soa!r:.200}"
            )
    if batch_size is None:
        raise ValueError("whole= says what batch_size= does not split; pass both, or neither")
    return _split(ins, outs, exact_int(batch_size, "batch_size"), kept, progress)


def _split(
    ins: list[Pair], outs: list[Pair], size: int, kept: Sequence[SoA], progress: bool
) -> Work:
    rows = outs[0][0].rows
    if size < 1:
        raise ValueError(f"batch_size must be positive, got {size}")
    for soa, spec in outs:
        if soa.rows != rows:
            raise ValueError(
                f"batch_size= needs outputs of one row count, got {rows} and {soa.rows}"
            )
        if scalars := _scalars(spec):
            raise ValueError(
                f"tensor {scalars[0]!r} is one value for the whole SoA, and would be written by "
                f"every batch; leave batch_size= out, or work it out from the columns afterwards"
            )
    split = [soa.rows == rows and not any(soa is k for k in kept) for soa, _ in ins]
    if not any(split):
        counts = ", ".join(str(soa.rows) for soa, _ in ins)
        raise ValueError(
            f"batch_size= splits the inputs that have as many rows as the outputs, {rows}, and are "
            f"not named in whole=; the inputs have {counts}"
        )
    return Work(ins, outs, split, size, rows, progress)


def results(given: Any, outputs: list[Pair]) -> list[tuple[SoA, Spec, list[Any]]]:
    """What a model gave: for each output as many tensors as its spec names.

    Raises:
        ValueError: too few, too many, or other names.
    """
    count = sum([len(spec) for _, spec in outputs])
    if isinstance(given, (tuple, list)):
        found = list(given)
    elif isinstance(given, Mapping):
        names = [name for _, spec in outputs for name in spec]
        if (twice := repeated(names)) is not None:
            raise ValueError(
                f"the model gave a dict, but tensor {twice!r} stands in two outputs; name them "
                f"differently, or let it give a tuple"
            )
        if given.keys() != set(names):
            raise ValueError(
                f"the model gave tensors {list(given)}, but the outputs' specs name {names}"
            )
        found = [given[name] for name in names]
    else:
        found = [given]
    if len(found) != count:
        raise ValueError(
            f"the model gave {len(found)} tensors, but the outputs' specs have {count}: "
            f"{[name for _, spec in outputs for name in spec]}"
        )
    if len(outputs) == 1:
        return [(*outputs[0], found)]
    left = iter(found)
    return [(soa, spec, list(islice(left, len(spec)))) for soa, spec in outputs]


def _scalars(spec: Spec) -> list[str]:
    return [name for name, entry in spec.items() if isinstance(entry, Value)]


def _check_written_once(outputs: list[Pair]) -> None:
    """Across pairs, by where their columns' memory is; within one, the adapter checks."""
    taken: list[tuple[int, int, str]] = []
    for number, (soa, spec) in enumerate(outputs):
        check_writable(soa)
        for entry in spec.values():
            for name in columns_of(entry):
                value = name if soa.layout.field(name).per_row else Value(name)
                [view] = views(soa, Spec({name: value}))
                rows = view.shape[0] if view.shape else 1
                for place in np.ndindex(view.shape[1:]):
                    steps = sum(n * s for n, s in zip(place, view.strides[1:], strict=True))
                    begin = view.address + steps * view.itemsize
                    taken.append((begin, begin + rows * view.itemsize, f"{number}: {name!r}"))
    taken = sorted(span for span in taken if span[0] < span[1])
    for (_, end, one), (begin, _, other) in pairwise(taken):
        if begin < end and one != other:
            raise ValueError(
                f"outputs: the same memory would be written twice, as columns of pairs {one} and "
                f"{other}; name every column once"
            )


def check_model(model: object) -> None:
    """A model is something to be called."""
    if not callable(model):
        raise TypeError(f"the model must be callable, got {model!r:.200}")


def _shown(batches: Iterable[slice], rows: int) -> Iterator[slice]:
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    with tqdm(total=rows, unit="row", unit_scale=True) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.stop - batch.start)
