"""What the values are: dtypes by name, their sizes in bytes, and integers that are exact."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

ITEMSIZE = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""The dtypes that NumPy, torch and JAX share, and their sizes in bytes."""

_NUMPY = {name: np.dtype(name) for name in ITEMSIZE if name != "bfloat16"}

_NAMES = {dtype: name for name, dtype in _NUMPY.items()}

BYTE = np.dtype(np.uint8)
"""NumPy keeps one of it, so that `is` tells it."""

INT64_MAX = 2**63 - 1


def exact_int(value: object, what: str) -> int:
    """`value` as a plain Python integer; bools, floats and strings are no integers.

    It may be larger than any memory, but short enough to be printed.
    """
    if type(value) is int:
        found = value
    else:
        given: Any = value
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            found = operator.index(given)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"{what} must be an integer, got {value!r:.200} ({kind})") from None
    if found.bit_length() > 1000:
        raise ValueError(f"{what} is a number of {found.bit_length()} bits: no memory is so large")
    return found


def check_rows(value: object) -> int:
    """A row count: an integer that is not negative."""
    rows = exact_int(value, "rows")
    if rows < 0:
        raise ValueError(f"rows must not be negative, got {rows}")
    return rows


def check_capacity(value: object) -> int:
    """A row count that memory can have."""
    rows = check_rows(value)
    if rows > INT64_MAX:
        raise ValueError(f"{rows} rows are more than memory can have")
    return rows


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """NumPy's dtype of this name; bfloat16 exists there once `ml_dtypes` has been imported."""
    known = _NUMPY.get(dtype)
    if known is not None:
        return known
    try:
        return np.dtype(dtype)
    except TypeError:
        raise TypeError(
            f"NumPy has no {dtype} of its own: `import ml_dtypes` (JAX installs it) adds it, "
            f"or take the tensor in torch or JAX"
        ) from None


def numpy_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy takes a while to spell."""
    return _NAMES.get(dtype) or dtype.name


def dtype_name(dtype: object) -> str:
    """What another library calls a dtype of its own, as NumPy would spell it.

    >>> dtype_name("library.float32"), dtype_name("float[pyarrow]"), dtype_name("Float64")
    ('float32', 'float32', 'float64')
    """
    name = str(dtype).rpartition(".")[2].removesuffix("[pyarrow]").lower()
    return _ELSEWHERE.get(name, name)


_ELSEWHERE = {"float": "float32", "double": "float64", "halffloat": "float16", "boolean": "bool"}
"""What other libraries call a dtype, in small letters: Arrow its floats, others bool."""
