"""Model outputs, written into an SoA's columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soaview import SoA, Spec
from soaview.adapter import (
    Described,
    Matches,
    Target,
    check_storage,
    keep,
    match,
    overlaps,
    parts_of,
    tensor_labels,
    writable_views,
)

from ._memory import DTYPE, NAME, Import, import_of, is_plain, name_of


def write(soa: SoA, spec: Spec, tensors: Sequence[torch.Tensor]) -> None:
    """Write model outputs into the spec's columns; nothing is written unless all of them fit.

    Args:
        soa: writable memory.
        spec: where each tensor goes; a scalar is written as `Value(name)`.
        tensors: in spec order, on the SoA's device, with the shapes and dtypes that `tensors`
            gives. Gradients and forward-mode tangents are left behind. A tensor may alias the SoA's
            buffer.

    Raises:
        TypeError, ValueError: a tensor of another kind, dtype, shape or device; a column that
            would be written twice.
        BufferError: read-only memory.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("score", "float32")]).allocate(3)
    >>> write(soa, Spec(y="score"), [torch.tensor([1.0, 2.0, 3.0])])
    >>> soa["score"]
    array([1., 2., 3.], dtype=float32)
    """
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(f"tensors must be a list in spec order, got {type(tensors).__name__}")
    store(matched(soa, spec, targets_of(soa, spec), tensors))


def targets_of(soa: SoA, spec: Spec) -> list[Target[torch.Tensor]]:
    """Where the spec's tensors are written."""
    try:
        known: list[Target[torch.Tensor]] | None = soa.adapter_cache.get(("torch.write", spec.key))
    except (AttributeError, TypeError):  # no SoA, or no spec of it: what follows says so
        known = None
    if known and all(memory.as_imported() for memory in known[0].memory):
        return known
    if torch.is_inference_mode_enabled():  # what is imported there has no version
        with torch.inference_mode(False):
            return targets_of(soa, spec)
    found = writable_views(soa, spec)
    memories = {id(part.buffer): import_of(part.buffer) for _, parts in found for part in parts}
    all_of_them, targets = [*memories.values()], []
    for view, parts in found:
        aliases = [memories[id(part.buffer)].alias(part.strided) for part in parts]
        kind = DTYPE[view.dtype_name], all_of_them[0].base.device
        targets.append(Target(view.shape, *kind, aliases, all_of_them))
    return keep(soa, ("torch.write", spec.key), targets)


def matched(
    soa: SoA, spec: Spec, targets: list[Target[torch.Tensor]], tensors: Sequence[torch.Tensor]
) -> Matches[torch.Tensor]:
    """Each tensor with its target, if all of them fit."""
    found = match(soa, spec, targets, tensors, fits=_fits, describe=_describe)
    for label, tensor in zip(tensor_labels(spec, tensors), tensors, strict=True):
        check_storage(tensor, label)
    return found


@torch.inference_mode()
def store(found: Matches[torch.Tensor]) -> None:
    """Write tensors that fit, without the graphs and tangents that they bring."""
    there = {id(memory): memory for target, _ in found for memory in target.memory}
    memories: list[Import] = [*there.values()]
    if any(memory.moved for memory in memories):
        raise RuntimeError(
            "the SoA's memory was moved away meanwhile, by share_memory_ of one of its tensors: "
            "nothing was written"
        )
    for memory in memories:
        if memory.wait is not None:
            memory.wait()
    # A tensor over the memory itself could be changed by the first write before it is read.
    values = [
        value.clone() if any(_overlaps(value, memory) for memory in memories) else value
        for _, value in found
    ]
    for (target, _), value in zip(found, values, strict=True):
        for part, piece in parts_of(target, value):
            part.copy_(piece)


def _fits(target: Target[torch.Tensor], tensor: torch.Tensor) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and is_plain(tensor)
        and tensor.shape == target.shape
        and tensor.dtype is target.dtype
        and tensor.device == target.device
    )


def _describe(where: str, tensor: object) -> Described:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{where}: got {type(tensor).__name__}, expected a torch.Tensor; "
            f"torch.as_tensor makes one"
        )
    if not is_plain(tensor):
        zeros = " of zeros without memory, whose clone() has some," * tensor._is_zerotensor()
        raise TypeError(
            f"{where}: got {type(tensor).__name__}{zeros} of layout {tensor.layout}, expected a "
            f"plain dense torch.Tensor, outside of torch.func transforms and functionalization"
        )
    dtype = NAME.get(tensor.dtype, str(tensor.dtype))
    return tuple(tensor.shape), dtype, name_of(tensor.device)


def _overlaps(tensor: torch.Tensor, memory: Import) -> bool:
    storage = tensor.untyped_storage()
    return overlaps(memory.address, memory.nbytes, storage.data_ptr(), storage.nbytes())
