"""The demo on ROOT files, made here."""

from __future__ import annotations

import re

import awkward
import numpy as np
import pytest
import uproot

from soaview.__main__ import main, root_columns

NEEDS = ["torch", "jax"]

RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module", params=["TTree", "RNTuple"])
def file(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("root") / "events.root"
    with uproot.recreate(path) as out:
        for name in ("events", "nothing"):
            rows = 1000 if name == "events" else 0
            branches = {
                "pt": RANDOM.normal(size=rows).astype("f4"),
                "mass": RANDOM.normal(size=rows),
                "eta": RANDOM.normal(size=rows).astype("f4"),
                "charge": RANDOM.integers(-1, 2, rows).astype("i4"),
                "hit": awkward.unflatten(RANDOM.normal(size=2 * rows), np.full(rows, 2)),
            }
            if request.param == "TTree":
                types = {n: getattr(v, "dtype", "var * float64") for n, v in branches.items()}
                out.mktree(name, types).extend(branches)
            else:
                out.mkrntuple(name, branches)
    return path


def test_columns_are_read_in_place(file):
    """Flat branches land in the SoA's columns, one tensor per dtype."""
    names = ["pt", "mass", "eta", "charge"]
    soa, spec = root_columns(file, "events", names)
    with uproot.open(file) as source:
        for name in names:
            np.testing.assert_array_equal(soa[name], source["events"][name].array(library="np"))
    assert dict(spec) == {"float32": ("pt", "eta"), "float64": ("mass",), "int32": ("charge",)}
    assert soa["mass"].any()


@pytest.mark.parametrize("kind", ["TTree", "RNTuple"])
def test_arrays_of_a_fixed_size(kind, tmp_path, capsys):
    """They become vector and matrix columns, each a tensor of its own, beside the others."""
    path, rows = tmp_path / "arrays.root", 33
    branches = {
        "pt": RANDOM.normal(size=rows).astype("f4"),
        "state": RANDOM.normal(size=(rows, 5)).astype("f4"),
        "float32": RANDOM.normal(size=(rows, 3)),
        "cov": RANDOM.normal(size=(rows, 2, 3)),
        "eta": RANDOM.normal(size=rows).astype("f4"),
    }
    with uproot.recreate(path) as out:
        if kind == "TTree":
            types = {name: np.dtype((v.dtype, v.shape[1:])) for name, v in branches.items()}
            out.mktree("events", types).extend(branches)
        else:
            out.mkrntuple("events", branches)
    soa, spec = root_columns(path, "events", list(branches))
    for name, values in branches.items():
        assert soa.layout[name].shape == values.shape[1:]
        np.testing.assert_array_equal(soa[name], values)
    assert spec["state"] == "state"
    assert spec["float32"] == "float32"
    assert spec["float32 columns"] == ("pt", "eta")
    assert soa[["pt", "eta"]].shape == (rows, 2)
    main(["demo", "--root", str(path), "--tree", "events", "--columns", *branches])
    assert "A COPY" not in capsys.readouterr().out


def test_lists_are_flattened(file):
    """A branch with a list per entry gives all its numbers."""
    soa, _ = root_columns(file, "events", ["hit"])
    with uproot.open(file) as source:
        hits = awkward.flatten(source["events"]["hit"].array())
    np.testing.assert_array_equal(soa["hit"], hits)
    assert len(root_columns(file, "nothing", ["hit", "pt"])[0]) == 0


@pytest.mark.parametrize(
    ("tree", "columns", "message"),
    [
        ("events", ["pt", "hit"], "the columns differ in length: {'pt': 1000, 'hit': 2000}"),
        ("events", ["pt", "pt"], "a column is named twice: ['pt', 'pt']"),
        ("events", ["Pt"], "no branch 'Pt'; did you mean 'pt'?"),
        ("event", ["pt"], "no tree 'event'; did you mean 'events'?"),
    ],
)
def test_bad_columns(file, capsys, tree, columns, message):
    """What is not there, or does not fit together, is named."""
    with pytest.raises(SystemExit):
        main(["demo", "--root", str(file), "--tree", tree, "--columns", *columns])
    assert message in capsys.readouterr().err


def test_what_is_no_tree(tmp_path, capsys):
    """Histograms, strings, records and damaged files are named in one sentence."""
    path = tmp_path / "other.root"
    records = awkward.zip({"a": [1, 2], "b": [1.5, 2.5]})
    with uproot.recreate(path) as out:
        out["histogram"] = np.histogram([1.0, 2.0])
        out.mkrntuple("records", {"r": records})
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(path.read_bytes()[:300])
    nothing = tmp_path / "nothing.root"
    nothing.write_bytes(b"no ROOT file")
    for file, tree, branch, message in (
        (path, "histogram", "x", "no branch 'x'"),
        (path, "records", "r", "branch 'r' holds records; name one of its members"),
        (damaged, "records", "r", "damaged.root"),
        (nothing, "records", "r", "nothing.root"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["demo", "--root", str(file), "--tree", tree, "--columns", branch])
        assert stopped.value.code == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("first", [7.0, 8.0, 0.0, 1.0])
def test_the_proof_does_not_depend_on_the_data(first, tmp_path, capsys):
    """The demo's own write is seen whatever stood there before."""
    path = tmp_path / "own.root"
    with uproot.recreate(path) as out:
        out.mkrntuple("t", {"x": np.full(5, first)})
    main(["demo", "--root", str(path), "--tree", "t", "--columns", "x"])
    assert capsys.readouterr().out.count(": yes") == 2


@pytest.mark.slow
@pytest.mark.parametrize("tree", ["events", "nothing"])
def test_the_demo_runs_on_a_file(file, run_python, tree, capsys):
    """The demo shows a user's own file through both frameworks, without a copy."""
    arguments = ["demo", "--root", str(file), "--tree", tree, "--columns", "pt", "eta", "charge"]
    if tree == "events":  # in a process of its own, as users do
        out = run_python("-m", "soaview", *arguments).stdout
    else:
        main(arguments)
        out = capsys.readouterr().out
    assert out.count("the SoA's own memory" if tree == "events" else ": empty") == 4
    assert len(re.findall(r"(tensors|arrays) .* us +0 bytes copied", out)) == 2
    assert out.count("seen in") == (2 if tree == "events" else 0)
    assert "NO" not in out
    assert "COPY" not in out
