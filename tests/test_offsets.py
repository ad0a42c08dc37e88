"""A layout compared with the offsets that a producer knows."""

from __future__ import annotations

import numpy as np
import pytest
from cases import IMAGES

from soaview import Column, Layout, Scalar

FIELDS = [
    Column("pt", "float32"),
    Column("eta", "float32"),
    Column("cov", "float64", (3, 3)),
    Column("charge", "int8"),
    Scalar("n", "int32"),
    Column("score", "float32"),
]
LAYOUT = Layout(FIELDS)


def offsets(layout, rows, shift=0):
    return {name: layout.offset(name, rows) + shift for name in layout}


@pytest.mark.parametrize("image", IMAGES, ids=str)
def test_what_cpp_wrote_fits(image):
    """The offsets that the CMS experiment's classes give are those of the layouts."""
    known = {}
    for name, numbers in image.offsets.items():
        known[name] = numbers if isinstance(numbers, int) else next(iter(numbers.values()))
    image.layout.check(known, image.rows)


@pytest.mark.parametrize("rows", [0, 1, 33, 1000, 10**12])
def test_its_own_offsets_fit(rows):
    """In any order, of any fields, as any kind of integer."""
    own = offsets(LAYOUT, rows)
    LAYOUT.check(own, rows)
    LAYOUT.check(dict(reversed(own.items())), rows)
    LAYOUT.check(
        {"score": np.int64(own["score"])}, np.int32(min(rows, 2**31 - 1)) if rows < 2**31 else rows
    )


def refusal(layout, known, rows):
    with pytest.raises(ValueError, match=f"^at {rows} rows ") as error:
        layout.check(known, rows)
    return str(error.value)


@pytest.mark.parametrize("alignment", [16, 64, 256, 4096])
def test_another_alignment_explains(alignment):
    """What lies elsewhere is named with its distance, and the alignment that would do."""
    other = Layout(FIELDS, alignment=alignment)
    said = refusal(LAYOUT, offsets(other, 1000), 1000)
    here, there = LAYOUT.offset("score", 1000), other.offset("score", 1000)
    more = f"{abs(there - here)} {'more' if there > here else 'less'}"
    assert f"'score' at byte {there}, here at {here} ({more})" in said
    assert said.endswith(f"; this would be so with alignment={alignment}")


@pytest.mark.parametrize("rows", [0, 1, 999, 1025, 10**9])
def test_another_row_count_explains(rows):
    """The row counts that would do are named, from the least to the most."""
    known = offsets(LAYOUT, rows)
    said = refusal(LAYOUT, known, 500)
    least, _, most = said.rpartition("at ")[2].removesuffix(" rows").partition(" to ")
    assert int(least) <= rows <= int(most or least)
    for count in {int(least), int(most or least)}:
        LAYOUT.check(known, count)
    for count in (int(least) - 1, int(most or least) + 1):
        if count >= 0:
            refusal(LAYOUT, known, count)


def test_both_explain():
    """Another alignment and another row count together are found, too."""
    other = Layout(FIELDS, alignment=64)
    said = refusal(LAYOUT, offsets(other, 300), 1000)
    assert said.endswith("rows and alignment=64")


@pytest.mark.parametrize("missing", range(5))
def test_a_missing_field_explains(missing):
    """A field that the layout lacks, or has in excess, moves all that follow by its bytes."""
    gone = FIELDS[missing]
    short = Layout(FIELDS[:missing] + FIELDS[missing + 1 :])
    following = FIELDS[missing + 1].name
    size = LAYOUT.offset(following, 1000) - LAYOUT.offset(gone.name, 1000)
    known = offsets(LAYOUT, 1000)
    del known[gone.name]
    said = refusal(short, known, 1000)
    assert f"if the producer had {size} bytes before {following!r} that the layout lacks" in said
    if gone.name == "pt":
        assert "such as a column of 4 bytes a row" in said
    said = refusal(LAYOUT, offsets(short, 1000), 1000)
    if missing in (0, 1):  # either of the two would explain it
        assert "had no field 'pt'" in said or "had no field 'eta'" in said
    else:
        assert said.endswith(f"if the producer had no field {gone.name!r}")


