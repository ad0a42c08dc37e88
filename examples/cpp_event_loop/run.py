"""C++ owns the loop and the memory, Python the models: `python examples/cpp_event_loop/run.py`.

`loop.cpp` fills events of varying row counts and calls a C function pointer for each: here, one of
`ctypes`. Behind it a model of torch, and one of JAX, read the columns where they lie and write the
scores there, which C++ then reads. The layout stands once, in Python; C++ has it by `to_cpp`.

Any way of calling Python will do. With pybind11 (not run here) the loop's side would be:

    #include <pybind11/embed.h>
    namespace py = pybind11;
    py::object model = py::module_::import("models").attr("torch_model");
    model(reinterpret_cast<std::uintptr_t>(memory), count);  // and models.py goes on as below

It prints the median time of an event in microseconds, by `forward` and by hand: columns stacked,
the model called, results copied back. It needs g++, torch and JAX.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec

HERE = Path(__file__).parent
EVENT = Layout([Column(name, "float32") for name in ("pt", "eta", "phi", "score")])
EVENT = Layout([*EVENT.fields, Scalar("field", "float32")])
INPUTS, OUTPUTS = Spec(x=["pt", "eta", "phi"]), Spec(score=["score"])
CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)

torch.manual_seed(0)
torch.set_num_threads(1)  # as of each of a C++ program's threads; threads cost more than an event
NET = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).eval()
WEIGHTS = [parameter.detach().numpy() for parameter in NET.parameters()]


@jax.jit
def net(x):
    """The same model in JAX."""
    w1, b1, w2, b2 = WEIGHTS
    return jax.numpy.tanh(x @ w1.T + b1) @ w2.T + b2


def compiled(folder):
    """The loop as a library, with the header that tells it where the columns are."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise SystemExit("there is no g++")
    (folder / "event.h").write_text(EVENT.to_cpp("Event"))
    library = folder / "loop.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{folder}"]
    subprocess.run([compiler, *flags, str(HERE / "loop.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def of_pointer(forward, model, owner):
    """What C++ calls: the model on the event's own memory, in and out."""

    def call(address, rows):
        soa = EVENT.from_pointer(address, rows, device="cpu", owner=owner)
        forward(model, (soa, INPUTS), (soa, OUTPUTS))

    return call


def by_hand(model):
    """The same with copies: columns stacked, and the results written back."""

    def call(address, rows):
        memory = (ctypes.c_uint8 * EVENT.nbytes(rows)).from_address(address)
        at = {
            name: np.frombuffer(memory, "f4", rows, EVENT.offset(name, rows))
            for name in ("pt", "eta", "phi", "score")
        }
        result = model(np.stack([at["pt"], at["eta"], at["phi"]], axis=1))
        at["score"][:] = result[:, 0]

    return call


def torch_by_hand(x):
    """A model that takes and gives arrays."""
    with torch.inference_mode():
        return NET(torch.from_numpy(x)).numpy()


def jax_by_hand(x):
    """The same of JAX's."""
    return np.asarray(net(x))


def loop(library, call, rows):
    """Seconds that the model took for each event, and the sums of scores that C++ read."""
    raised = []

    def guarded(address, count):
        try:
            call(address, count)
        except Exception as error:  # C++ cannot take it
            raised.append(error)
            return 1
        return 0

    counts = (ctypes.c_size_t * len(rows))(*rows)
    seconds, sums = np.zeros(len(rows)), np.zeros(len(rows))
    pointer = ctypes.POINTER(ctypes.c_double)
    arrays = [array.ctypes.data_as(pointer) for array in (seconds, sums)]
    failed = library.run(CALL(guarded), counts, ctypes.c_size_t(len(rows)), *arrays)
    if raised:
        raise raised[0]
    assert not failed
    return seconds, sums


def main():
    """Compile, run each way by turns, compare what C++ read, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--events", type=int, default=200, help="of each size")
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        ways = {
            "torch, forward": of_pointer(soaview_torch.forward, NET, library),
            "torch, by hand": by_hand(torch_by_hand),
            "JAX, forward": of_pointer(soaview_jax.forward, net, library),
            "JAX, by hand": by_hand(jax_by_hand),
        }
        for most in (100, 10_000):
            rows = np.random.default_rng(0).integers(most // 2, most, 5)  # JAX compiles for each
            rows = np.resize(rows, events).tolist()
            times = {name: [] for name in ways}
            for number in range(4):
                sums = {}
                for name, call in ways.items():
                    seconds, sums[name] = loop(library, call, rows)
                    times[name].append(seconds if number else [])
                for found in sums.values():
                    np.testing.assert_allclose(found, sums["torch, by hand"], rtol=1e-4, atol=1e-2)
            for name, found in times.items():
                median = np.median(np.concatenate(found)) * 1e6
                print(f"up to {most:6d} rows  {name:15s} {median:9.1f} us an event")
    print("C++ read the same scores from each")


if __name__ == "__main__":
    main()
