"""Which tensors are views and which copies, in each way that there is to take them, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from ._dtypes import ITEMSIZE
from ._fields import shown
from ._gather import Gather, views_or_gathers
from ._soa import SoA
from ._spec import Entry, Spec
from ._views import View

VIEW, COPY, REFUSED = "view", "copy", "refused"


class Verdict(NamedTuple):
    """What one way of taking a tensor does with the SoA's memory.

    Attributes:
        tensor: its name in the spec.
        way: how it is taken, such as `"torch"` or `"JAX inside jit"`.
        gives: `"view"`: it aliases the memory. `"copy"`: it does not; where `copy=` is an argument,
            `copy=False` refuses it, and `copy=None` copies. `"refused"`: it cannot be had.
        nbytes: what is copied for it, in bytes; 0 of a view.
        why: why it is no view, and the ways out; empty of a view.
    """

    tensor: str
    way: str
    gives: str
    nbytes: int
    why: str


Explain = Callable[[SoA, Spec], list[Verdict]]
_ANNOUNCED: dict[str, Explain] = {}


def announce(adapter: str, explain: Explain) -> None:
    """Let `soaview.explain` ask an adapter: called once, where that is imported.

    Args:
        adapter: its package's name; one that is announced again takes the place of the first.
        explain: gives its verdicts for every tensor of a spec over an SoA, as `verdicts` does.

    Raises:
        TypeError: a name that is no text, or what cannot be called.
    """
    if not isinstance(adapter, str) or not callable(explain):
        raise TypeError(
            f"announce takes an adapter's name and its function, got {adapter!r:.60} and "
            f"{explain!r:.60}"
        )
    _ANNOUNCED[adapter] = explain


def verdicts(
    way: str,
    take: Callable[[SoA, Spec], list[Any]],
    address: Callable[[Any], int],
    soa: SoA,
    spec: Spec,
) -> list[Verdict]:
    """Find out by taking each tensor, with `copy=False`, so that no rule is known twice.

    Args:
        way: what the verdicts call it.
        take: an adapter's function: tensors of an SoA and a spec; a `BufferError` says that one can
            only be copied, a `TypeError` that it cannot be had.
        address: of a tensor's first element, in its framework.
        soa: the memory.
        spec: the tensors.

    Raises:
        TypeError, KeyError, ValueError: a spec that does not fit the SoA.
    """
    found = []
    for tensor in views_or_gathers(soa, spec):
        nbytes = prod(tensor.shape) * ITEMSIZE[tensor.dtype_name]
        gives, why = COPY, ""
        try:
            [taken] = take(soa, spec.subset(tensor.name))
            if not nbytes or address(taken) == _address(tensor):
                gives, nbytes = VIEW, 0
            else:
                why = "it was taken with copy=False, and has memory of its own all the same"
        except BufferError as error:
            why = str(error)
        except TypeError as error:
            gives, nbytes, why = REFUSED, 0, str(error)
        why = why.removeprefix(f"tensor {tensor.name!r}: ")
        found.append(Verdict(tensor.name, way, gives, nbytes, why))
    return found


def _address(tensor: View | Gather) -> int | None:
    """Where a tensor's elements begin, if they have one place; NumPy's may be no multiple."""
    if isinstance(tensor, View):
        return tensor.address
    alone = not isinstance(tensor.entry, tuple) and tensor.soa.buffer.on_host
    return tensor.soa[tensor.entry].ctypes.data if alone else None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found. Its text is for people.

    Attributes:
        tensors: the recipes, in spec order: a `View` has shape and strides; what no single strided
            view covers has a shape alone, and is gathered.
        verdicts: for each tensor and each way.
    """

    tensors: tuple[View | Gather, ...]
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        width = max((len(v.way) for v in self.verdicts), default=0)
        found: dict[str, list[Verdict]] = {tensor.name: [] for tensor in self.tensors}
        for v in self.verdicts:
            found.setdefault(v.tensor, []).append(v)
        lines = []
        for tensor in self.tensors:
            strides = f"strides {tensor.strides}" if isinstance(tensor, View) else "no strides"
            lines.append(f"{shown(tensor.name)}: {tensor.dtype_name} {tensor.shape}, {strides}")
            said: list[str] = []
            for v in found[tensor.name]:
                what = f"copy of {v.nbytes:,} bytes" if v.gives == COPY else v.gives
                known = max(filter(v.why.startswith, said), key=len, default="")
                why = f"as above{v.why[len(known) :]}" if known else v.why
                lines.append(f"  {v.way:{width}}  {what}{': ' * bool(why)}{why}")
                said += [v.why] * bool(v.why)
        return "\n".join(lines)

    __repr__ = __str__


def explain(soa: SoA, spec: Spec) -> Explanation:
    """Say of each tensor whether it is a view or a copy, why, what it costs, and what would help.

    The ways are NumPy's and those of every adapter that has been imported; each is asked itself,
    and takes the tensors to find out. Nothing is copied for it, and nothing is changed.

    Args:
        soa: the memory.
        spec: the tensors.

    Raises:
        TypeError, KeyError, ValueError: as `views` does.

    >>> from soaview import Column, Layout, Spec
    >>> soa = Layout([Column("pt", "float32"), Column("eta", "float32")]).allocate(33)
    >>> explain(soa, Spec(x=["pt", "eta"])).tensors[0].strides
    (1, 64)
    >>> found = explain(soa, Spec(x=["pt", "pt"])).verdicts[0]
    >>> found.way, found.gives, found.nbytes
    ('NumPy', 'copy', 264)
    """
    tensors = views_or_gathers(soa, spec)
    found = verdicts("NumPy", _arrays, lambda array: array.ctypes.data, soa, spec)
    for adapter, ask in list(_ANNOUNCED.items()):
        said = ask(soa, spec)
        if not isinstance(said, list) or not all(isinstance(v, Verdict) for v in said):
            raise TypeError(f"{adapter}'s explain must give a list of Verdict, got {said!r:.60}")
        found += said
    return Explanation(tuple(tensors), tuple(found))


def _arrays(soa: SoA, spec: Spec) -> list[Any]:
    [tensor] = views_or_gathers(soa, spec)
    try:
        array = soa[_first_of(tensor.entry)] if isinstance(tensor, Gather) else tensor.numpy()
    except BufferError as error:  # NumPy has no other way to memory that it does not read
        raise TypeError(str(error)) from None
    if isinstance(tensor, Gather) and isinstance(tensor.entry, tuple):
        raise BufferError(tensor.why())
    return [array]


def _first_of(entry: Entry) -> Entry:
    """A field of its own; NumPy reads it also where it is not aligned."""
    return entry[0] if isinstance(entry, tuple) else entry
