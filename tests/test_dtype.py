"""`dtype=` of `tensors` and `arrays`: columns of several dtypes in one tensor."""

from __future__ import annotations

import contextlib
import functools

import jax
import numpy as np
import places
import pytest
import torch
from bound import of_a_device, values_of
from hypothesis import given, settings
from hypothesis import strategies as st
from soas import owned
from torch.utils._python_dispatch import TorchDispatchMode

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value, bind
from soaview.adapter import views_or_gathers

NEEDS = ["torch", "jax"]

MIXED = Layout(
    [
        Column("pt", "float64"),
        Column("charge", "int64"),
        Column("eta", "float32"),
        Column("good", "bool"),
        Column("p", "float32", (3,)),
        Column("q", "int16", (3,)),
        Column("e", "float32", (3,), interleaved=True),
        Column("h", "bfloat16"),
        Column("z", "complex64"),
        Column("u", "uint8"),
        Scalar("n", "int32"),
    ]
)
X, LABEL = ["pt", "charge", "eta"], Spec(label="charge")


def filled(rows=5):
    soa = MIXED.allocate(rows)
    for number, name in enumerate(["pt", "charge", "eta", "good", "p", "q", "e", "h", "u"]):
        soa[name][...] = values_of(soa[name].shape, soa[name].dtype, number)
    soa["pt"][:] += 1 / 3
    soa[Value("n")][...] = 7
    return soa


def by_numpy(soa, entry, dtype):
    """What NumPy makes of the same columns."""
    if isinstance(entry, list):
        return np.stack([soa[name].astype(dtype) for name in entry], axis=1)
    return soa[entry].astype(dtype)


def torchs(soa, spec, **options):
    found = soaview_torch.tensors(soa, spec, **options)
    return [t.view(torch.int16).numpy().view("bfloat16") if t.dtype is torch.bfloat16 else t.numpy()
            for t in found]  # fmt: skip


def jaxs(soa, spec, **options):
    with jax.enable_x64(True):
        return [np.asarray(array) for array in soaview_jax.arrays(soa, spec, **options)]


def jitted(soa, spec, **options):
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(soaview_jax.arrays, spec=spec, **options))
        return [np.asarray(array) for array in run(soa)]


WAYS = {"torch": torchs, "jax": jaxs, "jit": jitted}


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def check(found, wanted):
    for array, expected in zip(found, wanted, strict=True):
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array, expected)


ENTRIES = {
    "several": X,
    "vectors": ["p", "q"],
    "interleaved": ["e", "q"],
    "alone": "charge",
    "of_a_list": ["charge"],
    "broadcast": ["n", "pt", "good", "u"],
    "scalar": Value("n"),
    "each_row": "n",
    "half": ["h", "eta"],
    "vector": "q",
    "as_it_is": ["eta"],
}


@pytest.mark.slow_but_every(6)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", np.float16], ids=str)
@pytest.mark.parametrize("copy", [None, True])
def test_columns_of_several_dtypes(way, copy, dtype):
    """Of every kind of entry: NumPy's values, of the dtype that is named, in rows."""
    soa, name = filled(), Column("x", dtype).dtype
    found = way(soa, Spec(ENTRIES), copy=copy, dtype=dtype)
    check(found, [by_numpy(soa, entry, name) for entry in ENTRIES.values()])
    part = soa[1:4]
    check(way(part, Spec(x=X), copy=copy, dtype=dtype), [by_numpy(part, X, name)])
    check(way(filled(0), Spec(x=X), copy=copy, dtype=dtype), [np.zeros((0, 3), name)])


def test_some_tensors_by_name(way):
    """A mapping names the tensors; the others are what they were, views among them."""
    soa = filled()
    spec = Spec(x=X, label="charge", eta="eta")
    check(
        way(soa, spec, copy=None, dtype={"x": "float32"}),
        [by_numpy(soa, X, "float32"), soa["charge"], soa["eta"]],
    )
    _, label, eta = soaview_torch.tensors(soa, spec, copy=None, dtype={"x": np.float32})
    assert [label.data_ptr(), eta.data_ptr()] == [soa[n].ctypes.data for n in ("charge", "eta")]


