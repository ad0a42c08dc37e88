"""Bound columns of an event loop: new arrays in every call, taken by their flags alone."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from soaview import SoA, Spec, Value, _bound, bind
from soaview.adapter import Allocations, HostBuffer
from soaview_torch import _memory, tensors, write

NEEDS = ["torch"]
NAMES = ["a", "b", "v", "m"]
SPEC = Spec(a="a", list=["b"], v="v", again="a", m="m")
ALONE = Spec(b="b", v="v", m="m")


def event(rows):
    """Arrays that are allocations, of four dtypes and shapes."""
    count = np.arange(rows)
    return {
        "a": count.astype("f4"),
        "b": (count + 10).astype("i4"),
        "v": np.arange(3.0 * rows).reshape(rows, 3).copy(),
        "m": np.arange(4 * rows).reshape(rows, 2, 2).astype("u1"),
    }


def learned():
    """What the first event has told is known from now on."""
    tensors(bind(event(3)), SPEC)
    tensors(bind(event(3)), ALONE)
    assert bind(event(3)).buffer.arrays is not None


def wanted(data):
    return [data["a"], data["b"][:, None], data["v"], data["a"], data["m"]]


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_each_event_has_its_own_memory(rows):
    """Tensors lie where the arrays do, and what is written there is seen by both."""
    learned()
    data = event(rows)
    soa = bind(data)
    found = tensors(soa, SPEC)
    for tensor, array in zip(found, wanted(data), strict=True):
        assert tensor.data_ptr() == array.__array_interface__["data"][0]
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert (tensor.shape, tensor.numpy().dtype) == (array.shape, array.dtype)
    found[2].mul_(2)
    found[3][-1] = 5
    found[0].resize_(0)  # of a tensor that stands for itself, whatever else there is of its column
    assert len(found[3]) == rows
    assert data["a"][-1] == 5
    assert data["v"][-1, -1] == 2 * (3 * rows - 1)
    assert tensors(soa, Spec(a="a"))[0][-1] == 5


def test_one_import_of_each():
    """Whoever asks later, in another way, shares storage, count of writes and graph."""
    learned()
    for later in (ALONE, SPEC, Spec(v="v")):
        soa = bind(event(4))
        _, v, _ = tensors(soa, ALONE)
        other = tensors(soa, later)[list(later).index("v")]
        assert other.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
        version = v._version
        other.add_(1)
        assert v._version == version + 1
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        other.mul_(weight)
        v.sum().backward()
        np.testing.assert_array_equal(weight.grad, np.arange(12.0).reshape(4, 3).sum(0) + 4)


def test_without_a_gradient_first():
    """Memory that is met where none are recorded can be written with one later."""
    learned()
    soa = bind(event(4))
    with torch.no_grad():
        tensors(soa, ALONE)
        tensors(soa, ALONE)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    tensors(soa, ALONE)[1].mul_(weight).sum().backward()
    assert weight.grad is not None


def turned(tensor):
    tensor.t_()


def asked(tensor):
    tensor.requires_grad_()


def moved(tensor):
    tensor.set_(torch.zeros(2, dtype=tensor.dtype))


def cut(tensor):
    tensor.set_(torch.from_numpy(tensor.numpy()[:1]))


def shared(tensor):
    tensor.share_memory_()


def written_with_a_gradient(tensor):
    tensor.mul_(torch.ones(3, dtype=tensor.dtype, requires_grad=True))


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("change", [turned, asked, moved, cut, shared, written_with_a_gradient])
def test_what_was_given_is_changed_in_place(change, times):
    """Another shape or memory of a tensor is its own: the next ones are as they were."""
    learned()
    data = event(4)
    soa = bind(data)
    for _ in range(times):
        found = tensors(soa, ALONE)
    change(found[1])
    for _ in range(2):
        _, v, _ = tensors(soa, ALONE)
        assert v.data_ptr() == data["v"].__array_interface__["data"][0]
        np.testing.assert_array_equal(v.numpy(), np.arange(12.0).reshape(4, 3))
        assert not v.requires_grad


def test_an_array_is_changed_in_place_after_bind():
    """Its shape and dtype do not matter any more; what is read-only by now is refused."""
    learned()
    for name, change in {"v": ("shape", (12,)), "b": ("dtype", "f4")}.items():
        data = event(4)
        soa = bind(data)
        with warnings.catch_warnings(action="ignore"):  # newer versions of NumPy's
            setattr(data[name], *change)
        [tensor] = tensors(soa, Spec({name: name}))
        np.testing.assert_array_equal(tensor.numpy(), event(4)[name])
    data = event(4)
    soa = bind(data)
    data["v"].flags.writeable = False
    for spec in (ALONE, Spec(v="v")):
        with pytest.raises(BufferError, match="tensor 'v': its memory is read-only"):
            tensors(soa, spec)
    assert tensors(soa, Spec(b="b"))[0].tolist() == [10, 11, 12, 13]
    soa = bind(event(4))
    for _ in range(2):
        tensors(soa, ALONE)
    soa.buffer.pieces[2].root.flags.writeable = False
    with pytest.raises(BufferError, match="tensor 'v': its memory is read-only"):
        tensors(soa, ALONE)


def test_rows_that_no_array_has():
    """The gate is passed by every way: an SoA that says more rows than there are gets nothing."""
    learned()
    for data in (event(4), np.zeros(4, [("b", "f4"), ("v", "f4"), ("m", "f4")])):
        soa = bind(data)
        with pytest.raises(ValueError, match="reaches|bytes"):
            tensors(SoA(soa.layout, soa.buffer, 40, 0, 40), ALONE)


def other_dtype(data):
    data["b"] = data["b"].astype("i8")


def other_shape(data):
    data["v"] = np.arange(4.0 * len(data["a"])).reshape(-1, 4)


def strided(data):
    data["a"] = np.arange(2.0 * len(data["a"]), dtype="f4")[::2]


def part(data):
    data["m"] = np.ones((3 * len(data["a"]), 2, 2), "u1")[1:][: len(data["a"])]


def twice(data):
    data["b"] = data["a"].view("i4")


def vectors(data):
    data["a"] = np.ones((len(data["a"]), 1), "f4")


def single(data):
    data["a"] = np.array(2, "f4")


def fortran(data):
    data["m"] = np.asfortranarray(np.arange(4 * len(data["a"])).reshape(-1, 2, 2).astype("u1"))


@pytest.mark.parametrize(
    "change", [other_dtype, other_shape, strided, part, twice, vectors, single, fortran]
)
def test_an_event_that_is_unlike_the_others(change):
    """The same names with arrays of another kind are bound as they are, and the next ones again."""
    learned()
    data = event(6)
    change(data)
    soa = bind(data)
    for name, array in data.items():
        [tensor] = tensors(soa, Spec({name: name if array.ndim else Value(name)}))
        assert tensor.data_ptr() == array.__array_interface__["data"][0]
        assert tensor.numpy().strides == array.strides
        np.testing.assert_array_equal(tensor.numpy(), array)
    data = event(5)
    for tensor, array in zip(tensors(bind(data), SPEC), wanted(data), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_one_array_under_two_names():
    """It is one allocation, as before there were two."""
    x, y = np.zeros(3, "f4"), np.zeros(3, "f4")
    for data in ({"p": x, "q": x}, {"p": x, "q": y}, {"p": x, "q": x}):
        soa = bind(data)
        assert len(soa.buffer.pieces) == len({*map(id, data.values())})
        assert np.shares_memory(soa["q"], data["q"])
    for _ in range(2):
        assert len(bind({"x": x, "y": y}).buffer.pieces) == 2
    soa = bind({"x": x, "y": x})
    assert len(soa.buffer.pieces) == 1
    one, other = tensors(soa, Spec(x="x", y="y"))
    one.add_(1)
    assert other._version == one._version


def test_items_that_flags_do_not_tell():
    """Of 16 bytes NumPy calls aligned what is on 8: these are looked at each time."""
    for _ in range(2):
        assert bind({"z": np.zeros(3, "c16")}).buffer.arrays is None


def test_events_that_are_refused():
    """What is no column, or has other rows, is refused by name, whatever came before."""
    learned()
    for name, value, message in [
        ("b", [1, 2], "column 'b': got list"),
        ("v", np.ones((5, 3)), "column 'v' has 5 rows, and 'a' has 4"),
        ("m", np.ones(4, "O"), "column 'm': it holds Python objects"),
        ("a", np.ones(4, ">f4"), "column 'a': its byte order"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            bind(event(4) | {name: value})
    assert bind(event(4) | {"a": np.float32(2)})[Value("a")] == 2


@pytest.mark.parametrize("mixed", [False, True])
def test_records(mixed):
    """They are one allocation, of whatever words."""
    dtype = np.dtype([("x", "f4"), ("y", "f4"), ("n", "i8" if mixed else "i4")], align=True)
    spec = Spec(xy=["x", "y"], n="n", x="x")
    for rows in (3, 1, 8):
        records = np.zeros(rows, dtype)
        records["x"], records["y"], records["n"] = np.arange(rows), 2, np.arange(rows) + 7
        soa = bind(records)
        xy, n, x = tensors(soa, spec)
        assert xy.data_ptr() == x.data_ptr() == records.__array_interface__["data"][0]
        assert xy.untyped_storage().data_ptr() == n.untyped_storage().data_ptr()
        assert xy.tolist() == [[i, 2] for i in range(rows)]
        assert n.tolist() == [i + 7 for i in range(rows)]
        assert x._version == n._version
        write(soa, Spec(n="n"), [torch.zeros_like(n)])
        assert not records["n"].any()
        whole = bind(records)["x"].tolist()
        for some in (records[::2], records[rows // 2 :], records[:1]):  # parts of an allocation
            soa = bind(some)
            assert soa["x"].tolist() == some["x"].tolist()
            assert soa.buffer.pieces[0].nbytes == records.nbytes
        assert whole == list(range(rows))
    assert bind(np.zeros((3, 2), dtype))["x"].shape == (3, 2)
    records.flags.writeable = False
    with pytest.raises(BufferError, match="read-only"):
        tensors(bind(records), spec)


def test_where_torch_has_no_real_memory():
    """In inference mode tensors are as they are elsewhere; among fake ones there are none."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    learned()
    soa = bind(event(4))
    with torch.inference_mode():
        tensors(soa, ALONE)
    assert not tensors(soa, ALONE)[1].is_inference()
    with FakeTensorMode(), pytest.raises(TypeError, match="inside fake tensors"):
        tensors(bind(event(4)), ALONE)

    def asks(x):
        tensors(bind(event(4)), ALONE)
        return x.sum()

    for transform in (torch.func.functionalize, torch.func.grad):
        with pytest.raises(TypeError, match="functionalize, torch.func.grad or export"):
            transform(asks)(torch.ones(1))


