"""Which adapters are under test, and what the tests share."""

from __future__ import annotations

import ast
import collections
import functools
import gc
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import adapters
import places
import pytest
from hypothesis import settings

import soaview

# JAX's host has several devices, for what is split over many. Most of the time of these tests is
# XLA's compiler's, and how good its machine code is makes no difference to any of them.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# The tests that are worth it run ten times as many cases as these: 1000 by default.
settings.register_profile("thorough", max_examples=1000)
settings.register_profile("extended", max_examples=int(os.environ.get("CASES", "100000")))

load = functools.cache(adapters.load)


def pytest_addoption(parser):
    parser.addoption(
        "--adapter",
        action="append",
        help=f"{', '.join(adapters.ADAPTERS)} or module:Class; may be repeated (default: all of "
        "these). One that cannot be imported is an error, and its framework's own tests run only "
        "when it is named.",
    )
    parser.addoption(
        "--device",
        default="cpu",
        help="where the SoAs of the conformance suite are: cpu, cuda, cuda:1 ..., in memory of "
        "torch's; pretended is the host's memory by the way that a device's goes, and pretended:1 "
        "the same as of a device of number 1. With any but the first only that suite is run, and "
        "what needs a GPU. One that is absent is an error.",
    )
    parser.addoption("--data", help="folder with the ROOT files; runs the tests that read them")


def chosen(config):
    on_host = config.getoption("--device") == "cpu"
    all_of_them = [name for name in adapters.ADAPTERS if on_host or name != "numpy"]
    return config.getoption("--adapter") or all_of_them


def pytest_configure(config):
    """An adapter that cannot be imported stops the run, before any test."""
    config.addinivalue_line("markers", "aliasing: only for adapters whose tensors alias the SoA")
    config.addinivalue_line("markers", "x64: only for adapters with 64-bit types switched on")
    config.addinivalue_line("markers", "dtype(name): only of the cases of this dtype")
    config.addinivalue_line("markers", "crash: in a process of its own, which could die")
    config.addinivalue_line("markers", 'slow: left out by `-m "not slow"`, the loop while working')
    config.addinivalue_line(
        "markers", "slow_but_every(n): the same, but for each n-th of its cases"
    )
    config.chosen_adapters = chosen(config)
    device = config.getoption("--device")
    if device.startswith("cuda"):  # which both frameworks share
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:  # where the memory under test is, the results are that JAX computes from it
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        places.choose(device)
    except (AssertionError, ImportError, RuntimeError) as error:
        raise pytest.UsageError(f"--device {device} is not there: {error}") from error
    for name in chosen(config):
        try:
            load(name)
        except (ImportError, AttributeError) as error:
            raise pytest.UsageError(f"--adapter {name} cannot be imported: {error}") from error


@functools.cache
def needed(path):
    """What a file of tests says that it needs, in its line `NEEDS = [...]`; it is not imported.

    Adapters by name, and the options --data and --device.
    """
    found = re.search(r"^NEEDS = (.+)$", path.read_text(), re.MULTILINE)
    return set(ast.literal_eval(found[1])) if found else set()


def pytest_ignore_collect(collection_path, config):
    """Leave out the tests of a framework, or of the host, that were not asked for."""
    if collection_path.suffix != ".py":
        return None
    there, device = {*chosen(config)}, config.getoption("--device")
    if config.getoption("--data") is not None:
        there.add("--data")
    if device.startswith("cuda"):
        there.add("--device")
    needs = needed(collection_path)
    on_host = device == "cpu" or "--device" in needs
    elsewhere = collection_path.name == "test_conformance.py"
    return None if needs <= there and (on_host or elsewhere) else True


def pytest_generate_tests(metafunc):
    if "adapter" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        if metafunc.definition.get_closest_marker("aliasing"):
            names = [name for name in names if load(name).aliases]
        if metafunc.definition.get_closest_marker("x64"):
            names = [name for name in names if not name.endswith("x64-off")]
        metafunc.parametrize("adapter", names, indirect=True)


def under_test(item):
    """The adapter, or the framework, that a test is given."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    found = given.get("adapter") or given.get("framework")
    return found if isinstance(found, str) else ""  # of no adapters there is a case that is skipped


def stays(item):
    """Of how many cases of its test one stays in the loop while working."""
    marker = item.get_closest_marker("slow_but_every")
    if marker:
        return marker.args[0]
    if not hasattr(item, "callspec"):
        return 1
    if not item.path.name.startswith("test_conformance"):
        return 24 if {"jax", "jit"} & needed(item.path) else 1  # XLA compiles for most of them
    name, adapter = item.originalname, under_test(item)
    if "jit" in adapter or ("jax" in adapter and name == "test_forward"):
        return 97  # for each of them XLA compiles
    return 40 if "case" in item.callspec.params else 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what is slow, where that is said of most cases of a test."""
    found = collections.Counter()
    for item in items:
        each = item.path, item.originalname, under_test(item)
        if found[each] % stays(item):
            item.add_marker("slow")
        found[each] += 1


@pytest.fixture(autouse=True, scope="module")
def _short_collections():
    """Let what is there already stay out of the garbage collections of a file's tests.

    And let there be fewer than by default: tracing and compiling make many objects that live on.
    """
    gc.set_threshold(20_000, 20, 50)
    gc.collect()
    gc.freeze()


@pytest.fixture
def adapter(request):
    found = load(request.param)
    with found.settings():
        yield found


@pytest.fixture(params=["torch", "jax"])
def framework(request):
    """One and the other, where both are there: `forward`, and what their arrays are made by."""
    return importlib.import_module("models").FRAMEWORKS[request.param]


@pytest.fixture(scope="session")
def environment():
    """For a fresh process that imports what this one does."""
    root = str(Path(soaview.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root, "PYTHONFAULTHANDLER": "1"}


@pytest.fixture(scope="session")
def run_python(environment):
    """Run Python in a fresh process; give its output."""

    def run(*arguments, check=True, timeout=300, **more):
        done = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**environment, **more},
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run
