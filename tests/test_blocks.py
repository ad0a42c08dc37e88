"""Several SoAs in one buffer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
from cases import IMAGES
from test_spec import Own

from soaview import Blocks, Column, Layout, Scalar, SoABlocks, Spec, views
from soaview._device import DeviceBuffer
from soaview._dlpack import DeviceMemory

TRACKS = Layout([Column("pt", "float32"), Scalar("n", "int32"), Column("cov", "float32", (2, 2))])
HITS = Layout([Column("x", "float64", (3,)), Column("track", "int16")])
BLOCKS = Blocks({"tracks": TRACKS, "hits": HITS, "more": TRACKS})
ROWS = {"tracks": 33, "hits": 70, "more": 0}


def filled():
    event = BLOCKS.allocate(ROWS)
    event["tracks"]["pt"][:] = np.arange(33)
    event["hits"]["x"][...] = np.arange(210).reshape(70, 3)
    return event


def test_blocks_follow_each_other():
    """Each block is laid out as its layout says, from where the one before it ends."""
    # tracks: 2 * 128 for pt, 128 for n, 4 * 256 for cov; hits: 3 * 640 for x, 256 for track.
    assert [BLOCKS.offset(name, ROWS) for name in BLOCKS] == [0, 1408, 1408 + 2176]
    assert BLOCKS.nbytes(ROWS) == 1408 + 2176 + 128
    event = filled()
    assert event.buffer.nbytes == BLOCKS.nbytes(ROWS)
    assert event.buffer.address % 128 == 0
    for name, soa in event.items():
        assert soa.layout is BLOCKS[name]
        assert soa.buffer.address == event.buffer.address + BLOCKS.offset(name, ROWS)
        assert (len(soa), soa.buffer.nbytes) == (ROWS[name], BLOCKS[name].nbytes(ROWS[name]))
    x = event.buffer.root[1408:][: 3 * 640].view("float64").reshape(3, 80)
    np.testing.assert_array_equal(x[:, :70].T, event["hits"]["x"])


def test_golden_images_as_blocks():
    """Two images that C++ classes wrote, one after another, are read as two blocks."""
    one, other = (image for image in IMAGES if image.rows == 33 and image.name in NAMES)
    memory = np.concatenate([one.memory(), other.memory()])
    blocks = Blocks({"a": one.layout, "b": other.layout})
    event = blocks.wrap(memory, {"a": 33, "b": 33})
    for name, image in (("a", one), ("b", other)):
        for number, field in enumerate(image.layout.fields):
            wanted = image.expected(number)
            np.testing.assert_array_equal(
                event[name][field.name], np.broadcast_to(wanted, event[name][field.name].shape)
            )


NAMES = sorted({image.name for image in IMAGES if image.rows == 33})[:2]


def test_wrapped_memory():
    """Nothing is copied; the memory's export is held; read-only memory stays so."""
    memory = bytearray(BLOCKS.nbytes(ROWS) + 100)
    event = BLOCKS.wrap(memory, ROWS)
    event["hits"]["track"][:] = 7
    assert memory.count(7) == 70
    with pytest.raises(BufferError):
        memory.clear()
    hits = event["hits"]
    del event
    with pytest.raises(BufferError):
        memory.clear()
    del hits
    memory.clear()
    event = BLOCKS.wrap(bytes(BLOCKS.nbytes(ROWS)), ROWS)
    assert event.readonly
    assert all(soa.readonly for soa in event.values())


