"""SoAs that are copied, pickled, sent to other processes, or shared with them."""

from __future__ import annotations

import array
import copy
import ctypes
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np
import pytest
from adapters import spec_of
from cases import layout_of, wrapped
from places import soon, unheld

from soaview import Blocks, Column, Layout, Scalar, SoA, Spec, Value, views

ROWS = [0, 1, 32, 33, 1000]
SPAWN = multiprocessing.get_context("spawn")


def assert_same(one, other):
    assert (one.layout, one.rows) == (other.layout, other.rows)
    for field in one.layout.fields:
        key = field.name if field.per_row else Value(field.name)
        np.testing.assert_array_equal(one[key], other[key])


def by_protocol(number):
    return lambda soa: pickle.loads(pickle.dumps(soa, number))


COPIES = {
    "deepcopy": copy.deepcopy,
    **{f"protocol {number}": by_protocol(number) for number in range(6)},
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("rows", ROWS)
def test_copies_have_memory_of_their_own(copied, rows):
    """A copy has the same values, aligned, writable and independent; also of read-only memory.

    What a pickle of protocol 5 holds is taken as it is: aligned for the items, and as writable.
    """
    soa, _ = wrapped(layout_of("float32", "bfloat16"), rows)
    twin = copied(soa)
    assert_same(twin, soa)
    assert (twin.capacity, twin.start, twin.readonly) == (rows, 0, False)
    assert twin.buffer.address % (16 if copied is COPIES["protocol 5"] else 64) == 0
    assert rows == 0 or not np.may_share_memory(twin.buffer.root, soa.buffer.root)
    frozen = soa.layout.wrap(soa.buffer.root.tobytes(), rows)
    twin = copied(frozen)
    assert_same(twin, frozen)
    assert twin.readonly == (copied is COPIES["protocol 5"])
    assert not np.may_share_memory(twin.buffer.root, frozen.buffer.root)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_slice_sends_its_own_rows_alone(copied):
    """The copy of a slice is an SoA of that many rows; nobody else's rows go along."""
    soa, _ = wrapped(layout_of("float64", "int8"), 1000)
    for part in (soa[3:36], soa[999:], soa[500:500], soa[100:][50:60]):
        twin = copied(part)
        assert_same(twin, part)
        assert twin.buffer.nbytes == soa.layout.nbytes(part.rows)
    assert len(pickle.dumps(soa[3:4], 5)) < soa.layout.nbytes(1) + 1500


def test_copy_copy_is_the_same_memory():
    """A shallow copy is another SoA over the same memory."""
    soa, _ = wrapped(layout_of("float32", "int8"), 33)
    for one in (soa, soa[3:9]):
        twin = copy.copy(one)
        assert twin is not one
        assert_same(twin, one)
        twin["x"][...] = 7
        assert (one["x"] == 7).all()


def test_out_of_band():
    """Protocol 5 hands the memory over as it is, in one buffer, and takes it back as it is."""
    soa, _ = wrapped(layout_of("float32", "int8"), 1000)
    buffers = []
    sent = pickle.dumps(soa, 5, buffer_callback=buffers.append)
    assert len(sent) < 1500
    [memory] = buffers
    assert memory.raw().nbytes == soa.buffer.nbytes
    assert np.may_share_memory(np.asarray(memory.raw()), soa.buffer.root)
    twin = pickle.loads(sent, buffers=[memory])
    assert twin.buffer.address == soa.buffer.address
    twin["x"][...] = 7
    assert (soa["x"] == 7).all()
    elsewhere = np.zeros(memory.raw().nbytes + 64, np.uint8)
    for shift in (0, 1):  # misaligned memory cannot be viewed
        there = elsewhere[shift + -elsewhere.__array_interface__["data"][0] % 64 :]
        there = there[: soa.buffer.nbytes]
        there[...] = soa.buffer.root
        twin = pickle.loads(sent, buffers=[there])
        assert_same(twin, soa)
        assert np.may_share_memory(twin.buffer.root, there) == (shift == 0)


@pytest.mark.parametrize("rows", [0, 33, 1000])
@pytest.mark.parametrize("part", [slice(None), slice(2, 20)], ids=str)
def test_frames_alias_whatever_they_are(rows, part):
    """What comes out of band is taken as it is, of whatever kind, and is written if it can be."""
    soa, frames = wrapped(layout_of("float32", "int8"), rows)[0][part], []
    sent = pickle.dumps(soa, 5, buffer_callback=frames.append)
    data = frames[0].raw()
    for came in (
        bytes(data),
        bytearray(data),
        memoryview(bytearray(data)),
        memoryview(bytes(data)),
        np.array(data),
        array.array("B", bytes(data)),
        (ctypes.c_uint8 * len(data)).from_buffer_copy(data),
        pickle.PickleBuffer(bytearray(data)),
    ):
        twin = pickle.loads(sent, buffers=iter([came]))
        assert_same(twin, soa)
        assert twin.buffer.address == np.frombuffer(came, np.uint8).__array_interface__["data"][0]
        assert twin.readonly == memoryview(came).readonly
        if not twin.readonly:
            twin["x"] = np.float32(7)
            assert np.float32(7).tobytes() * len(twin) in bytes(memoryview(came).cast("B"))


def test_frames_with_gaps_are_refused():
    """A frame that is not contiguous is no memory of an SoA."""
    soa, frames = wrapped(layout_of("float32", "int8"), 33)[0], []
    sent = pickle.dumps(soa, 5, buffer_callback=frames.append)
    for odd in (np.zeros(99_999, "u1")[::2], memoryview(bytes(99_999))[::2]):
        with pytest.raises(BufferError, match="the buffer is not contiguous"):
            pickle.loads(sent, buffers=[odd])


def test_pickles_name_what_is_public():
    """No private name stands in a pickle, so that a room of the package may be renamed."""
    soa, _ = wrapped(layout_of("float32", "int8"), 3)
    event = Blocks({"a": soa.layout, "b": soa.layout}).allocate({"a": 2, "b": 3})
    event["b"]["x"] = [1, 2, 3]
    spec, value = Spec(x=["x"], n=Value("n")), Value("n")
    for thing in (soa, soa.layout, *soa.layout.fields, event, event.layout, spec, value):
        for protocol in range(6):
            sent = pickle.dumps(thing, protocol)
            assert b"soaview" in sent
            assert b"soaview._" not in sent
            twin = pickle.loads(sent)
            assert type(twin) is type(thing)
            if not isinstance(thing, (SoA, type(event))):
                assert twin == thing
                assert hash(twin) == hash(thing)
    assert pickle.loads(pickle.dumps(event))["b"]["x"].tolist() == [1, 2, 3]


def test_a_hostile_layout_in_a_pickle():
    """A layout's state is checked as its description is."""
    for state, error in (({"fields": []}, ValueError), ({"fields": 3}, TypeError), ([], TypeError)):
        with pytest.raises(error):
            Layout.__new__(Layout).__setstate__(state)


def test_a_buffer_of_another_size_is_refused():
    """What comes out of band must hold the SoA."""
    soa, _ = wrapped(layout_of("float32", "int8"), 33)
    sent = pickle.dumps(soa, 5, buffer_callback=lambda memory: None)
    for short in (b"", bytes(1), bytearray(7), memoryview(bytearray(64))):
        with pytest.raises(ValueError, match=f"too small: got {len(short)} bytes"):
            pickle.loads(sent, buffers=[short])
    for short in (b"", b"x", bytes(100)):  # as a damaged pickle of an older protocol has them
        state = {"layout": soa.layout, "rows": 33, "bytes": short}
        with pytest.raises(ValueError, match=f"too small: got {len(short)} bytes"):
            SoA.__new__(SoA).__setstate__(state)
    more = soa.buffer.root.tobytes() + b"more"
    for memory in (more, bytearray(more), memoryview(bytearray(b"+" + more))[1:]):
        assert_same(pickle.loads(sent, buffers=[memory]), soa)


def test_views_are_not_sent():
    """A view goes with its memory only as an SoA."""
    soa, _ = wrapped(layout_of("float32", "int8"), 33)
    for part in (views(soa, spec_of("x"))[0], soa.buffer):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="pickle or deepcopy the SoA"):
                copied(part)


