"""`Layout.arrange`: an order of fields in which tensors are views, or which of them cannot be."""

from __future__ import annotations

import itertools
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, Spec, Value, _arrange, views

ROWS = (0, 1, 33, 1000)


def fits(layout, specs):
    """Whether all tensors are views, at every row count."""
    try:
        for spec in specs:
            for rows in ROWS:
                views(layout.allocate(rows), spec)
    except BufferError:
        return False
    return True


def plain(names, dtype="float32"):
    return [Column(name, dtype) for name in names]


def test_the_declared_order_stays_where_it_will_do():
    """Nothing is moved without need, whatever stands between."""
    fields = [*plain("ab"), Column("n", "int8"), *plain("c"), Column("m", "int8"), *plain("d")]
    spec = Spec(pair=["a", "d"], one="c", apart=["b", "c", "d"])
    assert list(Layout.arrange(fields, spec)) == ["a", "b", "n", "c", "m", "d"]
    assert Layout.arrange(fields, []) == Layout(fields)
    assert Layout.arrange(fields, Spec({}), alignment=64).alignment == 64


@pytest.mark.parametrize(
    ("names", "spec", "wanted"),
    [
        ("abc", {"t": ["c", "b", "a"]}, "cba"),
        ("abcx", {"t": ["a", "x"]}, "abcx"),
        ("xabc", {"t": ["a", "x"]}, "axbc"),
        # A pair that is reversed does not come to the front.
        ("abcdefgh", {"t": ["h", "g"]}, "abcdefhg"),
        ("abcdef", {"t": ["f", "d"]}, "abcefd"),
        ("abcdef", {"t": ["c", "b", "a"], "s": ["f", "e"]}, "cbadfe"),
        ("abxc", {"t": ["a", "b", "c"]}, "abcx"),
        ("abcd", {"t": ["a", "b", "d"], "s": ["c", "d"]}, None),
        ("abcd", {"t": ["a", "b", "c"], "s": ["a", "c"]}, "abcd"),
        # One step of 1 and one of 2, with something between that neither has.
        ("abcdef", {"t": ["a", "b", "c"], "s": ["b", "d", "e"]}, None),
    ],
)
def test_small_ones(names, spec, wanted):
    """The order is one in which the tensors are views, and the one that is expected."""
    layout = Layout.arrange(plain(names), Spec(spec))
    assert fits(layout, [Spec(spec)])
    assert sorted(layout) == sorted(names)
    if wanted is not None:
        assert "".join(layout) == wanted


def test_several_specs_and_kinds():
    """Columns, vectors, matrices and scalars of several dtypes, wanted by several models."""
    fields = [
        Scalar("s", "float32"), *plain("abc"), Column("u", "float64", (3,)), Column("k", "int8"),
        Column("v", "float64", (3,)), *plain("d"), Scalar("t", "float32"),
        Column("w", "float64", (3,)), Column("m", "float32", (2, 2)),
        Column("n", "float32", (2, 2)), Scalar("r", "float32"),
    ]  # fmt: skip
    specs = [
        Spec(x=["d", "a", "c"], vectors=["w", "u", "v"], k="k"),
        Spec(y=["d", "c"], scalars=["t", "r", "s"], matrices=["n", "m"], one=Value("s")),
    ]
    layout = Layout.arrange(fields, specs)
    assert fits(layout, specs)
    assert sorted(layout) == sorted(field.name for field in fields)
    assert {f.name: f for f in layout.fields} == {f.name: f for f in fields}


