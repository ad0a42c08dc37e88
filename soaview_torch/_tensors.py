"""Tensors that alias an SoA's memory, and model outputs written into its columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import torch

from soaview import SoA, Spec, View
from soaview._buffer import ITEMSIZE, WIDEST, Buffer
from soaview._soa import check_copy, targets
from soaview._views import Scattered, geometry, views_or_columns

_DTYPE = {name: getattr(torch, name) for name in ITEMSIZE}
_NAME = {dtype: name for name, dtype in _DTYPE.items()}


def tensors(
    soa: SoA, spec: Spec, *, copy: bool | None = False, padded: bool = False
) -> list[torch.Tensor]:
    """The spec's tensors, in spec order, as views of the SoA's memory.

    All tensors of an SoA and of its slices alias one storage, which keeps the memory's owner alive;
    they share autograd's version counter, so an in-place change that a backward pass cannot bear
    raises there. What is written into them is written into the SoA. A broadcast scalar has
    stride 0: torch refuses most writes into it, but not `fill_`.

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
    if ready is None or ready[0] is not spec or ready[1] is not padded:
        return _prepare(soa, spec, padded)
    _, _, roots, calls = ready
    for root in roots:
        if root.requires_grad:
            return _prepare(soa, spec, padded)
    return list(starmap(torch.as_strided, calls))


def _prepare(soa: SoA, spec: Spec, padded: bool) -> list[torch.Tensor]:
    found = geometry(soa, spec, padded)
    buffer = soa.buffer
    if not buffer.root.flags.writeable:
        raise BufferError(
            "the SoA's memory is read-only, and torch has no read-only tensors: a write would "
            "change it, or crash. Ways out: copy=None copies it; a file can be mapped as private "
            'memory, numpy.memmap(mode="c"), or to be written itself, mode="r+"'
        )
    roots = _roots(buffer)
    calls = [
        (roots[dtype] if dtype in roots else _root(roots, dtype), shape, strides, offset)
        for _, dtype, _, shape, strides, offset in found
    ]
    soa.ready["torch"] = spec, padded, tuple(roots.values()), calls
    return list(starmap(torch.as_strided, calls))


def _roots(buffer: Buffer) -> dict[str, torch.Tensor]:
    """The memory as one flat tensor per dtype: all of one storage, with one version counter."""
    roots: dict[str, torch.Tensor] = buffer.imports
    if not roots:
        # What is made in inference mode could never take part in a backward pass.
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return _roots(buffer)
        roots.setdefault(WIDEST[buffer.wide.itemsize], torch.from_numpy(buffer.wide))
        return roots
    for dtype, root in [*roots.items()]:
        if root.requires_grad:
            # A value that requires a gradient was written into a view. The graph that it came by
            # belongs to the tensors of that call, not to the memory.
            roots[dtype] = root.detach()
    return roots


def _root(roots: dict[str, torch.Tensor], dtype: str) -> torch.Tensor:
    if dtype not in roots:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return _root(roots, dtype)
        roots[dtype] = next(iter(roots.values())).view(_DTYPE[dtype])
    return roots[dtype]


def _alias(roots: dict[str, torch.Tensor], view: View) -> torch.Tensor:
    return torch.as_strided(_root(roots, view.dtype), view.shape, view.strides, view.offset)


def _copies(soa: SoA, spec: Spec, copy: bool | None, padded: bool) -> list[torch.Tensor]:
    check_copy(copy)
    found = views_or_columns(soa, spec, padded=padded)
    all_of_them = copy is True or soa.readonly
    # The flag is lifted for reading only: what is made of these roots is copied.
    memory = torch.from_numpy(soa.buffer.unguarded) if soa.readonly else None
    roots = _roots(soa.buffer) if memory is None else {"uint8": memory}

    def tensor(view: View | Scattered) -> torch.Tensor:
        if isinstance(view, Scattered):
            return torch.stack([_alias(roots, part) for part in view.parts], dim=1)
        alias = _alias(roots, view)
        return alias.clone(memory_format=torch.contiguous_format) if all_of_them else alias

    return [tensor(view) for view in found]


def write(soa: SoA, spec: Spec, tensors: Sequence[torch.Tensor]) -> None:
    """Write model outputs into the spec's columns; nothing is written unless all of them fit.

    Args:
        soa: writable memory.
        spec: where each tensor goes; a scalar is written as `Value(name)`.
        tensors: in spec order, on the SoA's device, with the shapes and dtypes that `tensors`
            gives. Gradients are not recorded. A tensor may alias the SoA.

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
    given = [
        _describe(f"tensor number {i}", tensor, soa.device) for i, tensor in enumerate(tensors)
    ]
    found = targets(soa, spec, given)
    roots = _roots(soa.buffer)
    with torch.no_grad():
        # A tensor over the SoA itself could be changed by the first write before it is read.
        values = [t.clone() if _overlaps(t, soa) else t for t in tensors]
        for view, value in zip(found, values, strict=True):
            if isinstance(view, Scattered):
                for part, column in zip(view.parts, value.unbind(1), strict=True):
                    _alias(roots, part).copy_(column)
            else:
                _alias(roots, view).copy_(value)


def _describe(where: str, tensor: object, device: str) -> tuple[tuple[int, ...], str]:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{where}: got {type(tensor).__name__}, expected a torch.Tensor; torch.as_tensor "
            f"makes one"
        )
    if str(tensor.device) != device:
        raise ValueError(
            f"{where}: got device {tensor.device}, the SoA is on {device}; move it there first"
        )
    return tuple(tensor.shape), _NAME.get(tensor.dtype, str(tensor.dtype))


def _overlaps(tensor: torch.Tensor, soa: SoA) -> bool:
    storage = tensor.untyped_storage()
    begin, address = storage.data_ptr(), soa.buffer.address
    return begin < address + soa.buffer.nbytes and address < begin + storage.nbytes()
