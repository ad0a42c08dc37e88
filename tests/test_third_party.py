"""The conformance suite, run by somebody else: on an adapter for the array API's strict reference.

It has no NumPy array's liberties, takes memory by DLPack alone, and knows fewer dtypes.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from adapters import Divergence, NumPyAdapter

SUITE = Path(__file__).parent / "test_conformance.py"
sys.path.insert(0, str(SUITE.parents[1] / "examples"))


class StrictAdapter(NumPyAdapter):
    """The verbs of `examples/strict_adapter.py`, for the suite."""

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

        self.xp, self.adapter = array_api_strict, importlib.import_module("strict_adapter")

    def tensors(self, soa, spec, **options):
        return self.adapter.arrays(soa, spec, **options)

    def write(self, soa, spec, tensors):
        self.adapter.write(soa, spec, tensors)

    def forward(self, fn, inputs, outputs, *, batch_size=None):
        self.adapter.forward(fn, inputs, outputs, batch_size=batch_size)

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


def test_the_strict_reference_conforms(run_python):
    """All of the suite passes, and nothing of it is skipped."""
    pytest.importorskip("array_api_strict")
    arguments = ["-q", "-p", "no:cacheprovider", "--adapter", "test_third_party:StrictAdapter"]
    done = run_python("-m", "pytest", *arguments, SUITE, check=False)
    assert re.search(r"^\d{3,} passed in", done.stdout.splitlines()[-1]), done.stdout
