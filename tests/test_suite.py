"""The conformance suite is tested itself: wrong adapters must fail it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
from adapters import NumPyAdapter

from soaview import Layout, SoA

HERE = Path(__file__).parent


class Copying(NumPyAdapter):
    """Gives copies where views were asked for."""

    def tensors(self, soa, spec, **options):
        return [np.array(t, order="K") for t in super().tensors(soa, spec, **options)]


class OffByOneRow(NumPyAdapter):
    """Takes the buffer to be laid out for one row more than it is."""

    def tensors(self, soa, spec, **options):
        shifted = SoA(soa.layout, soa.buffer, soa.capacity + 1, soa.start, soa.rows)
        found = []
        for name in spec:
            try:
                found += super().tensors(shifted, spec.subset(name), **options)
            except ValueError as error:
                if "do not lie inside" not in str(error):
                    raise
                found += super().tensors(soa, spec.subset(name), **options)
        return found


class OffByOneElement(NumPyAdapter):
    """Starts every tensor one element late."""

    def tensors(self, soa, spec, **options):
        found = super().tensors(soa, spec, **options)
        return [np.roll(t, -1, axis=0) if t.ndim and len(t) > 1 else t for t in found]


class NeverRefusing(NumPyAdapter):
    """Copies in silence what it cannot view."""

    def tensors(self, soa, spec, *, copy=False, padded=False):
        try:
            return super().tensors(soa, spec, copy=copy, padded=padded)
        except BufferError:
            return super().tensors(soa, spec, copy=None, padded=padded)


class Widening(NumPyAdapter):
    """Changes a dtype in silence."""

    def tensors(self, soa, spec, **options):
        found = super().tensors(soa, spec, **options)
        return [t.astype("f8") if t.dtype == np.float32 else t for t in found]


class Forgetful(NumPyAdapter):
    """Ignores `padded`."""

    def tensors(self, soa, spec, *, copy=False, padded=False):
        return super().tensors(soa, spec, copy=copy)


class Unordered(NumPyAdapter):
    """Gives the tensors in the order of their names."""

    def tensors(self, soa, spec, **options):
        found = super().tensors(soa, spec, **options)
        return [tensor for _, tensor in sorted(zip(spec, found, strict=True), key=lambda t: t[0])]


class HastyWriter(NumPyAdapter):
    """Writes the first tensor before it has looked at the second."""

    def write(self, soa, spec, tensors):
        for name, tensor in zip(spec, tensors, strict=False):
            super().write(soa, spec.subset(name), [tensor])


class Immortal(NumPyAdapter):
    """Keeps every SoA alive."""

    kept = []  # noqa: RUF012 - shared on purpose

    def tensors(self, soa, spec, **options):
        self.kept.append(soa)
        return super().tensors(soa, spec, **options)


class Diverging(NumPyAdapter):
    """Works, but claims in its table that it cannot."""

    def __init__(self):
        from adapters import Divergence

        self.divergences = (Divergence("made up", lambda v: True, BufferError, "never"),)


WRONG = {
    Copying: "test_a_write_into_memory_is_seen",
    OffByOneRow: "test_golden_images",
    OffByOneElement: "test_values_shape_and_dtype",
    NeverRefusing: "test_scattered_columns",
    Widening: "test_values_shape_and_dtype",
    Forgetful: "test_padded",
    Unordered: "test_order_and_reorder",
    HastyWriter: "test_bad_writes_write_nothing",
    Immortal: "test_lifetime",
    Diverging: "test_values_shape_and_dtype",
}


# One process for all of them, whose imports are most of the time.
RUNS = """
import sys, pytest
for adapter, target in zip(sys.argv[1::2], sys.argv[2::2]):
    code = pytest.main(["-qx", "-p", "no:cacheprovider", "--adapter", adapter, target])
    print("exit", int(code), adapter, end="\\0", flush=True)
"""


@pytest.fixture(scope="module")
def runs(run_python):
    """What pytest printed for each of the wrong adapters, with its exit code at the end."""
    asked = []
    for wrong, test in WRONG.items():
        asked += [f"test_suite:{wrong.__name__}", f"{HERE / 'test_conformance.py'}::{test}"]
    *printed, end = run_python("-c", RUNS, *asked).stdout.split("\0")
    assert not end
    return dict(zip(WRONG, printed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda cls: cls.__name__)
def test_wrong_adapters_fail(runs, wrong):
    """An adapter that copies, shifts, widens, forgets or hurries fails the test made for that."""
    *printed, summary, code = runs[wrong].splitlines()
    assert code == f"exit 1 test_suite:{wrong.__name__}", runs[wrong]
    assert re.search(r"\d+ failed", summary), printed
    assert "error" not in summary


@pytest.mark.slow
def test_an_adapter_of_ones_own(run_python, tmp_path):
    """A third party runs the suite on an adapter in a module of its own."""
    (tmp_path / "own.py").write_text(
        "from adapters import NumPyAdapter\nclass Own(NumPyAdapter):\n    pass\n"
    )
    target = HERE / "test_conformance.py"
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--adapter",
        "own:Own",
        "-o",
        f"pythonpath={tmp_path}",
    ]
    done = run_python("-m", "pytest", *options, target)
    assert re.search(r"^\d+ passed", done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_an_adapter_that_cannot_be_imported_is_an_error(run_python):
    """A requested adapter is never skipped."""
    target = f"{HERE / 'test_conformance.py'}::test_the_empty_spec"
    options = ["-q", "-p", "no:cacheprovider", "--adapter", "nowhere:Nothing"]
    done = run_python("-m", "pytest", *options, target, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--adapter nowhere:Nothing cannot be imported: No module named 'nowhere'" in done.stderr


@pytest.mark.parametrize("shift", [1, -1, 128])
def test_a_wrong_layout_fails(shift, monkeypatch):
    """A layout whose offsets were off is told from the golden images at once."""
    from cases import IMAGES

    right = Layout.offset
    monkeypatch.setattr(Layout, "offset", lambda self, name, rows: right(self, name, rows) + shift)
    for image in IMAGES:
        for name, where in image.offsets.items():
            assert image.layout.offset(name, image.rows) != where["offset"]


@pytest.mark.slow
def test_a_device_that_is_absent(run_python):
    """Asking for a device that is not there is an error, and no skip."""
    arguments = ["-q", "-p", "no:cacheprovider", "--device", "cuda:77", "--adapter", "torch"]
    if importlib.util.find_spec("torch") is None:
        arguments[-1] = "numpy"
    done = run_python("-m", "pytest", *arguments, check=False)
    assert done.returncode == 4
    assert "--device cuda:77 is not there" in done.stderr
