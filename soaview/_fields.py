"""What one field is: a column or a scalar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ._buffer import INT64_MAX, ITEMSIZE, exact_int


def freeze(value: object, **attributes: object) -> None:
    """Set attributes of a frozen object that is being made."""
    for name, attribute in attributes.items():
        object.__setattr__(value, name, attribute)


def check_name(kind: str, name: object) -> None:
    """A name is a string, and not empty."""
    if not isinstance(name, str):
        raise TypeError(f"a {kind}'s name must be a string, got {name!r:.60}")
    if not name:
        raise ValueError(f"a {kind}'s name must not be empty")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a {kind}'s name must be Unicode text, got {name!r:.60}") from error


def _check_dtype(name: str, dtype: object) -> str:
    """The dtype's canonical name, from a name or anything `numpy.dtype` takes."""
    if isinstance(dtype, str) and dtype in ITEMSIZE:
        return dtype
    if dtype is not None:
        try:
            known = np.dtype(dtype)  # type: ignore[call-overload]  # the TypeError is the check
        except (TypeError, ValueError, SyntaxError, RecursionError):
            pass
        else:
            if not known.isnative:
                raise ValueError(
                    f"field {name!r:.80}: dtype {dtype!r:.60} is not in native byte order"
                )
            if known.name in ITEMSIZE and known.fields is None:
                return str(known.name)
    raise ValueError(
        f"field {name!r:.80}: unknown dtype {dtype!r:.60}; known are {', '.join(ITEMSIZE)}"
    )


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Column:
    """A field with one value per row: a number, a vector `(d,)` or a matrix `(r, c)`.

    Args:
        name: the field's name.
        dtype: a name such as `"float32"`, or anything `numpy.dtype` takes.
        shape: of one row's element: `()`, `(d,)` or `(r, c)`.
        order: which components of a matrix follow each other in memory: `"F"` column by column
            (Eigen's default, and the CMS experiment's), `"C"` row by row.

    Raises:
        TypeError, ValueError: naming the field, what was got and what is expected.

    >>> Column("cov", "float32", (3, 3)).components
    9
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    order: str

    per_row: ClassVar[bool] = True

    def __init__(
        self, name: str, dtype: DTypeLike, shape: Sequence[int] = (), order: str = "F"
    ) -> None:
        check_name("column", name)
        freeze(self, name=name, dtype=_check_dtype(name, dtype))
        if not isinstance(shape, (tuple, list)):
            raise TypeError(
                f"field {name!r:.80}: shape must be a tuple or list such as (3,), got {shape!r:.60}"
            )
        if len(shape) <= 2:
            shape = tuple(exact_int(n, f"field {name!r:.80}: shape entry") for n in shape)
        if len(shape) > 2 or any(not 1 <= n <= INT64_MAX for n in shape):
            raise ValueError(
                f"field {name!r:.80}: bad shape {tuple(shape)!r:.200}; expected (), (d,) or "
                f"(r, c), with at least one component"
            )
        if not isinstance(order, str) or order not in ("F", "C"):
            raise ValueError(f"field {name!r:.80}: order must be 'F' or 'C', got {order!r:.60}")
        freeze(self, shape=shape, order=order)

    @property
    def itemsize(self) -> int:
        """Bytes of one component."""
        return ITEMSIZE[self.dtype]

    @property
    def components(self) -> int:
        """How many sub-columns the field takes."""
        return prod(self.shape)

    def __repr__(self) -> str:
        shape = f", {self.shape!r}" if self.shape else ""
        order = f", order={self.order!r}" if self.order != "F" else ""
        return f"Column({self.name!r}, {self.dtype!r}{shape}{order})"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Scalar:
    """A field with one value for the whole SoA.

    >>> Scalar("n_tracks", "int32")
    Scalar('n_tracks', 'int32')
    """

    name: str
    dtype: str

    per_row: ClassVar[bool] = False
    shape: ClassVar[tuple[int, ...]] = ()
    order: ClassVar[str] = "F"
    components: ClassVar[int] = 1

    def __init__(self, name: str, dtype: DTypeLike) -> None:
        check_name("scalar", name)
        freeze(self, name=name, dtype=_check_dtype(name, dtype))

    @property
    def itemsize(self) -> int:
        """Bytes of the value."""
        return ITEMSIZE[self.dtype]

    def __repr__(self) -> str:
        return f"Scalar({self.name!r}, {self.dtype!r})"