def test_tensors_that_cannot_be_had_together():
    """The error names a few of them, and those alone are too many."""
    fields = plain("abcdefgh")
    spec = {"fine": ["a", "b", "c"], "up": ["d", "e"], "down": ["e", "d"], "more": ["f", "g", "h"]}
    with pytest.raises(ValueError, match="'up', 'down'; leave one of them to copy=None") as error:
        Layout.arrange(fields, Spec(spec))
    assert "'fine'" not in str(error.value)
    named = re.findall(r"'(\w+)'", str(error.value))
    assert fits(Layout.arrange(fields, Spec({n: spec[n] for n in spec if n != named[0]})), [])
    with pytest.raises(ValueError, match="'t', 't, a, c, b'"):
        Layout.arrange(fields, [Spec(t=["a", "b", "c"]), Spec(t=["a", "c", "b"])])


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Spec(t="z"), KeyError, "tensor 't': no column 'z'"),
        (Spec(t=["a", "k"]), ValueError, "need one dtype"),
        (Spec(t=["a", "a"]), ValueError, "tensor 't': no order helps: column 'a' is repeated"),
        (Spec(t=["a", "s"]), ValueError, "no order helps: columns and scalars are mixed"),
        (Spec(t=["m", "n"]), ValueError, "no order helps: matrices of order"),
        (["a"], TypeError, "spec must be a Spec"),
        ({"t": "a"}, TypeError, "specs must be a Spec or a list of them, got dict"),
        (None, TypeError, "specs must be a Spec or a list of them, got NoneType"),
    ],
)
def test_what_no_order_helps(spec, error, message):
    """It is refused before any search."""
    fields = [
        *plain("ab"), Column("k", "int8"), Scalar("s", "float32"), Column("m", "float32", (2, 2)),
        Column("n", "float32", (2, 2), order="C"),
    ]  # fmt: skip
    with pytest.raises(error, match=message):
        Layout.arrange(fields, spec)


KINDS = [("float32", ()), ("float32", (2,)), ("int8", ()), ("float32", (3,))]


