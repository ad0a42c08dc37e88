"""From SoA to SoA: `python benchmarks/inference.py`.

The networks of `examples`. `forward` against what people write: a stack of the columns for each
tensor, the model, and an assignment for each column of the results (the columns' NumPy views are
ready beforehand); and against the model alone, on contiguous tensors that are ready. For the one
that begins with a normalization, its form by features, too. All run interleaved, round by round, in
one process; a ratio is that of the medians. Arguments name networks; `--most N` ends earlier.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from measure import keep_freed_memory, medians
from torch.utils._python_dispatch import TorchDispatchMode

import soaview_jax
import soaview_torch
from soaview import SoA, Spec

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
NETWORKS = [
    "simple_net",
    "masked_net",
    "multi_head_net",
    "track_hit_deep_set",
    "tiny_resnet",
    "norm_first",
]
LARGEST = {"tiny_resnet": 10**4}


def sources(soa: SoA, spec: Spec) -> list[list[np.ndarray]]:
    """For each tensor the views that people hold."""
    return [[soa[name] for name in ([e] if isinstance(e, str) else e)] for e in spec.values()]


def gathered(soa: SoA, spec: Spec) -> Callable[[], list[np.ndarray]]:
    """Contiguous arrays, made with NumPy."""
    makers: list[Callable[[], np.ndarray]] = []
    for entry, views in zip(spec.values(), sources(soa, spec), strict=True):
        if isinstance(entry, str):
            makers.append(lambda views=views: np.ascontiguousarray(views[0]))
        elif len(entry) == 1:
            makers.append(lambda views=views: np.ascontiguousarray(views[0])[:, None])
        else:
            makers.append(lambda views=views: np.stack(views, axis=1))
    return lambda: [make() for make in makers]


def stacked(soa: SoA, spec: Spec) -> Callable[[], list[torch.Tensor]]:
    """Contiguous tensors, made with torch."""
    makers: list[Callable[[], torch.Tensor]] = []
    for entry in spec.values():
        tensors = soaview_torch.tensors(
            soa,
            Spec({str(i): n for i, n in enumerate([entry] if isinstance(entry, str) else entry)}),
        )
        if isinstance(entry, str):
            makers.append(lambda tensors=tensors: tensors[0].contiguous())
        elif len(entry) == 1:
            makers.append(lambda tensors=tensors: tensors[0].contiguous()[:, None])
        else:
            makers.append(lambda tensors=tensors: torch.stack(tensors, 1))
    return lambda: [make() for make in makers]


def assigned(soa: SoA, spec: Spec) -> Callable[[Any], None]:
    """Results into the columns, one by one."""
    places = [
        (views, isinstance(entry, str))
        for entry, views in zip(spec.values(), sources(soa, spec), strict=True)
    ]

    def assign(results: Any) -> None:
        if isinstance(results, dict):
            results = [results[name] for name in spec]
        elif not isinstance(results, (tuple, list)):
            results = [results]
        for (views, plain), result in zip(places, results, strict=True):
            array = np.asarray(result)
            for number, view in enumerate(views):
                view[...] = array if plain else array[:, number]

    return assign


def ways(example: Any, rows: int) -> dict[str, dict[str, Callable[[], object]]]:
    inputs, (out, spec) = example.event(rows)
    pairs = [inputs] if isinstance(inputs, tuple) else inputs
    model, function = importlib.import_module("both").networks(example)
    jitted, assign = jax.jit(function), assigned(out, spec)
    by_numpy = [gathered(*pair) for pair in pairs]
    stacks = [stacked(*pair) for pair in pairs]
    ready = [t for make in stacks for t in make()]
    arrays = [jax.numpy.array(t.numpy()) for t in ready]

    def alone() -> None:
        with torch.inference_mode():
            model(*ready)

    def numpy_stack() -> None:
        with torch.inference_mode():
            assign(model(*[torch.from_numpy(a) for make in by_numpy for a in make()]))

    def torch_stack() -> None:
        with torch.inference_mode():
            assign(model(*[t for make in stacks for t in make()]))

    by_torch: dict[str, Callable[[], object]] = {
        "soaview": lambda: soaview_torch.forward(model, inputs, (out, spec)),
        "copy=True": lambda: soaview_torch.forward(model, inputs, (out, spec), copy=True),
        "np.stack": numpy_stack,
        "torch.stack": torch_stack,
        "alone": alone,
    }
    if hasattr(example, "ByFeature"):
        by_feature = example.ByFeature(model)
        by_torch["ByFeature"] = lambda: soaview_torch.forward(by_feature, inputs, (out, spec))
    return {
        "torch": by_torch,
        "jax": {
            "soaview": lambda: soaview_jax.forward(function, inputs, (out, spec)),
            "np.stack": lambda: assign(jitted(*[a for make in by_numpy for a in make()])),
            "alone": lambda: jax.block_until_ready(jitted(*arrays)),
        },
    }


class Bytes(TorchDispatchMode):
    """Counts what torch's operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten.as_strided.default:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
            tensors = {id(t): t.nbytes for t in leaves if isinstance(t, torch.Tensor)}
            self.moved += sum(tensors.values())  # a result that was given is written once
        return result


def moved(call: Callable[[], object]) -> int:
    call()
    with Bytes() as counted:
        call()
    return counted.moved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--most", type=int, default=10**6, help="the largest row count")
    asked = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, jax {jax.__version__}, numpy {np.__version__}")
    print(f"{torch.get_num_threads()} threads\n")
    ratios = "np.stack / soaview | torch.stack / soaview | soaview / alone | copy=True / soaview"
    ratios += " | ByFeature / soaview"
    print(f"| network | rows | by | soaview, us | {ratios} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in asked.networks:
        example = importlib.import_module(name)
        for power in range(2, 7):
            rows = 10**power
            if rows > min(asked.most, LARGEST.get(name, asked.most)):
                break
            for framework, calls in ways(example, rows).items():
                found = medians(calls, rounds=max(200 // power**2, 11), repeat=max(2000 // rows, 1))
                own = found["soaview"]
                cells = [f"{found[way] / own:.2f}" if way in found else "" for way in WAYS]
                cells.insert(2, f"{own / found['alone']:.2f}")
                print(f"| {name} | {rows} | {framework} | {own * 1e6:.0f} |", end=" ")
                print(*cells, sep=" | ", end=" |\n", flush=True)
    print("\nBytes that torch's operations read and write for each row of 1000:")
    for name in asked.networks:
        calls = ways(importlib.import_module(name), 1000)["torch"]
        counts = {way: moved(calls[way]) // 1000 for way in ("alone", "soaview", "torch.stack")}
        print(f"{name}: {', '.join(f'{way} {count}' for way, count in counts.items())}")


WAYS = ["np.stack", "torch.stack", "copy=True", "ByFeature"]

if __name__ == "__main__":
    main()
