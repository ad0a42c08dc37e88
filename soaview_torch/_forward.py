"""Models of torch's, from SoA to SoA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import starmap
from typing import Any

import torch

from soaview import SoA, Spec
from soaview._forward import Pair, Pairs, check_model, pairs, results, work
from soaview._soa import check_copy

from ._memory import Memory
from ._tensors import copies, prepare, tensors
from ._write import Fitting, fitting, places_of, store


def forward(
    model: Callable[..., Any],
    inputs: Pairs,
    outputs: Pairs,
    *,
    batch_size: int | None = None,
    whole: SoA | Sequence[SoA] = (),
    copy: bool | None = False,
    progress: bool = False,
) -> None:
    """Run a model on the columns of SoAs, and write its results into the columns of SoAs.

    The model gets the inputs' tensors one by one, in the order of the pairs and of their specs, in
    inference mode and, on a GPU, with the SoAs' device as the current one. It may be a module
    (call its `eval()` before), a scripted, traced, compiled or exported one, or any function.
    Its results are one tensor, a tuple or list in the order of the outputs' specs, or a dict by the
    tensors' names. All of them are checked before any is written, once the model has run on all
    batches: if it raises, or gives what does not fit, nothing has been written. Each is written
    with one copy, the only one; results of batches are kept as copies until then. Outputs without
    rows are done without running the model.

    Args:
        model: any function of tensors.
        inputs: a pair `(soa, spec)`, or a list of pairs: SoAs of any row counts, on one device.
        outputs: likewise; writable, on the same device. They may be the inputs themselves.
        batch_size: run on so many rows at a time, the last batch short. Split are the SoAs that
            have as many rows as the outputs, which must agree; the model gets the others whole, in
            every batch. Results of all batches are kept until the end.
        whole: inputs that are not split, whatever their row count is. Name those that have nothing
            to do with the outputs' rows: their counts may be the same by chance.
        copy: of the inputs, as in `tensors`. `None` or `True` for memory that is read-only;
            `True` where the model's first operation is slow on strides, or writes into its input.
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
    check_copy(copy)
    check_model(model)
    ins, outs = pairs("inputs", inputs), pairs("outputs", outputs)
    task = work(ins, outs, batch_size, whole, progress)
    found: Fitting = []
    for rows in task.batches():
        fits = _run(model, task.inputs_of(rows), task.outputs_of(rows), copy)
        # A model may use its memory of the results again in the next batch.
        found += [(place, t.clone()) for place, t in fits] if task.batched else fits
    store(found)


_KEY = "torch.forward"


def _run(
    model: Callable[..., Any], inputs: list[Pair], outputs: list[Pair], copy: bool | None
) -> Fitting:
    """One call of the model; its results, if they fit."""
    places = [places_of(soa, spec) for soa, spec in outputs]
    given: list[torch.Tensor] = []
    memories: list[Memory] = []
    for soa, spec in inputs:
        found_there, memory = _given(soa, spec, copy)
        given += found_there
        if memory is not None:
            memories.append(memory)
    versions = [memory.version for memory in memories]
    with torch.inference_mode(), _current(outputs[0][0].device):
        made = model(*given)
    if [memory.version for memory in memories] != versions:
        raise RuntimeError(
            "the model has changed its inputs in place, and so the SoA's columns; drop its "
            "in-place operations (inplace=True) on them, or pass copy=True"
        )
    found: Fitting = []
    for (soa, spec, values), at in zip(results(made, outputs), places, strict=True):
        found += fitting(soa, spec, at, values)
    return found


def _given(soa: SoA, spec: Spec, copy: bool | None) -> tuple[list[torch.Tensor], Memory | None]:
    """A pair's tensors, and the memory that counts the writes into them, if it is the SoA's.

    It is imported for models alone: other writers, in other threads, are not counted.
    """
    if copy is True:
        return tensors(soa, spec, copy=True), None
    ready = soa.ready.get(_KEY)
    if ready is None or ready[0] is not spec or not ready[2].as_imported():
        try:
            ready = prepare(soa, spec, False, _KEY)
        except BufferError:
            if copy is False:
                raise
            some = copies(soa, spec, None, False, _KEY)
            return some, None if soa.readonly else soa.buffer.imports[_KEY]
    memory: Memory = ready[2]
    if memory.wait is not None:
        memory.wait()
    return list(starmap(torch.as_strided, ready[3])), memory


def _current(device: str) -> AbstractContextManager[Any]:
    if device.startswith(("cuda", "rocm")):
        return torch.cuda.device(int(device.partition(":")[2]))
    return nullcontext()
