"""`python -m soaview layout HEADER.h`: what a header declares, in a terminal."""

from __future__ import annotations

import pytest

from soaview import Layout
from soaview.__main__ import main

POSITION = """
GENERATE_SOA_LAYOUT(Position, SOA_COLUMN(float, x), SOA_COLUMN(float, y), SOA_COLUMN(float, z),
                    SOA_SCALAR(int, detectorType))
"""
PCA = """
GENERATE_SOA_LAYOUT(PCA, SOA_EIGEN_COLUMN(Eigen::Vector3d, eigenvalues),
                    SOA_COLUMN(std::array<float, 6>, cov),
                    SOA_SCALAR(std::array<uint32_t, 11>, offsets))
"""


def test_command_line(tmp_path, capsys):
    """`layout` prints the memory map of what a header declares, or its JSON."""
    path = tmp_path / "Hits.h"
    path.write_bytes(b"// \xb5m\n" + (POSITION + PCA).encode())
    layout = Layout.from_cpp(POSITION)
    assert main(["layout", str(path), "--name", "Position", "--rows", "33"]) == 0
    assert capsys.readouterr().out == layout.describe(33) + "\n"
    assert main(["layout", str(path), "--name", "Position", "--json"]) == 0
    assert Layout.from_json(capsys.readouterr().out) == layout


def test_what_stands_elsewhere(tmp_path, capsys):
    """Types and constants of other headers are given on the command line, too."""
    path = tmp_path / "Digis.h"
    text = "GENERATE_SOA_LAYOUT(Digis, SOA_COLUMN(PixelId, id), SOA_EIGEN_COLUMN(V, v))"
    path.write_text("using V = Eigen::Matrix<float, kN, 1>;" + text)
    layout = Layout.from_cpp(path.read_text(), types={"PixelId": "uint32"}, constants={"kN": 7})
    named = ["--types", "PixelId=uint32", "Other=float32", "--constants", "kN=0x7"]
    assert main(["layout", str(path), "--json", *named]) == 0
    assert Layout.from_json(capsys.readouterr().out) == layout
    for wrong, message in (
        (["--types", "PixelId"], "expected NAME=VALUE, got 'PixelId'"),
        (["--constants", "kN=seven"], "'kN' is no integer: 'seven'"),
        (["--types", "PixelId=struct", "--constants", "kN=7"], "unknown dtype 'struct'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["layout", str(path), "--json", *wrong])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "3"], "Hits.h: there are 2 GENERATE_SOA_LAYOUT, pick one by name= (--name on"),
        (["--name", "Hits", "--rows", "3"], "no GENERATE_SOA_LAYOUT 'Hits'"),
        (["--name", "PCA"], "--rows N gives the memory map, --json the layout"),
        (["--name", "PCA", "--rows", "-1"], "rows must not be negative"),
    ],
)
def test_bad_arguments(tmp_path, capsys, arguments, message):
    """A wrong argument gives one sentence and status 2."""
    path = tmp_path / "Hits.h"
    path.write_text(POSITION + PCA)
    with pytest.raises(SystemExit) as stopped:
        main(["layout", str(path), *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
