"""What would end a process without a word does not; it would, were soaview's guard not there."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from crashes import SCENARIOS

PROGRAM = str(Path(__file__).parent / "crashes.py")
DEATHS = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL}

pytestmark = pytest.mark.crash


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.chosen_adapters
    twins = "without" in metafunc.function.__name__
    metafunc.parametrize(
        ("name", "framework"),
        [
            (name, framework)
            for name, (_, names, unguarded) in SCENARIOS.items()
            for framework in names
            if framework in chosen and (unguarded or not twins)
        ],
    )


def test_nothing_ends_the_process(run_python, name, framework):
    """The process comes to its last line, and ends as it should."""
    done = run_python(PROGRAM, name, framework, check=False, timeout=150)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


CHECKED_TWICE = {
    ("beyond_the_buffer", "numpy"): "ValueError: strides is incompatible with shape",
    ("beyond_the_buffer", "torch"): "RuntimeError: setStorage: sizes [1099511627776]",
    ("beyond_the_buffer", "jax"): "ValueError: strides is incompatible with shape",
    ("written_read_only_mapping", "numpy"): "ValueError: assignment destination is read-only",
    ("written_read_only_mapping", "jax"): "ValueError: assignment destination is read-only",
}
"""Where the framework, or NumPy under it, has a check of its own: what it raises."""


def test_without_its_guard_it_would(run_python, name, framework):
    """With the guard taken out, the same process dies: so the test above can fail."""
    done = run_python(PROGRAM, name, framework, "unguarded", check=False, timeout=150)
    assert "end" not in done.stdout
    if (name, framework) in CHECKED_TWICE:
        assert done.returncode == 1
        assert CHECKED_TWICE[name, framework] in done.stderr
    else:
        assert done.returncode in DEATHS, done.stderr
