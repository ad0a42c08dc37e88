"""Threads that take tensors of one SoA, and write them."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from cases import layout_of

from soaview import Column, Layout, Scalar, Spec
from soaview_torch import forward, tensors, write

NEEDS = ["torch"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int64"), Scalar("n", "int32")]
)


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


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


@pytest.mark.slow
def test_threads_share_one_count_of_writes(switching):
    """Whoever takes tensors of a new SoA first, or writes, all tensors share a version counter."""
    for _ in range(200):
        soa = Layout([*LAYOUT.fields, Column("b", "int8")]).allocate(10)
        found = take_together(soa, "x", "k", "b", ["x", "y"])
        assert {storage(tensor) for tensor in found} == {soa.buffer.address}
        assert counted_together(soa, found)


@pytest.mark.slow
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


@pytest.mark.slow
def test_threads_leave_a_graph_together(switching):
    """When a graph was written into the memory, all threads leave it, and count on together."""
    for _ in range(50):
        soa = LAYOUT.allocate(10)
        [x, k] = tensors(soa, Spec(x="x", k="k"))
        x.copy_(torch.ones(10, requires_grad=True) * 2)
        found = take_together(soa, "x", "k", "y", ["x", "y"])
        assert not any(tensor.requires_grad for tensor in found)
        assert counted_together(soa, [*found, k])
