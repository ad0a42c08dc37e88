"""What is PyTorch's own: one storage, autograd, inference mode, read-only files."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref

import numpy as np
import pytest
import torch
from cases import filled, layout_of

import soaview_torch
from soaview import Column, Layout, Scalar, Spec, Value
from soaview_torch import tensors, write

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


def test_a_graph_does_not_outlive_its_tensors():
    """After a write of values that require a gradient, later calls give plain tensors again."""
    soa = LAYOUT.allocate(10)
    x, k = tensors(soa, SPEC.subset("x", "k"))
    values = torch.ones(10, requires_grad=True)
    x.copy_(values * 2)
    assert x.requires_grad
    graph = weakref.ref(values)
    x.sum().backward()
    assert values.grad.tolist() == [2] * 10
    for found in (tensors(soa, SPEC), tensors(soa, SPEC, copy=None), tensors(soa[:5], SPEC)):
        assert not any(t.requires_grad for t in found)
    del x, k, found, values
    gc.collect()
    assert graph() is None
    assert soa["x"].tolist() == [2] * 10


def test_write_records_no_gradient():
    """`write` takes model outputs with their graph, and leaves it behind."""
    soa = LAYOUT.allocate(10)
    write(soa, Spec(x="x"), [torch.ones(10, requires_grad=True) * 3])
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
        LAYOUT.wrap(torch.zeros(9999)[::2], 3)
    with pytest.raises(BufferError, match="does not export its memory .*detach"):
        LAYOUT.wrap(torch.zeros(9999, requires_grad=True), 3)
    with pytest.raises(BufferError, match="does not export its memory .*uint8 view"):
        LAYOUT.wrap(torch.zeros(9999, dtype=torch.bfloat16), 3)
    assert LAYOUT.wrap(torch.zeros(9999, dtype=torch.bfloat16).view(torch.uint8), 3)
    with pytest.raises(BufferError, match="Tensor has no memory to wrap .*meta"):
        LAYOUT.wrap(torch.zeros(9999, device="meta"), 3)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([np.zeros(10, "f4")], TypeError, "tensor number 0: got ndarray, expected a torch.Tensor"),
        (torch.zeros(10), TypeError, "tensors must be a list in spec order, got Tensor"),
        ([torch.zeros(10, device="meta")], ValueError, "'x': got device meta, the SoA is on cpu"),
        ([torch.zeros(10, dtype=torch.float8_e5m2)], TypeError, "got dtype torch.float8_e5m2, exp"),
    ],
)
def test_bad_writes(bad, error, message):
    """Only tensors of the SoA's device, in a list, are written."""
    with pytest.raises(error, match=message):
        write(LAYOUT.allocate(10), Spec(x="x"), bad)


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


def test_public_names():
    """The public door is what it is."""
    assert soaview_torch.__all__ == ["tensors", "write"]
