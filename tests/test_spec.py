"""Specs, and the refusals of the stride engine."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Mapping
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaview import Column, Layout, Scalar, Spec, Value, views

LAYOUT = Layout(
    [
        Column("x", "float64"),
        Column("c", "float32", (2, 2)),
        Column("y", "float64"),
        Column("z", "float64"),
        Scalar("s", "float32"),
    ]
)


class Own(str):
    """A string that says that it is like no other."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


class Full(list):
    """An empty list that says that it is not empty."""

    def __bool__(self):
        return True


def test_what_a_spec_holds_cannot_be_set():
    """Caches know a spec by its key, and by the plain strings that it names."""
    spec = Spec({Own("a"): Own("x"), "b": [Own("y")], "c": Value(Own("s"))})
    for change in (lambda: setattr(spec, "key", "other"), lambda: delattr(spec, "key")):
        with pytest.raises(AttributeError, match="a spec is immutable, and 'key' cannot be"):
            change()
    assert spec == Spec(a="x", b=["y"], c=Value("s"))
    assert spec.key == Spec(a="x", b=["y"], c=Value("s")).key


def test_mapping_protocol():
    """A spec is a mapping from tensor name to entry, in order, and a value."""
    spec = Spec(features=["x", "y"], cov="c", s=Value("s"))
    assert isinstance(spec, Mapping)
    assert list(spec) == ["features", "cov", "s"]
    assert dict(spec) == {"features": ("x", "y"), "cov": "c", "s": Value("s")}
    assert len(spec) == 3
    assert "cov" in spec
    assert 3 not in spec
    assert ["cov"] not in spec
    for key in (3, ["cov"], {}):
        with pytest.raises(KeyError, match="no tensor .*there are "):
            spec[key]
    assert spec["features"] == ("x", "y")
    assert spec.get("nothing") is None
    with pytest.raises(KeyError, match="no tensor 'feature'; did you mean 'features'"):
        spec["feature"]
    assert spec == Spec({"features": ("x", "y")}, cov="c", s=Value("s"))
    assert spec != spec.reorder("cov", "features", "s")
    assert spec != dict(spec)
    assert Spec(a=["x"]) != Spec(a="x")
    assert hash(spec) == hash(Spec(dict(spec)))
    for twin in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert twin == spec
        assert hash(twin) == hash(spec)
    with pytest.raises(AttributeError):
        spec.new = 1


@pytest.mark.parametrize(
    "spec",
    [
        Spec(),
        Spec(a=["x", "y"], b="c", v=Value("s")),
        Spec({"not a name": "x"}),
        Spec({"class": "x"}),
    ],
)
def test_repr_is_the_code_that_makes_it(spec):
    """`repr` can be evaluated."""
    assert eval(repr(spec)) == spec


