"""The package as a whole: what it imports, exports, promises in docstrings and README."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import soaview

HERE = Path(__file__).parent
FRAMEWORKS = ("torch", "jax", "ml_dtypes", "uproot")

USE = """if True:
    import sys
    from soaview import *
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
    soa = layout.pack({"x": [1.0, 2.0], "y": [3.0, 4.0], "n": 5})
    layout.wrap(soa.buffer.root, 2), views(soa, Spec(xy=["x", "y"])), soa["x"], repr(soa)
    Layout.from_dict(layout.to_dict()).describe(3), soa._repr_html_()
    layout.to_svg(3, Spec(xy=["x", "y"], yx=["y", "x"]))
    for wrong in (["y", "x"], "z"):
        try:
            views(soa, Spec(t=wrong))
        except (BufferError, KeyError):
            pass
"""


def imported(run_python, code):
    out = run_python("-c", f"{code}\n    print(*sys.modules)").stdout
    return {name.partition(".")[0] for name in out.split()} & set(FRAMEWORKS)


def test_the_core_imports_no_framework(run_python):
    """Neither import nor use of the core imports a framework."""
    assert imported(run_python, USE) == set()


def test_the_test_of_imports_can_fail(run_python):
    """The same code with one more import is caught."""
    assert imported(run_python, USE + "    import ml_dtypes") == {"ml_dtypes"}


def test_public_names():
    """The public door is what it is."""
    assert soaview.__all__ == [
        "Blocks", "Column", "Layout", "Scalar", "SoA", "SoABlocks", "Spec", "Value", "View",
        "bind", "concatenate", "explain", "open_arrow", "pack", "read_parquet", "views",
    ]  # fmt: skip
    assert all(hasattr(soaview, name) for name in soaview.__all__)


def test_all_packages_are_typed(request):
    """The packages ship `py.typed`."""
    root = Path(soaview.__file__).parents[1]
    for package in ("soaview", "soaview_torch", "soaview_jax"):
        assert (root / package / "py.typed").exists()


def packages(config):
    names = config.getoption("--adapter") or ["torch", "jax"]
    return ["soaview", *(f"soaview_{name}" for name in ("torch", "jax") if name in names)]


def test_examples_in_docstrings_run(request):
    """Every example in a docstring gives the output that stands there; every promise has one."""
    ran = 0
    for package in packages(request.config):
        found = importlib.import_module(package)
        walked = pkgutil.walk_packages(found.__path__, f"{package}.")
        modules = [m.name for m in walked if not m.name.endswith("__main__")]
        for module in (found, *map(importlib.import_module, modules)):
            result = doctest.testmod(module)
            assert result.failed == 0
            ran += result.attempted
        for name in found.__all__:
            doc = getattr(found, name).__doc__
            # The examples of what needs pyarrow stand on the start page, and run there.
            elsewhere = ("SoA", "View", "open_arrow", "read_parquet")
            assert ">>>" in doc or name in elsewhere, name
    assert ran > 20


def test_calls_that_are_never_made():
    """Imports that do not hold the memory, or give an alias that is taken for a copy."""
    root = Path(soaview.__file__).parents[1]
    for package in ("soaview", "soaview_torch", "soaview_jax"):
        for path in (root / package).rglob("*.py"):
            code = path.read_text()
            assert "torch.frombuffer" not in code
            # The memory must be an array's, which holds it: nothing else's export would be held.
            for call in ast.walk(ast.parse(code)):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "np.ndarray":
                    given = list(map(ast.unparse, call.args))
                    # What makes the arguments is typed: it takes an array.
                    made = given in (["*array_arguments(memory, at)"], ["*known"])
                    assert made or given[2] in ("root", "memory"), (path, given)
            assert not re.search(r"(from_dlpack|imported)\([^)]*copy=True", code), path


def test_the_floors_that_are_tested():
    """The versions that CI takes are the lowest that the package allows."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["jax"]]
    floors = dict(line.split("==") for line in (HERE / "floors.txt").read_text().split())
    assert floors["jaxlib"] == floors["jax"]
    for name, floor in (requirement.split(">=") for requirement in declared):
        assert floors[name].removesuffix(".0") == floor


@pytest.mark.parametrize("name", ["LICENSE", "CHANGELOG.md", "pyproject.toml"])
def test_the_usual_files_are_there(name):
    """Licence, changelog and build file stand at the top."""
    assert (HERE.parent / name).stat().st_size > 100
