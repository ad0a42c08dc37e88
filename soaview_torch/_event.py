"""Code for event loops: memory of the host that is new in every call, of any row count.

One function is made of the layouts and specs. It keeps every promise of the long way, which does
what is rare: other devices, slices, read-only memory, columns without a common distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from soaview import Layout, SoA, Spec, Value
from soaview.adapter import (
    EVENT_NAMES,
    MOST_OUTPUTS,
    PLAIN,
    BoundFields,
    HostBuffer,
    Pair,
    Place,
    Places,
    Side,
    array_lines,
    as_tuple,
    check_storage,
    columns_of,
    compiled,
    in_order,
    numpy_dtype,
    places,
    results,
    soa_lines,
    soas_of,
    writable_views,
)

from ._memory import DTYPE
from ._write import matched, store, targets_of

LATER = object()
"""What such a function gives where the long way must do it; nothing has been done then."""

CHANGED = (
    "the model has changed its inputs in place, and so the SoA's columns; drop its in-place "
    "operations (inplace=True) on them, or pass copy=True"
)


def of_soas(inputs: Sequence[Side], outputs: Sequence[Side]) -> Callable[..., Any] | None:
    """What runs a model on SoAs of these layouts, and writes its results into SoAs.

    Returns:
        None where columns have no single strided view. Else a function of
        `(model, inputs, outputs)`, lists of pairs `(soa, spec)`, for `at_once`.

    Raises:
        KeyError, TypeError, ValueError: as `views` and `writable_views`.
    """
    names = {"in_order": in_order, "misfit": _misfit}
    return _function(inputs, outputs, "model, inputs, outputs", "return LATER", names)


def of_arrays(
    model: Callable[..., Any],
    inputs: Sequence[Side],
    outputs: Sequence[Side],
    later: Callable[[Any, Any], None],
) -> Callable[[Any, Any], None] | None:
    """As `of_soas`, of one model, for pairs `(array of bytes, rows)`; `later` does what is rare."""

    def soas(given: Any) -> list[Pair]:
        return soas_of("outputs", outputs, given)

    # Of complex128 NumPy says that it is aligned on 8 bytes, where torch needs 16.
    if any(layout.itemsize > 8 for layout, _ in (*inputs, *outputs)):
        return None
    names = {
        "model": model,
        "later": later,
        "in_order": lambda made, given: in_order(made, soas(given)),
        "misfit": lambda made, given: _misfit(made, soas(given)),
    }
    return _function(inputs, outputs, "inputs, outputs", "return later(inputs, outputs)", names)


def _function(
    inputs: Sequence[Side],
    outputs: Sequence[Side],
    arguments: str,
    later: str,
    names: dict[str, Any],
) -> Callable[..., Any] | None:
    wrapped = "model" not in names
    sides = [*inputs, *outputs]
    if len(outputs) > MOST_OUTPUTS:
        return None
    found = [places(layout, spec, f"_{i}") for i, (layout, spec) in enumerate(sides)]
    at = [side for side in found if side is not None and side.tensors]
    for layout, spec in outputs:
        writable_views(layout.allocate(1), spec)
    if len(at) < len(found):
        return None
    ins, outs = range(len(inputs)), range(len(inputs), len(sides))
    lines = [] if wrapped else [f"if is_inference_mode_enabled(): {later}"]
    lines += [*_sides("inputs", ins, wrapped, later), *_sides("outputs", outs, wrapped, later)]
    names |= {t.dtype: DTYPE[t.dtype] for side in at for t in side.tensors} | _NAMES
    for i, (layout, _) in enumerate(sides):
        words = layout.allocate(0).buffer.words.dtype
        names[f"word_{i}"] = words
        lines += (_soa if wrapped else _array)(i, at[i], later)
        dtypes = dict.fromkeys(t.dtype for t in at[i].tensors)
        for dtype in dtypes:
            same = dtype == words.name
            lines.append(f"{dtype}_{i} = memory_{i}" + ("" if same else f".view({dtype})"))
    for i in outs:
        lines += [  # in fake tensors and transforms there is no real memory
            f"if type(memory_{i}) is not Tensor: {later}",
            f"try: at_{i} = memory_{i}.data_ptr()",
            f"except RuntimeError: at_{i} = 0",
            f"if not at_{i}: {later}",
        ]
        for j in range(outs[0], i):  # the same columns may stand in two of them
            one, other = f"at_{i} < at_{j} + nbytes_{j}", f"at_{j} < at_{i} + nbytes_{i}"
            lines.append(f"if {one} and {other}: {later}")
    targets = [(t, _view(i, t)) for i in outs for t in at[i].tensors]
    values = [f"value_{n}" for n in range(len(targets))]
    lines += [f"target_{n} = {view}" for n, (_, view) in enumerate(targets)]
    lines += [
        "with inference_mode():",
        f"    made = model({', '.join(_view(i, t) for i in ins for t in at[i].tensors)})",
        f"    if {' or '.join(f'memory_{i}._version' for i in ins)}: raise RuntimeError(CHANGED)",
        *_sorted(values),
    ]
    # What is no plain memory (sparse, nested, of a transform) has no shape, storage or address.
    fits = [
        f"type({v}) is Tensor and {v}.shape == {t.shape} and {v}.dtype is {t.dtype} and {v}.is_cpu"
        f" and (storage_{n} := {v}.untyped_storage()) and (first_{n} := storage_{n}.data_ptr())"
        for n, (v, (t, _)) in enumerate(zip(values, targets, strict=True))
    ]
    writable = [f"root_{i}.flags.writeable" for i in outs]
    lines += [
        f"    try: fits = {' and '.join([*fits, *writable])}",
        "    except RuntimeError: fits = False",
        "    if not fits: return misfit(made, outputs)",
    ]
    for n, v in enumerate(values):
        end = f"first_{n} + storage_{n}.nbytes()"
        shared = [f"first_{n} < at_{i} + nbytes_{i} and at_{i} < end" for i in outs]
        lines += [
            f"    end = {end}",
            f"    if not {v}.is_contiguous() or {v}.data_ptr() + {v}.nbytes > end:"
            f" check_storage({v}, label_{n})",
            f"    if {' or '.join(shared)}: {v} = {v}.clone()",
        ]
    lines += [f"    target_{n}.copy_({value})" for n, value in enumerate(values)]
    labels = [f"tensor {name!r}" for _, spec in outputs for name in spec]
    names |= {f"label_{n}": label for n, label in enumerate(labels)}
    if wrapped:
        lines += [f"if buffer_{i}.imports: count_write(buffer_{i})" for i in outs]
    return compiled(arguments, lines, names)


def tensors_function(
    layout: Layout, spec: Spec
) -> Callable[[SoA, Any], list[torch.Tensor] | None] | None:
    """What makes the tensors of an SoA of whose memory torch has nothing yet.

    Returns:
        None where columns have no single strided view. Else a function of the SoA, and of what
        imports and keeps its memory, which gives None where that is another case.
    """
    found = places(layout, spec, bound=True)
    if found is None:
        return None
    names = {t.dtype: DTYPE[t.dtype] for t in found.tensors} | _NAMES
    if isinstance(layout, BoundFields):
        names |= {f"dtype_{i}": numpy_dtype(f.dtype) for i, f in enumerate(layout.fields)}
        return compiled("soa, import_of", _of_bound(layout, spec, found), names)
    lines = [
        "buffer = soa.buffer; rows = soa.rows",
        "if type(buffer) is not HostBuffer or soa.capacity != rows or buffer.imports or not rows"
        " or not buffer.root.flags.writeable or is_inference_mode_enabled(): return None",
        "nbytes = buffer.nbytes",
        *found.lines,
        f"if not ({found.inside}): return None",
        "memory = import_of(buffer)",
        *(f"{dtype}_ = memory[{dtype!r}]" for dtype in {t.dtype: 0 for t in found.tensors}),
        f"return [{', '.join(_view('', t) for t in found.tensors)}]",
    ]
    return compiled("soa, import_of", lines, names)


def _of_bound(layout: BoundFields, spec: Spec, found: Places) -> list[str]:
    """The same of bound columns."""
    used = sorted({t.allocation for t in found.tensors})
    lines = [
        "rows = soa.rows; buffer = soa.buffer",
        "if soa.capacity != rows or not rows or is_inference_mode_enabled(): return None",
        *found.lines,
    ]
    each = [home.allocation for home in layout.homes] == [*range(len(layout.fields))]
    if each and used and not any(layout.fields[i].dtype == "bfloat16" for i in used):
        of = [t.allocation for t in found.tensors]
        views = []
        for entry, t in zip(spec.values(), found.tensors, strict=True):
            memory = f"memory_{t.allocation}"
            alone = isinstance(entry, str) and of.count(t.allocation) == 1
            views.append(memory if alone else f"view({memory}, {t.shape}, {as_tuple(t.strides)})")
        lines += _of_arrays(layout, used, views, used)
    for i in used:
        lines += [
            f"piece_{i} = buffer.piece({i}); nbytes_{i} = piece_{i}.nbytes",
            f"if type(piece_{i}) is not HostBuffer or piece_{i}.imports: return None",
            f"if not piece_{i}.root.flags.writeable: return None",
        ]
    kinds = dict.fromkeys((t.dtype, t.allocation) for t in found.tensors)
    return [
        *lines,
        f"if not ({found.inside}): return None",
        *(f"memory_{i} = import_of(piece_{i})" for i in used),
        *(f"{dtype}_{i} = memory_{i}[{dtype!r}]" for dtype, i in kinds),
        f"return [{', '.join(_view(t.allocation, t) for t in found.tensors)}]",
    ]


def _of_arrays(
    layout: BoundFields, used: list[int], made: list[str], aliased: Iterable[int]
) -> list[str]:
    """The same of arrays each of which is an allocation, of which nothing was asked yet.

    Of a column that one tensor has, and as it is, the array's import is that tensor.
    """
    # Somebody may have changed meanwhile, in place, what the arrays are.
    flags = " & ".join(f"array_{i}.flags.num" for i in used)
    same = [f"{flags} & {PLAIN} == {PLAIN}"]
    for i in used:
        shape = as_tuple(["rows", *map(str, layout.fields[i].shape)])
        same.append(f"array_{i}.dtype is dtype_{i} and array_{i}.shape == {shape}")
    numbers = range(len(layout.fields))
    imports = as_tuple(f"memory_{i}" if i in aliased else "None" for i in numbers)
    kept = f"if buffer.keep('torch', {imports}): " if aliased else ""
    return [
        "arrays = buffer.arrays",
        "if arrays is not None:",
        *(f"    array_{i} = arrays[{i}]" for i in used),
        f"    if {' and '.join(same)}:",
        *(f"        memory_{i} = from_numpy(array_{i})" for i in aliased),
        f"        made = [{', '.join(made)}]",
        "        if type(made[0]) is not Tensor: return None",  # but a fake one
        "        try: at = made[0].data_ptr()",
        "        except RuntimeError: at = 0",
        "        if not at: return None",  # nor one of a transform
        f"        {kept}return made",
    ]


def gathers_function(
    layout: Layout, spec: Spec
) -> Callable[[SoA, Any], list[torch.Tensor] | None] | None:
    """The same for `copy=None`, of arrays that are allocations, and lists of them, put together.

    Returns:
        None where that is not what the spec has, or has for all of its tensors.
    """
    if not isinstance(layout, BoundFields):
        return None
    numbers = {name: number for number, name in enumerate(layout)}
    if [layout.home(name).allocation for name in layout] != [*numbers.values()]:
        return None
    made, used, aliased = list[str](), set[int](), list[int]()
    for entry in spec.values():
        found = [numbers.get(name, -1) for name in columns_of(entry)]
        kinds = {(f.dtype, f.shape, f.per_row) for f in (layout.fields[i] for i in found)}
        [kind, *others] = kinds
        if -1 in found or others or not kind[2] or "bfloat16" in kind or isinstance(entry, Value):
            return None
        used.update(found)
        if isinstance(entry, str):
            aliased += found
            made.append(f"memory_{found[0]}")
        else:
            made.append(f"from_numpy(stack({as_tuple(f'array_{i}' for i in found)}, 1))")
    if not len({*aliased}) == len(aliased) < len(made):
        return None
    lines = [
        "rows = soa.rows; buffer = soa.buffer",
        "if soa.capacity != rows or not rows or is_inference_mode_enabled(): return None",
        *_of_arrays(layout, sorted({*used}), made, aliased),
    ]
    names = {f"dtype_{i}": numpy_dtype(f.dtype) for i, f in enumerate(layout.fields)}
    return compiled("soa, import_of", lines, names | _NAMES | {"stack": np.stack})


def at_once(
    run: Callable[..., Any] | None, model: Any, inputs: Sequence[Any], outputs: Sequence[Any]
) -> bool:
    """Whether such a function has run the model and written its results."""
    if run is None:
        return False
    if torch.is_inference_mode_enabled():  # what is imported there has no count of writes
        with torch.inference_mode(False):
            return run(model, inputs, outputs) is not LATER
    return run(model, inputs, outputs) is not LATER


def _sides(what: str, numbers: range, wrapped: bool, later: str) -> list[str]:
    """Each side as a variable; one alone need not stand in a list."""
    sides = "".join(f"side_{i}, " for i in numbers)
    if wrapped:
        return [f"{sides} = {what}"]
    if len(numbers) == 1:
        return [f"side_{numbers[0]} = {what}"]
    return [
        f"if type({what}) is not list or len({what}) != {len(numbers)}: {later}",
        f"{sides} = {what}",
    ]


def _soa(i: int, at: Places, later: str) -> list[str]:
    """How an SoA's memory is imported."""
    return [
        *soa_lines(i, at, later),
        f"if not root_{i}.flags.writeable: {later}",
        f"memory_{i} = from_numpy(buffer_{i}.words)",
    ]


