"""What the README and the pages beside it say is run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_device_jax import elsewhere  # noqa: F401 - a fixture

NEEDS = ["torch", "jax"]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.+)\n```", README)


def run(page):
    """Run a page's Python from top to bottom; what it defines, and the number of blocks."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names, len(blocks)


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch):
    """The README's Python runs, and its asserts hold."""
    monkeypatch.chdir(tmp_path)
    names, count = run("README.md")
    assert count == 10
    *described, _ = names["layout"].describe(names["rows"]).splitlines()
    assert "\n".join(f"    {line}".rstrip() for line in described) in README


def test_the_code_about_traps_runs(tmp_path, monkeypatch):
    """So does that of the page about other libraries' traps."""
    monkeypatch.chdir(tmp_path)
    _, count = run("docs/traps.md")
    assert count == 11


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", ["README.md", "docs/traps.md"])
def test_the_code_runs_where_jax_has_a_gpu(page, tmp_path, monkeypatch):
    """Results are there, and the memory is on the host."""
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_readme_begins_with_code():
    """Code stands within ten lines, and the memory layout within fifteen more."""
    lines = README.splitlines()
    assert any(line.startswith("```python") for line in lines[:10])
    code_ends = lines.index("```")
    assert any("## The memory" in line for line in lines[code_ends : code_ends + 15])


@pytest.mark.slow
def test_the_two_commands_of_the_readme(run_python):
    """Both commands install what they run, in one line; the first one's job runs here."""
    first, second = (shlex.split(command) for command in COMMANDS[:2])
    for command in (first, second):
        assert "tests/constraints.txt" in command
        assert command.count("&&") == 2
    job = first[len(first) - first[::-1].index("&&") + 1 :]
    assert job == ["-m", "soaview", "demo"]
    out = run_python(*job).stdout
    assert out.count("the SoA's own memory") == 8
    assert "COPY" not in out
    assert second[-2:] == ["-m", "pytest"]
