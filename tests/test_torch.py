"""What is PyTorch's own: one storage, autograd, inference mode, read-only files."""

from __future__ import annotations

import contextlib
import gc
import io
import mmap
import sys
import threading
import warnings
import weakref

import numpy as np
import places
import pytest
import torch
from cases import filled, layout_of
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import soaview_torch
from soaview import Column, Layout, Scalar, SoA, Spec, Value, views
from soaview._device import DeviceBuffer, Memory
from soaview_torch import _move, empty, forward, tensors, to, write
from soaview_torch._memory import _waiting

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def test_the_gate():
    """No tensor leaves its buffer, were the layout's arithmetic wrong."""
    soa = LAYOUT.allocate(33)
    soa.capacity = soa.rows = 330
    with pytest.raises(ValueError, match="do not lie inside"):
        tensors(soa, SPEC)


def test_one_storage():
    """All tensors of an SoA, its slices and later calls alias one storage."""
    soa = LAYOUT.allocate(100)
    found = [*tensors(soa, SPEC), *tensors(soa[3:5], SPEC), *tensors(soa, SPEC, copy=None)]
    assert {storage(t) for t in found} == {soa.buffer.address}
    assert {t.untyped_storage().nbytes() for t in found} == {soa.buffer.nbytes}


def test_autograd_sees_a_change_through_another_tensor():
    """An in-place change that would falsify a gradient raises, whichever tensor made it."""
    soa = LAYOUT.allocate(10)
    weight = torch.ones(10, requires_grad=True)
    for change in (
        lambda: tensors(soa, Spec(x="x"))[0].add_(1),
        lambda: tensors(soa[2:3], Spec(y="y"))[0].add_(1),
        lambda: tensors(soa, Spec(k="k"))[0].add_(1),
        lambda: write(soa, Spec(k="k"), [torch.ones(10, dtype=torch.int64)]),
    ):
        [x] = tensors(soa, Spec(x="x"))
        loss = (weight * x).sum()
        change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_autograd_sees_one_wrap_alone():
    """A change through another `wrap` of the memory falsifies a gradient in silence: as documented.

    So does one through NumPy. Were it noticed, the README could say so.
    """
    soa = LAYOUT.allocate(10)
    weight = torch.ones(10, requires_grad=True)
    other = LAYOUT.wrap(soa.buffer.root, 10)
    for change in (
        lambda: tensors(other, Spec(x="x"))[0].fill_(100),
        lambda: soa["x"].fill(100),
    ):
        soa["x"][:] = 1
        weight.grad = None
        [x] = tensors(soa, Spec(x="x"))
        loss = (weight * x).sum()
        change()
        loss.backward()
        assert weight.grad.tolist() == [100] * 10


def test_a_saved_tensor_takes_the_whole_memory_along():
    """`torch.save` writes the storage that all tensors share; of a clone, the rows alone."""
    soa = LAYOUT.allocate(100_000)
    [x] = tensors(soa[:10], Spec(x="x"))
    sizes = []
    for tensor in (x, x.clone()):
        file = io.BytesIO()
        torch.save(tensor, file)
        sizes.append(len(file.getvalue()))
    assert sizes[0] > soa.buffer.nbytes > 100 * sizes[1]


def test_a_graph_does_not_outlive_its_tensors():
    """After a write of values that require a gradient, later calls give plain tensors again."""
    soa = LAYOUT.allocate(10)
    spec = Spec(x="x", k="k")
    x, k = tensors(soa, spec)
    values = torch.ones(10, requires_grad=True)
    x.copy_(values * 2)
    assert x.requires_grad
    graph = weakref.ref(values)
    x.sum().backward()
    assert values.grad.tolist() == [2] * 10
    for found in (tensors(soa, spec), tensors(soa, spec, copy=None), tensors(soa[:5], spec)):
        assert not any(t.requires_grad for t in found)
    del x, k, found, values
    gc.collect()
    assert graph() is None
    assert soa["x"].tolist() == [2] * 10


