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
from soaview._compile import compiled, places, plan_of
from soaview._resolve import numbers_of, pattern_of

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


def made_of(layout, spec, suffix=""):
    """A function of rows and bytes that gives what the text says, or None by the gate."""
    at = places(layout, spec, suffix)
    found = [f"({t.dtype!r}, {t.shape}, ({' '.join(f'{s},' for s in t.strides)}), {t.offset})"
             for t in at.tensors]  # fmt: skip
    lines = [
        *at.lines,
        f"if not ({at.inside}): return None",
        f"return {at.nbytes}, [{', '.join(found)}]",
    ]
    return compiled(f"rows{suffix}, nbytes{suffix}", lines, {})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_text_says_what_views_say(case):
    """All tensors of a spec, for every row count; none where one would end a byte too late."""
    soas = [case.layout.allocate(rows) for rows in ROWS if rows]
    strided = [entry for entry in (case.entry, "x", "n", ["x", "y", "z"], "u") if entry]
    spec = Spec({f"t{number}": entry for number, entry in enumerate(strided)})
    for soa, suffix in zip(soas, ("", "_1", "", "_3", ""), strict=True):
        run = made_of(case.layout, spec, suffix)
        found = views(soa, spec)
        want = [(view.dtype_name, view.shape, view.strides, view.offset) for view in found]
        assert run(soa.rows, soa.buffer.nbytes) == (soa.buffer.nbytes, want)
        for end in {last_byte(view) for view in found}:
            fits = all(last_byte(view) <= end for view in found)
            assert (run(soa.rows, end) is not None) is fits
            assert run(soa.rows, end - 1) is None


def last_byte(view):
    """Where a view ends, by its last element."""
    steps = zip(view.shape, view.strides, strict=True)
    return (view.offset + sum((n - 1) * s for n, s in steps) + 1) * view.itemsize


def test_text_of_what_has_no_view():
    """Where one tensor has no strided view there is none; where there is no column, an error."""
    layout = Layout(
        [Column("x", "int8"), Column("k", "int64"), Column("y", "int8"), Column("z", "int8")]
    )
    assert places(layout, Spec(a="k", t=["x", "y", "z"])) is None
    assert made_of(layout, Spec({}))(1, 0) == (layout.nbytes(1), [])
    with pytest.raises(KeyError, match="no column 'w'"):
        places(layout, Spec(t="w"))


def test_there_is_one_exec():
    """Code is generated in one place, with a name for tracebacks."""
    found = []
    for package in ("soaview", "soaview_torch", "soaview_jax"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec"):
                    found.append((path.name, ast.unparse(node)))
    assert [name for name, _ in found] == ["_compile.py"]
    assert "compile(source, filename, 'exec')" in found[0][1]


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
