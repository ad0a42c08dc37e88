"""`forward` of torch's: models that write, memory that moves, inference mode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from models import IN, X, Y, check, filled, model, never

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec, Value, _views
from soaview_torch import _forward as torch_forward

NEEDS = ["torch", "jax"]


def test_read_only_inputs():
    """JAX reads them where they lie; torch refuses them, and copies if it is told."""
    soa, out = filled(33)
    soa = IN.wrap(np.frombuffer(bytes(soa.buffer.root), np.uint8), 33)
    soaview_jax.forward(model, (soa, X), (out, Y))
    check(soa, out)
    with pytest.raises(BufferError, match="read-only.*copy=None"):
        soaview_torch.forward(never, (soa, X), (out, Y))
    out.buffer.root[:] = 0
    soaview_torch.forward(model, (soa, X), (out, Y), copy=None, batch_size=5)
    check(soa, out)


def test_a_model_that_writes_into_its_inputs():
    """It is told of: the memory has changed. With copies it has not."""
    soa, out = filled(33)
    to = (out, Spec(ab=["a", "b"]))
    inputs = (soa, Spec(x=["x", "y"]))
    before = soa["x"].copy()
    relu = torch.nn.ReLU(inplace=True)
    for options in ({"copy": True}, {"copy": True, "batch_size": 4}):
        soaview_torch.forward(relu, inputs, to, **options)
        np.testing.assert_array_equal(soa["x"], before)
    assert out["a"].any()
    out.buffer.root[:] = 0
    with pytest.raises(RuntimeError, match="changed its inputs in place.*inplace=True.*copy=True"):
        soaview_torch.forward(relu, inputs, to)
    assert not out.buffer.root.any()


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize(
    ("entries", "changed"),
    [
        ({"c": ["y", "x"], "v": "v"}, 1),
        ({"v": "v", "c": ["y", "x"]}, 0),
        ({"c": ["y", "x"], "d": ["x", "y", "x"], "s": Value("scale")}, 2),
        ({"s": "scale", "c": ["y", "x"]}, 0),
    ],
    ids=str,
)
def test_a_model_that_writes_beside_a_gathered_tensor(entries, changed, batch_size):
    """With `copy=None` the views among its inputs are watched, and copies are its own."""
    soa, out = filled(33)
    before = soa.buffer.root.copy()
    names = list(entries)

    def writes(into):
        def model(*given):
            given[names.index(into)].fill_(7)
            return given[names.index("c")][:, 0]

        return model

    pairs = (soa, Spec(entries)), (out, Spec(a="a"))
    options = {"copy": None, "batch_size": batch_size}
    for _ in range(2):
        soaview_torch.forward(writes("c"), *pairs, **options)
        assert (soa.buffer.root == before).all()
        with pytest.raises(RuntimeError, match="changed its inputs in place"):
            soaview_torch.forward(writes(names[changed]), *pairs, **options)
        soa.buffer.root[:] = before
    others = [(soa, Spec(x="x")), (filled(33)[0], Spec(entries))]
    with pytest.raises(RuntimeError, match="changed its inputs in place"):
        soaview_torch.forward(lambda x, *_: x.fill_(7), others, (out, Spec(a="a")), copy=None)


def test_a_model_that_reuses_its_memory():
    """Results of a batch are safe from the next one."""
    soa, out = filled(30)
    buffer = torch.empty(10)

    def reuses(x):
        return buffer.copy_(x)

    soaview_torch.forward(reuses, (soa, Spec(x="x")), (out, Spec(a="a")), batch_size=10)
    np.testing.assert_array_equal(out["a"], soa["x"])


def test_inference_mode():
    """The model runs in inference mode, and the memory can take part in training afterwards."""
    soa, out = filled(33)
    layer = torch.nn.Linear(2, 1)
    seen = []

    def watch(x):
        seen.append(torch.is_inference_mode_enabled())
        return layer(x)

    with torch.inference_mode():
        soaview_torch.forward(watch, (soa, Spec(x=["x", "y"])), (out, Spec(a=["a"])))
    soaview_torch.forward(watch, (soa, Spec(x=["x", "y"])), (out, Spec(a=["a"])), batch_size=20)
    assert seen == [True] * 3
    [x] = soaview_torch.tensors(soa, Spec(x=["x", "y"]))
    [a] = soaview_torch.tensors(out, Spec(a=["a"]))
    ((layer(x) - a) ** 2).sum().backward()
    assert layer.weight.grad is not None
    # Results that require gradients bring no graph into the memory.
    parameter = torch.nn.Parameter(torch.ones(33))
    soaview_torch.forward(lambda x: parameter, (soa, Spec(x="x")), (out, Spec(a="a")))
    assert not any(flat.requires_grad for flat in out.buffer.imports["torch"].values())
    assert not soaview_torch.tensors(out, Spec(a="a"))[0].requires_grad
    assert out["a"].tolist() == [1] * 33


def test_the_device_is_the_current_one(monkeypatch):
    """On a GPU the SoAs' device is the current one while the model runs."""
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda number: entered.append(number) or "guard")
    assert torch_forward._current("cuda:3") == "guard"
    assert torch_forward._current("rocm:1") == "guard"
    assert entered == [3, 1]
    with torch_forward._current("cpu"):
        pass


