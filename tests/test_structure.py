"""The rooms: modules import downwards, keep to their length, and one alone names frameworks."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import soaview

HERE = Path(__file__).parent
ROOT = Path(soaview.__file__).parents[1]
CORE = ROOT / "soaview"

LADDER = [
    "_dtypes",
    "_strided",
    "_fields",
    "_spec",
    "_typed",
    "_host",
    "_buffer",
    "_dlpack",
    "_frameworks",
    "_device",
    "_json",
    "_layout",
    "_bound",
    "_runs",
    "_resolve",
    "_compile",
    "_why",
    "_reduce",
    "_frozen",
    "_soa",
    "_batches",
    "_nested",
    "_blocks",
    "_views",
    "_gather",
    "_values",
    "_rows",
    "_write",
    "_pack",
    "_offsets",
    "_describe",
    "_order",
    "_arrange",
    "_svg",
    "_draw",
    "_draw_soa",
    "_notebook",
    "_cpp_text",
    "_cpp_names",
    "_cpp",
    "_to_cpp",
    "_explain",
    "_containers",
    "_columns",
    "_arrow",
    "_tables",
    "_convert",
    "_intake",
    "_extents",
    "_again",
    "_bind",
    "_files",
    "",  # the package itself
    "_sizeof",
    "adapter._ragged",
    "adapter._dtypes",
    "adapter._forward",
    "adapter._targets",
    "adapter._prepare",
    "adapter",
    "_selftest",
    "__main__",
]
"""From the lowest room to the highest: a module imports from those before it."""

UP = {("_layout", "_soa", "")}
"""The one edge up: `wrap` is hot, and returns an SoA."""

OPENED = {
    ("_layout", "_intake", "pack"),
    ("_layout", "_intake", "of"),
    ("_layout", "_offsets", "check"),
    ("_layout", "_describe", "describe"),
    ("_json", "_cpp", "from_cpp"),
    ("_json", "_to_cpp", "from_cpp"),
    ("_json", "_to_cpp", "to_cpp"),
    ("_layout", "_arrange", "arrange"),
    ("_layout", "_draw", "to_svg"),
    ("_layout", "_notebook", "_repr_html_"),
    ("_blocks", "_draw", "to_svg"),
    ("_blocks", "_notebook", "_repr_html_"),
    ("_soa", "_batches", "batches"),
    ("_soa", "_rows", "take"),
    ("_soa", "_values", "check_bools"),
    ("_soa", "_values", "counted"),
    ("_soa", "_describe", "describe"),
    ("_soa", "_draw_soa", "to_svg"),
    ("_soa", "_notebook", "_repr_html_"),
    ("_soa", "_pack", "__setitem__"),
}
"""Rooms above that a method opens: importer, imported, method."""


def edges(module: str, source: str) -> Iterator[tuple[str, str, str]]:
    """Each import of a module of the core, also for types: importer, imported, the method it is in.

    Outside of functions there is no method.
    """
    package = module.rpartition(".")[0] if module != "adapter" else "adapter"

    def walk(node: ast.AST, method: str) -> Iterator[tuple[str, str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, child.name)
            elif isinstance(child, ast.ImportFrom):
                name = child.module or ""
                if child.level == 1 and package:
                    name = f"{package}.{name}".rstrip(".")
                elif child.level == 0:
                    if name.partition(".")[0] != "soaview":
                        continue
                    name = name.partition(".")[2]
                names = [f"{name}.{alias.name}".lstrip(".") for alias in child.names]
                modules = [n for n in names if n in LADDER]  # `from . import _module`
                for imported in modules or [name]:
                    yield module, imported, method
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    if alias.name.partition(".")[0] == "soaview":
                        yield module, alias.name.partition(".")[2], method
            else:
                yield from walk(child, method)

    yield from walk(ast.parse(source), "")


def wrong_edges(module: str, source: str) -> list[tuple[str, str, str]]:
    found = []
    for edge in edges(module, source):
        importer, imported, _ = edge
        down = LADDER.index(imported) < LADDER.index(importer)
        if not down and edge not in UP | OPENED:
            found.append(edge)
    return found


def core() -> dict[str, str]:
    """The core's modules by name, and what stands in them."""
    found = {}
    for path in CORE.rglob("*.py"):
        name = ".".join(path.relative_to(CORE).with_suffix("").parts)
        found[name.removesuffix(".__init__").removesuffix("__init__")] = path.read_text()
    return found


