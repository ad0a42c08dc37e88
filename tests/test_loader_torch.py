"""Loaders of torch's over an SoA: views in order, one copy for an epoch, rows for DataLoader."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
from pathlib import Path

import numpy as np
import places
import pytest
import torch
from bound import of_a_device
from torch.utils.data import BatchSampler, DataLoader

import soaview
from soaview import Column, Layout, Scalar, Spec, Value, bind
from soaview_torch import Rows, _loader, _rows, concatenate, loader, take, tensors

NEEDS = ["torch"]

LAYOUT = Layout(
    [
        Column("x", "float32"),
        Column("k", "uint16"),
        Column("cov", "float64", (2, 3)),
        Column("y", "float32"),
        Column("hit", "float32", (3,), interleaved=True),
        Scalar("n", "int32"),
        Column("rest", "float64"),
    ]
)
SPEC = Spec(
    xy=["x", "y"], yx=["y", "x"], k="k", cov="cov", hit="hit", n="n", same=Value("n"), again=["x"]
)


def filled(rows, wrap=Layout.wrap):
    memory = places.aligned(np.zeros(LAYOUT.nbytes(rows), np.uint8))
    soa = LAYOUT.wrap(memory, rows)
    for number, field in enumerate(LAYOUT.fields):
        target = soa[field.name if field.per_row else Value(field.name)]
        target[...] = np.arange(target.size).reshape(target.shape) + 10 * number
    return wrap(LAYOUT, memory, rows)


def on_a_device(rows):
    return filled(rows, places.PretendedMemory().wrap)


def wanted(soa, order):
    """What a batch of these rows is, by NumPy."""
    x, y = soa["x"][order], soa["y"][order]
    cov, hit = soa["cov"][order], soa["hit"][order]
    n = soa[Value("n")]
    one = [np.stack([x, y], 1), np.stack([y, x], 1), soa["k"][order], cov, hit]
    return [*one, np.full(len(order), n), n, x[:, None]]


def check(batch, arrays):
    assert len(batch) == len(arrays)
    for tensor, array in zip(batch, arrays, strict=True):
        assert tuple(tensor.shape) == array.shape
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)


def orders(seed, rows, epochs):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(rows, generator=generator).numpy() for _ in range(epochs)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 10, 12])
def test_in_order_batches_are_views(rows, drop_last):
    """Batches are the SoA's own memory, row after row; the last is short, or dropped."""
    soa = filled(rows)
    spec = SPEC.subset("xy", "k", "cov", "hit", "n", "same")
    batches = loader(soa, spec, 4, drop_last=drop_last)
    assert len(batches) == len(list(batches)) == (rows // 4 if drop_last else -(-rows // 4))
    for _ in range(2):
        for number, batch in enumerate(batches):
            order = np.arange(4 * number, min(4 * number + 4, rows))
            mine = wanted(soa, order)
            check(batch, [mine[0], *mine[2:7]])
            assert batch[1].data_ptr() == soa["k"].ctypes.data + 8 * number
            batch[0][0, 1] += 1
            assert soa["y"][4 * number] == batch[0][0, 1]


@pytest.mark.parametrize("make", [filled, on_a_device, lambda n: filled(n + 4)[2:-2]])
def test_a_shuffled_epoch_has_each_row_once(make):
    """Every epoch is a permutation that the generator gives, whatever the columns are."""
    rows = 10
    soa, there = filled(rows), make(rows)
    if there.rows != there.capacity:
        soa = there
    generator = torch.Generator().manual_seed(5)
    batches = loader(there, SPEC, 4, shuffle=True, generator=generator)
    for order in orders(5, rows, 3):
        found = list(batches)
        assert [len(batch[0]) for batch in found] == [4, 4, 2]
        for number, batch in enumerate(found):
            check(batch, wanted(soa, order[4 * number : 4 * number + 4]))
    assert len(list(loader(there, SPEC, 4, shuffle=True, drop_last=True))) == 2
    assert list(loader(make(0), SPEC, 4, shuffle=True)) == []


def test_bound_columns_are_shuffled():
    """Columns in memory apart from each other, aligned or not, come together when shuffled."""
    records = np.zeros(9, [("i", "i1"), ("a", "f4"), ("b", "f4")])
    records["a"], records["b"] = np.arange(9), -np.arange(9)
    soa = bind({"a": records["a"], "b": records["b"], "c": np.arange(9, dtype="f4")})
    [order] = orders(1, 9, 1)
    made = loader(
        soa, Spec(t=["a", "c", "b"]), 9, shuffle=True, generator=torch.Generator().manual_seed(1)
    )
    [[t]] = made
    np.testing.assert_array_equal(t.numpy(), np.stack([order, order, -order], 1))


def storages(epoch):
    return {tensor.untyped_storage().data_ptr() for batch in epoch for tensor in batch}


def test_memory_of_an_epoch_is_used_again():
    """Epoch after epoch is in the same memory, which has the spec's columns alone."""
    spec = SPEC.subset("xy")
    batches = loader(filled(1000), spec, 10, shuffle=True)
    [first] = storages(batches)
    for _ in range(3):
        assert storages(batches) == {first}
    [[batch]] = loader(filled(1000), spec, 1000, shuffle=True)
    assert batch.untyped_storage().nbytes() == 2 * Layout([Column("x", "float32")]).nbytes(1000)


def graph_of(batch):
    weight = torch.ones(2, 3, requires_grad=True)
    return (batch[0] @ weight).sum(), weight


KEEPERS = {
    "a batch": lambda batch: batch,
    "a tensor": lambda batch: batch[0],
    "a view of one": lambda batch: batch[0][1:],
    "another dtype's": lambda batch: batch[0].view(torch.int32),
    "NumPy's view": lambda batch: batch[0].numpy(),
    "a detached one": lambda batch: batch[0].detach(),
    "what a graph saves": graph_of,
}


@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_what_is_kept_does_not_change(keep):
    """While anything of an epoch lives the next one is written elsewhere, even for a graph."""
    soa = filled(100)
    batches = loader(soa, SPEC.subset("xy"), 10, shuffle=True)
    epoch = iter(batches)
    batch = next(epoch)
    [place] = storages([batch])
    before = batch[0].clone()
    kept = keep(batch)
    del batch, epoch
    for _ in range(3):
        for [xy] in batches:
            assert xy.untyped_storage().data_ptr() != place
            xy.zero_()
    if isinstance(kept, tuple):
        loss, weight = kept
        loss.backward()
        torch.testing.assert_close(weight.grad, before.sum(0)[:, None].expand(2, 3))
    else:
        one = kept[0] if isinstance(kept, list) else kept
        assert np.asarray(one).tobytes() in before.numpy().tobytes("A") + before.numpy().tobytes()
    assert soa["x"].any()


def test_an_epoch_that_is_not_over_keeps_its_memory():
    """Two epochs at once have memory each, and so do those of two threads."""
    batches = loader(filled(64), SPEC.subset("xy"), 8, shuffle=True)
    list(batches)
    for one, other in zip(batches, batches, strict=True):
        assert storages([one]) != storages([other])
    places_of, barrier, wrong = [], threading.Barrier(4), []

    def work():
        for _ in range(30):
            barrier.wait()
            found = list(batches)
            places_of.append(storages(found))
            rows = torch.cat([batch[0] for batch in found])
            if sorted(rows[:, 0].tolist()) != list(range(64)):
                wrong.append(rows)
            barrier.wait()

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(switch)
    assert len(places_of) == 120
    assert not wrong


def test_an_epoch_begun_while_another_is_written(monkeypatch):
    """An epoch that begins before another is written to its end has memory of its own."""
    batches = loader(filled(64), SPEC.subset("xy"), 64, shuffle=True)
    list(batches)
    inner, real = [], _loader.gather_on_host

    def gather(*arguments):
        if not inner:
            inner.append(None)
            inner[0] = next(iter(batches))[0]
        real(*arguments)

    monkeypatch.setattr(_loader, "gather_on_host", gather)
    [[outer]] = batches
    assert storages([[outer]]) != storages([inner])
    assert sorted(outer[:, 0].tolist()) == sorted(inner[0][:, 0].tolist()) == list(range(64))


def test_another_thread_takes_the_memory_first():
    """Memory that another thread takes in between is missed by nobody."""

    class Raced(list):
        def __bool__(self):
            return True

    batches = loader(filled(8), SPEC.subset("xy"), 8, shuffle=True)
    batches._last = Raced()
    assert len(list(batches)) == 1


def test_an_epoch_comes_again():
    """With the generator as it was the same epoch comes, and its rest by skipping batches."""
    generator = torch.Generator().manual_seed(3)
    batches = loader(filled(20), SPEC.subset("xy"), 3, shuffle=True, generator=generator)
    list(batches)
    state = generator.get_state()
    epoch = copy.deepcopy(list(batches))
    assert not torch.equal(epoch[0][0], next(iter(batches))[0])
    generator.set_state(state)
    rest = list(itertools.islice(batches, 4, None))
    assert len(rest) == 3
    for one, other in zip(rest, epoch[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch size must be positive"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
        ({"shuffle": True, "generator": 1}, TypeError, "must be a torch.Generator, got int"),
        ({"generator": torch.Generator()}, ValueError, "in order nothing is drawn"),
        ({"drop_last": None}, TypeError, "drop_last must be True or False"),
        ({"spec": Spec(z="z")}, KeyError, "no column 'z'"),
        ({"spec": Spec()}, ValueError, "the spec has no tensors"),
        ({"soa": {}}, TypeError, "soa must be an SoA"),
        ({"spec": Spec(yx=["y", "x"])}, BufferError, "in order a loader gives views.*shuffle=True"),
        ({"soa": LAYOUT.wrap(bytes(LAYOUT.nbytes(3)), 3)}, BufferError, "read-only.*Rows\\("),
    ],
)
def test_what_is_refused(change, kind, message):
    """A loader that cannot be is refused when it is made, with a way out."""
    arguments = {"soa": filled(3), "spec": Spec(x="x"), "batch_size": 2, **change}
    with pytest.raises(kind, match=message):
        loader(**arguments)


def test_the_ways_out_are_right():
    """Read-only memory, and columns that make no view, are loaded shuffled and by `Rows`."""
    soa = LAYOUT.wrap(filled(5).buffer.root.tobytes(), 5)
    assert soa.readonly
    [batch] = loader(soa, SPEC, 5, shuffle=True, generator=torch.Generator().manual_seed(2))
    check(batch, wanted(soa, orders(2, 5, 1)[0]))
    check(Rows(soa, SPEC)[[3, 0]], wanted(soa, np.array([3, 0])))


def test_rows_are_a_dataset():
    """A row has no axis of rows, a list of rows is a batch; both are copies, and both have ends."""
    soa = filled(6)
    rows = Rows(soa, SPEC)
    assert len(rows) == 6
    check(rows[np.int64(-2)], [a[0] if a.ndim else a for a in wanted(soa, np.array([4]))])
    for chosen in ([1, -1], np.array([1, 5]), torch.tensor([1, 5]), soa["k"] % 4 == 3):
        check(rows[chosen], wanted(soa, np.arange(6)[np.asarray(chosen)]))
    batch = rows[[0]]
    batch[2].zero_()
    assert soa["k"][0] == 10
    assert len(list(rows)) == 6
    for missing in (6, -7, [0, 6]):
        with pytest.raises(IndexError, match="is not there: the SoA has 6 rows"):
            rows[missing]
    with pytest.raises(TypeError, match="got float64"):
        rows[[0.5]]
    with pytest.raises(KeyError, match="no column 'z'"):
        Rows(soa, Spec(z="z"))
    with pytest.raises(BufferError, match="soaview_torch.loader chooses them there"):
        Rows(on_a_device(3), SPEC)


def test_a_dataloader_of_rows():
    """A DataLoader stacks the same batches by default, and takes them as they are."""
    soa = filled(10)
    spec = SPEC.subset("xy", "k", "cov", "same")
    rows, order = Rows(soa, spec), [7, 1, 3, 9, 0]
    stacked = list(DataLoader(rows, batch_size=3, sampler=order))
    taken = list(DataLoader(rows, sampler=BatchSampler(order, 3, False), batch_size=None))
    assert len(stacked) == len(taken) == 2
    for one, other, chosen in zip(stacked, taken, (order[:3], order[3:]), strict=True):
        mine = wanted(soa, np.array(chosen))
        check(other, [mine[0], mine[2], mine[3], mine[6]])
        check(one[:3], [mine[0], mine[2], mine[3]])
        assert one[3].tolist() == [int(mine[6])] * len(chosen)
    torch.manual_seed(0)
    seen = [x for batch in DataLoader(rows, batch_size=4, shuffle=True) for x in batch[1].tolist()]
    assert sorted(seen) == soa["k"].tolist()


@pytest.mark.slow
def test_workers(run_python):
    """Workers give each row once; an SoA is sent only where they are spawned, if it has no name."""
    out = run_python(Path(__file__).with_name("workers.py")).stdout
    assert out.splitlines() == [
        "shared fork True 0",
        "shared spawn True 0",
        "own fork True 0",
        "own spawn True 1",
    ]


@pytest.mark.parametrize("make", [filled, on_a_device])
@pytest.mark.parametrize(
    "rows",
    [
        [3, 0, -1],
        torch.tensor([3, 0, -1]),
        torch.tensor([2, 1], dtype=torch.uint8),
        [],
        torch.tensor([True, False, True, False]),
    ],
)
def test_take_where_the_soa_is(make, rows):
    """Chosen rows are on the SoA's device, of all kinds of columns."""
    soa, there = filled(4), make(4)
    made, host = take(there, rows), soa.take(rows)
    assert made.device == there.device
    assert made.layout == LAYOUT
    spec = SPEC.subset("xy", "k", "cov", "hit", "n", "same")
    for one, other in zip(tensors(made, spec), tensors(host, spec), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_take_on_a_device_reads_numbers_there(monkeypatch):
    """Numbers that are on a device are checked there, by their least and most."""
    soa = on_a_device(4)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("meta"))
    assert _rows._numbers(torch.tensor([-1, 2], dtype=torch.int16), soa).tolist() == [3, 2]
    assert _rows._numbers(torch.tensor([True, False, False, True]), soa).tolist() == [0, 3]
    for wrong, kind in (
        (torch.tensor([4]), IndexError),
        (torch.tensor([-5]), IndexError),
        (torch.tensor([True]), IndexError),
        (torch.tensor([0.0]), TypeError),
        (torch.tensor([[0]]), TypeError),
    ):
        with pytest.raises(kind):
            _rows._numbers(wrong, soa)


def test_concatenate_where_the_soas_are():
    """SoAs of a device follow each other there; a scalar that differs is refused, by its values."""
    soas = [on_a_device(3), on_a_device(0), on_a_device(5)[1:]]
    made = concatenate(soas)
    host = soaview.concatenate([filled(3), filled(0), filled(5)[1:]])
    spec = SPEC.subset("xy", "k", "cov", "hit", "same")
    for one, other in zip(tensors(made, spec), tensors(host, spec), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert not isinstance(concatenate([filled(1)]).buffer.owner, torch.Tensor)
    [n] = tensors(soas[1], Spec(n=Value("n")))
    n.fill_(7)
    with pytest.raises(ValueError, match="scalar 'n' is \\[50\\] in soas\\[0\\] and \\[7\\]"):
        concatenate(soas)
    with pytest.raises(ValueError, match="other fields than soas"):
        concatenate([soas[0], of_a_device(2)[0]])
    with pytest.raises(BufferError, match="take of soaview_torch or soaview_jax"):
        soas[0].take([0])
    with pytest.raises(BufferError, match="concatenate of soaview_torch"):
        soaview.concatenate(soas)


def test_bound_columns_of_a_device_are_taken():
    """Several allocations of a device give one new SoA."""
    soa, one, _ = of_a_device(5)
    made = take(soa, [4, 0])
    [x] = tensors(made, Spec(x="x"))
    np.testing.assert_array_equal(x.numpy(), one["x"][[4, 0]])
    assert concatenate([soa, soa[1:3]]).rows == 7
