"""Tensors over an SoA in graphs of torch's: versions, gradients, inference mode."""

from __future__ import annotations

import gc
import io
import weakref

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from soaview import Column, Layout, Scalar, Spec, Value
from soaview_torch import forward, tensors, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)
SPEC = Spec(xy=["x", "y"], k="k", x="x", n=Value("n"))


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


def test_writes_follow_the_memory():
    """What was prepared for a write is not used once torch has moved its tensors elsewhere."""
    soa = Layout([Column("x", "float32")]).allocate(5)
    spec = Spec(x="x")
    write(soa, spec, [torch.ones(5)])
    [x] = tensors(soa, spec)
    x.share_memory_()
    write(soa, spec, [torch.full((5,), 2.0)])
    assert soa["x"].tolist() == [2] * 5


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
