"""The command line, with and without the frameworks."""

from __future__ import annotations

import pytest

from soaview import Column, Layout, Scalar
from soaview.__main__ import main

LAYOUT = Layout([Column("x", "float32"), Scalar("n", "int32")])


def test_describe(tmp_path, capsys):
    """`describe` prints the memory map of a layout in a file."""
    path = tmp_path / "layout.json"
    path.write_text(LAYOUT.to_json())
    assert main(["describe", str(path), "--rows", "33"]) == 0
    assert capsys.readouterr().out == LAYOUT.describe(33) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "layout.json: not a layout's JSON: Expecting value"),
        ("[1, 2", "Expecting"),
        ("[]", "layout.json: the layout must be a mapping, got []"),
        ("NaN", "NaN is no number of JSON"),
        ('{"fields": [], "fields": []}', "key 'fields' stands twice"),
        ('{"fields": [{"kind": "column", "name": "x", "dtype": "f9"}]}', "unknown dtype 'f9'"),
        ('{"alignment": 1e2, "fields": [{"kind": "scalar", "name": "x", "dtype": "int8"}]}',
         "alignment must be an integer, got 100.0"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (1 << 24) + "{}", "more than 16777216 bytes"),
        ("1" * 10_000, "a number of 10000 digits"),
        ("\x00", "Expecting value"),
    ],
)  # fmt: skip
def test_bad_layout_files(tmp_path, capsys, text, message):
    """A file that is no layout gives one sentence and status 2."""
    path = tmp_path / "layout.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["describe", str(path), "--rows", "3"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "nowhere.json", "--rows", "3"], "nowhere.json"),
        (["demo", "--rows", "-1"], "rows must not be negative, got -1"),
        (["demo", "--root", "x.root"], "--tree NAME and --columns A B ... go together"),
        (["demo", "--tree", "events"], "--tree NAME and --columns A B ... go together"),
    ],
)
def test_bad_arguments(capsys, arguments, message):
    """A wrong argument gives one sentence and status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_without_end(capsys):
    """No more is read than a layout may take."""
    with pytest.raises(SystemExit):
        main(["describe", "/dev/zero", "--rows", "3"])
    assert "more than 16777216 bytes" in capsys.readouterr().err


def test_demo_without_frameworks(run_python):
    """Without torch and JAX the demo says what is missing, and shows the rest."""
    code = """if True:
        import sys
        sys.modules["torch"] = sys.modules["jax"] = None
        from soaview.__main__ import main
        main(["demo", "--rows", "100"])
    """
    out = run_python("-c", code).stdout
    assert "covariance  float32" in out
    assert 'torch is not installed: pip install "soaview[torch]"' in out
    assert 'jax is not installed: pip install "soaview[jax]"' in out


def test_demo_without_uproot(run_python):
    """Without uproot, a ROOT file cannot be read, and the message says what to install."""
    code = """if True:
        import sys
        sys.modules["uproot"] = None
        from soaview.__main__ import main
        main(["demo", "--root", "x.root", "--tree", "t", "--columns", "a"])
    """
    done = run_python("-c", code, check=False)
    assert done.returncode == 2
    assert 'uproot is not installed: pip install "soaview[root]"' in done.stderr
