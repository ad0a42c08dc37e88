"""The conformance suite, run by somebody else: on an adapter for the array API's strict reference.

It has no NumPy array's liberties, takes memory by DLPack alone, and knows fewer dtypes.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from adapters import Divergence, NumPyAdapter

SUITE = Path(__file__).parent / "test_conformance.py"


class StrictAdapter(NumPyAdapter):
    """array-api-strict, over soaview's public views."""

    divergences = (
        Divergence(
            "the standard has no such dtype",
            lambda view: view.dtype in ("float16", "bfloat16"),
            TypeError,
            "the standard has no",
            copy=(False, None, True),
        ),
    )

    def __init__(self):
        import array_api_strict

        self.xp = array_api_strict

    def tensors(self, soa, spec, **options):
        found = super().tensors(soa, spec, **options)
        for name, array in zip(spec, found, strict=True):
            if array.dtype.name in ("float16", "bfloat16"):
                raise TypeError(f"tensor {name!r}: the standard has no {array.dtype.name}")
        return [self.xp.from_dlpack(array) for array in found]

    def write(self, soa, spec, tensors):
        super().write(soa, spec, [self.to_numpy(tensor) for tensor in tensors])

    def to_numpy(self, tensor):
        return np.from_dlpack(tensor)

    def from_numpy(self, array):
        return self.xp.asarray(np.array(array))

    def dtype(self, tensor):
        return str(tensor.dtype).rpartition(".")[2]

    def address(self, tensor):
        return self.to_numpy(tensor).ctypes.data

    def strides(self, tensor):
        return super().strides(self.to_numpy(tensor))


@pytest.mark.slow
def test_the_strict_reference_conforms(run_python):
    """All of the suite passes, and nothing of it is skipped."""
    pytest.importorskip("array_api_strict")
    arguments = ["-q", "-p", "no:cacheprovider", "--adapter", "test_third_party:StrictAdapter"]
    done = run_python("-m", "pytest", *arguments, SUITE, check=False)
    assert re.search(r"^\d{3,} passed in", done.stdout.splitlines()[-1]), done.stdout
