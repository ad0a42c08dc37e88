"""From SoA to SoA: what a model is given, in which batches, and where its results go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

from .._blocks import SoABlocks
from .._dtypes import exact_int
from .._gather import views_or_gathers
from .._soa import SoA
from .._spec import Spec, Value, columns_of, repeated
from .._views import spec_hint
from .._write import are_bound_apart, check_columns, check_writable

Pair = tuple[SoA, Spec]
"""An SoA, and which of its columns make tensors."""

Pairs = Pair | Sequence[Pair]
"""What `forward` of an adapter takes: `(soa, spec)`, or a list of such pairs."""

BatchSize = int | None | Sequence[int | None]
"""What `forward` of an adapter takes: rows for all inputs or each pair; None splits nothing."""


class Work(NamedTuple):
    """What a model is to do, checked as far as it can be before the model runs.

    Attributes:
        inputs, outputs: SoAs and their specs, whole.
        split, written: of each input and each output, the rows of a batch; None where it goes
            whole, and nothing where all do.
        steps: how many batches there are.
        rows, size: how many rows a bar counts, and a batch has, but for the last.
        progress: whether a bar is shown.
    """

    inputs: list[Pair]
    outputs: list[Pair]
    split: list[int | None]
    written: list[int | None]
    steps: int
    rows: int
    size: int
    progress: bool

    @property
    def batched(self) -> bool:
        """Whether there is more than one batch."""
        return self.steps > 1

    def batches(self) -> Iterable[int]:
        """Their numbers, one after another; meanwhile a bar is shown, if asked for.

        Raises:
            ImportError: a bar needs tqdm.
        """
        return self._shown() if self.progress else range(self.steps)

    def inputs_of(self, number: int) -> list[Pair]:
        """The inputs of a batch: slices of SoAs that are split, the others whole."""
        self._check(number)
        return _parts(self.inputs, self.split, number) if self.batched else self.inputs

    def outputs_of(self, number: int) -> list[Pair]:
        """The outputs of a batch, likewise."""
        self._check(number)
        return _parts(self.outputs, self.written, number) if self.batched else self.outputs

    def rows_of(self, number: int) -> list[slice | None]:
        """Of each input the rows in a batch; None where it goes whole."""
        self._check(number)
        if not self.batched:
            return [None] * len(self.inputs)
        both = zip(self.inputs, self.split, strict=True)
        return [_rows(soa, size, number) for (soa, _), size in both]

    def _check(self, number: int) -> None:
        if not 0 <= number < self.steps:
            raise IndexError(f"there are {self.steps} batches, got number {number}")

    def _shown(self) -> Iterator[int]:
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("progress=True needs tqdm: pip install tqdm") from error
        with tqdm(total=self.rows, unit="row", unit_scale=True) as bar:
            for number in range(self.steps):
                yield number
                bar.update(min(self.size, self.rows - number * self.size))


def _parts(whole: list[Pair], sizes: list[int | None], number: int) -> list[Pair]:
    found = []
    for (soa, spec), size in zip(whole, sizes, strict=True):
        rows = _rows(soa, size, number)
        found.append((soa if rows is None else soa[rows], spec))
    return found


def _rows(soa: SoA, size: int | None, number: int) -> slice | None:
    if size is None:
        return None
    return slice(number * size, min((number + 1) * size, soa.rows))


def pairs(what: str, given: Any) -> list[Pair]:
    """One or several pairs, as a list.

    Args:
        what: `"inputs"` or `"outputs"`, for messages.
        given: `(soa, spec)`, or a list of such pairs.

    Raises:
        TypeError: anything else.
        ValueError: no pairs, or a spec without tensors.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32")]).allocate(3)
    >>> len(pairs("inputs", (soa, Spec(x="pt"))))
    1
    >>> pairs("inputs", [])
    Traceback (most recent call last):
    ValueError: inputs are empty; pass at least one pair (soa, spec)
    """
    found = [given] if _is_pair(given) else given
    if not isinstance(found, (tuple, list)) or not all(map(_is_pair, found)):
        raise TypeError(
            f"{what} must be a pair (soa, spec), or a list of such pairs, got {given!r:.200}"
            f"{_hint(given)}"
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


def _hint(given: Any) -> str:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return "; the SoA says nothing of what to take from it" if isinstance(given, SoA) else ""
    soa, spec = given
    if isinstance(soa, Spec):
        return "; the SoA comes first"
    if isinstance(soa, SoA):
        return spec_hint(spec)
    return "; take one of the blocks, soas[name]" if isinstance(soa, SoABlocks) else ""


def work(ins: list[Pair], outs: list[Pair], batch_size: object, progress: bool) -> Work:
    """The arguments of an adapter's `forward`, past `pairs`, checked.

    Whether the outputs' columns can be written, `writable_views` says before the model runs. Where
    no output has rows, no model runs, and that is checked here.

    Args:
        ins: the inputs.
        outs: the outputs.
        batch_size: a `BatchSize`, which is checked here.
        progress: whether a bar is shown.

    Raises:
        TypeError: a batch size that is no integer.
        ValueError: several devices; memory that two outputs would write; sizes that do not go
            together.
        BufferError, KeyError: as `writable_views`, where no output has rows; read-only memory
            of several outputs.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(10)
    >>> task = work([(soa, Spec(x="x"))], [(soa, Spec(y="y"))], batch_size=4, progress=False)
    >>> [len(soa) for number in task.batches() for soa, spec in task.inputs_of(number)]
    [4, 4, 2]
    """
    if not (ins and outs):
        raise ValueError("inputs and outputs are at least one pair (soa, spec) each")
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
            views_or_gathers(soa, spec)
        for soa, spec in outs:
            check_writable(soa, spec.values())
            check_columns(soa.layout, spec)
    split = [] if batch_size is None else _split(ins, outs, batch_size)
    if not any(split):
        rows = first.rows or sum(soa.rows + len(_scalars(spec)) for soa, spec in outs)
        return Work(ins, outs, [], [], int(rows > 0), rows, rows, progress)
    lead, step = _lead(ins, split)
    written: list[int | None] = [_written(out, ins, split) for out in outs]
    return Work(ins, outs, split, written, _count(lead, step), lead.rows, step, progress)


def _split(ins: list[Pair], outs: list[Pair], given: object) -> list[int | None]:
    """For each input, how many rows a batch has, or None where it goes whole."""
    if not isinstance(given, (tuple, list)):
        one = _batch_size(given)
        if any(soa is not ins[0][0] for soa, _ in ins):
            lead = next((soa for soa, _ in ins if any(soa is out for out, _ in outs)), ins[0][0])
            example = [one if soa is lead else None for soa, _ in ins]
            raise ValueError(
                f"batch_size={one} does not say which of the inputs' SoAs it splits; give one "
                f"entry for each pair, and None for an SoA that goes whole, as in "
                f"batch_size={example!r:.200}"
            )
        return [one] * len(ins)
    if len(given) != len(ins):
        raise ValueError(
            f"batch_size= has {len(given)} entries, and the inputs are {len(ins)} pairs; give one "
            f"entry for each pair, and None for an SoA that goes whole"
        )
    sizes = [None if size is None else _batch_size(size) for size in given]
    of: dict[int, int | None] = {}
    for (soa, _), size in zip(ins, sizes, strict=True):
        if of.setdefault(id(soa), size) != size:
            raise ValueError(
                f"batch_size= has {of[id(soa)]} and {size} for pairs of one SoA, {soa!r:.200}; "
                f"give them the same"
            )
        lead, step = _lead(ins, sizes) if size else (soa, 1)
        if size and _count(soa, size) != _count(lead, step):
            raise ValueError(
                f"batch_size= makes {_count(lead, step)} batches of {lead.rows} rows by {step}, "
                f"but {_count(soa, size)} of {soa.rows} rows by {size}; let these be as many"
            )
    return sizes


def _batch_size(given: object) -> int:
    size = exact_int(given, "batch_size")
    if size < 1:
        raise ValueError(f"batch_size must be positive, got {size}")
    return size


def _lead(ins: list[Pair], sizes: list[int | None]) -> tuple[SoA, int]:
    """The first input that is split, and by how many rows."""
    return next((soa, size) for (soa, _), size in zip(ins, sizes, strict=True) if size)


def _count(soa: SoA, size: int) -> int:
    return -(-soa.rows // size)


def _written(out: Pair, ins: list[Pair], sizes: list[int | None]) -> int:
    """Rows of an output in a batch: those of the input that it is, or of the first one split."""
    soa, spec = out
    if scalars := _scalars(spec):
        raise ValueError(
            f"tensor {scalars[0]!r} is one value for the whole SoA, and would be written by "
            f"every batch; leave batch_size= out, or work it out from the columns afterwards"
        )
    lead, step = _lead(ins, sizes)
    for (given, _), size in zip(ins, sizes, strict=True):
        if given is soa:
            if size is None:
                raise ValueError(
                    f"an output is also an input that goes whole, {soa!r:.200}, and every batch "
                    f"would write all of it; give that input a size in batch_size=, too"
                )
            return size
    if soa.rows != lead.rows:
        raise ValueError(
            f"outputs are split as the first input that is, which has {lead.rows} rows, but one "
            f"has {soa.rows}: {soa!r:.200}"
        )
    return step


def results(given: Any, outputs: list[Pair]) -> list[tuple[SoA, Spec, list[Any]]]:
    """What a model gave: for each output as many tensors as its spec names, in spec order.

    Whether they fit is for `pair` to say.

    Args:
        given: one tensor, a tuple or list in the order of the specs, or a dict by tensors' names.
        outputs: SoAs and their specs.

    Raises:
        ValueError: too few, too many, or other names.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("x", "float32"), Column("y", "float32")]).allocate(10)
    >>> [(_, _, tensors)] = results({"b": 2, "a": 1}, [(soa, Spec(a="x", b="y"))])
    >>> tensors
    [1, 2]
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
    taken: list[tuple[int, int, int, str]] = []
    for soa, spec in outputs:
        check_writable(soa, spec.values())
    laid = [] if are_bound_apart(outputs) else outputs
    for number, (soa, spec) in enumerate(laid):
        start, layout = soa.buffer.address, soa.layout
        for name in (name for entry in spec.values() for name in columns_of(entry)):
            field = layout[name]
            first, rows = (soa.start, soa.rows) if field.per_row else (0, 1)
            begin = start + layout.offset(name, soa.capacity) + first * field.width
            if rows:
                pitch, length = layout.pitch(name, soa.capacity), rows * field.width
                for _ in range(field.subcolumns):
                    taken.append((begin, begin + length, number, name))
                    begin += pitch
    taken.sort()
    for (_, end, *one), (begin, _, *other) in pairwise(taken):
        if begin < end and one != other:
            raise ValueError(
                f"outputs: the same memory would be written twice, as columns of pairs "
                f"{one[0]}: {one[1]!r} and {other[0]}: {other[1]!r}; name every column once"
            )


def check_model(model: object) -> None:
    """Raise unless the model can be called.

    Raises:
        TypeError: it cannot.

    >>> check_model(abs)
    """
    if not callable(model):
        raise TypeError(f"the model must be callable, got {model!r:.200}")
