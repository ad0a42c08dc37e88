"""`forward` of JAX's for functions that treat each row alone: compiled for capacities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, filled, layout_of

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import forward, prepare

NEEDS = ["jax"]

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("k", "int32"),
        Column("y", "float32"),
        Column("v", "float32", (3,)),
        Scalar("s", "float32"),
        Column("a", "float32"),
        Column("b", "float32", (2,)),
    ]
)
INPUTS = Spec(yx=["y", "x"], v="v", s=Value("s"), rows="s", k="k")
OUTPUTS = Spec(a="a", b="b")


def soa_of(rows):
    soa = LAYOUT.allocate(rows)
    for number, name in enumerate(("x", "y", "k")):
        soa[name][:] = np.arange(rows) + number
    soa["v"][:] = np.arange(rows * 3).reshape(rows, 3)
    soa[Value("s")][...] = 3
    return soa


class Traced:
    """A function that treats each row alone, and counts how often it is traced."""

    def __init__(self):
        self.shapes = []

    def __call__(self, yx, v, s, rows, k):
        self.shapes.append(yx.shape)
        return yx.sum(1) * s + v[:, 1], jnp.stack([rows, k * 1.0], 1)


def check(soa):
    np.testing.assert_array_equal(soa["a"], (soa["x"] + soa["y"]) * 3 + soa["v"][:, 1])
    np.testing.assert_array_equal(soa["b"], np.stack([soa["s"], soa["k"]], 1))


@pytest.mark.parametrize("mode", [True, "verify"])
def test_one_compilation_for_many_row_counts(mode):
    """One for each power of two from 256 on, however many rows there are in a call or a batch."""
    fn = Traced()
    for rows in (1, 2, 100, 255, 256, 257, 300, 512, 900):
        soa = soa_of(rows)
        forward(fn, (soa, INPUTS), (soa, OUTPUTS), row_wise=mode)
        check(soa)
        for size in (1, 64, 300) if rows in (2, 300) else ():
            soa["a"][:] = soa["b"][:] = 0
            forward(fn, (soa, INPUTS), (soa, OUTPUTS), row_wise=mode, batch_size=size)
            check(soa)
    capacities = [256, 512, 1024] if mode is True else [256, 512, 1024, 2048]
    assert sorted(fn.shapes) == [(capacity, 2) for capacity in capacities]


@pytest.mark.slow_but_every(20)
@pytest.mark.parametrize("case", [c for c in CASES if c.has_rows], ids=str)
def test_every_entry(case):
    """Of every dtype, as it is: slices, read-only memory, and what no single view covers."""
    with jax.enable_x64(True):
        memory, expected = filled(case.layout, 33)
        memory.flags.writeable = False
        for soa, rows in (
            (case.layout.wrap(memory, 33), slice(None)),
            (case.layout.wrap(memory, 33)[5:9], slice(5, 9)),
            (jax.device_put(case.layout.wrap(memory, 33)), slice(None)),
        ):
            out = Layout([Column("o", case.dtype, (2,))]).allocate(len(soa))

            def first_and_last(x):
                x = x.reshape(len(x), -1)
                return jnp.stack([x[:, 0], x[:, -1]], 1)

            forward(first_and_last, (soa, Spec(x=case.entry)), (out, Spec(o="o")), row_wise=True)
            names = case.entry if isinstance(case.entry, (list, tuple)) else [case.entry]
            both = [np.asarray(expected[names[end]]) for end in (0, -1)]
            per_row = case.layout[names[0]].per_row
            if not per_row:
                both = [np.broadcast_to(values, (len(soa), *values.shape)) for values in both]
                rows = slice(None)
            both = [values[rows] for values in both]
            both = [values.reshape(len(soa), -1) for values in both]
            np.testing.assert_array_equal(out["o"][:, 0], both[0][:, 0])
            np.testing.assert_array_equal(out["o"][:, 1], both[1][:, -1])


def test_weights_and_dtypes():
    """Weights of a pytree are arguments; `dtype=` converts; results may replace the inputs."""
    traced = []

    def apply(weights, x):
        traced.append(x.dtype)
        return x * weights

    for rows in (5, 77):
        soa = soa_of(rows)
        for number in (2, 3):
            x = soa["x"].copy()
            fn = jax.tree_util.Partial(apply, jnp.full((), number, "bfloat16"))
            pair = soa, Spec(x="x")
            forward(fn, pair, pair, row_wise=True, dtype="bfloat16")
            np.testing.assert_array_equal(soa["x"], x * number)
    assert traced == ["bfloat16"]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x - x.sum(),
        lambda x: x - x.mean(),
        lambda x: x / (1 + x.max()),
        lambda x: x - x.min(),
        jax.nn.softmax,
        lambda x: x[::-1],
        lambda x: jnp.sort(x),
        lambda x: x + x.shape[0],
    ],
)
def test_a_function_that_looks_along_the_rows_is_found(fn):
    """By other rows beyond the SoA's, in another capacity; nothing is written then."""
    soa = soa_of(40)
    pairs = (soa, Spec(x="x")), (soa, Spec(a="a"))
    match = r"tensor 'a': \d+ of 40 rows have other values when other rows lie beyond them"
    with pytest.raises(ValueError, match=match):
        forward(fn, *pairs, row_wise="verify")
    assert not soa["a"].any()
    forward(fn, *pairs)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "bfloat16", "complex64"])
