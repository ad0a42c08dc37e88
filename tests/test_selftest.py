"""`python -m soaview selftest`: the promises hold here, and a broken one is seen."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version

import jax
import numpy as np
import places
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import __main__ as cli
from soaview import _explain, _selftest
from soaview.__main__ import main

NEEDS = ["torch", "jax"]


def said(capsys):
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith(("HOLDS", "BROKEN"))]


@pytest.fixture
def alone(monkeypatch):
    """One framework's part alone, which is quicker."""

    def choose(name):
        known = _selftest.version_of
        others = {"torch", "jax"} - {name}
        monkeypatch.setattr(
            _selftest, "version_of", lambda package: None if package in others else known(package)
        )

    return choose


@pytest.mark.slow
def test_all_holds_here(capsys):
    """Every promise of each adapter has its line, and the exit status is 0."""
    assert main(["selftest"]) == 0
    lines = said(capsys)
    assert len(lines) == 19
    assert all(line.startswith("HOLDS") for line in lines)
    for way in ("NumPy", "torch", "JAX"):
        assert sum(f" {way}: " in line for line in lines) >= 3


def test_without_frameworks(capsys, alone):
    """The core alone is tried, and what is missing is said."""
    alone("")
    assert main(["selftest"]) == 0
    out = capsys.readouterr().out
    assert 'torch is not installed, and not tried: pip install "soaview[torch]"' in out
    assert 'pip install "soaview[jax]"' in out
    assert out.count("HOLDS") == 3
    assert "All promises hold." in out


def copying(soa, spec, **options):
    return [tensor.clone() for tensor in soaview_torch.tensors(soa, spec, **options)]


def wrong_value(soa, spec, **options):
    found = soaview_torch.tensors(soa, spec, **options)
    return [tensor.flip(0) if tensor.dim() else tensor for tensor in found]


def raising(*arguments, **options):
    raise OSError("no such\nthing")


@pytest.mark.parametrize(
    ("attribute", "broken", "claims"),
    [
        ("take", copying, {"`explain`", "A view lies"}),
        ("take", wrong_value, {"Every dtype", "Arrays, bytes"}),
        ("take", raising, {"Every dtype", "A view keeps", "A view lies", "`forward`"}),
        ("address", lambda tensor: 0, {"`explain`", "A view lies"}),
        ("numpy", lambda tensor: np.zeros(tuple(tensor.shape)), {"Every dtype", "`forward`"}),
    ],
)
def test_a_broken_promise_is_seen(attribute, broken, claims, monkeypatch, capsys, alone):
    """A copy, a wrong value, an error, another address: each breaks the lines that it should."""
    alone("torch")
    made = _selftest.torch_way

    def torch_way(device):
        way = made(device)
        setattr(way, attribute, broken)
        return way

    monkeypatch.setattr(_selftest, "torch_way", torch_way)
    assert main(["selftest"]) == 1
    lines = said(capsys)
    for claim in claims:
        [line] = [line for line in lines if f"torch: {claim}" in line]
        assert line.startswith("BROKEN"), line
    assert [line for line in lines if line.startswith("HOLDS   NumPy")]


@pytest.mark.slow
def test_where_asserts_are_left_out():
    """A broken promise is seen by `python -O`, too."""
    code = (
        "import sys, torch, soaview_torch\n"
        "real = soaview_torch.tensors\n"
        "soaview_torch.tensors = lambda *a, **k: [torch.zeros_like(t) for t in real(*a, **k)]\n"
        "from soaview import _selftest\n"
        "_selftest.version_of = lambda name: None if name == 'jax' else 'some'\n"
        "sys.exit(_selftest.selftest())"
    )
    ran = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert ran.returncode >= 3, ran.stdout + ran.stderr
    assert "BROKEN  torch: Every dtype" in ran.stdout


def test_verdicts_that_are_missing(monkeypatch, capsys, alone):
    """An adapter that `explain` does not know has not told which tensors are views."""
    alone("torch")
    monkeypatch.setattr(_explain, "_ANNOUNCED", {})
    assert main(["selftest"]) == 1
    out = capsys.readouterr().out
    assert "BROKEN  torch: `explain`" in out
    assert "explain has 0 verdicts" in out


@pytest.mark.parametrize("setting", [jax.disable_jit, lambda: jax.debug_nans(True)])
def test_settings_of_jax_do_not_matter(setting, capsys, alone):
    """What JAX copies where it runs functions as they are is not what the promise is about."""
    alone("jax")
    with setting():
        assert _selftest._holds(_selftest.jax_way("cpu"), _selftest.copies_nothing_in_silence)


def test_the_error_is_in_the_report(monkeypatch, capsys, alone):
    """In one line, with where it came from."""
    alone("")
    monkeypatch.setattr(_selftest, "outlives", raising)
    monkeypatch.setattr(_selftest, "EVERYWHERE", [raising])
    assert main(["selftest"]) == 1
    assert "OSError: no such thing (raising, line" in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cpu:0", "meta", "cuda:x", "mps", ""])
def test_devices_that_are_not_tried(device, capsys):
    """One sentence, and not the exit status of a promise that is broken."""
    with pytest.raises(SystemExit) as exit_status:
        main(["selftest", "--device", device])
    assert exit_status.value.code == 2
    assert "--device is cpu, or one such as cuda:0" in capsys.readouterr().err


def test_no_such_device(capsys):
    """A device that is not there ends in one sentence."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as exit_status:
        main(["selftest", "--device", "cuda:0"])
    assert exit_status.value.code == 2
    assert "cuda:0" in capsys.readouterr().err


def test_a_device_needs_torch(capsys, alone):
    """Its memory is what is looked at there."""
    alone("")
    with pytest.raises(SystemExit) as exit_status:
        main(["selftest", "--device", "cuda:0"])
    assert exit_status.value.code == 2
    assert "needs torch" in capsys.readouterr().err


@pytest.mark.slow
def test_on_a_device_by_a_stand_in(monkeypatch, capsys):
    """The same promises of a device's memory: here the host's, by the way that a device's goes."""
    devices = jax.devices()

    class Place:
        device = "cpu:0"

    def to(soa, device):
        assert device == Place.device
        memory = soa.buffer.root
        return places.PretendedMemory().wrap(soa.layout, places.aligned(memory), soa.rows)

    monkeypatch.setattr(soaview_torch, "to", to)
    monkeypatch.setattr(torch, "zeros", lambda count, device: Place())
    monkeypatch.setattr(jax, "devices", lambda platform: {"gpu": devices}[platform])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a pretended one")
    assert main(["selftest", "--device", "cuda:0"]) == 0
    assert "a pretended one" in capsys.readouterr().out


def test_version(capsys):
    """`python -m soaview --version`."""
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    assert capsys.readouterr().out == f"soaview {version('soaview')}\n"


def test_of_a_checkout(monkeypatch, capsys):
    """Where nothing is installed every command runs, and there is no version to tell."""
    monkeypatch.setattr(cli, "version_of", lambda package: None)
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    assert capsys.readouterr().out == "soaview (not installed)\n"
    assert _selftest.version_of("no-such-package") is None


def test_the_adapters_are_asked_themselves():
    """The ways take tensors by the adapters' public functions."""
    assert _selftest.torch_way("cpu").take is soaview_torch.tensors
    assert _selftest.jax_way("cpu").take is soaview_jax.arrays
    assert importlib.import_module("soaview_jax").explain is soaview_jax.explain
