"""What would end a process without a word does not; it would, were soaview's guard not there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from crashes import all_scenarios

PROGRAM = str(Path(__file__).parent / "crashes.py")
DEATHS = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL}

pytestmark = pytest.mark.crash


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.chosen_adapters
    twins = "without" in metafunc.function.__name__
    metafunc.parametrize(
        ("name", "framework"),
        [
            pytest.param(name, framework, marks=[] if framework == "numpy" else pytest.mark.slow)
            for name, (_, names, unguarded) in all_scenarios().items()
            for framework in names
            if framework in chosen and (unguarded or not twins)
        ],
    )


@pytest.fixture(scope="module")
def run(environment):
    """Run a scenario in a process of its own, forked from one that has imported the framework."""
    servers = {}

    def in_a_process(name, framework, *mode):
        if framework not in servers:
            servers[framework] = processes.enter_context(
                subprocess.Popen(
                    [sys.executable, PROGRAM, "serve", framework],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**environment, "OPENBLAS_NUM_THREADS": "1"},  # no threads before it
                )
            )
        asked, told = servers[framework].stdin, servers[framework].stdout
        print(json.dumps([name, framework, *mode]), file=asked, flush=True)
        return json.loads(told.readline())

    with ExitStack() as processes:
        yield in_a_process
        for server in servers.values():
            server.stdin.close()
            assert server.wait(10) == 0


def test_nothing_ends_the_process(run, name, framework):
    """The process comes to its last line, and ends as it should."""
    assert run(name, framework) == [0, "end\n", ""]


CHECKED_TWICE = {
    ("beyond_the_buffer", "numpy"): "ValueError: strides is incompatible with shape",
    ("beyond_the_buffer", "torch"): "RuntimeError: setStorage: sizes [1099511627776]",
    ("beyond_the_buffer", "jax"): "ValueError: strides is incompatible with shape",
    ("written_read_only_mapping", "numpy"): "ValueError: assignment destination is read-only",
    ("written_read_only_mapping", "jax"): "ValueError: assignment destination is read-only",
}
"""Where the framework, or NumPy under it, has a check of its own: what it raises."""


def test_without_its_guard_it_would(run, name, framework):
    """With the guard taken out, the same process dies: so the test above can fail."""
    code, out, err = run(name, framework, "unguarded")
    assert "end" not in out
    if (name, framework) in CHECKED_TWICE:
        assert code == 1
        assert CHECKED_TWICE[name, framework] in err
    else:
        assert code in DEATHS, err
