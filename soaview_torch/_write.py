"""Model outputs, written into an SoA's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from soaview import SoA, Spec
from soaview._buffer import check_storage
from soaview._soa import check_columns, check_given, check_writable, numbered
from soaview._views import Scattered, views_or_columns

from ._memory import DTYPE, Memory, is_plain, memory_of

_NAME = {dtype: name for name, dtype in DTYPE.items()}


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
        both = zip(numbered(spec, tensors), tensors, strict=True)
        given = [_describe(where, tensor) for where, tensor in both]
        check_given(soa, spec, views_or_columns(soa, spec), given)
    return list(zip(places, tensors, strict=True))


@torch.inference_mode()
def store(found: Fitting) -> None:
    """Write tensors that fit, without the graphs and tangents that they bring."""
    if any(place.memory.moved for place, _ in found):
        raise RuntimeError(
            "the SoA's memory was moved away meanwhile, by share_memory_ of one of its tensors: "
            "nothing was written"
        )
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
        kind = DTYPE[view.dtype_name], aliases[0].device
        places.append(Place(view.shape, *kind, aliases, memory, end))
    soa.ready["torch.write"] = spec, memory, places
    return places


def _fits(place: Place, tensor: torch.Tensor) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and is_plain(tensor)
        and tensor.shape == place.shape
        and tensor.dtype is place.dtype
        and tensor.device == place.device
    )


def _describe(where: str, tensor: object) -> tuple[tuple[int, ...], str, str]:
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
    device = str(tensor.device)
    if torch.version.hip is not None:  # there, too, torch calls it cuda
        device = device.replace("cuda", "rocm")
    return tuple(tensor.shape), _NAME.get(tensor.dtype, str(tensor.dtype)), device


def _overlaps(tensor: torch.Tensor, place: Place) -> bool:
    check_storage(tensor)
    storage = tensor.untyped_storage()
    begin = storage.data_ptr()
    return begin < place.end and place.memory.address < begin + storage.nbytes()
