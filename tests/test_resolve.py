"""The stride engine: what it works out once, and the code that it makes of it."""

from __future__ import annotations

import ast
import gc
import linecache
import traceback
from pathlib import Path

import pytest
from cases import CASES, ROWS

import soaview
from soaview import Column, Layout, Spec, views
from soaview._resolve import numbers_of, pattern_of, plan_of

ROOT = Path(soaview.__file__).parents[1]
LAYOUT = Layout([Column("x", "float32"), Column("y", "float32"), Column("k", "int64", (3,))])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rows", ROWS)
def test_generated_code_says_what_the_loop_says(case, rows):
    """One tensor's numbers are the same by the compiled function and by the forms themselves."""
    layout = case.layout
    entry = Spec(t=case.entry)["t"]
    plan = plan_of(layout, Spec(t=entry), False, False)
    pattern = pattern_of(layout, entry, False)
    if plan.gathers:
        assert plan.numbers(rows, 0, rows) == []
        assert pattern.columns == plan.gathers[0][1].columns
        return
    for start, count in ((0, rows), (rows // 2, rows - rows // 2)):
        [(_, *compiled)] = plan.numbers(rows, start, count)
        _, *looped = numbers_of(layout, pattern, rows, start, count)
        assert compiled == looped


def test_there_is_one_eval():
    """Code is generated in one place, with a name for tracebacks."""
    found = []
    for package in ("soaview", "soaview_torch", "soaview_jax"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
                    found.append((path.name, ast.unparse(node)))
    assert [name for name, _ in found] == ["_resolve.py"]
    assert "compile(source, filename, 'eval')" in found[0][1]


def test_a_traceback_shows_the_generated_line():
    """An error in what was generated names its line, like any other."""
    layout = Layout(LAYOUT.fields)
    plan = plan_of(layout, Spec(xy=["x", "y"], k="k"), False, False)
    with pytest.raises(TypeError) as caught:
        plan.numbers("rows", 0, 0)
    shown = "".join(traceback.format_exception(caught.value))
    assert "<soaview plan " in shown
    assert "capacity * " in shown


def test_generated_lines_go_with_their_layout():
    """Nothing is left of them once a layout is gone."""
    before = set(linecache.cache)
    layout = Layout(LAYOUT.fields)
    for number in range(10):
        views(layout.allocate(3), Spec({f"t{number}": "x"}))
    made = set(linecache.cache) - before
    assert len(made) == 10
    del layout
    gc.collect()
    assert not made & set(linecache.cache)


def test_equal_specs_are_compiled_once():
    """What was compiled is found by a spec's value, whoever made it."""
    layout = Layout(LAYOUT.fields)
    plan = plan_of(layout, Spec(xy=["x", "y"]), False, False)
    assert plan_of(layout, Spec({"xy": ("x", "y")}), False, False) is plan
    for other in (Spec(yx=["x", "y"]), Spec(xy=["y", "x"]), Spec(xy="x")):
        assert plan_of(layout, other, False, False) is not plan
    assert plan_of(layout, Spec(xy=["x", "y"]), True, False) is not plan
    assert plan_of(layout, Spec(xy=["x", "y"]), False, True) is not plan