def test_a_copy_is_made_or_refused():
    """With `copy=False` columns of the dtype are views; others are refused, with a way out."""
    soa = filled(64)
    for take, at in (
        (soaview_torch.tensors, torch.Tensor.data_ptr),
        (soaview_jax.arrays, lambda x: x.unsafe_buffer_pointer()),
    ):
        with jax.enable_x64(True):
            for copy in (False, None):
                [eta] = take(soa, Spec(eta="eta"), copy=copy, dtype="float32")
                assert at(eta) == soa["eta"].ctypes.data
            [eta] = take(soa, Spec(eta="eta"), copy=True, dtype="float32")
            assert at(eta) != soa["eta"].ctypes.data
            [eta] = take(soa, Spec(x="eta"))  # what was made is not given where another is named
            for entry, kinds in (
                ("eta", "float32"),
                (X, "float64, int64, float32"),
                ("charge", "int64"),
                (["pt"], "float64"),
            ):
                spec, other = Spec(x=entry), "float64" if entry == "eta" else "float32"
                why = f"tensor 'x': it is of {kinds}, and dtype= is {other}.*copy=None converts"
                with pytest.raises(BufferError, match=why):
                    take(soa, spec, dtype=other)
                [x] = take(soa, spec, copy=None, dtype=other)
                assert str(x.dtype).endswith(other)


def test_without_a_dtype_they_are_refused(way):
    """As ever, with every `copy=`; what the message advises works, and an index has no dtype."""
    soa = filled()
    for copy in (False, None, True):
        with pytest.raises(ValueError, match=r"'x': .*let copy=None of an adapter .* dtype='floa"):
            way(soa, Spec(x=X), copy=copy)
    assert len(way(soa, Spec(x=X), copy=None, dtype="float32")) == 1
    for entry in (["z", "eta"], ["pt", "p"]):
        with pytest.raises(ValueError, match="'x': its columns need one") as refused:
            way(soa, Spec(x=entry), copy=None)
        assert "dtype=" not in str(refused.value)
    with pytest.raises(ValueError, match="take them apart") as refused:
        soa[X]
    assert "adapter" not in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "options", "error", "message"),
    [
        (X, {"dtype": "int32"}, ValueError, "must be a floating dtype .*float64.*, got 'int32'"),
        (X, {"dtype": {"x": bool}}, ValueError, "must be a floating dtype"),
        (X, {"dtype": {"y": "float32"}}, KeyError, "dtype=: no tensor 'y'; there are x"),
        (["eta", "z"], {"dtype": "float32"}, ValueError, "'z' is complex64.*imaginary part.*'x'"),
        ("z", {"dtype": "float64"}, ValueError, "tensor 'x': 'z' is complex64, and dtype= is floa"),
        (["pt", "p"], {"dtype": "float32"}, ValueError, r"'x': its columns need one shape.*\(3,\)"),
        (["pt", "no"], {"dtype": "float32"}, KeyError, "tensor 'x': no column 'no'"),
        (X, {"dtype": "float32", "copy": 1}, TypeError, "copy must be False"),
        (X, {"dtype": "float32", "padded": 1}, TypeError, "padded must be True or False"),
        (X, {"dtype": "float32", "padded": True}, ValueError, "other padded rows; take the valid"),
    ],
)
def test_what_a_dtype_does_not_do(way, entry, options, error, message):
    """Each is refused with its reason."""
    with pytest.raises(error, match=message):
        way(filled(), Spec(x=entry), **{"copy": None, **options})


def test_no_spec_and_no_soa():
    """Arguments of another kind are named."""
    for take in (soaview_torch.tensors, soaview_jax.arrays):
        with pytest.raises(TypeError, match="spec must be a Spec, got dict"):
            take(filled(), {"x": X}, dtype="float32")
        with pytest.raises(TypeError, match="soa must be an SoA, got dict"):
            take({}, Spec(x="pt"), dtype="float32")


