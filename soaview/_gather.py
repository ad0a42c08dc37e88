"""Tensors that no single strided view covers: their columns, to be put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._bound import BoundFields
from ._dtypes import numpy_dtype
from ._fields import listed
from ._resolve import has_padded_rows, is_mixed
from ._soa import SoA
from ._spec import Entry, Spec, Value, columns_of
from ._views import View, plan_for, views, views_of, why_gathered

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """A tensor that no single strided view covers: one view per column, to be put together.

    Attributes:
        name: the tensor's name in the spec.
        dtype_name: such as `"float32"`; the columns may have others, where one was asked for.
        entry: what makes it: a list, or a field alone that is not aligned, or of another dtype.
        soa: that they are of.
        padded: whether they are taken with the padded rows.
    """

    name: str
    dtype_name: str
    entry: Entry
    soa: SoA
    padded: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields, in order."""
        return columns_of(self.entry)

    @property
    def parts(self) -> list[View]:
        """The columns' views, made each time that they are asked for: a refusal needs none.

        Those of a list are stacked on axis 1; of a field alone there is one, the whole tensor.

        Raises:
            BufferError: columns that are not aligned have none.
        """
        return self._views(len(self.columns))

    @property
    def stacked(self) -> bool:
        """Whether the parts are stacked, and not one that is the whole tensor."""
        return isinstance(self.entry, tuple)

    @property
    def converted(self) -> bool:
        """Whether a column has another dtype than the tensor."""
        return any(self.soa.layout[name].dtype != self.dtype_name for name in self.columns)

    @property
    def aligned(self) -> bool:
        """Whether the columns have views: elements on multiples of their size."""
        layout: Any = self.soa.layout
        bound = isinstance(layout, BoundFields)
        return not bound or all(layout.home(name).aligned for name in self.columns)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the parts make."""
        if self.aligned:
            shape = self._views(1)[0].shape
            return (shape[0], len(self.columns), *shape[1:]) if self.stacked else shape
        element = [*self.soa.layout[self.columns[0]].shape]
        if self.stacked:
            element.insert(0, len(self.columns))
        return (*[self.soa.rows] * (not isinstance(self.entry, Value)), *element)

    def numpy(self) -> NDArray[Any]:
        """A copy of the values, of memory of the host.

        Raises:
            BufferError: memory that is not the host's.
        """
        arrays, dtype = self.arrays(), numpy_dtype(self.dtype_name)
        with np.errstate(over="ignore"):  # as a user has named the dtype, and frameworks do it
            if self.stacked:
                return np.stack(arrays, axis=1, dtype=dtype, casting="unsafe")
            return np.array(arrays[0], dtype, order="C")

    def arrays(self) -> list[NDArray[Any]]:
        """The columns where they lie, aligned or not, in their own dtypes.

        Raises:
            BufferError: memory that is not the host's.
        """
        if self.aligned:
            return [part.numpy() for part in self.parts]
        return [self.soa[entry] for entry in (self.columns if self.stacked else [self.entry])]

    def _views(self, count: int) -> list[View]:
        columns: dict[str, Entry] = {self.name: self.entry}
        if self.stacked:
            names = enumerate(self.columns[:count])
            columns = {f"{self.name}, column {number}": name for number, name in names}
        return views(self.soa, Spec(columns), padded=self.padded)

    def why(self) -> str:
        """Why it cannot be viewed without a copy, and the ways out."""
        if not self.converted:
            return why_gathered(self.soa, self.columns)
        dtypes = dict.fromkeys(self.soa.layout[name].dtype for name in self.columns)
        return (
            f"it is of {listed(dtypes)}, and dtype= is {self.dtype_name}, which no view of it has; "
            f"copy=None converts it"
        )


def views_or_gathers(
    soa: SoA, spec: Spec, *, padded: bool = False, dtypes: Mapping[str, str] | None = None
) -> list[View | Gather]:
    """As `views`, but a tensor that no single view covers comes as its columns: to be gathered.

    Args:
        soa: the memory.
        spec: the tensors.
        padded: as in `views`.
        dtypes: of tensors by name, floating ones that they are to have, as `check_dtypes` gives
            them; the columns of these may have several, and other ones.

    Raises:
        KeyError, ValueError: as `views`; complex columns where a floating dtype is wanted.
    """
    if dtypes:
        return _of_dtypes(soa, spec, padded, dtypes)
    plan = plan_for(soa, spec, padded)
    if not plan.gathers:
        return [*views_of(soa, plan)]
    names = {tensor.name for _, tensor in plan.gathers}
    strided = views(soa, spec.subset(*(n for n in spec if n not in names)), padded=padded)
    both: list[View | Gather] = [*strided]
    for position, tensor in plan.gathers:
        longer = padded and not tensor.interleaved
        both.insert(position, Gather(tensor.name, tensor.dtype, spec[tensor.name], soa, longer))
    return both


def _of_dtypes(
    soa: SoA, spec: Spec, padded: bool, dtypes: Mapping[str, str]
) -> list[View | Gather]:
    plan_for(soa, Spec(), padded)  # raises for what is no SoA
    converted = {}
    for name, dtype in dtypes.items():
        if name in spec and is_mixed(soa.layout, name, spec[name], dtype):
            longer = padded and has_padded_rows(soa.layout, name, spec[name])
            converted[name] = Gather(name, dtype, spec[name], soa, longer)
    rest = spec.subset(*(name for name in spec if name not in converted))
    others = iter(views_or_gathers(soa, rest, padded=padded))
    return [converted[name] if name in converted else next(others) for name in spec]
