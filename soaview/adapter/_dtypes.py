"""`dtype=` of the adapters: the floating dtype that a user names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._fields import Column, no_such
from .._spec import Spec
from .._views import check_spec

_FLOATING = ("float16", "bfloat16", "float32", "float64")


def check_dtype(dtype: Any) -> str | None:
    """What `forward` converts floating numbers to, by soaview's name of it; None if it does not.

    Args:
        dtype: a name, or what a framework or NumPy has for it.

    Raises:
        ValueError: no floating dtype.

    >>> check_dtype("float16"), check_dtype(None)
    ('float16', None)
    """
    if dtype is None:
        return None
    try:
        column = Column("dtype", dtype)
    except ValueError:
        column = None
    if column is None or column.shape or column.dtype not in _FLOATING:
        raise ValueError(
            f"dtype= must be a floating dtype ({', '.join(_FLOATING)}), got {dtype!r:.60}"
        )
    return column.dtype


def check_dtypes(spec: Spec, dtype: Any) -> dict[str, str]:
    """Which floating dtypes `tensors` of an adapter is to give, by the tensors' names.

    Args:
        spec: the tensors.
        dtype: one for all of them, or by name for some; None for none.

    Raises:
        TypeError: a dtype for what is no spec.
        ValueError: no floating dtype.
        KeyError: a name that the spec does not have.

    >>> spec = Spec(x=["pt", "charge"], label="label")
    >>> check_dtypes(spec, "float32"), check_dtypes(spec, {"x": "float32"})
    ({'x': 'float32', 'label': 'float32'}, {'x': 'float32'})
    """
    if dtype is None:
        return {}
    check_spec(spec)
    given = dtype if isinstance(dtype, Mapping) else dict.fromkeys(spec, dtype)
    found = {}
    for name, one in given.items():
        if name not in spec:
            raise KeyError(f"dtype=: {no_such('tensor', name, spec)}")
        if (known := check_dtype(one)) is not None:
            found[name] = known
    return found