def test_reorder_and_subset():
    """`reorder` takes every name once; `subset` takes some."""
    spec = Spec(a="x", b="y", c="z")
    for names in permutations("abc"):
        assert tuple(spec.reorder(*names)) == names
    assert spec.subset("c", "a") == Spec(c="z", a="x")
    assert spec.subset() == Spec()
    with pytest.raises(ValueError, match="reorder lacks 'b'; to leave tensors out, use subset"):
        spec.reorder("a", "c")
    with pytest.raises(ValueError, match="'a' stands twice"):
        spec.reorder("a", "a", "b", "c")
    with pytest.raises(KeyError, match="no tensor 'd'"):
        spec.subset("d")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Spec(["x"]), TypeError, "made from a mapping or keywords, got"),
        (lambda: Spec({1: "x"}), TypeError, "tensor's name must be a string, got 1"),
        (lambda: Spec({"": "x"}), ValueError, "name must not be empty"),
        (lambda: Spec(a=[]), ValueError, "tensor 'a': the list of columns is empty"),
        (lambda: Spec(a=3), TypeError, "tensor 'a': expected a column's name, a list"),
        (lambda: Spec(a=None), TypeError, "tensor 'a'"),
        (lambda: Spec(a=["x", 3]), TypeError, "tensor 'a'"),
        (lambda: Spec(a=[["x"]]), TypeError, "tensor 'a'"),
        (lambda: Spec(a=[Value("s")]), TypeError, "tensor 'a'"),
        (lambda: Spec(a={"x"}), TypeError, "tensor 'a'"),
        (lambda: Spec({"a": "x"}, a="y"), ValueError, "tensors given twice: 'a'"),
        (lambda: Value(3), TypeError, "Value takes a scalar's name, got 3"),
        (lambda: Spec({Own("a"): "x", Own("a"): "y"}), ValueError, "tensors given twice: 'a'"),
        (lambda: Spec({Own("a"): "x"}, a="y"), ValueError, "tensors given twice: 'a'"),
        (lambda: Spec(a=Full()), ValueError, "tensor 'a': the list of columns is empty"),
        (lambda: type("V", (Value,), {}), TypeError, "Value is final"),
        (lambda: type("S", (Spec,), {}), TypeError, "a spec's class is final"),
    ],
)
def test_bad_specs(make, error, message):
    """An invalid spec cannot exist."""
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            ["x", "y", "z"],
            "tensor 't': its columns are at an uneven distance ('x' to 'y' 2304, 'y' to 'z' 768 "
            "bytes at 90 rows); let copy=None of an adapter gather them, or have the fields "
            "declared, and the memory written, in the order ['x', 'y', 'z', 'c', 's']",
        ),
        (
            ["z", "y"],
            "tensor 't': its columns are in reversed order, and strides must be positive ('z' to "
            "'y' -768 bytes at 90 rows); let copy=None of an adapter gather them; or, if it does "
            "not matter which comes first, list them in memory order, ['y', 'z']",
        ),
        (
            ["y", "z", "y"],
            "tensor 't': column 'y' is repeated, so that its columns have no common distance; make "
            "them tensors of their own, or let copy=None of an adapter gather them",
        ),
    ],
)
def test_refusals_word_by_word(entry, message):
    """A refusal names the columns, their distances, and what would make them even."""
    with pytest.raises(BufferError, match=f"^{re.escape(message)}$"):
        views(LAYOUT.allocate(90), Spec(t=entry))


def test_the_order_that_a_refusal_gives_is_right():
    """With the fields declared in the order that the message gives, the view exists."""
    layout = Layout(
        [
            Column(n, d)
            for n, d in {"a": "f8", "b": "f4", "c": "f8", "d": "i1", "e": "f8", "f": "f8"}.items()
        ]
    )
    for names in (["a", "c", "f"], ["f", "a", "e"], ["e", "c", "a", "f"]):
        with pytest.raises(BufferError, match="have the fields declared") as raised:
            views(layout.allocate(50), Spec(t=names))
        order = eval(re.search(r"order (\[.*?\])", str(raised.value))[1])
        better = Layout([layout[name] for name in order])
        assert sorted(order) == list("abcdef")
        [view] = views(better.allocate(50), Spec(t=names))
        assert view.shape == (50, 3 if len(names) == 3 else 4)


def test_reversed_across_a_scalar():
    """Reversed columns with scalars between them are refused at every row count."""
    layout = Layout([Column("a", "f4"), Scalar("s", "f4"), Column("b", "f4"), Scalar("t", "f4")])
    for rows in (0, 1, 100):
        for entry in (["b", "a"], ["t", "s"]):
            with pytest.raises(BufferError, match="reversed order"):
                views(layout.allocate(rows), Spec(t=entry))


def test_evenness_does_not_depend_on_rows():
    """Columns even at one row count by accident are refused at that one too."""
    layout = Layout([Column("a", "f8"), Column("i", "f4"), Column("b", "f8"), Column("c", "f8")])
    for rows in (0, 1, 16, 100):
        with pytest.raises(BufferError, match="uneven"):
            views(layout.allocate(rows), Spec(t=["a", "b", "c"]))


def test_long_messages_are_cut():
    """Neither a thousand columns nor a very long name makes a message that nobody can read."""
    layout = Layout([Column(f"c{i}", "f4" if i % 3 else "f8") for i in range(3000)])
    names = [f"c{i}" for i in range(3000) if i % 3]
    for wrong in (names, names[::-1]):
        with pytest.raises(BufferError) as raised:
            views(layout.allocate(1), Spec(t=wrong))
        assert len(str(raised.value)) < 3000
    with pytest.raises(KeyError) as raised:
        layout["a" * 10**6]
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("padded", [1, 0, "False", None, np.True_])
def test_padded_is_true_or_false(padded):
    """`padded` is True or False, and nothing that counts as such."""
    with pytest.raises(TypeError, match="padded must be True or False"):
        views(LAYOUT.allocate(3), Spec(x="x"), padded=padded)


