"""Tensors that alias an SoA's memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from soaview import SoA, Spec, View, views
from soaview.adapter import (
    Allocations,
    Gather,
    check_copy,
    check_dtypes,
    keep,
    resolve,
    views_or_gathers,
)

from ._event import gathers_function, tensors_function
from ._memory import DTYPE, Import, Imports, import_of, to_read


def tensors(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False, dtype: Any = None
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
        padded: give the padded rows (pitch / itemsize) instead of the valid ones; interleaved
            columns have none, and give their rows.
        dtype: the floating dtype of all tensors, whatever their columns have, or of some, by
            name: `{"x": "float32"}`. One of integer, bool or other floating columns, or of several
            dtypes, is then a copy, converted as torch does it: rounded to the nearest, and
            infinite where the dtype ends before. `copy=False` refuses that.

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
    if copy is not False or dtype is not None:
        made = None
        if copy is None and dtype is None and padded is False:
            made = _of_new_memory(soa, spec, "torch.gathered", gathers_function)
        return copies(soa, spec, copy, padded, dtype=dtype) if made is None else made
    try:
        known: Maker | None = soa.adapter_cache.get(("torch", spec.key, padded))
    except (AttributeError, TypeError):  # no SoA, or no spec of it: what follows says so
        known = None
    if known is None or known[0] is not padded or not known[1].as_imported():
        made = _of_new_memory(soa, spec, "torch.new", tensors_function) if padded is False else None
        if made is not None:
            return made
        known = maker_of(soa, spec, padded)
    _, memory, calls = known
    if memory.wait is not None:
        memory.wait()
    return list(starmap(torch.as_strided, calls))


def _of_new_memory(
    soa: SoA, spec: Spec, key: str, function: Callable[[Any, Spec], Any]
) -> list[torch.Tensor] | None:
    """The tensors of an SoA of the host of which torch has nothing yet, in one step: an event's.

    None where that is another case, or a mistake: the long way knows which. It keeps what it has
    made, for an SoA that is asked again.
    """
    if type(soa) is not SoA or type(spec) is not Spec:
        return None
    known, plans = (key, spec.key), soa.layout.plans
    run: Any = plans.get(known, known)
    if run is known:
        run = plans[known] = function(soa.layout, spec)
    found: list[torch.Tensor] | None = None if run is None else run(soa, import_of)
    return found


Maker = tuple[bool, Import | Imports, list[tuple[Any, ...]]]
"""What makes an SoA's tensors again and again.