def test_padded_rows(way):
    """Columns of items of one size have as many padded rows; interleaved ones have none."""
    layout = Layout(
        [
            Column("a", "float32"),
            Column("b", "int32"),
            Column("v", "float32", (2,), interleaved=True),
            Column("w", "int64", (2,)),
        ]
    )
    soa = layout.allocate(33)
    soa["a"][:], soa["b"][:] = 2, 3
    options = {"copy": None, "padded": True, "dtype": "float32"}
    ab, v = way(soa, Spec(ab=["a", "b"], v=["v", "w"]), **options)
    assert (ab.shape, v.shape) == ((64, 2), (33, 2, 2))
    assert (ab[:33] == [2, 3]).all()
    if way is jitted:  # which is given the slice's rows alone
        return
    with pytest.raises(ValueError, match="are a slice of 33"):
        way(soa[:5], Spec(ab=["a", "b"]), **options)


NUMBERS = ["bool", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]


@st.composite
def some_columns(draw):
    """Arrays of one row count, each of a dtype: on their own, in packed records, with steps."""
    rows, shape = draw(st.integers(0, 6)), draw(st.sampled_from([(), (2,)]))
    data = {}
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(NUMBERS))
        kind = draw(st.sampled_from(["own", "records", "steps"]))
        array = values_of((rows, *shape), dtype, number)
        if kind == "records":
            records = np.zeros(rows, [("i", "i1"), ("a", dtype, shape)])
            records["a"] = array
            array = records["a"]
        elif kind == "steps":
            array = np.repeat(array, 2, axis=0)[::2]
        if draw(st.booleans()):
            array.flags.writeable = False
        data[f"c{number}"] = array
    return data


@given(some_columns(), st.sampled_from(["float16", "float32", "float64"]), st.data())
@settings(max_examples=60, deadline=None)
def test_bound_columns(data, dtype, draw):
    """Wherever they lie, aligned or not, read-only or not, in every order."""
    soa = bind(data)
    names = draw.draw(st.lists(st.sampled_from(sorted(data)), min_size=1, max_size=4))
    spec = Spec(one=names[0], x=names)
    wanted = [by_numpy(data, names[0], dtype), by_numpy(data, names, dtype)]
    for way in (torchs, jaxs):
        for copy in (None, True):
            check(way(soa, spec, copy=copy, dtype=dtype), wanted)
    gathered = views_or_gathers(soa, spec, dtypes={"one": dtype, "x": dtype})
    assert [tensor.shape for tensor in gathered] == [array.shape for array in wanted]


@pytest.mark.slow
def test_bound_columns_inside_jit():
    """Each is a leaf, and records are one; the tensor is put together from them."""
    data = {"pt": np.arange(5) / 4, "charge": np.arange(5), "good": np.ones(5, bool)}
    records = np.zeros(5, [("pt", "f8"), ("good", "?"), ("charge", "i8")])
    for name, column in data.items():
        records[name] = column
    wanted = [by_numpy(data, [*data], "float32")]
    for bound in (bind(data), bind(records)):
        check(jitted(bound, Spec(x=list(data)), dtype="f4"), wanted)
        check(jaxs(bound, Spec(x=list(data)), copy=None, dtype="f4"), wanted)


def test_a_device():
    """Columns are converted where they are: torch is given no host's memory, and JAX none."""
    layout = Layout([Column("a", "float64"), Column("b", "int32"), Column("c", "float32")])
    soa, spec = layout.allocate(33), Spec(x=["c", "a", "b"], b="b")
    for number, name in enumerate("abc"):
        soa[name][:] = np.arange(33) + number
    wanted = [by_numpy(soa, ["c", "a", "b"], "float32"), by_numpy(soa, "b", "float32")]
    there = places.PretendedMemory().wrap(layout, places.aligned(soa.buffer.root), 33)
    for way in (torchs, jaxs):
        check(way(there, spec, copy=None, dtype="float32"), wanted)
        check(way(there[3:9], spec, copy=None, dtype="float32"), [array[3:9] for array in wanted])
    with jax.enable_x64(False), pytest.raises(TypeError, match="'x' is float64, and JAX has"):
        soaview_jax.arrays(there, spec, copy=None, dtype="float32")
    bound, one, _ = of_a_device(20)
    for way in (torchs, jaxs):
        [x] = way(bound, Spec(x=["x", "y"]), copy=None, dtype="float64")
        assert x.dtype == "float64"
        assert (x[:, 0] == one["x"]).all()