def test_views_of_something_else():
    """What is no SoA or no Spec is named, with the way out."""
    with pytest.raises(TypeError, match="soa must be an SoA, got ndarray; .*layout.wrap"):
        views(np.zeros(3), Spec())
    soa = LAYOUT.allocate(3)
    for wrong, message in (
        (["x", "y"], r"got list; write Spec\(x=\['x', 'y'\]\)$"),
        ([], r"got list; write Spec\(\) where no tensor is wanted$"),
        ("x", r"got str; write Spec\(x='x'\)$"),
        ({"a": "x"}, r"got dict; write Spec\({'a': 'x'}\)$"),
        (soa, "got SoA; the arguments are soa, then spec$"),
        (3, "got int$"),
    ):
        with pytest.raises(TypeError, match=message):
            views(soa, wrong)


DTYPES = ["bool", "int16", "float32", "float64", "complex128"]


@st.composite
def layouts_and_entries(draw):
    """A layout, and a list of columns of one kind from it."""
    count = draw(st.integers(1, 6))
    fields = []
    for i in range(count):
        dtype = draw(st.sampled_from(DTYPES))
        shape = draw(st.sampled_from([(), (), (1,), (3,), (2, 2), (1, 3)]))
        order = draw(st.sampled_from("FC"))
        adjacent = shape != () and draw(st.booleans())
        if draw(st.booleans()):
            fields.append(Column(f"f{i}", dtype, shape, order=order, interleaved=adjacent))
        else:
            fields.append(Scalar(f"f{i}", dtype, shape))
    layout = Layout(fields, alignment=draw(st.sampled_from([16, 64, 128])))
    first = draw(st.sampled_from(fields))
    alike = [f.name for f in fields if (f.dtype, f.shape) == (first.dtype, first.shape)]
    return layout, draw(st.lists(st.sampled_from(alike), min_size=1, max_size=4))


@pytest.mark.slow
@settings(max_examples=5 * settings.default.max_examples, deadline=None)
@given(layouts_and_entries(), st.integers(0, 70), st.data())
def test_views_touch_exactly_their_columns(layout_and_entry, rows, data):
    """A view's elements are, one by one, those of its columns, in the columns' order."""
    layout, names = layout_and_entry
    whole = layout.wrap(np.zeros(layout.nbytes(rows) + 64, np.uint8), rows)
    first = data.draw(st.integers(0, rows))
    soa = whole[first : data.draw(st.integers(first, rows))]

    def elements(name):
        """Byte offsets of a field's elements, per row, counted by hand."""
        f = layout[name]
        start, pitch = layout.offset(name, rows), layout.pitch(name, rows)
        adjacent = not f.per_row or f.interleaved
        step, width = (f.itemsize, f.itemsize * f.components) if adjacent else (pitch, f.itemsize)
        places = np.arange(f.components).reshape(f.shape, order=f.order) * step
        lines = [
            start + places + row * width * f.per_row
            for row in range(soa.start, soa.start + soa.rows)
        ]
        return np.array(lines, np.int64).reshape(soa.rows, *f.shape)

    wanted = np.stack([elements(name) for name in names], axis=1)
    try:
        [view] = views(soa, Spec(t=names))
    except BufferError:
        # Then no strides give these elements, or only by accident of this row count.
        fields = [layout[name] for name in names]
        starts = [layout.offset(name, 10_007) for name in names]
        steps = set(np.diff(starts).tolist())
        orders = (f.order if len(f.shape) == 2 else "F" for f in fields)
        kinds = ((f.per_row, f.interleaved) for f in fields)
        mixed = len(set(zip(kinds, orders, strict=True))) > 1
        assert mixed or len(steps) > 1 or min(steps) <= 0
        return
    index = np.indices(view.shape).reshape(len(view.shape), wanted.size)
    strides = np.array(view.strides, np.int64)
    got = (view.offset + strides @ index) * view.itemsize
    np.testing.assert_array_equal(got.reshape(view.shape), wanted)
