"""Models of torch's, from SoA to SoA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from typing import Any

import torch

from soaview import SoA, Spec
from soaview.adapter import (
    BatchSize,
    Matches,
    Pair,
    Pairs,
    Target,
    check_copy,
    check_dtype,
    check_model,
    check_writable,
    event_for,
    events_for,
    pairs,
    results,
    work,
)

from ._event import CHANGED, at_once, of_soas
from ._memory import DTYPE, Import, Imports, is_plain, memory_of
from ._tensors import Maker, copies, maker_of, tensors
from ._write import matched, store, targets_of


def forward(
    model: Callable[..., Any],
    inputs: Pairs,
    outputs: Pairs,
    *,
    batch_size: BatchSize = None,
    dtype: Any = None,
    copy: bool | None = False,
    progress: bool = False,
) -> None:
    """Run a model on the columns of SoAs, and write its results into the columns of SoAs.

    The model gets the inputs' tensors one by one, in the order of the pairs and of their specs, in
    inference mode and, on a GPU, with the SoAs' device as the current one. It may be a module
    (call its `eval()` before), a scripted, traced, compiled or exported one, or any function.
    Its results are one tensor, a tuple or list in the order of the outputs' specs, or a dict by the
    tensors' names. All of them are checked before any is written, once the model has run on all
    batches: if it raises, or gives what does not fit, no result has been written. Each is written
    with one copy, the only one; results of batches are kept as copies until then. Outputs without
    rows are done without running the model.

    Args:
        model: any function of tensors.
        inputs: a pair `(soa, spec)`, or a list of pairs: SoAs of any row counts, on one device.
        outputs: likewise; writable, on the same device. They may be the inputs themselves.
        batch_size: run on so many rows at a time, the last batch short; results of all batches are
            kept until the end. Of several SoAs a list says for each pair how many of its rows a
            batch has, and None where the model gets all of them in every batch: `[256, None]`.
            Pairs of one SoA have the same size, and all make as many batches. Outputs are split as
            the input that they are, or else as the first one that is split.
        dtype: convert inputs of floating dtypes to this one, and floating results to the dtypes of
            their columns; integers, bools and complex numbers are left as they are, and so are the
            model's weights. Without it nothing is converted.
        copy: of the inputs, as in `tensors`. `None` or `True` for memory that is read-only;
            `True` where the model's first operation is slow on strides, or writes into its input;
            and for attention: torch's fused kernels (flash attention) take no strided last axis, so
            that it takes a slower way, or finds "No available kernel" where one was demanded.
        progress: show a bar (tqdm).

    Raises:
        TypeError, ValueError, KeyError, BufferError: inputs or outputs that do not go together;
            results of another number, name, kind, dtype, shape or device than their columns have.
        RuntimeError: the model has written into its inputs by torch's in-place operations; by
            `.data` or NumPy it goes unnoticed. Or it has moved the outputs' memory away.

    >>> from soaview import Column, Layout, Spec
    >>> layout = Layout([Column("x", "float32"), Column("y", "float32"), Column("sum", "float32")])
    >>> soa = layout.pack({"x": [1.0, 2.0], "y": [3.0, 4.0], "sum": [0.0, 0.0]})
    >>> forward(lambda x: x.sum(1), (soa, Spec(x=["x", "y"])), (soa, Spec(sum="sum")), batch_size=1)
    >>> soa["sum"]
    array([4., 6.], dtype=float32)
    """
    plain = batch_size is dtype is None and copy is progress is False and callable(model)
    if plain and at_once(event_for(_EVENT, of_soas, inputs, outputs), model, (inputs,), (outputs,)):
        return
    check_copy(copy)
    check_model(model)
    ins, outs = pairs("inputs", inputs), pairs("outputs", outputs)
    name = check_dtype(dtype)
    cast = None if name is None else DTYPE[name]
    task = work(ins, outs, batch_size, progress)
    if plain and len(ins) + len(outs) > 2:
        sides = [[(soa.layout, spec) for soa, spec in side] for side in (ins, outs)]
        if at_once(events_for(_EVENT, of_soas, *sides), model, ins, outs):
            return
    found: Matches[torch.Tensor] = []
    for number in task.batches():
        fits = _run(model, task.inputs_of(number), task.outputs_of(number), copy, cast)
        # A model may use its memory of the results again in the next batch.
        found += [(target, t.clone()) for target, t in fits] if task.batched else fits
    store(found)


_KEY, _EVENT = "torch.forward", "torch.event"


def _run(
    model: Callable[..., Any],
    inputs: list[Pair],
    outputs: list[Pair],
    copy: bool | None,
    cast: torch.dtype | None,
) -> Matches[torch.Tensor]:
    """One call of the model; its results, if they fit."""
    targets = [targets_of(soa, spec) for soa, spec in outputs]
    given: list[torch.Tensor] = []
    memories: list[Import | Imports] = []
    for soa, spec in inputs:
        found_there, memory = _given(soa, spec, copy)
        given += found_there
        if memory is not None:
            memories.append(memory)
    versions = [memory.version for memory in memories]
    with torch.inference_mode(), _current(outputs[0][0].device):
        if cast is not None:
            given = [t.to(cast) if t.is_floating_point() else t for t in given]
        made = model(*given)
    for soa, spec in outputs:
        check_writable(soa, spec.values())
    if [memory.version for memory in memories] != versions:
        raise RuntimeError(CHANGED)
    found: Matches[torch.Tensor] = []
    for (soa, spec, values), at in zip(results(made, outputs), targets, strict=True):
        if cast is not None:
            values = list(map(_cast, values, at))
        found += matched(soa, spec, at, values)
    return found


@torch.inference_mode()
def _cast(value: Any, target: Target[torch.Tensor]) -> Any:
    """The value in the target's dtype, if both are floating; any other is for `match` to judge."""
    floating = isinstance(value, torch.Tensor) and is_plain(value) and value.is_floating_point()
    return value.to(target.dtype) if floating and target.dtype.is_floating_point else value


def _given(
    soa: SoA, spec: Spec, copy: bool | None
) -> tuple[list[torch.Tensor], Import | Imports | None]:
    """A pair's tensors, and the memory that counts the writes into them, if it is the SoA's.

    It is imported for models alone: other writers, in other threads, are not counted.
    """
    if copy is True:
        return tensors(soa, spec, copy=True), None
    known: Maker | None = soa.adapter_cache.get((_KEY, spec.key, False))
    if known is None or not known[1].as_imported():
        try:
            known = maker_of(soa, spec, False, _KEY)
        except BufferError:
            if copy is False:
                raise
            some = copies(soa, spec, None, False, _KEY)
            return some, memory_of(soa, _KEY)
    _, memory, calls = known
    if memory.wait is not None:
        memory.wait()
    return list(starmap(torch.as_strided, calls)), memory


def _current(device: str) -> AbstractContextManager[Any]:
    if device.startswith(("cuda", "rocm")):
        return torch.cuda.device(int(device.partition(":")[2]))
    return nullcontext()