def _array(i: int, at: Places, later: str) -> list[str]:
    """How an array of bytes is imported."""
    return [
        *array_lines(i, at, later),
        f"part_{i} = root_{i} if root_{i}.size == nbytes_{i} else root_{i}[:nbytes_{i}]",
        f"words_{i} = part_{i}.view(word_{i}); flags_{i} = words_{i}.flags",
        f"if not (flags_{i}.aligned and flags_{i}.writeable): {later}",
        f"memory_{i} = from_numpy(words_{i})",
    ]


def _view(i: int | str, t: Place) -> str:
    at = [f"{t.dtype}_{i}", t.shape, as_tuple(t.strides)]
    return f"view({', '.join(at if t.offset == '0' else [*at, t.offset])})"


def _sorted(values: list[str]) -> list[str]:
    """What the model gave, in the order of the specs."""
    if len(values) == 1:
        return [f"    {values[0]}, = (made,) if type(made) is Tensor else in_order(made, outputs)"]
    plain = f"type(made) is tuple and len(made) == {len(values)}"
    return [f"    {', '.join(values)}, = made if {plain} else in_order(made, outputs)"]


def _misfit(made: Any, outputs: list[Pair]) -> None:
    """Write what can be written all the same, or raise."""
    found = []
    for soa, spec, values in results(made, outputs):
        found += matched(soa, spec, targets_of(soa, spec), values)
    store(found)


def _count_write(buffer: HostBuffer) -> None:
    """Let the tensors that alias the memory know of the write."""
    known = buffer.imports.get("torch")
    if known is not None:
        torch.autograd.graph.increment_version(known.base)


_NAMES: dict[str, Any] = {
    **EVENT_NAMES,
    "CHANGED": CHANGED,
    "LATER": LATER,
    "Tensor": torch.Tensor,
    "check_storage": check_storage,
    "count_write": _count_write,
    "from_numpy": torch.from_numpy,
    "inference_mode": torch.inference_mode,
    "is_inference_mode_enabled": torch.is_inference_mode_enabled,
    "view": torch.as_strided,
}