Whether they have the padded rows, the memory, and the arguments of `torch.as_strided` for each.
"""


def maker_of(soa: SoA, spec: Spec, padded: bool, key: str = "torch") -> Maker:
    """What makes the spec's tensors, kept under the key.

    That has an import of the memory, and so a count of writes, of its own.
    """
    # What is imported in inference mode could never take part in a backward pass.
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return maker_of(soa, spec, padded, key)
    if isinstance(soa, SoA) and isinstance(soa.buffer, Allocations):
        return _maker_of_pieces(soa, spec, padded, key)
    found = resolve(soa, spec, padded=padded)
    buffer = soa.buffer
    if buffer.readonly and not buffer.piecewise:
        raise BufferError(
            "the SoA's memory is read-only, and torch has no read-only tensors: a write would "
            "change it, or crash. Ways out: copy=None copies it; a file can be mapped as private "
            'memory, numpy.memmap(mode="c"), or to be written itself, mode="r+"'
        )
    memory = import_of(buffer, key)
    calls: list[tuple[Any, ...]] = []
    for _, dtype, _, shape, strides, offset in found:
        calls.append(_arguments(memory[dtype], shape, strides, offset))
    return keep(soa, (key, spec.key, padded), (padded, memory, calls))


def _maker_of_pieces(soa: SoA, spec: Spec, padded: bool, key: str) -> Maker:
    """The same of memory in several allocations, each of which is imported once."""
    memories: dict[int, Import] = {}
    calls: list[tuple[Any, ...]] = []
    for view in views(soa, spec, padded=padded):
        buffer, at = view.buffer, view.strided
        if buffer.readonly:
            raise BufferError(
                f"tensor {view.name!r}: its memory is read-only, and torch has no read-only "
                f"tensors; copy=None copies it, and readonly=False of bind is your word that it "
                f"may be written, where its owner's memory can be"
            )
        memory = memories.setdefault(id(buffer), import_of(buffer, key))
        flat = memory[at.dtype]
        calls.append(_arguments(flat, at.shape, at.strides, at.offset))
    parts = [*memories.values()]
    flats = [*{id(flat): flat for flat, *_ in calls}.values()]
    whole = parts[0] if len(parts) == 1 else Imports(parts, flats)
    return keep(soa, (key, spec.key, padded), (padded, whole, calls))


def _arguments(
    flat: torch.Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
) -> tuple[Any, ...]:
    """Of `torch.as_strided`: where `flat` starts is the default, and reading more takes a while."""
    return (
        (flat, shape, strides, flat.storage_offset() + offset) if offset else (flat, shape, strides)
    )


def copies(
    soa: SoA,
    spec: Spec,
    copy: bool | None,
    padded: bool,
    key: str = "torch",
    dtype: Any = None,
) -> list[torch.Tensor]:
    """As `tensors`, all of them copied, or those that need it; the others as views.

    The views are of the import under this key.
    """
    check_copy(copy)
    found = views_or_gathers(soa, spec, padded=padded, dtypes=check_dtypes(spec, dtype))
    if copy is False:
        for view in found:
            if isinstance(view, Gather):
                raise BufferError(f"tensor {view.name!r}: {view.why()}")
        return tensors(soa, spec, padded=padded)
    bound = type(soa.buffer) is Allocations

    def alias_of(view: View) -> torch.Tensor:
        buffer, at = view.buffer.locate(view.strided)
        memory = to_read(buffer, key)  # what is made of read-only memory is copied
        if memory.wait is not None:
            memory.wait()
        return memory.alias(at)

    def tensor(view: View | Gather) -> torch.Tensor:
        if isinstance(view, Gather):
            if soa.buffer.on_host and not view.converted and view.dtype_name != "bfloat16":
                return torch.from_numpy(view.numpy())  # in a quarter of the time of torch's
            if view.aligned:
                return _joined(view, [alias_of(part) for part in view.parts])
            return _joined(view, list(map(_of_unaligned, view.arrays())))
        alias = alias_of(view)
        readonly = view.buffer.readonly if bound else soa.readonly
        return _row_major(alias) if copy is True or readonly else alias

    with torch.inference_mode(False):
        return [tensor(view) for view in found]


def _joined(gather: Gather, parts: list[torch.Tensor]) -> torch.Tensor:
    """The columns in one new tensor; where they are converted, each of them on the way."""
    if not gather.converted:
        return torch.stack(parts, dim=1) if gather.stacked else parts[0]
    made = parts[0].new_empty(gather.shape, dtype=DTYPE[gather.dtype_name])
    places = made.unbind(1) if gather.stacked else [made]
    for place, part in zip(places, parts, strict=True):
        place.copy_(part)
    return made


def _of_unaligned(values: NDArray[Any]) -> torch.Tensor:
    """Values that no tensor may read where they lie, by NumPy."""
    name, values = values.dtype.name, values.copy()
    return torch.from_numpy(values.view(np.int16) if name == "bfloat16" else values).view(
        DTYPE[name]
    )


def _row_major(alias: torch.Tensor) -> torch.Tensor:
    """A contiguous copy.

    Many rows of columns without gaps torch transposes on the host by a function of its own, which
    takes two to five times as long as its way with gaps: so the last row goes by itself.
    """
    many = alias.dim() == 2 and alias.device.type == "cpu" and alias.numel() >= 1 << 16
    rows = len(alias) if many else 0
    if not many or alias.stride() != (1, rows):
        return alias.clone(memory_format=torch.contiguous_format)
    made = alias.new_empty(alias.shape)  # on its device, whatever torch's default is
    for at in (slice(rows - 1), slice(rows - 1, rows)):
        made[at].copy_(alias[at])
    return made