@pytest.mark.slow
def test_to_another_process():
    """An SoA is an argument and a result of a function that another process runs."""
    soa, _ = wrapped(layout_of("float32", "int8"), 1000)
    with ProcessPoolExecutor(1, SPAWN) as pool:
        for one in (soa, soa[10:20]):
            twin = pool.submit(doubled, one).result()
            np.testing.assert_array_equal(twin["x"], 2 * one["x"])
            np.testing.assert_array_equal(twin["m"], one["m"])


def doubled(soa):
    soa["x"][...] *= 2
    return soa


@pytest.mark.slow
@pytest.mark.aliasing
def test_shared_memory(adapter):
    """Memory shared by two processes: what one of them writes, the other one's tensors show."""
    layout = Layout([Column("x", "float32"), Column("y", "float32"), Scalar("n", "int32")])
    rows = 1024
    shared = SharedMemory(create=True, size=layout.nbytes(rows))
    try:
        soa = layout.wrap(shared, rows)
        xy, n = adapter.tensors(soa, Spec(xy=["x", "y"], n=Value("n")))
        there = SPAWN.Process(target=fill, args=(shared.name, layout, rows))
        there.start()
        there.join()
        assert there.exitcode == 0
        assert (adapter.to_numpy(xy) == [1, 2]).all()
        assert adapter.to_numpy(n) == 3
        del soa, xy, n
        assert soon(lambda: unheld(shared.close))
    finally:
        shared.unlink()


def fill(name, layout, rows):
    """What the other process does."""
    shared = SharedMemory(name)
    soa = layout.wrap(shared, rows)
    soa["x"][...], soa["y"][...] = 1, 2
    soa[Value("n")][...] = 3
    del soa
    shared.close()
