"""An event loop: `python benchmarks/event_loop.py`.

Every event brings new buffers, and has its row count; a small network (3-32-1) reads three columns
and writes one. `forward` and `prepare` against `np.stack` written by hand for this one layout,
without checks, and against the model alone, on contiguous tensors that are ready. All run
interleaved, round by round, in one process, with one thread; a ratio is that of the medians of the
thread's time (torch), or of the wall's (JAX, which computes in threads of its own). JAX has
compiled for the row counts before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from measure import keep_freed_memory, medians

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Scalar, Spec

IN = Layout(
    [
        *(Column(name, "float32") for name in ("pt", "eta", "phi")),
        Column("cov", "float32", (3, 3)),
        Scalar("field", "float32"),
    ]
)
OUT = Layout([Column("score", "float32")])
X, Y = Spec(x=["pt", "eta", "phi"]), Spec(y=["score"])

Event = tuple[np.ndarray, int, np.ndarray, int]


def events(rows: int, count: int) -> list[Event]:
    """Buffers that own their memory and start on a multiple of 64, which XLA wants."""
    found, random, unfit = [], np.random.default_rng(rows), []
    while len(found) < count:
        buffer = np.zeros(IN.nbytes(rows), np.uint8)
        if buffer.ctypes.data % 64 and len(unfit) < 10_000:
            unfit.append(buffer)  # held, so that the next one is elsewhere
            continue
        for name in X["x"]:
            IN.wrap(buffer, rows)[name][:] = random.normal(size=rows)
        found.append((buffer, rows, np.zeros(OUT.nbytes(rows), np.uint8), rows))
    return found


def columns(buffer: np.ndarray, rows: int) -> list[np.ndarray]:
    floats, pitch = buffer.view(np.float32), (rows * 4 + 127) // 128 * 32
    return [floats[first : first + rows] for first in (0, pitch, 2 * pitch)]


def ways(adapter: Any, model: Any, loop: list[Event], call: Any) -> dict[str, Callable[[], Any]]:
    """`call` takes a contiguous array, and gives the results as one."""
    run = adapter.prepare(model, (IN, X), (OUT, Y))
    soas = [((IN.wrap(given, n), X), (OUT.wrap(written, m), Y)) for given, n, written, m in loop]
    views = [([soa[name] for name in X["x"]], out["score"]) for (soa, _), (out, _) in soas]
    ready = [np.stack(found, axis=1) for found, _ in views]
    stacked = [call.ready(array) for array in ready]

    def by_hand() -> None:
        for given, rows, written, _ in loop:
            result = call(np.stack(columns(given, rows), axis=1))
            written.view(np.float32)[:rows] = result[:, 0]

    def by_hand_again() -> None:
        for found, score in views:
            score[:] = call(np.stack(found, axis=1))[:, 0]

    def forward() -> None:
        for given, n, written, m in loop:
            adapter.forward(model, (IN.wrap(given, n), X), (OUT.wrap(written, m), Y))

    def forward_again() -> None:
        for inputs, outputs in soas:
            adapter.forward(model, inputs, outputs)

    def prepared() -> None:
        for given, n, written, m in loop:
            run((given, n), (written, m))

    def alone() -> None:
        for array in stacked:
            call.alone(array)

    found = {
        "alone": alone,
        "hand": by_hand,
        "hand again": by_hand_again,
        "forward": forward,
        "forward again": forward_again,
        "prepared": prepared,
    }
    scores = []
    for name in list(found)[1:]:
        for _, _, written, _ in loop:
            written[:] = 0
        found[name]()
        scores.append(np.concatenate([written.view(np.float32) for _, _, written, _ in loop]))
    for score in scores:
        np.testing.assert_allclose(score, scores[0], rtol=1e-4, atol=1e-4)
    return found


class ByTorch:
    def __init__(self, model: Any) -> None:
        self.model, self.ready = model, torch.from_numpy

    def alone(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.model(x)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.alone(torch.from_numpy(x)).numpy()


class ByJax:
    def __init__(self, fn: Any) -> None:
        self.jitted, self.ready = jax.jit(fn), jax.numpy.array

    def alone(self, x: jax.Array) -> None:
        self.jitted(x).block_until_ready()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.jitted(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=10**4, help="the largest row count")
    most = parser.parse_args().most
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    model.eval()
    w, b, v, c = (p.detach().numpy() for p in model.parameters())

    def fn(x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ w.T + b) @ v.T + c

    print(f"torch {torch.__version__}, jax {jax.__version__}, numpy {np.__version__}\n")
    print(
        "| rows | by | alone, us | forward / alone | by hand / forward | the same SoAs: by hand / "
        "forward | by hand / prepared |"
    )
    print("|---|---|---|---|---|---|---|")
    for rows in (100, 1000, 10_000):
        if rows > most:
            break
        loop = events(rows, {100: 60, 1000: 20}.get(rows, 4))
        for name, adapter, given, call, clock in (
            ("torch", soaview_torch, model, ByTorch(model), time.thread_time),
            ("JAX", soaview_jax, fn, ByJax(fn), time.perf_counter),
        ):
            found = medians(ways(adapter, given, loop, call), 60, 1, clock=clock)
            print(
                f"| {rows} | {name} | {found['alone'] / len(loop) * 1e6:.0f} "
                f"| {found['forward'] / found['alone']:.2f} "
                f"| {found['hand'] / found['forward']:.2f} "
                f"| {found['hand again'] / found['forward again']:.2f} "
                f"| {found['hand'] / found['prepared']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