def both(*calls):
    """What they give, called in threads of their own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def held(function):
    """The same, but two calls wait for each other in it."""
    barrier = threading.Barrier(2)

    def waiting(*args):
        found = function(*args)
        barrier.wait(60)
        return found

    return waiting


def test_what_is_asked_again_is_kept():
    """The second call keeps what makes the tensors, as of memory that a rule has laid out."""
    learned()
    for data in (event(4), np.zeros(4, [("b", "f4"), ("v", "f4"), ("m", "f4")])):
        soa = bind(data)
        for kept in (False, True):
            tensors(soa, ALONE)
            assert (("torch", ALONE.key, False) in soa.adapter_cache) == kept


def test_a_dtype_that_numpy_lends():
    """bfloat16 is no dtype of NumPy's own, which torch would take."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for rows in (3, 4):
        data = {"x": np.arange(rows).astype(ml_dtypes.bfloat16), "y": np.arange(rows)}
        x, y = tensors(bind(data), Spec(x="x", y="y"))
        assert x.data_ptr() == data["x"].__array_interface__["data"][0]
        assert x.tolist() == y.tolist() == [*range(rows)]


def test_threads_that_come_first(monkeypatch):
    """Of two events' imports of one memory all tensors are views of one."""
    learned()
    soa = bind(event(4))
    keep, barrier = Allocations.keep, threading.Barrier(2)

    def waits(self, *args):
        barrier.wait(60)
        return keep(self, *args)

    monkeypatch.setattr(Allocations, "keep", waits)
    (_, one, _), (_, other, _) = both(*[lambda: tensors(soa, ALONE)] * 2)
    one.add_(1)
    assert one._version == other._version == 1


