"""How `forward` splits its inputs and outputs into batches."""

from __future__ import annotations

import numpy as np
import pytest
from models import X, Y, filled, never

from soaview import Column, Layout, Spec

NEEDS = ["torch", "jax"]


@pytest.mark.slow_but_every(4)
@pytest.mark.parametrize("rows", [7, 50])
@pytest.mark.parametrize("batch_size", [None, [8, None], [100, None], (None, None)])
def test_an_soa_that_goes_whole(framework, rows, batch_size):
    """An input whose entry is None is given whole, in every batch, whatever its row count is."""
    soa, out = filled(50)
    other = Layout([Column("w", "float32")]).pack({"w": np.arange(rows, dtype="f4")})

    def total(x, v, scale, w):
        return x.sum(1) + w.sum(), x

    inputs = [(soa, X), (other, Spec(w="w"))]
    framework.forward(total, inputs, (out, Y), batch_size=batch_size)
    wanted = soa["x"] + soa["y"] + sum(range(rows))
    np.testing.assert_allclose(out["sum"], wanted, rtol=1e-5)


@pytest.mark.parametrize("events", [1, 2, 5, 6])
def test_inputs_split_by_sizes_of_their_own(framework, events):
    """A batch has so many rows of each SoA as is said, the last one what is left."""
    hits = Layout([Column("h", "float32"), Column("s", "float32")]).allocate(4 * events - 1)
    soas = Layout([Column("e", "float32"), Column("t", "float32")]).allocate(events)
    hits["h"][:] = np.arange(len(hits))
    soas["e"][:] = 100 * np.arange(events)
    shapes = []

    def model(h, e, again):
        shapes.append((h.shape[0], e.shape[0]))
        return h + again.sum(), h.sum() + e + 0 * again

    inputs = [(hits, Spec(h="h")), (soas, Spec(e="e")), (soas, Spec(again="e"))]
    outputs = [(hits, Spec(s="s")), (soas, Spec(t="t"))]
    framework.forward(model, inputs, outputs, batch_size=[8, 2, 2])
    for first in range(0, events, 2):
        h, e = hits["h"][4 * first : 4 * first + 8], soas["e"][first : first + 2]
        np.testing.assert_array_equal(hits["s"][4 * first : 4 * first + 8], h + e.sum())
        np.testing.assert_array_equal(soas["t"][first : first + 2], h.sum() + e)
    assert set(shapes) <= {(8, 2), (7, 2), (3, 1)}


def test_an_output_is_split_as_the_input_that_it_is(framework):
    """One of another size, which is no input, is split as the first input that is."""
    soa, out = filled(6)
    wide = Layout([Column("w", "float32"), Column("t", "float32")]).allocate(12)
    wide["w"][:] = np.arange(12)

    def model(w, x, v, scale):
        return w * 2, w[: len(x)] + x[:, 0] * 0

    pairs = [(wide, Spec(w="w")), (soa, X)]
    framework.forward(model, pairs, [(wide, Spec(t="t")), (soa, Spec(y="y"))], batch_size=[4, 2])
    np.testing.assert_array_equal(wide["t"], 2 * wide["w"])
    np.testing.assert_array_equal(soa["y"], [0, 1, 4, 5, 8, 9])
    with pytest.raises(ValueError, match=r"has 12 rows, but one has 6: SoA\(6 rows"):
        framework.forward(
            never, pairs, [(wide, Spec(t="t")), (out, Spec(a="a"))], batch_size=[4, 2]
        )
    for entries in ([None, 2], [4, None]):
        with pytest.raises(
            ValueError, match="also an input that goes whole.*give that input a size"
        ):
            framework.forward(
                never, pairs, [(wide, Spec(t="t")), (soa, Spec(y="y"))], batch_size=entries
            )


@pytest.mark.parametrize("rows", [33, 7, 0])
def test_one_number_for_several_soas(framework, rows):
    """It is refused, whatever their row counts are, and what is shown instead works."""
    soa, out = filled(33)
    other, _ = filled(rows)
    inputs = [(other, Spec(w="x")), (soa, Spec(x="x")), (other, Spec(u="y"))]

    def model(w, x, u):
        return x + w.sum() + u.sum() * 0

    into = (soa, Spec(y="y"))
    with pytest.raises(
        ValueError, match=r"None for an SoA that goes whole, as in batch_size="
    ) as e:
        framework.forward(never, inputs, into, batch_size=8)
    assert str(e.value).endswith("batch_size=[None, 8, None]")
    framework.forward(model, inputs, into, batch_size=[None, 8, None])
    np.testing.assert_allclose(soa["y"], soa["x"] + other["x"].sum(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"batch_size=\[8, None\]$"):
        framework.forward(never, [(soa, X), (soa[:], X)], (out, Y), batch_size=8)
    framework.forward(lambda x, v, s, w: (x.sum(1), x), [(soa, X), (soa, Spec(w="x"))], (out, Y))


BAD_SIZES = {
    "too few": ([8], ValueError, "batch_size= has 1 entries, and the inputs are 3 pairs"),
    "too many": ([8, 8, None, None], ValueError, "has 4 entries, and the inputs are 3 pairs"),
    "none": ([], ValueError, "has 0 entries"),
    "zero": ([0, 0, None], ValueError, "batch_size must be positive, got 0"),
    "negative": ([8, 8, -1], ValueError, "batch_size must be positive, got -1"),
    "a bool": ([8, 8, False], TypeError, "batch_size must be an integer, got False"),
    "a float": ([8.0, 8, None], TypeError, "batch_size must be an integer, got 8.0"),
    "text": ("8", TypeError, "batch_size must be an integer, got '8'"),
    "a dict": ({0: 8}, TypeError, "batch_size must be an integer, got {0: 8}"),
    "one SoA, two sizes": (
        [8, 4, None],
        ValueError,
        r"has 8 and 4 for pairs of one SoA, SoA\(33 r",
    ),
    "one SoA, half whole": ([None, 8, None], ValueError, "has None and 8 for pairs of one SoA"),
    "numbers of batches": (
        [8, 8, 8],
        ValueError,
        "makes 5 batches of 33 rows by 8, but 2 of 9 rows by 8; let these be as many",
    ),
}


@pytest.mark.parametrize("bad", BAD_SIZES, ids=str)
def test_bad_batch_sizes(framework, bad):
    """What does not say for each pair how it is split is refused before the model runs."""
    soa, out = filled(33)
    other, _ = filled(9)
    sizes, error, match = BAD_SIZES[bad]
    inputs = [(soa, X), (soa, Spec(w="x")), (other, Spec(u="x"))]
    with pytest.raises(error, match=match):
        framework.forward(never, inputs, (out, Y), batch_size=sizes)


def test_other_inputs_are_not_batched_by_accident(framework):
    """Nothing that is given whole is cut, though its rows would make as many batches."""
    soa, out = filled(12)
    other, _ = filled(12)
    seen = []

    def model(x, w):
        seen.append((x.shape[0], w.shape[0]))
        return x

    inputs = [(soa, Spec(x="x")), (other, Spec(w="x"))]
    framework.forward(model, inputs, (out, Spec(a="a")), batch_size=[5, None])
    assert set(seen) == {(5, 12), (2, 12)}