def test_each_column_is_read_once():
    """In torch there is one new tensor, and one copy for each column, which converts it."""
    calls = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    soa = filled()
    soaview_torch.tensors(soa, Spec(x=X), copy=None, dtype="float32")
    with Seen():
        [x] = soaview_torch.tensors(soa, Spec(x=X), copy=None, dtype="float32")
    made = [call for call in calls if call not in ("as_strided", "unbind", "view", "detach")]
    assert made == ["new_empty", *["copy_"] * 3]
    assert x.is_contiguous()


def test_what_does_not_fit_is_infinite(way):
    """Numbers are rounded to the nearest, and infinite where the dtype ends, as `forward` does."""
    layout = Layout([Column("a", "float64"), Column("b", "int64"), Column("o", "float16")])
    soa = layout.pack({"a": [1e6, 1 / 3, -np.inf], "b": [70000, 2049, -(2**60)], "o": 0.0})
    [x] = way(soa, Spec(x=["a", "b"]), copy=None, dtype="float16")
    assert x.tolist() == [[np.inf, np.inf], [np.float16(1 / 3), 2048], [-np.inf, -np.inf]]
    with jax.enable_x64(True):
        for forward in (soaview_torch.forward, soaview_jax.forward):
            forward(lambda a: a, (soa, Spec(a="a")), (soa, Spec(o="o")), dtype="float16")
            assert soa["o"].tolist() == x[:, 0].tolist()


def test_jax_narrows_nothing():
    """With 64-bit types switched off NumPy converts; what JAX would have to read is refused."""
    for rows in (5, 0):
        soa, spec = filled(rows), Spec(x=X)
        with jax.enable_x64(False):
            [x] = soaview_jax.arrays(soa, spec, copy=None, dtype="float32")
            check([np.asarray(x)], [by_numpy(soa, X, "float32")])
            with pytest.raises(TypeError, match="tensor 'x' is float64, and JAX has 64-bit"):
                soaview_jax.arrays(soa, spec, copy=None, dtype="float64")
            run = jax.jit(functools.partial(soaview_jax.arrays, spec=spec, dtype="float32"))
            with pytest.raises(TypeError, match="tensor 'x' is (float|int)64, and JAX has 64-bit"):
                run(soa)
            narrow = Spec(x=["eta", "good", "n"])
            [x] = jax.jit(functools.partial(soaview_jax.arrays, spec=narrow, dtype="float32"))(soa)
            check([np.asarray(x)], [by_numpy(soa, ["eta", "good", "n"], "float32")])


@pytest.mark.slow
def test_what_jax_has_made(way):
    """An SoA of XLA's arrays is read the same; torch gets a copy."""
    layout = Layout([Column("a", "float32"), Column("b", "int32"), Column("c", "bool")])
    soa = layout.pack({"a": [1.5, 2.5], "b": [3, 4], "c": [True, False]})
    wanted = np.array([[1.5, 3, 1], [2.5, 4, 0]], "float32")
    check(way(owned(soa), Spec(x=["a", "b", "c"]), copy=None, dtype="float32"), [wanted])


@pytest.mark.slow
def test_a_gradient_goes_through():
    """Inside a transformation the floating columns of such a tensor have their gradients."""
    layout = Layout([Column("a", "float32"), Column("h", "float16"), Column("o", "float32")])
    soa = layout.pack({"a": [1.0, 2.0], "h": [3.0, 4.0], "o": 0.0})

    def loss(soa):
        [x] = soaview_jax.arrays(soa, Spec(x=["a", "h"]), dtype="float32")
        return (x * x).sum()

    gradient = jax.grad(loss)(soa)
    assert gradient["a"].tolist() == [2, 4]
    assert gradient["h"].tolist() == [6, 8]


def test_sessions_of_torch_do_not_matter():
    """In inference mode, and with another default device, the copy is where the columns are."""
    for session in (torch.inference_mode(), torch.device("meta"), contextlib.nullcontext()):
        with session:
            [x] = soaview_torch.tensors(filled(), Spec(x=X), copy=None, dtype="float32")
        assert x.device.type == "cpu"
        assert not x.is_inference()