def test_threads_that_take_an_import_over(monkeypatch):
    """Two at once have one import, and one count of writes."""
    learned()
    soa = bind(event(4))
    tensors(soa, ALONE)
    monkeypatch.setattr(_memory, "_adopted", held(_memory._adopted))
    one, other = both(*[lambda: _memory.import_of(soa.buffer.pieces[2])] * 2)
    assert one is other


@pytest.mark.parametrize("imported", [False, True])
def test_threads_that_make_the_buffers(monkeypatch, imported):
    """Two at once have the same ones, and what a framework has imported before."""
    learned()
    soa = bind(event(4))
    if imported:
        [v] = tensors(soa, Spec(v="v"))
    seen = threading.local()

    def first_waits(*args):
        if hasattr(seen, "first"):
            return HostBuffer(*args)
        seen.first = True
        barrier.wait(60)
        return HostBuffer(*args)

    barrier = threading.Barrier(2)
    monkeypatch.setattr(_bound, "HostBuffer", first_waits)
    one, other = both(*[lambda: soa.buffer.pieces] * 2)
    assert one is other
    if imported:
        assert one[2].imports["torch"] is v


@pytest.mark.slow
def test_threads_that_race_for_the_first_tensors():
    """All get views of one import of each allocation, whichever way they come."""
    learned()
    specs = [ALONE, SPEC, ALONE, Spec(v="v", b="b")]
    for _ in range(100):
        data = event(4)
        soa, found, barrier = bind(data), [], threading.Barrier(len(specs))

        def ask(spec, soa=soa, found=found, barrier=barrier):
            barrier.wait()
            found.append(tensors(soa, spec)[list(spec).index("v")])

        threads = [threading.Thread(target=ask, args=(spec,)) for spec in specs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found[0].add_(1)
        assert {tensor._version for tensor in found} == {1}
        assert data["v"][0, 0] == 1


GATHERED = Spec(ab=["a", "c"], v="v", vw=["v", "w"], again=["c", "c"])


def apart(rows):
    """Arrays of an event, of which lists make tensors that are put together."""
    count = np.arange(rows)
    return {
        "a": count.astype("f4"),
        "c": (count + 0.5).astype("f4"),
        "v": np.arange(3.0 * rows).reshape(rows, 3).copy(),
        "w": np.ones((rows, 3)),
        "i": count + 7,
    }


def gathered(data):
    pairs = [("a", "c"), ("v",), ("v", "w"), ("c", "c")]
    return [np.stack([data[n] for n in p], 1) if len(p) > 1 else data[p[0]] for p in pairs]


@pytest.mark.parametrize("rows", [0, 1, 7, 100])
def test_lists_are_put_together(rows):
    """Of apart columns a copy, which nothing else has; of a column alone the array itself."""
    for _ in range(3):
        data = apart(rows)
        soa = bind(data)
        for _ in range(2):
            found = tensors(soa, GATHERED, copy=None)
            for tensor, values in zip(found, gathered(data), strict=True):
                np.testing.assert_array_equal(tensor.numpy(), values)
                assert tensor.is_contiguous()
                assert tensor.numpy().dtype == values.dtype
        before = {name: array.copy() for name, array in data.items()}
        for copy in (found[0], found[2], found[3]):
            copy.zero_()
        for name, array in data.items():
            np.testing.assert_array_equal(array, before[name])
        found[1].fill_(3)
        assert (data["v"] == 3).all()
        assert found[1]._version == tensors(soa, Spec(v="v"))[0]._version
        assert tensors(bind(apart(rows)), Spec(), copy=None) == tensors(bind(data), Spec()) == []


def test_lists_of_what_was_changed_or_is_refused():
    """What is read-only is copied, too; what makes no tensor is refused as ever."""
    for _ in range(3):
        data = apart(4)
        soa = bind(data)
        data["c"].flags.writeable = False
        data["v"].flags.writeable = False
        found = tensors(soa, GATHERED, copy=None)
        for tensor, values in zip(found, gathered(data), strict=True):
            np.testing.assert_array_equal(tensor.numpy(), values)
        found[1].fill_(9)
        assert data["v"][0, 0] == 0
        part = tensors(bind(apart(4))[1:3], GATHERED, copy=None)
        assert part[0].tolist() == [[1, 1.5], [2, 2.5]]
        for spec, message in [
            (Spec(x=["a", "v"]), "one dtype|one shape"),
            (Spec(x=["a", "i"]), "need one dtype"),
            (Spec(x=["a", "nobody"]), "nobody"),
            (Spec(x=Value("a")), "takes a Scalar"),
        ]:
            with pytest.raises((KeyError, ValueError), match=message):
                tensors(bind(apart(4)), spec, copy=None)
        with pytest.raises(BufferError, match="'ab': its columns are in memory apart"):
            tensors(bind(apart(4)), GATHERED)


def test_lists_where_torch_has_no_real_memory():
    """They are refused among fake tensors, and real in inference mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for _ in range(2):
        tensors(bind(apart(4)), GATHERED, copy=None)
    with torch.inference_mode():
        found = tensors(bind(apart(4)), GATHERED, copy=None)
    assert not any(tensor.is_inference() for tensor in found)
    with FakeTensorMode(), pytest.raises(TypeError, match="inside fake tensors"):
        tensors(bind(apart(4)), GATHERED, copy=None)


def test_copies_and_columns_that_stand_twice():
    """`copy=True` copies all; a column that two tensors have is a view for each."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = Spec(one="v", other="v", ab=["a", "c"])
    for _ in range(3):
        data = apart(4)
        for tensor in tensors(bind(data), GATHERED, copy=True):
            tensor.zero_()
        assert data["v"].any()
        one, other, _ = tensors(bind(data), spec, copy=None)
        assert one is not other
        one.t_()
        assert other.shape == (4, 3)
        with pytest.raises(KeyError, match="nobody"):
            tensors(bind(apart(4)), Spec(x=["i", "nobody"]), copy=None)
        halves = {n: np.arange(3).astype(ml_dtypes.bfloat16) + n for n in (0, 1)}
        [found] = tensors(
            bind({f"h{n}": a for n, a in halves.items()}), Spec(x=["h0", "h1"]), copy=None
        )
        assert found.tolist() == [[0, 1], [1, 2], [2, 3]]