def test_from_torch_to_jax_without_a_copy():
    """One model's output columns are read by a jitted function of the other framework in place."""
    soa, out = filled(64)
    net = torch.nn.Linear(2, 2)
    soaview_torch.forward(net, (soa, Spec(x=["x", "y"])), (out, Spec(h=["a", "b"])))
    leaves = jax.tree.leaves(jax.device_put(out))
    assert leaves[0].unsafe_buffer_pointer() == out.buffer.address
    soaview_jax.forward(lambda h: jnp.tanh(h).sum(1), (out, Spec(h=["a", "b"])), (out, Spec(c="c")))
    with torch.no_grad():
        [x] = soaview_torch.tensors(soa, Spec(x=["x", "y"]))
        wanted = torch.tanh(net(x)).sum(1)
    np.testing.assert_allclose(out["c"], wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_that_writes_another_column():
    """Only what is written through its inputs is told of."""
    soa, out = filled(33)

    def writes(x):
        soaview_torch.write(soa, Spec(y="y"), [torch.ones(33)])
        return x

    soaview_torch.forward(writes, (soa, Spec(x="x")), (out, Spec(a="a")))
    assert soa["y"].tolist() == [1] * 33


@pytest.mark.parametrize("copy", [False, None])
def test_a_model_that_moves_the_memory_away(copy):
    """`share_memory_` of a tensor of the outputs' memory: it is written, or else it is said."""
    soa, out = filled(33)
    [b] = soaview_torch.tensors(out, Spec(b="b"))

    def moves(x):
        b.share_memory_()
        return x

    if copy is None:
        with pytest.raises(RuntimeError, match="was moved away meanwhile, by share_memory_"):
            soaview_torch.forward(moves, (soa, Spec(x="x")), (out, Spec(a="a")), copy=copy)
        assert not out.buffer.root.any()
    soaview_torch.forward(moves, (soa, Spec(x="x")), (out, Spec(a="a")))
    np.testing.assert_array_equal(out["a"], soa["x"])


def test_a_storage_that_was_taken_away():
    """A tensor whose storage was freed under it is refused, where reading it would crash."""
    soa, out = filled(33)

    def freed(x):
        y = x * 2
        y.untyped_storage().resize_(0)
        return y

    with pytest.raises(BufferError, match="storage, which was resized to 0 bytes"):
        soaview_torch.forward(freed, (soa, Spec(x="x")), (out, Spec(a="a")))


def test_many_outputs_compile_no_specs_of_their_own(monkeypatch):
    """Whether memory is written twice is seen from the layout, whatever the number of columns."""
    layout = Layout([Column(f"c{i}", "float32") for i in range(300)])
    soa, source = layout.allocate(3), IN.allocate(3)
    halves = [Spec({f"{k}{i}": f"c{i + k}" for i in range(0, 300, 2)}) for k in (0, 1)]
    compiled, real = [], _views.plan_of
    monkeypatch.setattr(_views, "plan_of", lambda *a: compiled.append(1) or real(*a))
    soaview_torch.forward(
        lambda x: (x,) * 300, (source, Spec(x="x")), [(soa, half) for half in halves]
    )
    assert len(compiled) <= 5  # for each pair once, and for each output to see that it can be