def test_a_view_stays_in_its_block():
    """A block's memory ends where it ends, not where the buffer does."""
    event = filled()
    [view] = views(event["tracks"], Spec(pt="pt"))
    assert view.buffer.nbytes == 1408
    with pytest.raises(ValueError, match="do not lie inside"):
        type(view)("t", "float32", 4, (1408 // 4 + 1,), (1,), 0, view.buffer)


@pytest.mark.parametrize("first", [-128, 0, 10**6])
@pytest.mark.parametrize("nbytes", [-1, 10**6])
def test_a_part_lies_inside(first, nbytes):
    """No part of a buffer starts before it, or ends after it."""
    far = Layout(TRACKS.fields).from_pointer(1 << 40, 33, device="cuda:0")
    for buffer in (TRACKS.allocate(33).buffer, far.buffer):
        with pytest.raises(ValueError, match=rf"{nbytes} bytes from byte {first} on .*inside the"):
            buffer.part(first, nbytes, 4)
        with pytest.raises(ValueError, match="128 bytes from byte 1300 on are not inside"):
            buffer.part(1300, 128, 4)
        with pytest.raises(TypeError, match="must be an integer, got 0.0"):
            buffer.part(0.0, 128, 4)
        assert buffer.part(1280, 128, 4).address == buffer.address + 1280
        assert buffer.part(1408, 0, 4).nbytes == 0


def test_device_memory():
    """Blocks of a device's memory know where they are, without its being read."""
    memory = DeviceMemory(2**20, BLOCKS.nbytes(ROWS), False, 2, 1)
    event = SoABlocks(BLOCKS, ROWS, DeviceBuffer(memory, memory.size, 8))
    assert event.device == "cuda:1"
    [view] = views(event["hits"], Spec(track="track"))
    assert view.address == 2**20 + 1408 + 3 * 640
    assert view.__cuda_array_interface__["data"] == (view.address, False)
    part = event["hits"].buffer.part(640, 640, 8).memory
    assert (part.address, part.first, part.size) == (2**20 + 1408 + 640, 1408 + 640, 640)


def test_copies_and_pickles():
    """The whole buffer goes at once; of protocol 5 as one buffer, out of band."""
    event = filled()
    copies = [copy.deepcopy(event), *(pickle.loads(pickle.dumps(event, p)) for p in (2, 4, 5))]
    for other in copies:
        assert (other.layout, other.rows) == (BLOCKS, ROWS)
        np.testing.assert_array_equal(other["hits"]["x"], event["hits"]["x"])
        other["hits"]["x"][...] = 0
    assert event["hits"]["x"].any()
    buffers = []
    stream = pickle.dumps(event, 5, buffer_callback=buffers.append)
    assert len(buffers) == 1
    assert pickle.loads(stream, buffers=buffers).buffer.address == event.buffer.address
    same = copy.copy(event)
    assert same.buffer is event.buffer
    assert same is not event
    assert pickle.loads(pickle.dumps(BLOCKS)) == BLOCKS


def test_a_mapping():
    """Blocks are found by name, in memory order; they are immutable, and compared by value."""
    event = filled()
    assert list(event) == list(BLOCKS) == ["tracks", "hits", "more"]
    assert (len(event), len(BLOCKS)) == (3, 3)
    assert "hits" in event
    assert "hit" not in event
    assert event == event
    assert event != filled()
    assert Blocks(dict(BLOCKS)) == BLOCKS
    assert hash(BLOCKS) == hash(Blocks(dict(BLOCKS)))
    assert Blocks({"hits": HITS, "tracks": TRACKS, "more": TRACKS}) != BLOCKS
    assert BLOCKS != 1
    assert repr(event).startswith("SoABlocks(tracks: SoA(33 rows, 1408 bytes on cpu: pt float32, ")
    assert repr(Blocks({"a": HITS})) == f"Blocks({{'a': {HITS!r}}})"
    with pytest.raises(AttributeError):
        BLOCKS.alignment = 64
    with pytest.raises(TypeError):
        BLOCKS.layouts["more"] = HITS
    with pytest.raises(TypeError):
        event.rows["hits"] = 71
    with pytest.raises(TypeError, match="write through the view"):
        event["hits"] = event["tracks"]
    with pytest.raises(KeyError, match="no block 'hit'; did you mean 'hits'"):
        event["hit"]
    with pytest.raises(KeyError, match="no block 5"):
        BLOCKS[5]
    with pytest.raises(TypeError, match="got SoABlocks; take one of the blocks"):
        views(event, Spec(pt="pt"))


def test_blocks_cannot_be_set():
    """What was checked together stays together."""
    event = filled()
    for change in (
        lambda: setattr(event, "rows", {}),
        lambda: setattr(event, "layout", BLOCKS),
        lambda: delattr(event, "rows"),
        lambda: event.__setstate__({}),
    ):
        with pytest.raises(AttributeError, match="blocks are immutable"):
            change()
    assert pickle.loads(pickle.dumps(event))["tracks"]["pt"][3] == 3


def test_blocks_replaced():
    """A block may be another SoA of its layout and rows; nothing else is taken."""
    event = filled()
    other = TRACKS.allocate(33)
    found = event.replace({"tracks": other})
    assert found["tracks"] is other
    assert found["hits"] is event["hits"]
    assert found.piecewise
    assert not copy.deepcopy(found)["tracks"]["pt"].any()
    for soas, error, match in (
        ({"track": other}, KeyError, "did you mean 'tracks'"),
        ({"tracks": TRACKS.allocate(34)}, ValueError, "'tracks' has 33 rows of Layout"),
        ({"tracks": HITS.allocate(33)}, ValueError, "'tracks' has 33 rows of Layout"),
        ({"tracks": 3}, TypeError, "'tracks': expected an SoA, got int"),
        ([other], TypeError, "soas must be a mapping from block to SoA"),
    ):
        with pytest.raises(error, match=match):
            event.replace(soas)


def test_blocks_described():
    """The memory map says where each block starts."""
    text = BLOCKS.describe(ROWS)
    assert "hits: from byte 1408 on, 70 rows, 2176 bytes, alignment 128\n" in text
    assert text.count("field  ") == 3


class Fickle(Mapping):
    """A mapping that says something else whenever it is asked again."""

    def __init__(self, *found):
        self.found = list(found)

    def __getitem__(self, name):
        return self.found.pop(0)

    def __iter__(self):
        return iter(["tracks"])

    def __len__(self):
        return 1


def test_mappings_that_change():
    """What was checked is what is used."""
    event = Blocks(Fickle(TRACKS, 3, 3)).allocate({"tracks": 33})
    other = TRACKS.allocate(33)
    assert event.layout["tracks"] == TRACKS
    assert event.replace(Fickle(other, 3, 3))["tracks"] is other


def test_bad_blocks():
    """What is no set of blocks, or no row counts, is refused by name."""
    for layouts, error, match in (
        ([HITS], TypeError, "a mapping from name to Layout"),
        ({}, ValueError, "at least one layout"),
        ({"": HITS}, ValueError, "must not be empty"),
        ({3: HITS}, TypeError, "block's name must be a string, got 3"),
        ({"hits": HITS.fields}, TypeError, "block 'hits' must be a Layout"),
        ({Own("a"): HITS, Own("a"): HITS}, ValueError, "block name 'a' stands twice"),
        (
            {"a": HITS, "b": Layout(HITS.fields, alignment=64)},
            ValueError,
            "'a' has 128, 'b' has 64",
        ),
    ):
        with pytest.raises(error, match=match):
            Blocks(layouts)
    for rows, error, match in (
        (33, TypeError, "rows must be a mapping from block to row count, got 33"),
        ({"tracks": 1, "hits": 2}, KeyError, "no row count for block 'more'"),
        ({**ROWS, "hit": 2}, KeyError, "did you mean 'hits'"),
        ({**ROWS, "hits": -1}, ValueError, "must not be negative"),
        ({**ROWS, "hits": 1.0}, TypeError, "rows must be an integer"),
    ):
        with pytest.raises(error, match=match):
            BLOCKS.nbytes(rows)
        with pytest.raises(error, match=match):
            BLOCKS.allocate(rows)
    with pytest.raises(ValueError, match=r"needed 3712 \(1 more\)"):
        BLOCKS.wrap(bytearray(3711), ROWS)
    with pytest.raises(MemoryError, match=f"need {BLOCKS.nbytes({**ROWS, 'hits': 2**62})} bytes"):
        BLOCKS.allocate({**ROWS, "hits": 2**62})
    scalars = Blocks({"s": Layout([Scalar("n", "int32")])})
    with pytest.raises(ValueError, match="more than memory can have"):
        scalars.allocate({"s": 2**70})
    with pytest.raises(BufferError, match="misaligned"):
        BLOCKS.wrap(np.zeros(4096, np.uint8)[1:], ROWS)


def test_json_is_read_again():
    """What `to_json` wrote gives the same blocks, in the same order; all else is refused."""
    text = BLOCKS.to_json()
    for given in (text, text.encode()):
        again = Blocks.from_json(given)
        assert again == BLOCKS
        assert list(again) == list(BLOCKS)
    assert Blocks.from_dict(BLOCKS.to_dict()) == BLOCKS
    assert Blocks.from_json(text, max_bytes=len(text)) == BLOCKS
    with pytest.raises(ValueError, match=f"max_bytes={len(text)}$"):
        Blocks.from_json(text, max_bytes=len(text) - 1)


ONE = '{"fields": [{"kind": "scalar", "name": "n", "dtype": "int8"}]'


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[]", TypeError, "the description must be a mapping, got"),
        ("{}", ValueError, "the description lacks blocks"),
        ('{"blocks": {}, "rows": 3}', ValueError, "the description has an unknown key 'rows'"),
        ('{"blocks": []}', TypeError, "blocks must be a mapping from name to layout, got"),
        ('{"blocks": {}}', ValueError, "blocks need at least one layout"),
        ('{"blocks": {"a": 3}}', TypeError, "block 'a': the layout must be a mapping, got 3"),
        ('{"blocks": {"a": {"fields": 3}}}', TypeError, "block 'a': the layout's fields must be a"),
        ('{"blocks": {"a": {"fields": []}}}', ValueError, "block 'a': a layout needs at least one"),
        ('{"blocks": {"a": {}, "a": {}}}', ValueError, "key 'a' stands twice"),
        (f'{{"blocks": {{"": {ONE}}}}}}}', ValueError, "a block's name must not be empty"),
        (
            f'{{"blocks": {{"a": {ONE}}}, "b": {ONE}, "alignment": 64}}}}}}',
            ValueError,
            "one alignment: 'a' has 128, 'b' has 64",
        ),
        ("NaN", ValueError, "NaN is no number of JSON"),
    ],
)
def test_bad_json(text, error, message):
    """Each thing wrong has its own sentence, with the block's name."""
    with pytest.raises(error, match=message):
        Blocks.from_json(text)
