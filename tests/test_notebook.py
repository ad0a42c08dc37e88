"""What a notebook shows of SoAs, layouts and blocks: tables with first values."""

from __future__ import annotations

import numpy as np
import pytest
from test_drawing import BLOCKS, COUNTS, TRACKS, boxes, parsed

from soaview import Blocks, Column, Layout, Value


def table(html):
    root = parsed(html)
    return [[cell.text for cell in row] for row in root.iter("tr")]


def test_the_table():
    """A notebook shows fields with their numbers, and the first values of the SoA's own rows."""
    soa = TRACKS.allocate(33)
    soa["pt"][:] = np.arange(33) / 3
    soa["cov"][:] = np.arange(9).reshape(3, 3)
    soa[Value("n")][...] = 33
    rows = table(soa._repr_html_())
    assert rows[0] == ["field", "dtype", "shape", "offset", "pitch", "first values"]
    assert rows[1] == ["pt", "float32", "(33,)", "0", "256", "0, 0.3333, 0.6667, ..."]
    assert rows[5][2:] == ["(33, 3, 3) F", "896", "384", "0, 1, 2, ..."]
    assert rows[7] == ["n", "int32", "scalar", "7808", "128", "33"]
    part = soa[30:32]._repr_html_()
    assert "SoA: 2 rows (30:32 of 33, which are drawn), 8064 bytes on cpu" in part
    assert table(part)[1][-1] == "10, 10.33"
    assert soa.to_svg() == TRACKS.to_svg(33) in soa._repr_html_()
    assert soa[30:32].to_svg() in part
    assert table(soa[5:5]._repr_html_())[1][-1] is None
    assert table(TRACKS.allocate(0)._repr_html_())[7][-1] == "0"
    frozen = np.zeros(TRACKS.nbytes(3) + 16, np.uint8)[: TRACKS.nbytes(3)]
    frozen.flags.writeable = False
    assert "on cpu, read-only" in TRACKS.wrap(frozen, 3)._repr_html_()


def test_values_of_every_kind():
    """Integers are exact, others short."""
    fields = [Column("b", "bool"), Column("u", "uint64"), Column("c", "c8"), Column("f", "f8")]
    soa = Layout(fields).allocate(1)
    soa["u"][:] = 2**64 - 1
    soa["c"][:] = 1 + 2.5j
    soa["f"][:] = np.nan
    found = [row[-1] for row in table(soa._repr_html_())[1:]]
    assert found == ["False", "18446744073709551615", "1+2.5j", "nan"]


def test_layouts_say_for_which_rows():
    """A layout has no row count, is drawn for a hundred rows, and says so."""
    html = TRACKS._repr_html_()
    assert "Layout: 8 fields, alignment 128; drawn for 100 rows" in html
    assert TRACKS.to_svg(100) in html
    assert table(html)[1] == ["pt", "float32", "(100,)", "0", "512"]
    assert "drawn for 100 rows of each" in BLOCKS._repr_html_()
    soas = BLOCKS.allocate(COUNTS)._repr_html_()
    assert f"SoABlocks: 3 blocks, {BLOCKS.nbytes(COUNTS)} bytes on cpu" in soas
    assert ["<hits>: 0 rows"] in table(soas)
    assert BLOCKS.to_svg(COUNTS) in soas


class Watched:
    """Memory of a device that is not there, and that counts how often it is asked."""

    asked = 0

    @property
    def __cuda_array_interface__(self):
        self.asked += 1
        return {
            "shape": (TRACKS.nbytes(33),),
            "typestr": "|u1",
            "data": (4096, False),
            "version": 3,
        }


def test_memory_of_devices_is_not_read():
    """An SoA on a device shows its map and no values, and the memory is not asked for."""
    owner = Watched()
    for soa in (
        TRACKS.from_pointer(4096, 33, device="cuda:0"),
        TRACKS.wrap(owner, 33),
        TRACKS.wrap(owner, 33)[3:5],
    ):
        asked = owner.asked
        html = soa._repr_html_()
        assert owner.asked == asked
        assert "on cuda:0" in html
        assert {len(row) for row in table(html)} == {5}
        assert len(boxes(parsed(html))[0]) == 8
        with pytest.raises(BufferError):
            soa["pt"]  # where nobody reads such memory, so would the drawing have


def test_blocks_on_several_devices():
    """Values are those of the blocks that the host reads."""
    soas = Blocks({"here": TRACKS, "there": TRACKS}).allocate({"here": 3, "there": 3})
    html = soas.replace({"there": TRACKS.from_pointer(4096, 3, device="cuda:0")})._repr_html_()
    assert "on cpu+cuda:0" in html
    found = [row[-1] for row in table(html) if row[0] == "pt"]
    assert found == ["0, 0, 0", None]


def test_bfloat16_without_ml_dtypes(run_python):
    """A dtype that NumPy lacks has no values, and all else is shown."""
    code = """if True:
        from soaview import *
        soa = Layout([Column("h", "bfloat16"), Column("x", "float32")]).allocate(3)
        print(soa._repr_html_())
        import ml_dtypes
        soa["h"][:] = 1.5
        print(soa._repr_html_())
    """
    before, after = run_python("-c", code).stdout.strip().split("\n<div class")
    assert "<td></td>" in before or "<td />" in before
    assert "0, 0, 0" in before
    assert "1.5, 1.5, 1.5" in after
