"""The example networks: torch, JAX and a plain NumPy evaluation agree."""

from __future__ import annotations

import copy
import importlib
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import soaview_torch

NEEDS = ["torch", "jax"]

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = [
    "simple_net",
    "masked_net",
    "tiny_resnet",
    "multi_head_net",
    "track_hit_deep_set",
    "norm_first",
]


@pytest.fixture(params=NAMES)
def example(request, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(request.param)


def dense(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def columns(soa, *names):
    return np.stack([soa[name] for name in names], axis=1).astype("float64")


def simple_net(w, particles):
    x = columns(particles, "pt", "eta", "phi")
    x = relu(dense(w, "second", relu(dense(w, "first", x))))
    return {"reco_pt": dense(w, "last", x)[:, 0]}


def masked_net(w, particles, mask):
    x = columns(particles, "pt", "eta", "phi")
    return {"reco_pt": np.where(mask["mask"] == 0, x, 0).sum(1) * (mask["scalar_mask"] == 0)}


def convolved(image, kernel):
    rows, _, height, width = image.shape
    around = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = np.zeros((rows, len(kernel), height, width))
    for i in range(3):
        for j in range(3):
            part = around[:, :, i : i + height, j : j + width]
            found += np.einsum("nchw,kc->nkhw", part, kernel[:, :, i, j])
    return found


def normalized(w, name, x):
    weight, bias, mean, var = (
        w[f"{name}.{part}"][None, :, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def tiny_resnet(w, images):
    image = columns(images, "r", "g", "b")
    x = relu(convolved(image, w["conv_in.weight"]) + w["conv_in.bias"][:, None, None])
    inner = relu(normalized(w, "block.bn1", convolved(x, w["block.conv1.weight"])))
    x = relu(x + normalized(w, "block.bn2", convolved(inner, w["block.conv2.weight"])))
    return {"logits": softmax(dense(w, "fc", x.mean(axis=(2, 3))))}


def multi_head_net(w, particles):
    x = relu(dense(w, "backbone", columns(particles, "pt", "eta", "phi")))
    return {
        "regression_head": dense(w, "reg_head", x)[:, 0],
        "classification_head": dense(w, "class_head", x),
    }


def track_hit_deep_set(w, tracks, hits, hit_to_track, track_begin):
    encoded = relu(dense(w, "hit", columns(hits, "x", "y", "z")))
    pooled = np.zeros((len(tracks), encoded.shape[1]))
    for hit, track in enumerate(hit_to_track["index"]):
        pooled[track] += encoded[hit]
    own = relu(dense(w, "track", columns(tracks, "pt", "eta", "phi")))
    last = dense(w, "last", np.concatenate([own, pooled], axis=1))
    return {"reco_pt": 1 / (1 + np.exp(-last[:, 0]))}


def norm_first(w, particles):
    mean, variance = w["norm.running_mean"], w["norm.running_var"]
    x = (columns(particles, *particles) - mean) / np.sqrt(variance + 1e-5)
    return {"y": dense(w, "last", x * w["norm.weight"] + w["norm.bias"])[:, 0]}


@pytest.mark.slow_but_every(20)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 33, 64])
def test_torch_jax_and_numpy_agree(example, rows, batched):
    """From SoA to SoA, whole and in batches, to float rounding."""
    both = sys.modules["both"]
    inputs, _ = example.event(rows)
    soas = [inputs[0]] if isinstance(inputs, tuple) else [soa for soa, _ in inputs]
    model, _ = both.networks(example)
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    wanted = globals()[example.__name__](weights, *soas)
    sizes = example.BATCH_SIZE if isinstance(inputs, list) else [example.BATCH_SIZE]
    small = [size and min(size, 10) for size in sizes]
    for found in both.run(example, rows, batch_size=small if batched else None):
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=2e-5, atol=2e-6)
            assert not rows or found[name].any()


@pytest.mark.slow
def test_the_examples_run(run_python):
    """Each of them is a program, and says how far the frameworks are apart."""
    lines = "import runpy, sys; sys.path.insert(0, sys.argv[1])\nfor name in sys.argv[2:]: "
    run = 'runpy.run_path(f"{sys.argv[1]}/{name}.py", run_name="__main__")'
    out = run_python("-c", lines + run, EXAMPLES, *NAMES).stdout
    assert out.count("torch and JAX differ by") == 7


@pytest.mark.parametrize("rows", [0, 1, 2, 33, 1000])
def test_a_normalization_by_feature(rows, monkeypatch):
    """It is the network that it stands for, in training too, and reads the columns themselves."""
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("norm_first")
    (soa, inputs), _ = example.event(rows)
    torch.manual_seed(0)
    model = example.Net()
    twin = copy.deepcopy(model)
    by_feature = example.ByFeature(twin)
    read = []
    twin.norm.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    for training in (True, False):
        for network in (model, by_feature):
            network.train(training)
        if training and rows < 2:
            continue  # which torch's normalization refuses
        [x] = soaview_torch.tensors(soa, inputs)
        torch.testing.assert_close(by_feature(x), model(x.contiguous()))
        assert read[-1].shape == (1, 16, rows)
        assert read[-1].data_ptr() == x.data_ptr()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_torch", "train_jax"])
def test_an_example_trains(name, run_python):
    """The loss falls, and events that were not trained with are told apart, not guessed."""
    out = run_python(EXAMPLES / f"{name}.py", OMP_NUM_THREADS="1").stdout
    first, last = map(float, re.search(r"loss (\S+) to (\S+)", out).groups())
    accuracy, guessing = map(float, re.search(r"accuracy (\S+), by guessing (\S+),", out).groups())
    assert last < first / 2
    assert accuracy > 0.95 > guessing + 0.2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="the example's library is compiled by cc")
def test_an_example_in_the_memory_of_a_library(run_python):
    """C sums what torch and JAX have written: 5 i for each row i."""
    out = run_python(EXAMPLES / "c_library.py").stdout
    lines = [
        f"{adapter}: {n} rows, C sums {5 * n * (n - 1) / 2:g}"
        for n in (3, 0, 1000, 64)
        for adapter in ("soaview_torch", "soaview_jax")
    ]
    assert out.splitlines() == lines


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the example's loop is compiled by g++")
def test_a_loop_in_cpp(run_python):
    """It compares what C++ reads of every way, and prints a median for each."""
    out = run_python(EXAMPLES / "cpp_event_loop" / "run.py", "--events", "7").stdout.splitlines()
    assert [line[:5] for line in out[:-1]] == ["up to"] * 8
    assert out[-1] == "C++ read the same scores from each"