@pytest.mark.parametrize("dtype", ["int8", "float16", "int32", "float64", "complex128"])
def test_what_a_missing_field_would_be(dtype):
    """The bytes that the layout lacks are told as those of a row, where a column takes so many."""
    fields = [Column("x", "complex128"), Column("y", "int8")]
    short = Layout([*fields, Column("z", "int8")])
    full = Layout([*fields, Column("between", dtype), Column("z", "int8")])
    known = {name: full.offset(name, 1000) for name in short}
    said = refusal(short, known, 1000)
    assert f"such as a column of {full['between'].itemsize} bytes a row" in said


def test_a_base_that_is_not_the_buffers():
    """Offsets that count from elsewhere are all moved by one distance."""
    said = refusal(LAYOUT, offsets(LAYOUT, 1000, shift=4), 1000)
    assert said.startswith("at 1000 rows 6 of 6 fields lie elsewhere: 'pt' at byte 4, here at 0 (4")
    assert said.endswith("had 4 bytes before 'pt' that the layout lacks")
    assert "4 bytes less before 'pt'" in refusal(LAYOUT, offsets(LAYOUT, 1000, shift=-4), 1000)


def test_names_that_the_layout_lacks():
    """They are an error, with the closest name that there is."""
    known = {**offsets(LAYOUT, 10), "scor": 4}
    said = refusal(LAYOUT, known, 10)
    assert "no column 'scor'; did you mean 'score'?" in said
    assert said.endswith("the producer has, and the layout lacks, 'scor' at byte 4")
    said = refusal(LAYOUT, {"Pt": 0, "eta": 4}, 10)
    assert "'Pt'" in said
    assert "1 of 2 fields lies elsewhere: 'eta' at byte 4" in said


def test_nothing_simple_explains():
    """Then only the distances are told."""
    known = offsets(LAYOUT, 1000)
    known["eta"] += 4
    known["score"] -= 8
    said = refusal(LAYOUT, known, 1000)
    assert said.endswith("(8 less)")
    assert "2 of 6 fields lie elsewhere" in said


def test_sizes_agree_by_chance():
    """Two layouts of one size are told apart, where `wrap` cannot."""
    other = Layout([FIELDS[1], FIELDS[0], *FIELDS[2:]])
    assert other.nbytes(1000) == LAYOUT.nbytes(1000)
    said = refusal(LAYOUT, offsets(other, 1000), 1000)
    assert "2 of 6 fields lie elsewhere: 'eta' at byte 0, here at 4096 (4096 less)" in said


@pytest.mark.parametrize(
    ("known", "error", "message"),
    [
        ([0, 4], TypeError, "offsets must be a mapping"),
        ({}, ValueError, "no offsets to compare"),
        ({"pt": 0.0}, TypeError, "field 'pt': the offset must be an integer, got 0.0"),
        ({"pt": True}, TypeError, "must be an integer"),
        ({"pt": None}, TypeError, "must be an integer"),
        ({"pt": -4}, ValueError, "'pt' at byte -4, here at 0 .4 less"),
        ({"pt": 2**64}, ValueError, "'pt' at byte 18446744073709551616"),
        ({3: 0}, ValueError, "no column 3"),
    ],
)
def test_bad_offsets(known, error, message):
    """Numbers that no memory has are told as such."""
    with pytest.raises(error, match=message):
        LAYOUT.check(known, 1000)
    with pytest.raises(ValueError, match="rows must not be negative"):
        LAYOUT.check({"pt": 0}, -1)


@pytest.mark.slow
def test_many_fields():
    """All fields are compared, and named, at the largest layout there is."""
    layout = Layout([Column(f"c{number}", "int8") for number in range(65_536)])
    other = Layout(layout.fields, alignment=64)
    said = refusal(layout, offsets(other, 10), 10)
    assert "65535 of 65536 fields lie elsewhere" in said
    assert said.endswith("alignment=64")