def test_leaving_a_graph_keeps_the_version():
    """Tensors from before and after a graph was written in still see each other's changes."""
    soa, weight = LAYOUT.allocate(10), torch.ones(10, requires_grad=True)
    x, y = tensors(soa, Spec(x="x", y="y"))
    y.copy_(weight * 2)
    loss = (weight * x.detach()).sum()
    tensors(soa, Spec(x="x"))[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_write_records_no_gradient():
    """`write` takes model outputs with their graph, and leaves it behind."""
    soa = LAYOUT.allocate(10)
    [before] = tensors(soa, Spec(x="x"))
    write(soa, Spec(x="x"), [torch.ones(10, requires_grad=True) * 3])
    assert not before.requires_grad
    assert soa["x"].tolist() == [3] * 10
    assert not tensors(soa, Spec(x="x"))[0].requires_grad


def test_inference_mode_leaves_no_trace():
    """A first call in inference mode gives tensors that can be trained with afterwards."""
    soa = LAYOUT.allocate(10)
    with torch.inference_mode():
        assert len(tensors(soa, SPEC)) == 4
    found = tensors(soa, SPEC)
    assert not any(t.is_inference() for t in found)
    weight = torch.ones(10, requires_grad=True)
    (found[2] * weight).sum().backward()
    layout = Layout([Column("d", "float64"), Column("x", "float32")])
    weight = torch.ones(10, requires_grad=True, dtype=torch.float64)
    for copy in (False, None, True):
        soa = layout.allocate(10)
        with torch.inference_mode():
            tensors(soa, Spec(d="d"), copy=copy)
        [d] = tensors(soa, Spec(d="d"), copy=copy)
        assert not d.is_inference()
        (d * weight).sum().backward()
    soa = layout.allocate(10)
    with torch.inference_mode():
        write(soa, Spec(d="d"), [torch.ones(10, dtype=torch.float64)])
    assert not tensors(soa, Spec(d="d"))[0].is_inference()


def test_gradients_of_tensors():
    """A tensor over an SoA can be a leaf of a graph."""
    soa = LAYOUT.pack({"x": [1.0, 2.0], "y": [3.0, 4.0], "k": [1, 2], "n": 0})
    [xy] = tensors(soa, Spec(xy=["x", "y"]))
    xy.requires_grad_()
    (xy**2).sum().backward()
    assert xy.grad.tolist() == [[2, 6], [4, 8]]


def test_settings_of_torch_do_not_matter():
    """Default device, default dtype and deterministic mode change nothing."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.device("meta"):
            soa = LAYOUT.pack({"x": [1.0], "y": [2.0], "k": [3], "n": 4})
            for copy in (False, None, True):
                xy, k, x, n = tensors(soa, SPEC, copy=copy)
                assert (xy.tolist(), k.tolist(), n.item()) == ([[1, 2]], [3], 4)
                assert xy.dtype == x.dtype == torch.float32
            [yx] = tensors(soa, Spec(yx=["y", "x"]), copy=None)
            assert yx.tolist() == [[2, 1]]
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)


def test_copies_are_contiguous():
    """Copies are row-major, which strided views are not."""
    soa = LAYOUT.allocate(33)
    assert not tensors(soa, SPEC)[0].is_contiguous()
    assert all(t.is_contiguous() for t in tensors(soa, SPEC, copy=True))


def test_read_only_memory_word_by_word():
    """The refusal of read-only memory names the ways out."""
    soa = LAYOUT.wrap(bytes(LAYOUT.nbytes(3)), 3)
    with pytest.raises(BufferError) as raised:
        tensors(soa, SPEC)
    assert str(raised.value) == (
        "the SoA's memory is read-only, and torch has no read-only tensors: a write would change "
        "it, or crash. Ways out: copy=None copies it; a file can be mapped as private memory, "
        'numpy.memmap(mode="c"), or to be written itself, mode="r+"'
    )
    for copy in (None, True):
        for tensor in tensors(soa, SPEC, copy=copy):
            tensor.fill_(7)
    assert not soa.buffer.root.any()


def test_private_mappings(tmp_path):
    """A file mapped copy-on-write gives tensors that can be written; the file stays as it is."""
    path = tmp_path / "soa.bin"
    path.write_bytes(bytes(LAYOUT.nbytes(10)))
    memory = np.memmap(path, mode="c")
    tensors(LAYOUT.wrap(memory, 10), SPEC)[0].fill_(7)
    assert memory.any()
    assert not any(path.read_bytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as reading:
        soa = LAYOUT.wrap(reading, 10)
        assert soa.readonly
        with pytest.raises(BufferError, match="read-only"):
            tensors(soa, SPEC)
        del soa


def test_torch_tensors_can_be_wrapped():
    """A CPU tensor holds an SoA as any other memory does; what cannot is refused."""
    rows = 33
    memory, expected = filled(layout_of("float32", "int8"), rows)
    owner = torch.from_numpy(memory)
    soa = layout_of("float32", "int8").wrap(owner, rows)
    assert soa.buffer.owner is owner
    assert tensors(soa, Spec(x="x"))[0].data_ptr() == owner.data_ptr()
    assert (soa["x"] == expected["x"]).all()
    owner[0] = 1
    with pytest.raises(BufferError, match="not contiguous"):
        LAYOUT.wrap(torch.zeros(9999, dtype=torch.uint8)[::2], 3)
    for other in (torch.zeros(9999), torch.zeros(9999, dtype=torch.bfloat16)):
        with pytest.raises(TypeError, match=f"holds {str(other.dtype)[6:]}, but field"):
            LAYOUT.wrap(other, 3)
    for odd in (
        torch.zeros(9999, requires_grad=True),
        torch.zeros(9999, dtype=torch.complex64).conj(),
        torch._neg_view(torch.zeros(9999)),
        torch.zeros(9999).to_sparse(),
    ):
        with pytest.raises(BufferError, match="has no memory to wrap .*detached"):
            LAYOUT.wrap(odd, 3)
    with FakeTensorMode(), warnings.catch_warnings(action="ignore"):
        fake = torch.zeros(9999)
        with pytest.raises(BufferError, match="has no memory to wrap"):
            LAYOUT.wrap(fake, 3)
    with warnings.catch_warnings(action="ignore"):
        quantized = torch.quantize_per_tensor(torch.zeros(9999), 0.1, 0, torch.quint8)
    with pytest.raises(BufferError, match="has no memory to wrap"):
        LAYOUT.wrap(quantized, 3)
    assert LAYOUT.wrap(torch.zeros(9999, dtype=torch.bfloat16).view(torch.uint8), 3)
    with pytest.raises(BufferError, match="Tensor has no memory to wrap .*meta"):
        LAYOUT.wrap(torch.zeros(9999, device="meta"), 3)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([np.zeros(10, "f4")], TypeError, "tensor 'x': got ndarray, expected a torch.Tensor"),
        (torch.zeros(10), TypeError, "tensors must be a list in spec order, got Tensor"),
        ([torch.zeros(10, device="meta")], ValueError, "'x': got device meta, the SoA is on cpu"),
        ([torch.zeros(10, dtype=torch.float8_e5m2)], TypeError, "got dtype torch.float8_e5m2, exp"),
    ],
)
def test_bad_writes(bad, error, message):
    """Only tensors of the SoA's device, in a list, are written."""
    with pytest.raises(error, match=message):
        write(LAYOUT.allocate(10), Spec(x="x"), bad)


def test_a_wrapped_tensor_keeps_its_memory():
    """`resize_` raises, and `set_` and `data =` leave the memory to the SoA."""
    owner = torch.zeros(LAYOUT.nbytes(10), dtype=torch.uint8)
    soa = LAYOUT.wrap(owner, 10)
    with pytest.raises(RuntimeError, match="not resizable"):
        owner.resize_(10**8)
    with pytest.raises(RuntimeError, match="not resizable"):
        owner.untyped_storage().resize_(0)
    owner.set_(torch.zeros(3, dtype=torch.uint8))
    owner.data = torch.zeros(5, dtype=torch.uint8)
    tensors(soa, Spec(x="x"))[0].fill_(3)
    assert soa["x"].tolist() == [3] * 10


@pytest.mark.parametrize("left", [0, 64])
def test_storage_that_was_shrunk(left):
    """A tensor that reaches past its storage is neither wrapped nor written."""
    x = Layout([Column("x", "float32")])
    for odd in (torch.zeros(1 << 20), torch.zeros(3, 1 << 20).T[:, 1]):
        odd.untyped_storage().resize_(left)
        with pytest.raises(BufferError, match="reaches to byte .* storage, which was resized to"):
            x.wrap(odd, 10)
        soa = LAYOUT.allocate(1 << 20)
        with pytest.raises(BufferError, match="reaches to byte"):
            write(soa, Spec(x="x"), [odd])
        assert not soa["x"].any()
    x.wrap(torch.zeros(9999)[4:], 10)
    write(LAYOUT.allocate(10), Spec(x="x"), [torch.zeros(1).expand(10)])
    write(LAYOUT.allocate(0), Spec(xy=["x", "y"]), [torch.empty(2, 0).T])  # strides (1, 1)


def test_storage_that_torch_moved():
    """After `share_memory_` of a tensor, calls give the SoA's memory again, not what it left."""
    soa, spec = LAYOUT.allocate(10), Spec(x="x")
    for again in (spec, Spec(x="x")):
        [x] = tensors(soa, spec)
        x.share_memory_()
        assert x.data_ptr() != soa.buffer.address
        assert tensors(soa, again)[0].data_ptr() == soa.buffer.address
        assert tensors(soa[2:], again)[0].data_ptr() == soa.buffer.address + 8
        assert tensors(soa, again, copy=None)[0].data_ptr() == soa.buffer.address
    tensors(soa, spec)[0].share_memory_()
    write(soa, spec, [torch.ones(10)])
    assert soa["x"].tolist() == [1] * 10


def test_fake_tensors_leave_no_trace():
    """Where torch gives no tensor of real memory, the call is refused, and later ones work."""

    def take(soa):
        return lambda x: tensors(soa, Spec(x="x"))[0] + x

    for run in (
        lambda f: make_fx(f, tracing_mode="fake")(torch.ones(10)),
        lambda f: torch.func.functionalize(f)(torch.ones(10)),
        lambda f: torch.func.grad(lambda y: f(y).sum())(torch.ones(10)),
    ):
        soa = LAYOUT.allocate(10)
        with pytest.raises(TypeError, match="take the tensors outside, and pass them in"):
            run(take(soa))
        [x] = tensors(soa, Spec(x="x"))
        assert type(x) is torch.Tensor
        x[0] = 9
        assert soa["x"][0] == 9


def test_odd_tensors_are_not_half_written():
    """What may fail when it is read is refused before the first byte is written."""
    soa = LAYOUT.allocate(10)
    with FakeTensorMode():
        fake = torch.ones(10)
    own = torch.ones(10).as_subclass(type("Own", (torch.Tensor,), {}))
    with warnings.catch_warnings(action="ignore"):  # it is a prototype, torch says
        nested = torch.nested.nested_tensor([torch.ones(10)], layout=torch.strided)
    for odd in (
        fake,
        own,
        torch.ones(10).to_sparse(),
        torch.nested.nested_tensor([torch.ones(10)], layout=torch.jagged),
        nested,
        torch._to_functional_tensor(torch.ones(10)),
        torch._efficientzerotensor(10),
    ):
        with pytest.raises(TypeError, match="tensor 'y': .*expected a plain dense"):
            write(soa, Spec(x="x", y="y"), [torch.ones(10), odd])
        with pytest.raises(TypeError, match="tensor 'y': .*expected a plain dense"):
            forward(lambda x, odd=odd: odd, (soa, Spec(x="x")), (soa, Spec(y="y")))
        assert not soa.buffer.root.any()
    with pytest.raises(TypeError, match="outside of torch.func transforms"):
        torch.func.vmap(lambda x: write(soa, Spec(x="x"), [x]))(torch.ones(10))
    write(soa, Spec(x="x"), [torch.nn.Parameter(torch.ones(10))])
    write(soa, Spec(y="y"), [torch._neg_view(torch.ones(10))])
    assert soa[["x", "y"]][3].tolist() == [1, -1]
    with pytest.raises(TypeError, match="soa must be an SoA, got NoneType"):
        write(None, Spec(x="x"), [torch.ones(10)])


def test_expanded_scalars():
    """A broadcast scalar has stride 0: torch refuses to add to it; `fill_` writes the scalar."""
    soa = LAYOUT.allocate(10)
    [n] = tensors(soa, Spec(n="n"))
    with pytest.raises(RuntimeError):
        n.add_(1)
    n.fill_(3)
    assert soa[Value("n")] == 3


def test_the_same_spec_again_and_another():
    """What is kept from one call never answers another spec, paddedness or slice."""
    soa = LAYOUT.allocate(33)
    for spec, padded, rows in (
        (SPEC, False, 33),
        (SPEC, True, 64),
        (SPEC, False, 33),
        (Spec(xy=["x", "y"]), False, 33),
        (Spec(xy=["x"]), False, 33),
    ):
        first = tensors(soa, spec, padded=padded)[0]
        again = tensors(soa, spec, padded=padded)[0]
        assert first.shape == again.shape == (rows, len(spec["xy"]))
        assert first.data_ptr() == again.data_ptr()
        assert len(tensors(soa[:5], spec)[0]) == 5


def test_torch_consumes_views():
    """`torch.from_dlpack` takes a view."""
    from soaview import views

    soa = LAYOUT.allocate(33)
    [view] = views(soa, Spec(xy=["x", "y"]))
    tensor = torch.from_dlpack(view)
    assert (tensor.stride(), tensor.data_ptr()) == ((1, 64), view.address)


def test_threads():
    """Threads may take tensors of one SoA at the same time."""
    layout = layout_of("float32", "int8")
    specs = [Spec(a="x"), Spec(a="gap", b="x"), Spec(a=["x", "y"], b="m"), Spec(a="u", b="gap")]
    wrong = []

    def work(soa, spec, barrier):
        barrier.wait()
        try:
            for _ in range(50):
                assert storage(tensors(soa, spec)[0]) == soa.buffer.address
        except Exception as error:
            wrong.append(error)

    for _ in range(20):
        soa, barrier = layout.allocate(100), threading.Barrier(len(specs))
        threads = [threading.Thread(target=work, args=(soa, s, barrier)) for s in specs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*calls):
    """What they give, each in a thread of its own, all begun together."""
    barrier, given = threading.Barrier(len(calls)), [None] * len(calls)

    def work(number, call):
        barrier.wait()
        try:
            given[number] = call()
        except Exception as error:
            given[number] = error

    threads = [threading.Thread(target=work, args=both) for both in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [error for error in given if isinstance(error, Exception)]
    return given


def take_together(soa, *entries):
    """The tensors of these entries, each taken in a thread of its own; writers beside them."""
    ones = torch.ones(10)
    calls = [lambda entry=entry: tensors(soa, Spec(t=entry))[0] for entry in entries]
    writers = [
        lambda: write(soa, SPECS["y"], [ones]),
        lambda: write(soa[:10], Spec(k="k"), [torch.ones(10, dtype=torch.int64)]),
        lambda: forward(lambda k: k * 1.0, (soa, Spec(k="k")), (soa, Spec(y="y"))),
        lambda: forward(lambda x: x + 1, (soa, Spec(x="x")), (soa[:10], Spec(y="y"))),
    ]
    return at_once(*calls, *writers)[: len(calls)]


SPECS = {"y": Spec(y="y")}


def counted_together(soa, found):
    """Whether a write by any way is a write of all of these tensors."""
    for change in (
        lambda: found[0].add_(1),
        lambda: tensors(soa, Spec(x="x"))[0].add_(1),
        lambda: write(soa, SPECS["y"], [torch.ones(10)]),
        lambda: write(soa[:5], Spec(x="x"), [torch.ones(5)]),
    ):
        before = [tensor._version for tensor in found]
        change()
        after = [tensor._version for tensor in found]
        if [b - a for a, b in zip(before, after, strict=True)] != [1] * len(found):
            return False
    return True


def test_threads_share_one_count_of_writes(switching):
    """Whoever takes tensors of a new SoA first, or writes, all tensors share a version counter."""
    for _ in range(200):
        soa = Layout([*LAYOUT.fields, Column("b", "int8")]).allocate(10)
        found = take_together(soa, "x", "k", "b", ["x", "y"])
        assert {storage(tensor) for tensor in found} == {soa.buffer.address}
        assert counted_together(soa, found)


def test_threads_share_memory_that_is_imported_anew(switching):
    """When torch has moved its storage, all threads get the same new import."""
    for _ in range(50):
        soa = LAYOUT.allocate(10)
        tensors(soa, Spec(x="x"))[0].share_memory_()
        found = take_together(soa, "x", "k", "y", ["x", "y"])
        assert {storage(tensor) for tensor in found} == {soa.buffer.address}
        assert counted_together(soa, found)


def test_threads_share_the_tensor_of_a_dtype():
    """Of two that found none, both get the one in which a graph is looked for."""
    soa = LAYOUT.allocate(10)
    tensors(soa, Spec(k="k"))
    memory = soa.buffer.imports["torch"]
    assert memory.__missing__("float16") is memory.__missing__("float16")
    assert memory["float16"] is memory.__missing__("float16")


def test_threads_leave_a_graph_together(switching):
    """When a graph was written into the memory, all threads leave it, and count on together."""
    for _ in range(50):
        soa = LAYOUT.allocate(10)
        [x, k] = tensors(soa, Spec(x="x", k="k"))
        x.copy_(torch.ones(10, requires_grad=True) * 2)
        found = take_together(soa, "x", "k", "y", ["x", "y"])
        assert not any(tensor.requires_grad for tensor in found)
        assert counted_together(soa, [*found, k])


# Memory of torch's, and other devices


@pytest.mark.parametrize("rows", [0, 1, 33, 1000])
def test_empty(rows):
    """Memory of torch's, aligned for XLA, too, and for the layout, in inference mode as well."""
    for alignment in (16, 128, 4096):
        layout = Layout(LAYOUT.fields, alignment=alignment)
        with torch.inference_mode():
            soa = empty(layout, rows)
        assert (soa.layout, soa.rows, soa.device, soa.readonly) == (layout, rows, "cpu", False)
        assert soa.buffer.nbytes == layout.nbytes(rows)
        assert soa.buffer.address % max(alignment, 64) == 0
        write(soa, Spec(x="x"), [torch.ones(rows)])
        assert (soa["x"] == 1).all()
    with pytest.raises(TypeError, match="layout must be a Layout or Blocks, got int"):
        empty(3, LAYOUT)
    with pytest.raises(ValueError, match="rows must not be negative"):
        empty(LAYOUT, -1)


def on_a_device(layout, rows):
    """An SoA that lies in the host's memory by the way that a device's goes."""
    memory, expected = filled(layout, rows)
    owner = torch.empty(len(memory) + 128 + 99, dtype=torch.uint8)  # more than is needed
    owner = owner[-owner.data_ptr() % 128 :]
    owner[: len(memory)] = torch.from_numpy(memory)
    there = Memory(owner.data_ptr(), len(owner), False, 1, 0, source=owner)
    return SoA(layout, DeviceBuffer(there, owner, len(memory), 16), rows, 0, rows), expected


class Copies(TorchDispatchMode):
    """Counts what is copied."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "copy" in function.name() or "clone" in function.name():
            self.sizes.append(args[0].numel() * args[0].element_size())
        return function(*args, **(kwargs or {}))


def test_to_is_one_transfer():
    """The parent buffer goes as it is; what is there already does not."""
    layout = layout_of("complex128", "bfloat16")
    soa, expected = on_a_device(layout, 1000)
    assert soa.device == "cpu:0"
    with Copies() as copied:
        moved = to(soa, "cpu")
    assert copied.sizes == [layout.nbytes(1000)]
    assert (moved.device, moved.readonly, moved.rows) == ("cpu", False, 1000)
    for name in ("x", "m", "gap"):
        np.testing.assert_array_equal(moved[name], expected[name])
    np.testing.assert_array_equal(moved.buffer.root, soa.buffer.owner[: len(moved.buffer.root)])
    soa.buffer.owner.zero_()
    np.testing.assert_array_equal(moved["x"], expected["x"])
    for here in (moved, moved[3:5], layout.allocate(3)):
        assert to(here, "cpu") is here
    with pytest.raises(TypeError, match="soa must be an SoA, got int"):
        to(3, "cpu")
    with pytest.raises(RuntimeError):
        to(soa, "no such device")


def test_to_from_the_host(monkeypatch):
    """Memory of the host goes as it is, read-only memory, too; nothing warns of that."""
    layout = layout_of("float32", "bfloat16")
    memory, expected = filled(layout, 100)
    memory.flags.writeable = False
    monkeypatch.setattr(_move, "empty", lambda layout, rows, device: empty(layout, rows))
    for soa in (layout.wrap(memory, 100), layout.wrap(memory.copy(), 100)):
        for part, rows in ((soa, slice(None)), (soa[3:9], slice(3, 9))):
            moved = to(part, "meta")  # which is not the host, and stands for a device
            assert moved.buffer.nbytes == layout.nbytes(len(part))
            for name in ("x", "m", "gap"):
                np.testing.assert_array_equal(moved[name], expected[name][rows])


def test_an_owner_inside_of_its_storage():
    """A tensor that starts somewhere in its storage is taken from where it starts."""
    whole = torch.arange(3000, dtype=torch.float32)
    owner = whole[32 : 32 + 3 * 64].reshape(3, 64)
    layout = Layout([Column(name, "float32") for name in "xyz"])
    there = Memory(owner.data_ptr(), 768, False, 1, 0, source=owner)
    soa = SoA(layout, DeviceBuffer(there, owner, 768, 4), 60, 0, 60)
    [view] = views(soa, Spec(y="y"))
    wanted = list(range(96, 156))
    assert torch.from_dlpack(view).tolist() == tensors(soa, Spec(y="y"))[0].tolist() == wanted


def test_the_owner_of_a_pointer_is_not_its_memory():
    """An owner only keeps the memory, even where it is a tensor: the address counts."""
    arena = torch.arange(1024, dtype=torch.float32)
    soa = LAYOUT.from_pointer(1 << 40, 5, device="cuda:0", owner=arena)
    for follow in (
        lambda: tensors(soa, SPEC),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        with pytest.raises(BufferError, match="torch does not take memory on cuda:0"):
            follow()
    for device in ("rocm:0", "metal"):
        soa = LAYOUT.from_pointer(1 << 40, 5, device=device)
        for follow in (tensors, lambda soa, spec: views(soa, spec)[0].__dlpack__()):
            with pytest.raises(BufferError, match=f"bare memory on {device}.* has no protocol"):
                follow(soa, SPEC)
    with pytest.raises(MemoryError, match="rows need"):
        empty(LAYOUT, 2**62)


def test_memory_that_is_not_where_it_was_said_to_be():
    """What torch imports is compared with the address: it may have been moved or copied."""
    memory = torch.zeros(1024, dtype=torch.uint8)
    there = Memory(memory.data_ptr() + 128, 512, False, 1, 0, source=memory)
    soa = SoA(LAYOUT, DeviceBuffer(there, memory, 512, 8), 5, 0, 5)
    for follow in (lambda: tensors(soa, SPEC), lambda: views(soa, SPEC)[0].__dlpack__()):
        with pytest.raises(BufferError, match="memory on cpu:0 is not where it was: it was wrap"):
            follow()


def test_a_slice_moves_its_own_rows():
    """They are put together where they are, one copy a run, and moved in one transfer."""
    layout = layout_of("float32", "bfloat16")
    soa, expected = on_a_device(layout, 1000)
    with Copies() as copied:
        moved = to(soa[100:133], "cpu")
    assert (moved.rows, moved.capacity, moved.buffer.nbytes) == (33, 33, layout.nbytes(33))
    assert copied.sizes[-1] == layout.nbytes(33)
    assert sum(copied.sizes) <= 2 * layout.nbytes(33)
    for name in ("x", "m", "gap"):
        np.testing.assert_array_equal(moved[name], expected[name][100:133])
    assert moved[Value("n")] == expected["n"]


def test_devices_that_are_not_there():
    """Memory that this torch cannot reach is refused, with where it is."""
    soa = LAYOUT.from_pointer(1 << 40, 10, device="cuda:0")
    for bad in (
        lambda: tensors(soa, SPEC),
        lambda: tensors(soa, SPEC, copy=True),
        lambda: views(soa, Spec(x="x"))[0].__dlpack__(),
        lambda: to(soa, "cpu"),
    ):
        with pytest.raises(BufferError, match="torch does not take memory on cuda:0: .*CUDA"):
            bad()
    with pytest.raises(BufferError, match="read-only, and torch has no read-only"):
        tensors(LAYOUT.from_pointer(1 << 40, 10, device="cuda:0", readonly=True), SPEC)


def test_who_waits_for_whom(monkeypatch):
    """Torch's current stream waits for the producer's in every call; torch's own are the user's."""
    seen = []

    class Stream:
        cuda_stream = 0

        def wait_stream(self, other):
            seen.append(("waits for", other))

    class Producer:
        def __dlpack__(self, *, stream):
            seen.append(("asked for", stream))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: (number, str(device)))
    cuda = torch.device("cuda:0")

    def wait_for(owner, stream=None):
        there = Memory(1 << 40, 1 << 20, False, 2, 0, stream, None, owner)
        return _waiting(DeviceBuffer(there, owner, 1 << 20, 16), cuda)

    wait_for(None, stream=7)()
    wait_for(Producer())()
    Stream.cuda_stream = 9
    wait_for(Producer())()
    assert seen == [("waits for", (7, "cuda:0")), ("asked for", 1), ("asked for", 9)]
    assert wait_for(torch.zeros(1)) is None
    assert wait_for(None) is None


def test_a_view_of_a_pointer_waits(monkeypatch):
    """Who takes a view by DLPack gets torch's, whose stream has waited for the memory's."""
    seen, memory = [], filled(LAYOUT, 33)[0]

    class Stream:
        def wait_stream(self, other):
            seen.append(other)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: (number, str(device)))
    monkeypatch.setattr(torch, "as_tensor", lambda interface, device: torch.from_numpy(memory))
    at = {"device": "cuda:0", "owner": memory}
    soa = LAYOUT.from_pointer(memory.ctypes.data, 33, stream=7, **at)
    [x, k] = views(soa, Spec(x="x", k="k"))
    taken = [soa.buffer.producer(view) for view in (x, k)]
    assert seen == [(7, "cpu")] * 2
    assert [t.data_ptr() for t in taken] == [x.address, k.address]
    still = LAYOUT.from_pointer(memory.ctypes.data, 33, **at)  # nobody is writing it
    still.buffer.producer(views(still, Spec(x="x"))[0])
    assert len(seen) == 2


def test_no_real_memory_in_transforms():
    """Where torch has no memory to give, a device's is refused as the host's is."""

    def inside(x):
        with pytest.raises(TypeError, match="torch gives no"):
            tensors(on_device, SPEC)
        with pytest.raises(TypeError, match="torch gives no real memory; take it outside"):
            empty(LAYOUT, 5)
        return x.sum()

    on_device, _ = on_a_device(LAYOUT, 5)
    torch.func.grad(inside)(torch.ones(3))


def test_every_call_waits():
    """The producer is waited for before tensors are given, again and again, and before writes."""
    memory, _ = filled(LAYOUT, 33)
    soa, waits = places.PretendedMemory().wrap(LAYOUT, memory, 33), []
    tensors(soa, SPEC)
    soa.buffer.imports["torch"].wait = lambda: waits.append(1)
    for count, call in enumerate(
        (
            lambda: tensors(soa, SPEC),
            lambda: tensors(soa, SPEC),
            lambda: tensors(soa[3:], SPEC),
            lambda: tensors(soa, Spec(x="x"), copy=True),
            lambda: write(soa, Spec(x="x"), [torch.ones(33)]),
            lambda: to(soa[3:], "meta"),
        )
    ):
        with contextlib.suppress(BufferError):  # there is no memory on the device meta
            call()
        assert len(waits) == count + 1


def test_public_names():
    """The public door is what it is."""
    names = ["empty", "forward", "jagged", "segments", "tensors", "to", "write"]
    assert soaview_torch.__all__ == names


def test_writes_follow_the_memory():
    """What was prepared for a write is not used once torch has moved its tensors elsewhere."""
    soa = Layout([Column("x", "float32")]).allocate(5)
    spec = Spec(x="x")
    write(soa, spec, [torch.ones(5)])
    [x] = tensors(soa, spec)
    x.share_memory_()
    write(soa, spec, [torch.full((5,), 2.0)])
    assert soa["x"].tolist() == [2] * 5


def test_memory_made_read_only_later():
    """A flag that is set on the memory later is minded by what was prepared before."""
    soa, k, y = LAYOUT.allocate(10), Spec(k="k"), Spec(y="y")
    part = soa[3:5]
    calls = [
        lambda: tensors(soa, k),
        lambda: tensors(soa, k, padded=True),
        lambda: tensors(part, y),
        lambda: write(soa, y, [torch.ones(10)]),
        lambda: write(part, y, [torch.ones(2)]),
        lambda: forward(lambda k: k * 2.0, (soa, k), (OUT, y)),
        lambda: forward(lambda y: y * 2, (OUT, y), (soa, y)),
        lambda: soaview_torch.jagged(soa, y, counts=[4, 6]),
    ]
    for writeable in (True, False, True, False):
        soa.buffer.root.flags.writeable = writeable
        before = soa.buffer.root.copy(), OUT.buffer.root.copy()
        for call in calls:
            for _ in range(2):
                if writeable:
                    call()
                    continue
                with pytest.raises(BufferError, match="read-only"):
                    call()
                with pytest.raises(BufferError, match="read-only"):
                    tensors(soa, Spec(x="x"))
        if not writeable:
            assert (soa.buffer.root == before[0]).all()
            assert (OUT.buffer.root == before[1]).all()
            for copied in (None, True):
                [tensor] = tensors(soa, y, copy=copied)
                tensor.fill_(7)
            forward(lambda y: y.fill_(7), (soa, y), (OUT, y), copy=None)
            assert (soa.buffer.root == before[0]).all()


OUT = Layout([Column("y", "float32")]).allocate(10)


def test_memory_made_read_only_after_jax_has_read_it():
    """It is copied without a word of torch's, whatever was kept for readers before."""
    soa = LAYOUT.allocate(10)
    assert soa.buffer.unguarded.flags.writeable
    soa.buffer.root.flags.writeable = False
    [x] = tensors(soa, Spec(x="x"), copy=None)
    x.fill_(7)
    assert not soa.buffer.root.any()
    with pytest.raises(BufferError):
        to(soa, "meta")  # where there is no memory


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's
@pytest.mark.parametrize("made", ["alone", "with gradient", "parts"])
def test_tangents_stay_in_their_call(made):
    """A dual number's primal is written, and nothing of its tangent, in forward mode, too."""
    soa, sent = LAYOUT.allocate(10), Spec(y="y")
    [kept] = tensors(soa, sent)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.full((10,), 3.0), torch.full((10,), 7.0))
        if made == "alone":
            write(soa, sent, [dual])
        elif made == "with gradient":
            write(soa, sent, [dual * torch.ones(10, requires_grad=True)])
        else:
            for options in ({}, {"batch_size": 5}):
                model = lambda x: dual[: len(x)]  # noqa: E731
                forward(model, (soa, Spec(x="x")), (soa, sent), **options)
            write(soa, Spec(yx=["y", "x"]), [torch.stack([dual, dual], dim=1)])
        for found in (kept, *tensors(soa, SPEC), *tensors(soa, sent), *tensors(soa[2:], sent)):
            assert forward_ad.unpack_dual(found).tangent is None
    assert soa["y"].tolist() == [3] * 10


@pytest.mark.parametrize("again", ["write", "other tensors"])
def test_a_graph_stays_with_its_call(again):
    """Tensors of a later call have no part in a graph that was written into the memory before."""
    soa, x, y = LAYOUT.allocate(10), Spec(x="x"), Spec(y="y")
    [tensor] = tensors(soa, y)
    weight = torch.ones(10, requires_grad=True)
    tensor.copy_(weight * 2)
    write(soa, x, [torch.zeros(10)]) if again == "write" else tensors(soa, x)
    [tensor] = tensors(soa, y)
    assert not tensor.requires_grad
    assert tensor.tolist() == [2] * 10
