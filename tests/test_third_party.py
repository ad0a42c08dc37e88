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

from soaview import Column, Layout, Spec

SUITE = Path(__file__).parent / "test_conformance.py"
sys.path.insert(0, str(SUITE.parents[1] / "examples"))


class StrictAdapter(NumPyAdapter):
    """The verbs of `examples/strict_adapter.py`, for the suite."""

    divergences = (
        Divergence(
            "the standard has no such dtype",
            lambda view: view.dtype_name in ("float16", "bfloat16"),
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


@pytest.mark.slow
def test_the_strict_reference_conforms(run_python):
    """All of the suite passes, on bound columns, too, and nothing of it is skipped."""
    pytest.importorskip("array_api_strict")
    arguments = ["-q", "-p", "no:cacheprovider", "--adapter", "test_third_party:StrictAdapter"]
    bound = SUITE.with_name("test_conformance_bound.py")
    done = run_python("-m", "pytest", *arguments, SUITE, bound, check=False)
    assert re.search(r"^\d{3,} passed in", done.stdout.splitlines()[-1]), done.stdout


LAYOUT = Layout(
    [
        *(Column(name, "float32") for name in ("x", "y", "z")),
        *(Column(name, "float32", (3,)) for name in ("u", "v")),
        Column("h", "float16"),
    ]
)


@pytest.fixture
def strict():
    pytest.importorskip("array_api_strict")
    return StrictAdapter().adapter


@pytest.fixture
def soa():
    made = LAYOUT.allocate(10)
    for number, name in enumerate(["x", "y", "z", "u", "v"]):
        made[name][:] = np.arange(made[name].size).reshape(made[name].shape) + 100 * number
    return made


def content(soa):
    return soa.buffer.root.copy()


def test_read_only_memory_stays_as_it_is(strict, soa):
    """Arrays over read-only memory refuse writes, also when the flag was set after a first call."""
    before = content(soa)
    strict.arrays(soa, Spec(x="x"))
    soa.buffer.root.flags.writeable = False
    for copy in (False, None):
        [x] = strict.arrays(soa, Spec(x="x"), copy=copy)
        assert np.from_dlpack(x).ctypes.data == soa.buffer.address
        with pytest.raises(ValueError, match="read-only"):
            x[...] = x + x
        with pytest.raises(ValueError, match="read-only"):
            x += x
        with pytest.raises(ValueError, match="read-only"):
            strict.xp.reshape(x, (5, 2))[0, 0] = 7
    [x] = strict.arrays(soa, Spec(x="x"), copy=True)
    x[...] = x + x
    with pytest.raises(BufferError, match="read-only"):
        strict.write(soa, Spec(x="x"), [x])
    with pytest.raises(BufferError, match="read-only"):
        strict.forward(lambda y: y, (soa, Spec(y="y")), (soa, Spec(x="x")))
    np.testing.assert_array_equal(content(soa), before)


def test_memory_of_a_device_is_refused(strict):
    """The reference has the host's memory alone, and the refusal says where the SoA is."""
    there = LAYOUT.from_pointer(0x7F0000000000, 10, device="cuda:0")
    with pytest.raises(BufferError, match="the SoA is on cuda:0"):
        strict.arrays(there, Spec(x="x"), copy=True)
    with pytest.raises(BufferError, match="the SoA is on cuda:0"):
        strict.write(there, Spec(x="x"), [strict.xp.zeros(10, dtype=strict.xp.float32)])


def test_dtypes_that_the_standard_lacks(strict, soa):
    """Each verb refuses them, by the tensor's name or the argument's."""
    half = soa, Spec(t="h")
    with pytest.raises(TypeError, match="tensor 't': the standard has no float16"):
        strict.arrays(*half, copy=True)
    with pytest.raises(TypeError, match="tensor 't': the standard has no float16"):
        strict.write(*half, [strict.xp.zeros(10)])
    for inputs, outputs in ((half, (soa, Spec(x="x"))), ((soa, Spec(x="x")), half)):
        with pytest.raises(TypeError, match="tensor 't': the standard has no float16"):
            strict.forward(lambda x: x, inputs, outputs)


def test_vectors_are_written_in_any_order(strict, soa):
    """Columns of vectors that no single view covers are written one by one, as the standard cuts.

    Its arrays want an index for each axis, or an ellipsis.
    """
    wanted = np.arange(60, dtype="float32").reshape(10, 2, 3)
    strict.write(soa, Spec(t=["v", "u"]), [strict.xp.asarray(wanted)])
    np.testing.assert_array_equal(soa["v"], wanted[:, 0])
    np.testing.assert_array_equal(soa["u"], wanted[:, 1])
    with pytest.raises(BufferError, match="tensor 't'"):
        strict.arrays(soa, Spec(t=["v", "u"]))
    [t] = strict.arrays(soa, Spec(t=["v", "u"]), copy=None)
    np.testing.assert_array_equal(np.from_dlpack(t), wanted)


def test_what_is_no_array_of_its_own_is_not_written(strict, soa):
    """Arrays of other libraries, kinds and devices are refused by name, and nothing is written."""
    before, xp = content(soa), strict.xp
    good = xp.ones(10, dtype=xp.float32)
    there = xp.asarray(good, device=xp.Device("device1"))
    for bad, error, message in (
        (np.ones(10, "float32"), TypeError, "tensor 'y': got ndarray, expected an array of"),
        (there, ValueError, "tensor 'y': got device .*device1.*, the SoA is on cpu"),
        (xp.ones(10), TypeError, "tensor 'y': got dtype float64, expected float32"),
    ):
        with pytest.raises(error, match=message):
            strict.write(soa, Spec(x="x", y="y"), [good, bad])
    with pytest.raises(TypeError, match="arrays must be a list in spec order, got Array"):
        strict.write(soa, Spec(x="x"), good)
    np.testing.assert_array_equal(content(soa), before)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_columns_change_places(strict, soa, batch_size):
    """What a model gives may be the memory itself, or its own, used again in the next batch."""
    x, y = soa["x"].copy(), soa["y"].copy()
    strict.forward(
        lambda x, y: (y, x), (soa, Spec(x="x", y="y")), (soa, Spec(x="x", y="y")),
        batch_size=batch_size,
    )  # fmt: skip
    np.testing.assert_array_equal(soa["x"], y)
    np.testing.assert_array_equal(soa["y"], x)

    memory = strict.xp.empty(10, dtype=strict.xp.float32)

    def again(z):
        memory[: z.shape[0]] = z + z
        return memory[: z.shape[0]]

    inputs, outputs = (soa, Spec(z="z")), (soa, Spec(y="y"))
    strict.forward(again, inputs, outputs, batch_size=batch_size)
    np.testing.assert_array_equal(soa["y"], 2 * soa["z"])
