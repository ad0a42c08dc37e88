"""Tensors that alias an SoA's memory, and model outputs written into its columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap
from typing import Any, NamedTuple

import torch

from soaview import SoA, Spec, View
from soaview._device import DeviceBuffer
from soaview._soa import check_columns, check_copy, check_given, check_writable
from soaview._views import Scattered, geometry, views_or_columns

from ._memory import DTYPE, Memory, as_given, memory_of

_NAME = {dtype: name for name, dtype in DTYPE.items()}


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
        return _copies(soa, spec, copy, padded)
    ready = soa.ready.get("torch") if type(soa) is SoA else None
    if (
        ready is None
        or ready[0] is not spec
        or ready[1] is not padded
        or not ready[2].as_imported()
    ):
        ready = _prepare(soa, spec, padded)
    if ready[2].wait is not None:
        ready[2].wait()
    return list(starmap(torch.as_strided, ready[3]))


def _prepare(soa: SoA, spec: Spec, padded: bool) -> tuple[Any, ...]:
    # What is imported in inference mode could never take part in a backward pass.
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return _prepare(soa, spec, padded)
    found = geometry(soa, spec, padded)
    buffer = soa.buffer
    if buffer.readonly and not buffer.piecewise:
        raise BufferError(
            "the SoA's memory is read-only, and torch has no read-only tensors: a write would "
            "change it, or crash. Ways out: copy=None copies it; a file can be mapped as private "
            'memory, numpy.memmap(mode="c"), or to be written itself, mode="r+"'
        )
    memory = memory_of(buffer) if buffer.imports else Memory(as_given(buffer))
    buffer.imports["torch"] = memory
    calls = [
        (memory[dtype], shape, strides, offset) for _, dtype, _, shape, strides, offset in found
    ]
    ready = soa.ready["torch"] = spec, padded, memory, calls
    return ready


def _copies(soa: SoA, spec: Spec, copy: bool | None, padded: bool) -> list[torch.Tensor]:
    check_copy(copy)
    found = views_or_columns(soa, spec, padded=padded)
    all_of_them = copy is True or soa.readonly

    def alias_of(view: View) -> torch.Tensor:
        view = view.buffer.locate(view)
        if isinstance(view.buffer, DeviceBuffer) or not soa.readonly:
            memory = memory_of(view.buffer)
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


def write(soa: SoA, spec: Spec, tensors: Sequence[torch.Tensor]) -> None:
    """Write model outputs into the spec's columns; nothing is written unless all of them fit.

    Args:
        soa: writable memory.
        spec: where each tensor goes; a scalar is written as `Value(name)`.
        tensors: in spec order, on the SoA's device, with the shapes and dtypes that `tensors`
            gives. Gradients are not recorded. A tensor may alias the SoA's buffer.

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
    with torch.no_grad():
        store(fitting(soa, spec, places_of(soa, spec), tensors))


class Place(NamedTuple):
    """Where `write` puts a tensor.

    Attributes:
        shape, dtype, device: that it must have.
        aliases: the memory itself, as one tensor, or as one for each column.
        memory: that these are of, and where it ends.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    aliases: list[torch.Tensor]
    memory: Memory
    end: int


Fitting = list[tuple[Place, torch.Tensor]]


def fitting(soa: SoA, spec: Spec, places: list[Place], tensors: Sequence[torch.Tensor]) -> Fitting:
    """Where each tensor goes, if all of them fit there."""
    if len(tensors) != len(places) or not all(map(_fits, places, tensors)):
        given = [_describe(number, t) for number, t in enumerate(tensors)]
        check_given(soa, spec, views_or_columns(soa, spec), given)
    return list(zip(places, tensors, strict=True))


def store(found: Fitting) -> None:
    """Write tensors that fit; no gradients are recorded where the caller has switched them off."""
    # A tensor over the memory itself could be changed by the first write before it is read.
    values = [
        value.clone() if any(_overlaps(value, place) for place, _ in found) else value
        for _, value in found
    ]
    for (place, _), value in zip(found, values, strict=True):
        if place.memory.wait is not None:
            place.memory.wait()
        if len(place.aliases) > 1:
            for alias, column in zip(place.aliases, value.unbind(1), strict=True):
                alias.copy_(column)
        else:
            place.aliases[0].copy_(value)


def places_of(soa: SoA, spec: Spec) -> list[Place]:
    """Where the spec's tensors are written."""
    ready = soa.ready.get("torch.write") if type(soa) is SoA else None
    if ready is not None and ready[0] is spec and ready[1].as_imported():
        return ready[2]  # type: ignore[no-any-return]
    if torch.is_inference_mode_enabled():  # what is imported there has no version
        with torch.inference_mode(False):
            return places_of(soa, spec)
    found = views_or_columns(soa, spec)
    check_writable(soa)
    check_columns(soa.layout, spec)
    memory, places = memory_of(soa.buffer), []
    end = memory.address + soa.buffer.nbytes
    for view in found:
        parts = view.parts if isinstance(view, Scattered) else [view]
        aliases = [memory.alias(part) for part in parts]
        kind = DTYPE[view.dtype], aliases[0].device
        places.append(Place(view.shape, *kind, aliases, memory, end))
    soa.ready["torch.write"] = spec, memory, places
    return places


def _fits(place: Place, tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.shape == place.shape
        and tensor.dtype is place.dtype
        and tensor.device == place.device
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _describe(number: int, tensor: object) -> tuple[tuple[int, ...], str, str]:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"tensor number {number}: got {type(tensor).__name__}, expected a torch.Tensor; "
            f"torch.as_tensor makes one"
        )
    # Only a plain tensor is sure to be read without a word when it is copied.
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_nested or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TypeError(
            f"tensor number {number}: got {type(tensor).__name__} of layout {tensor.layout}, "
            f"expected a plain dense torch.Tensor, outside of torch.func transforms"
        )
    device = str(tensor.device)
    if torch.version.hip is not None:  # there, too, torch calls it cuda
        device = device.replace("cuda", "rocm")
    return tuple(tensor.shape), _NAME.get(tensor.dtype, str(tensor.dtype)), device


def _overlaps(tensor: torch.Tensor, place: Place) -> bool:
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    return begin < place.end and place.memory.address < begin + storage.nbytes()
