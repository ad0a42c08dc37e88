"""Bound columns of other devices: contiguous or strided, by what says where they lie."""

from __future__ import annotations

import gc
import weakref

import fake_cupy
import numpy as np
import pytest

from soaview import Column, Layout, Scalar, Spec, Value, _columns, bind, views
from soaview._frameworks import show

N = 5


class OnDevice:
    """What has the CUDA array interface, and no memory that anybody reads here."""

    def __init__(self, shape, dtype="f4", strides=None, address=1 << 40):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (address, False),
            "version": 3,
            "strides": strides,
        }


def test_columns_of_a_device():
    """Contiguous arrays, pointers and other SoAs; NumPy does not read them."""
    layout = Layout([Column("x", "f4"), Column("v", "f4", (3,)), Scalar("n", "i4")])
    soa = layout.from_pointer(1 << 44, N, device="cuda:0", owner=object())
    pointer = (1 << 42, "float64", (2, 2))
    both = bind(
        {"a": OnDevice((N, 2)), "x": views(soa, Spec(x="x"))[0], "q": pointer},
        rows=N,
        device="cuda:0",
        owner=object(),
    )
    assert (both.device, len(both.buffer.pieces)) == ("cuda:0", 3)
    a, x, q = views(both, Spec(a="a", x="x", q="q"))
    assert (a.strides, x.strides, q.strides) == ((2, 1), (1,), (4, 2, 1))
    assert (a.address, x.address, q.address) == (1 << 40, 1 << 44, 1 << 42)
    again = bind(soa)
    assert [v.address for v in views(again, Spec(v="v", n=Value("n")))] == [
        v.address for v in views(soa, Spec(v="v", n=Value("n")))
    ]
    for read in (lambda: both["a"], both.pack, lambda: np.asarray(a)):
        with pytest.raises(BufferError, match="on cuda:0, which NumPy does not read"):
            read()
    with pytest.raises(ValueError, match=r"2 devices \(cpu, cuda:0\)"):
        bind({"x": np.zeros(N), "a": OnDevice((N,))})


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 2), (2, 1), (2,)])
def test_shapes_that_say_their_order(shape):
    """Without strides elements follow in order; a square is no puzzle."""
    soa = bind({"a": OnDevice(shape, "f8"), "one": OnDevice((), "i4", address=1 << 41)})
    a, one = views(soa, Spec(a="a", one=Value("one")))
    assert (a.shape, a.address) == (shape, 1 << 40)
    assert a.strides == tuple(s // 8 for s in np.zeros(shape).strides)
    assert (one.shape, one.address) == ((), 1 << 41)


def test_any_positive_strides():
    """A column reaches from its first element to its last, and no further."""
    soa = bind(
        {
            "x": OnDevice((N,), strides=(32,), address=(1 << 40) + 4),
            "v": OnDevice((N, 3), strides=(4, 40), address=1 << 41),
            "odd": OnDevice((N,), strides=(6,), address=1 << 42),
        }
    )
    assert [piece.nbytes for piece in soa.buffer.pieces] == [4 * 32 + 4, 4 * 4 + 2 * 40 + 4, 28]
    x, v = views(soa, Spec(x="x", v="v"))
    assert (x.address, x.strides) == ((1 << 40) + 4, (8,))
    assert (v.address, v.strides) == (1 << 41, (1, 10))
    with pytest.raises(BufferError, match="'odd' is not on multiples of its item size, 4 bytes"):
        views(soa, Spec(t="odd"))


@pytest.mark.parametrize(
    ("strides", "message"),
    [((-4,), "must be positive"), ((0,), "elements overlap"), ((2,), "elements overlap")],
)
def test_strides_that_are_refused(strides, message):
    """By the column's name, with what they are."""
    with pytest.raises(ValueError, match=rf"column 'x': strides .{strides[0]},.*{message}"):
        bind({"x": OnDevice((N,), strides=strides)})


def test_memory_is_held_and_known_again():
    """The same memory is one allocation, but where it is to be waited for or read otherwise."""
    first, again = OnDevice((N,)), OnDevice((N,))
    assert len(bind({"x": first, "y": again}).buffer.pieces) == 1
    again.__cuda_array_interface__["stream"] = 7
    assert len(bind({"x": first, "y": again}).buffer.pieces) == 2
    again = OnDevice((N,))
    again.__cuda_array_interface__["data"] = (1 << 40, True)
    soa = bind({"x": first, "y": again})
    assert [piece.readonly for piece in soa.buffer.pieces] == [False, True]
    alive = weakref.ref(first)
    view = views(soa, Spec(x="x"))[0]
    del first, again, soa
    gc.collect()
    assert alive() is not None
    del view
    gc.collect()
    assert alive() is None


def test_no_rows(monkeypatch):
    """Memory of no elements takes no byte, whatever its strides."""
    fake_cupy.install(monkeypatch)
    table = np.zeros((N, 8))
    for column in (OnDevice((0,), strides=(32,)), cupys(table[:0, 3]), OnDevice((0, 3))):
        soa = bind({"x": column})
        assert (len(soa), soa.buffer.pieces[0].nbytes) == (0, 0)
        assert views(soa, Spec(x="x"))[0].shape[0] == 0
    part = cupys(table[:0, 3], cupys(table))
    part.data.ptr = 0
    [x] = views(bind({"x": part}), Spec(x="x"))
    assert x.shape == (0,)
    [x] = views(bind({"x": cupys(table[:0, 3])}), Spec(x="x"))
    buffer, at = x.buffer.locate(x.strided)
    assert show(buffer.memory, at).shape == (0,)


class Strided:
    """An array that speaks DLPack, and nothing else."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)


def test_strided_memory_by_dlpack(monkeypatch):
    """Torch takes the producer's memory as far as its elements reach."""
    pytest.importorskip("torch")
    from soaview_torch import tensors

    monkeypatch.setattr(_columns, "_host_array", lambda value: None)
    table = np.arange(8.0 * N).reshape(N, 8)
    soa = bind({"x": Strided(table[:, 3]), "v": Strided(table[:, 5:7])})
    x, v = tensors(soa, Spec(x="x", v="v"))
    np.testing.assert_array_equal(x, table[:, 3])
    np.testing.assert_array_equal(v, table[:, 5:7])
    assert x.data_ptr() == table[:, 3].ctypes.data


def test_memory_without_a_dtype():
    """Bytes that nobody names are no column."""
    thing = OnDevice((N,))
    thing.__cuda_array_interface__["typestr"] = "|V4"
    with pytest.raises(TypeError, match="column 'x': there is no dtype bytes without a dtype"):
        bind({"x": thing})


def cupys(array, base=None, number=1):
    """A NumPy array as CuPy would have it."""
    at = fake_cupy.MemoryPointer(array.ctypes.data, array, number)
    made = fake_cupy.ndarray(array.shape, array.dtype, at, array.strides)
    made.base = base
    return made


def test_columns_of_one_array_of_cupys(monkeypatch):
    """They are one allocation, the one that owns it, and make one tensor where distances allow."""
    fake_cupy.install(monkeypatch)
    table = np.arange(8.0 * N, dtype="f4").reshape(N, 8)
    owner = cupys(table)
    part = cupys(table[:, 2:], owner)
    soa = bind(
        {
            "a": cupys(table[:, 0], owner),
            "b": cupys(table[:, 2], part),
            "rest": cupys(table[:, 4:7], part),
            "apart": cupys(np.ones((N, 2))[:, 1]),
        }
    )
    assert [piece.nbytes for piece in soa.buffer.pieces] == [table.nbytes, 16 * (N - 1) + 8]
    ab, rest, apart = views(soa, Spec(ab=["a", "b"], rest="rest", apart="apart"))
    assert (ab.strides, ab.address) == ((8, 2), table.ctypes.data)
    for view, values in ((ab, table[:, [0, 2]]), (rest, table[:, 4:7]), (apart, np.ones(N))):
        buffer, at = view.buffer.locate(view.strided)
        np.testing.assert_array_equal(show(buffer.memory, at).host(), values)
    wrong = cupys(table[:, 1], cupys(table[1:]))
    with pytest.raises(BufferError, match="column 'x': it reaches from byte -28 to"):
        bind({"x": wrong})


def test_columns_of_one_tensor(monkeypatch):
    """A storage of torch's is one allocation, which lives as long as the SoA's tensors."""
    torch = pytest.importorskip("torch")
    from soaview_torch import tensors

    monkeypatch.setattr(_columns, "_host_array", lambda value: None)
    memory = np.arange(8.0 * N, dtype="f4")
    table = torch.from_numpy(memory).view(N, 8)
    columns = {f"c{i}": table[:, i] for i in (0, 3, 6)}
    soa = bind(columns | {"m": table[:, 1:5].view(N, 2, 2), "one": table[0, 7]})
    assert [piece.nbytes for piece in soa.buffer.pieces] == [4 * 8 * N]
    found = tensors(soa, Spec(t=list(columns), m="m", one=Value("one")))
    assert (found[0].stride(), found[0].data_ptr()) == ((8, 3), table.data_ptr())
    wanted = torch.stack([*columns.values()], 1), table[:, 1:5].view(N, 2, 2), table[0, 7]
    for tensor, values in zip(found, wanted, strict=True):
        assert torch.equal(tensor, values)
    found[0][1, 1] = 70
    assert table[1, 3] == 70
    assert torch.equal(tensors(soa[2:], Spec(x="c6"))[0], table[2:, 6])
    alive = weakref.ref(memory)
    del soa, table, columns, wanted, memory, values, tensor
    gc.collect()
    assert found[1][1].tolist() == [[9, 10], [70, 12]]
    del found
    gc.collect()
    assert alive() is None
    column = torch.arange(8.0 * N).view(N, 8)[:, 7]
    column.untyped_storage().resize_(64)
    with pytest.raises(BufferError, match="column 'x': .*resized to 64 bytes"):
        bind({"x": column})
