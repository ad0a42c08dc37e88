"""Where tensors are written: what `write` and `forward` do in every adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .._soa import SoA
from .._spec import Spec
from .._views import Gather, View, views_or_gathers
from .._write import check_columns, check_given, check_writable, tensor_labels

Part = TypeVar("Part")
"""What a framework writes into: a view of its own, one for each part of a target."""

Described = tuple[tuple[int, ...], str, str]
"""A tensor's shape, and the names of its dtype and device as soaview has them."""


class Target(NamedTuple, Generic[Part]):
    """Where one tensor is written.

    Attributes:
        shape: that it must have.
        dtype, device: likewise, as the framework itself has them.
        parts: of the memory: one, or one for each column where these have no common distance.
        memory: that the parts are of, as the adapter has it, if it wants to know.
    """

    shape: tuple[int, ...]
    dtype: Any
    device: Any
    parts: list[Part]
    memory: Any = None


Matches = list[tuple[Target[Part], Any]]
"""Targets, each with the tensor that is to be written there."""


def writable_views(soa: SoA, spec: Spec) -> list[tuple[View | Gather, list[View]]]:
    """Where a spec's tensors are written, each with its parts.

    Raises:
        BufferError: read-only memory.
        KeyError, TypeError, ValueError: as `views`; a column that would be written twice.
    """
    found = views_or_gathers(soa, spec)
    check_writable(soa)
    check_columns(soa.layout, spec)
    return [(view, view.parts if isinstance(view, Gather) else [view]) for view in found]


def match(
    soa: SoA,
    spec: Spec,
    targets: Sequence[Target[Part]],
    tensors: Sequence[Any],
    *,
    fits: Callable[[Target[Part], Any], bool],
    describe: Callable[[str, Any], Described],
) -> Matches[Part]:
    """Each tensor with its target, if all of them fit; nothing has been written.

    Args:
        soa: the memory.
        spec: which tensors there are.
        targets: of these.
        tensors: what was given for them.
        fits: whether a tensor is what a target takes.
        describe: of a tensor, called as so and so in messages, what it is; it raises `TypeError`
            for what is no plain tensor of the framework.

    Raises:
        TypeError, ValueError: naming the tensor, what was got and what is expected.
    """
    if len(tensors) != len(targets) or not all(map(fits, targets, tensors)):
        both = zip(tensor_labels(spec, tensors), tensors, strict=True)
        given = [describe(label, tensor) for label, tensor in both]
        check_given(soa, spec, views_or_gathers(soa, spec), given)
    return list(zip(targets, tensors, strict=True))


def parts_of(target: Target[Part], tensor: Any) -> list[tuple[Part, Any]]:
    """Each part of a target, with the piece of the tensor that goes there."""
    parts = target.parts
    if len(parts) == 1:
        return [(parts[0], tensor)]
    return [(part, tensor[:, number]) for number, part in enumerate(parts)]


def overlaps(address: int, nbytes: int, other: int, other_nbytes: int) -> bool:
    """Whether two pieces of memory, by address and size in bytes, have bytes in common.

    A tensor over the memory itself could be changed by the first write before it is read.

    >>> overlaps(0, 128, 64, 128), overlaps(0, 128, 128, 128)
    (True, False)
    """
    return address < other + other_nbytes and other < address + nbytes
