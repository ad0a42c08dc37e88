"""What the README and the pages beside it say is run."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
from test_device_jax import elsewhere  # noqa: F401 - a fixture

NEEDS = ["torch", "jax"]

PACKAGES = ("soaview", "soaview_torch", "soaview_jax")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
run = importlib.import_module("page").run
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"```sh\n(.+)\n```", README)


PAGES = [
    "README.md",
    *(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "docs").glob("*.md"))
        # One shows a file of code, which has tests of its own.
        if "```python" in path.read_text() and path.name != "adapters.md"
    ),
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """A page's Python runs from top to bottom, and its asserts hold."""
    monkeypatch.chdir(tmp_path)
    assert run(ROOT / page)
    assert not any(tmp_path.iterdir())  # what it writes does not stay


def test_there_are_pages():
    """None has lost its code."""
    assert len(PAGES) >= 14
    blocks = sum((ROOT / page).read_text().count("```python") for page in PAGES)
    assert blocks >= 40


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("page", [p for p in PAGES if "import jax" in (ROOT / p).read_text()])
def test_the_code_runs_where_jax_has_a_gpu(page, tmp_path, monkeypatch):
    """Results are there, and the memory is on the host."""
    monkeypatch.chdir(tmp_path)
    run(ROOT / page)


def test_the_readme_is_short():
    """A screen or two: a picture, code for each framework, and where to go on."""
    assert len(README.encode()) <= 6000
    lines = README.splitlines()
    assert any(line.startswith("![") for line in lines[:6])
    assert sum(line.startswith("```python") for line in lines) == 2


def test_the_picture(run_python):
    """The documents' picture is what the example draws now."""
    drawn = run_python(ROOT / "examples" / "picture.py").stdout
    assert (ROOT / "docs" / "memory.svg").read_text() == drawn


def said_by(path):
    """The texts that a module has: of an f-string what stands between its values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "...".join(part.value for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_messages_of_the_page_about_pitfalls():
    """What it quotes of our messages is what they say."""
    packages = [Path(importlib.import_module(p).__file__).parent for p in PACKAGES]
    modules = [path for package in packages for path in package.rglob("*.py")]
    texts = {text for path in modules for text in said_by(path)}
    page = (ROOT / "docs" / "pitfalls.md").read_text()
    quoted = re.findall(r"^\| `(?:\w+Error): ([^`]+)`", page, re.MULTILINE)
    assert len(quoted) >= 12
    theirs = "cannot close exported", "one of the variables", "grad requires real", "got uint32"
    for message in quoted:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert part.startswith(theirs) or any(part in text for text in texts), part


def test_links():
    """Every link within the repository leads to a file, and to a heading where it names one."""
    for page in ROOT.glob("*.md"), (ROOT / "docs").glob("*.md"):
        for path in page:
            text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
            for link in re.findall(r"\]\(([^)\s]+)\)", text):
                if not link.startswith("http"):
                    assert (path.parent / link.partition("#")[0]).exists(), f"{path.name}: {link}"


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