@st.composite
def problems(draw):
    count = draw(st.integers(1, 6))
    some = st.sampled_from(KINDS[: draw(st.integers(1, 4))])
    kinds = draw(st.lists(some, min_size=count, max_size=count))
    fields = [Column(f"f{n}", *kind) for n, kind in enumerate(kinds)]
    tensors = {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        same = [f.name for f in fields if (f.dtype, f.shape) == kind]
        tensors[f"t{number}"] = draw(st.permutations(same))[: draw(st.integers(1, len(same)))]
    return fields, Spec(tensors)


@pytest.mark.slow
@settings(max_examples=3 * settings.default.max_examples, deadline=None)
@given(problems())
def test_against_every_order(problem):
    """An order is found if there is any, and is one: of pairs, the earliest declared first."""
    fields, spec = problem
    try:
        found = Layout.arrange(fields, spec)
    except ValueError:
        found = None
    orders = (Layout(order) for order in itertools.permutations(fields))
    first = next((layout for layout in orders if _fits_once(layout, spec)), None)
    assert (found is not None) == (first is not None)
    if all(len(columns) < 3 for columns in spec.values()):
        assert found == first
    if found is not None:
        assert fits(found, [spec])
        assert sorted(found) == sorted(f.name for f in fields)


def _fits_once(layout, spec):
    try:
        views(layout.allocate(33), spec)
    except BufferError:
        return False
    return True


def planted(seed):
    """64 fields and 16 tensors that have an order, which is lost."""
    chance = random.Random(seed)
    order = [f"f{n}" for n in range(64)]
    chance.shuffle(order)
    tensors = {}
    for number in range(16):
        length = chance.choice([2, 3, 3, 4, 6])
        step = chance.choice([1, 1, 1, 2])
        first = chance.randrange(64 - (length - 1) * step)
        tensors[f"t{number}"] = [order[first + n * step] for n in range(length)]
    return plain(f"f{n}" for n in range(64)), Spec(tensors)


@pytest.mark.parametrize("seed", range(20))
def test_large_ones_take_few_steps(seed, monkeypatch):
    """64 fields and 16 tensors that share columns: counted in what the search puts somewhere."""
    monkeypatch.setattr(_arrange, "LIMIT", 150_000)
    fields, spec = planted(seed)
    assert fits(Layout.arrange(fields, spec), [spec])


def test_it_gives_up_in_words(monkeypatch):
    """A search that is too long ends, and says that nothing was found out."""
    monkeypatch.setattr(_arrange, "LIMIT", 1)
    with pytest.raises(ValueError, match="these 2 tensors .* not found out in 1 steps; ask"):
        Layout.arrange(plain("abcdef"), Spec(t=["a", "b", "c"], s=["a", "c", "d"]))


def timed(count, tensors):
    """The order, or the error's text; and the CPU time, in seconds."""
    fields = plain(f"f{n}" for n in range(count))
    spec = Spec({name: [f"f{n}" for n in numbers] for name, numbers in tensors.items()})
    start = time.process_time()
    try:
        found = list(Layout.arrange(fields, spec))
    except ValueError as error:
        found = str(error)
    return found, time.process_time() - start


@pytest.mark.parametrize("count", [40, 80, 1000])
def test_what_cannot_be_is_quickly_found_out(count):
    """Pairs that want each other first are named without any search."""
    pairs = {"b": [count - 1, count - 2], "c": [count - 2, count - 1]}
    found, seconds = timed(count, {"a": [2, 1, 0], **pairs})
    assert "one view each: 'b', 'c'; leave" in found
    assert seconds < 2


@pytest.mark.parametrize("seed", range(6))
def test_every_search_ends_soon(seed):
    """Random tensors over many fields end in an order or in words, in about a second."""
    chance = random.Random(seed)
    count, tensors, lengths = [(60, 20, [3]), (300, 200, [2, 2, 2, 3]), (2000, 60, [3, 4])][
        seed % 3
    ]
    wanted = {f"t{n}": chance.sample(range(count), chance.choice(lengths)) for n in range(tensors)}
    _, seconds = timed(count, wanted)
    assert seconds < 6  # several times what it takes, for slow machines


@pytest.mark.parametrize("count", [560, 1000, pytest.param(65_536, marks=pytest.mark.slow)])
def test_one_long_tensor(count):
    """All columns reversed, and two of them swapped, are an order of their own at any length."""
    reverse = list(range(count))[::-1]
    swapped = [0, count - 2, *range(2, count - 2), 1, count - 1]
    for order in (reverse, swapped):
        assert timed(count, {"t": order})[0] == [f"f{n}" for n in order]
    # Every second one, so that what stands side by side will not do.
    found, _ = timed(count, {"t": reverse[::2], "s": [count - 1, count - 5, count - 9]})
    assert [name for name in found if int(name[1:]) % 2 == (count - 1) % 2] == [
        f"f{n}" for n in reverse[::2]
    ]


def test_vectors_fill_the_gaps_of_columns():
    """An order in which fields of several sizes stand between a tensor's columns is found."""
    fields = [*plain("abc"), Column("v", "float32", (2,)), *plain("de")]
    spec = Spec(p=["c", "b", "d"], q=["e", "a", "b"])
    assert fits(Layout.arrange(fields, spec), [spec])
    fields = [Scalar(n, "float32", (40,) if n == "v" else ()) for n in "abcvde"]
    assert fits(Layout.arrange(fields, spec), [spec])
    with pytest.raises(ValueError, match="no order of the fields makes .*: 'p', 'q'; leave"):
        Layout.arrange([f for f in fields if f.name != "v"], spec)


def test_names_in_errors_are_short_and_in_one_line():
    """A long or hostile name of a tensor does not fill the screen, or forge a line."""
    long, evil = "t" * 100_000, "x\n\x1b[2J"
    wrong = [Spec({long: ["a", "b"], evil: ["b", "a"]}), Spec({long: ["a", "a"]})]
    for spec in (wrong[0], wrong[1], [Spec({long: ["b", "a"]}), Spec({long: ["a", "b"]})]):
        with pytest.raises(ValueError, match="no order") as error:
            Layout.arrange(plain("ab"), spec)
        assert len(str(error.value)) < 400
        assert str(error.value).isprintable()


@pytest.mark.slow
def test_many_fields_and_tensors():
    """Thousands of either are put in an order."""
    fields = plain(f"f{n}" for n in range(20_000))
    order = list(Layout.arrange(fields, Spec(t=["f9", "f3"], s=["f20", "f10", "f0"])))
    assert order.index("f9") < order.index("f3")
    assert order.index("f10") - order.index("f20") == order.index("f0") - order.index("f10") > 0
    spec = Spec({f"t{n}": [f"f{3 * n + 2}", f"f{3 * n}", f"f{3 * n + 1}"] for n in range(2000)})
    order = list(Layout.arrange(fields[:6000], spec))
    assert order == [name for columns in spec.values() for name in columns]