def test_imports_go_down():
    """No module imports from a room above it, at run time or for types, but by a named edge."""
    modules = core()
    assert sorted(modules) == sorted(LADDER)
    assert [edge for name, source in modules.items() for edge in wrong_edges(name, source)] == []


def test_each_exception_is_needed():
    """An edge up that is gone goes from the list, too; so does a method that opens nothing."""
    there = {edge for name, source in core().items() for edge in edges(name, source)}
    assert there >= UP | OPENED


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_spec", "from ._layout import Layout"),
        ("_spec", "if TYPE_CHECKING:\n    from ._layout import Layout"),
        ("_spec", "class Spec:\n    def pack(self):\n        from ._pack import pack"),
        ("_runs", "import soaview._views"),
        ("_runs", "from soaview import Layout"),
        ("_views", "from . import _write"),
        ("_layout", "def other():\n    from ._pack import pack"),
        ("adapter._ragged", "from ._forward import work"),
        ("_pack", "from .adapter import keep"),
        ("_fields", "from ._fields import Column"),
    ],
)
def test_the_test_of_imports_can_fail(module, source):
    """Each way to import from above, or from oneself, is seen."""
    assert len(wrong_edges(module, source)) == 1
    assert wrong_edges(module, "import soaview._dtypes\nimport numpy") == []


def test_the_document_has_the_ladder():
    """`docs/architecture.md` lists the rooms in this order."""
    text = (HERE.parent / "docs" / "architecture.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    rooms = [name for name in LADDER if name not in ("", "_sizeof", "_selftest", "__main__")]
    assert [name for name in listed if name in rooms] == [
        name for name in rooms if not name.startswith("adapter.")
    ]


@pytest.mark.parametrize("package", ["soaview", "soaview_torch", "soaview_jax"])
def test_modules_fit_a_sitting(package):
    """No module is longer than 400 lines, and most of them have 250 or less."""
    lengths = [len(path.read_text().splitlines()) for path in (ROOT / package).rglob("*.py")]
    assert max(lengths) <= 400
    assert sum(length <= 250 for length in lengths) > len(lengths) / 2


FRAMEWORKS = ("torch", "jax", "jaxlib", "cupy")


def names(source: str) -> set[str]:
    """What code names: variables, attributes, arguments, modules, and strings that are names.

    Docstrings and messages, which are for people, are not names.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split("."))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            if len(words) == 1:
                found |= set(words[0].split("."))
    return {part for name in found for part in (name, *name.lower().split("_"))}


def named(source: str) -> set[str]:
    return names(source) & {*FRAMEWORKS, "soaview_torch", "soaview_jax"}


def test_one_room_names_frameworks():
    """One room names those that the caller has imported; beside it the command line does."""
    there = {module for module, source in core().items() if named(source)}
    assert there == {"_frameworks", "_selftest", "__main__"}


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "from jax import numpy",
        "import numpy as torch",
        "sys.modules['cupy']",
        "module.torch.float32",
        "def by_torch(): pass",
        "def f(jax): pass",
        "str(dtype) == 'torch.bfloat16'",
    ],
)
def test_the_test_of_names_can_fail(source):
    """Each way to name a framework is seen; what is said to people is none."""
    assert named(source)
    assert not named("raise TypeError('torch and JAX have none')")


def test_adapters_do_not_see_each_other():
    """No adapter names the other one or its framework."""
    for package, other in (("soaview_torch", "jax"), ("soaview_jax", "torch")):
        for path in (ROOT / package).rglob("*.py"):
            assert not named(path.read_text()) & {other, f"soaview_{other}"}, path.name
