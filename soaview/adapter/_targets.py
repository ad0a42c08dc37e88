"""Where tensors are written: what `write` and `forward` do in every adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from .._gather import Gather, views_or_gathers
from .._soa import SoA
from .._spec import Spec
from .._views import View
from .._write import (
    are_bound_apart,
    check_columns,
    check_count,
    check_given,
    check_writable,
    tensor_labels,
)

Part = TypeVar("Part")
"""What a framework writes into: a view of its own, one for each part of a target."""

Described = tuple[tuple[int, ...], str, str]
"""A tensor's shape, and the names of its dtype and device as soaview has them."""


class Target(NamedTuple, Generic[Part]):
    """Where one tensor is written: an adapter makes one of each entry of `writable_views`.

    Attributes:
        shape: that the tensor must have, in elements.
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
    """Where a spec's tensors are written, in spec order, each with its parts.

    The parts of a view are the view itself, those of a `Gather` one view for each column.

    Raises:
        BufferError: read-only memory.
        KeyError, TypeError: as `views`.
        ValueError: likewise; a column that would be written twice; a scalar that would get a value
            for each row.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(3)
    >>> [(there, parts)] = writable_views(soa, Spec(x=["eta", "pt"]))
    >>> there.shape, [part.shape for part in parts]
    ((3, 2), [(3,), (3,)])
    """
    found = views_or_gathers(soa, spec)
    check_writable(soa, spec.values())
    check_columns(soa.layout, spec)
    for view in found:
        if isinstance(view, Gather) and not view.aligned:
            raise BufferError(f"tensor {view.name!r}: {view.why()}, soa[name][...] = values")
    are_bound_apart([(soa, spec)])
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
        targets: of these, in spec order.
        tensors: what was given for them.
        fits: whether a tensor is what a target takes, fast: it is asked in every call.
        describe: of a tensor, called as so and so in messages, what it is; it raises `TypeError`
            for what is no plain tensor of the framework. It is asked where something does not fit,
            and has the last word.

    Raises:
        TypeError: what `describe` refuses; a wrong dtype.
        ValueError: a wrong number of tensors, a wrong shape or device. Both name the tensor, what
            was got and what is expected.

    >>> import numpy as np
    >>> from soaview import Column, Layout, Spec
    >>> soa, spec = Layout([Column("pt", "float32")]).allocate(3), Spec(x="pt")
    >>> target = Target((3,), np.dtype("float32"), "cpu", [soa["pt"]])
    >>> def fits(target, array):
    ...     return (array.shape, array.dtype) == (target.shape, target.dtype)
    >>> def describe(label, array):
    ...     return array.shape, array.dtype.name, "cpu"
    >>> match(soa, spec, [target], [np.zeros(4, "float32")], fits=fits, describe=describe)
    Traceback (most recent call last):
    ValueError: tensor 'x': got shape (4,), expected (3,); it needs one row for each of the SoA's
    """
    check_count("targets", targets, spec)
    if len(tensors) != len(targets) or not all(map(fits, targets, tensors)):
        both = zip(tensor_labels(spec, tensors), tensors, strict=True)
        given = [describe(label, tensor) for label, tensor in both]
        check_given(soa, spec, views_or_gathers(soa, spec), given)
    return list(zip(targets, tensors, strict=True))


def parts_of(target: Target[Part], tensor: Any) -> list[tuple[Part, Any]]:
    """Each part of a target, with the piece of the tensor that goes there.

    Of several parts these are the tensor's columns, along its axis 1.

    >>> import numpy as np
    >>> target = Target((2, 2), "int64", "cpu", ["first", "second"])
    >>> [(part, piece.tolist()) for part, piece in parts_of(target, np.array([[1, 2], [3, 4]]))]
    [('first', [1, 3]), ('second', [2, 4])]
    """
    parts = target.parts
    if len(parts) == 1:
        return [(parts[0], tensor)]
    # With an ellipsis, for the array API wants an index for each axis, or else one of these.
    return [(part, tensor[:, number, ...]) for number, part in enumerate(parts)]


def overlaps(address: int, nbytes: int, other: int, other_nbytes: int) -> bool:
    """Whether two pieces of memory, by address and size in bytes, have bytes in common.

    A tensor over the memory itself could be changed by the first write before it is read.

    >>> overlaps(0, 128, 64, 128), overlaps(0, 128, 128, 128)
    (True, False)
    """
    return address < other + other_nbytes and other < address + nbytes