def test_what_is_looked_for_suits_the_dtype(dtype):
    """Of every kind the rows beyond are larger and smaller; rounding and NaN are no difference."""
    layout = Layout([Column("x", dtype), Column("o", dtype)])
    soa = layout.allocate(9)
    soa["x"][:] = np.arange(9) % 2
    if soa["x"].dtype.kind in "fc":
        soa["x"][3] = np.nan
    pairs = (soa, Spec(x="x")), (soa, Spec(o="o"))
    forward(lambda x: x, *pairs, row_wise="verify")
    np.testing.assert_array_equal(soa["o"], soa["x"])
    with pytest.raises(ValueError, match="does not treat each row alone"):
        forward(lambda x: x[::-1], *pairs, row_wise="verify")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "complex128"])
def test_the_largest_numbers(dtype):
    """Rows beyond cannot be larger than these, and no sum of theirs runs over in silence."""
    with jax.enable_x64(True):
        layout = Layout([Column("x", dtype), Column("o", dtype)])
        soa = layout.allocate(2)
        soa["x"][:] = np.array([1, -1]) * float(jnp.finfo(dtype).max) * 0.99
        if soa["x"].dtype.kind == "c":
            soa["x"].imag = soa["x"].real
        forward(lambda x: x / 2, (soa, Spec(x="x")), (soa, Spec(o="o")), row_wise="verify")
        np.testing.assert_array_equal(soa["o"], soa["x"] / 2)


OTHER = Layout([Column("x", "float32"), Scalar("s", "float32")])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"row_wise": 1}, TypeError, "row_wise must be False, True or 'verify', got 1"),
        ({"row_wise": "yes"}, TypeError, "got 'yes'"),
        ({"outputs": Spec(s=Value("s"))}, ValueError, "tensor 's' is one value for the whole SoA"),
        ({"inputs": OTHER.allocate(7)}, ValueError, "one row count, but .* has 9 rows where .* 7"),
        ({"fn": lambda x: x[:5]}, ValueError, r"got shape \(5,\) for inputs of 256 rows, the cap"),
        ({"fn": lambda x: x[:9]}, ValueError, r"got shape \(9,\) for .* leave row_wise= out"),
        ({"fn": lambda x: x.sum()}, ValueError, r"got shape \(\) for inputs of 256 rows"),
        ({"fn": lambda x: x[None]}, ValueError, r"got shape \(1, 256\) for inputs of 256 rows"),
        ({"fn": lambda x: x[:, None]}, ValueError, r"got shape \(9, 1\), expected \(9,\); drop"),
        ({"fn": lambda x: x.astype("int32")}, TypeError, "got dtype int32, expected float32"),
        ({"fn": lambda x: (x, x)}, ValueError, "gave 2 tensors, but the outputs' specs have 1"),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_what_is_refused(change, error, message, verify):
    """Each by name, and nothing has been written."""
    if verify:
        change = {"row_wise": "verify"} | change
    soa = OTHER.allocate(9)
    soa["x"][:] = 1
    options = {"fn": lambda x: x + 1, "inputs": soa, "outputs": Spec(x="x"), "row_wise": True}
    options |= change
    with pytest.raises(error, match=message):
        forward(
            options["fn"],
            (options["inputs"], Spec(x="x")),
            (soa, options["outputs"]),
            row_wise=options["row_wise"],
        )
    assert (soa["x"] == 1).all()


@pytest.mark.parametrize("mode", [True, "verify"])
def test_prepared(mode):
    """An event loop's function is compiled for capacities, too; modes are checked before."""
    fn, out = Traced(), LAYOUT
    run = prepare(fn, (LAYOUT, INPUTS), (out, OUTPUTS), row_wise=mode)
    for rows in (3, 200, 256, 300):
        soa = soa_of(rows)
        run(soa, soa)
        check(soa)
        bare = np.array(soa_of(rows).buffer.root)
        run((bare, rows), (bare, rows))
        check(LAYOUT.wrap(bare, rows))
    assert {shape[0] for shape in fn.shapes} == ({256, 512} if mode is True else {256, 512, 1024})
    with pytest.raises(ValueError, match=r"got shape \(128,\) for inputs of 256 rows"):
        prepare(lambda x: x[::2], (LAYOUT, Spec(x="x")), (LAYOUT, Spec(a="a")), row_wise=mode)(
            soa_of(128), soa_of(128)
        )
    for wrong in (None, 1, "yes"):
        with pytest.raises(TypeError, match="row_wise must be False, True or 'verify'"):
            prepare(fn, (LAYOUT, INPUTS), (LAYOUT, OUTPUTS), row_wise=wrong)


def test_only_on_the_host():
    """Rows are copied there: SoAs on a device are refused, and told so."""
    soa = LAYOUT.from_pointer(1 << 40, 9, device="cuda:0")
    with pytest.raises(ValueError, match="row_wise= copies rows on the host, and .* is on cuda:0"):
        forward(lambda x: x, (soa, Spec(x="x")), (soa, Spec(a="a")), row_wise=True)


def test_no_rows():
    """There is nothing to run."""

    def never(x):
        raise AssertionError("it has been run")

    soa = soa_of(0)
    forward(never, (soa, Spec(x="x")), (soa, Spec(a="a")), row_wise=True)


def test_64_bits_that_are_off():
    """They are refused by name, as ever, where a spec uses them."""
    layout = layout_of("float64", "float32")
    soa = layout.allocate(3)
    with pytest.raises(TypeError, match="tensor 't' is float64, and JAX has 64-bit types switched"):
        forward(lambda t: t, (soa, Spec(t="x")), (soa, Spec(o="y")), row_wise=True)
