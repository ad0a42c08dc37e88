"""Tensors that alias an SoA's memory."""

from __future__ import annotations

from itertools import starmap
from typing import Any

import torch

from soaview import SoA, Spec, View
from soaview._device import DeviceBuffer
from soaview._soa import check_copy
from soaview._views import Scattered, geometry, views_or_columns

from ._memory import Memory, memory_of


def tensors(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False
) -> list[torch.Tensor]:
    """The spec's tensors, in spec order, as views of the SoA's memory.

    All tensors of an SoA and of its slices alias one storage, which keeps the memory's owner alive;
    they share autograd's version counter, so an in-place change that a backward pass cannot bear
    raises there. What is written into them is written into the SoA. A broadcast scalar has
    stride 0: torch refuses most writes into it, but not `fill_`. On a device, torch's current
    stream waits for the producer's in every call.

    Args:
        soa: the memory.
        spec: which columns make each tensor.
        copy: `False` never copies; `None` copies only the tensors that need it (read-only memory,
            or columns that no single strided view covers); `True` copies all. Copies are
            contiguous, row-major, and independent of the SoA.
        padded: give the padded rows (pitch / itemsize) instead of the valid ones.

    Raises:
        BufferError: with `copy=False`, a tensor cannot be a view. Read-only memory is one such
            case: torch has no read-only tensors.
        KeyError, ValueError, TypeError: no such column; columns that do not fit one tensor; a
            wrong kind of argument.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(3)
    >>> [x] = tensors(soa, Spec(x=["pt", "eta"]))
    >>> x[0, 1] = 7
    >>> soa["eta"]
    array([7., 0., 0.], dtype=float32)
    """
    if copy is not False:
        return copies(soa, spec, copy, padded)
    ready = soa.ready.get("torch") if type(soa) is SoA else None
    if (
        ready is None
        or ready[0] is not spec
        or ready[1] is not padded
        or not ready[2].as_imported()
    ):
        ready = prepare(soa, spec, padded)
    if ready[2].wait is not None:
        ready[2].wait()
    return list(starmap(torch.as_strided, ready[3]))


def prepare(soa: SoA, spec: Spec, padded: bool, key: str = "torch") -> tuple[Any, ...]:
    """Spec, padded, the memory, and the arguments of `torch.as_strided` for each tensor.

    They are kept under the key, which has an import of the memory, and so a count of writes, of
    its own.
    """
    # What is imported in inference mode could never take part in a backward pass.
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return prepare(soa, spec, padded, key)
    found = geometry(soa, spec, padded)
    buffer = soa.buffer
    if buffer.readonly and not buffer.piecewise:
        raise BufferError(
            "the SoA's memory is read-only, and torch has no read-only tensors: a write would "
            "change it, or crash. Ways out: copy=None copies it; a file can be mapped as private "
            'memory, numpy.memmap(mode="c"), or to be written itself, mode="r+"'
        )
    memory = memory_of(buffer, key)
    calls = [
        # An offset of 0 is the default here, and takes torch a while to read.
        (memory[dtype], shape, strides, offset) if offset else (memory[dtype], shape, strides)
        for _, dtype, _, shape, strides, offset in found
    ]
    ready = soa.ready[key] = spec, padded, memory, calls
    return ready


def copies(
    soa: SoA, spec: Spec, copy: bool | None, padded: bool, key: str = "torch"
) -> list[torch.Tensor]:
    """As `tensors`, all of them copied, or those that need it; the others as views.

    The views are of the import under this key.
    """
    check_copy(copy)
    found = views_or_columns(soa, spec, padded=padded)
    all_of_them = copy is True or soa.readonly

    def alias_of(view: View) -> torch.Tensor:
        view = view.buffer.locate(view)
        if isinstance(view.buffer, DeviceBuffer) or not soa.readonly:
            memory = memory_of(view.buffer, key)
        else:  # the flag is lifted for reading only: what is made of this memory is copied
            memory = Memory(view.buffer.unguarded)
        if memory.wait is not None:
            memory.wait()
        return memory.alias(view)

    def tensor(view: View | Scattered) -> torch.Tensor:
        if isinstance(view, Scattered):
            return torch.stack([alias_of(part) for part in view.parts], dim=1)
        alias = alias_of(view)
        return alias.clone(memory_format=torch.contiguous_format) if all_of_them else alias

    with torch.inference_mode(False):
        return [tensor(view) for view in found]
