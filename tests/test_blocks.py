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


def test_blocks_described_by_any_name():
    """A long or hostile name of a block is cut, and stays in one line."""
    layout = Layout([Column("x", "float32")])
    blocks = Blocks({"a\n\x1b[2Jb": layout, "b" * 1_000_000: layout})
    text = blocks.describe(dict.fromkeys(blocks, 3))
    assert repr("a\n\x1b[2Jb") + ": from byte 0 on" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 200


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


INNER = Blocks({"hits": HITS, "tracks": TRACKS})
NESTED = Blocks({"head": TRACKS, "inner": INNER, "<tail>": HITS})
NESTED_ROWS = {"head": 1, "inner": {"hits": 70, "tracks": 33}, "<tail>": 5}


def test_blocks_in_blocks():
    """They lie one after another, as if all layouts stood in one list; rows and SoAs have names."""
    soas = NESTED.allocate(NESTED_ROWS)
    inner = soas["inner"]
    flat = [soas["head"], inner["hits"], inner["tracks"], soas["<tail>"]]
    ends = np.cumsum([0] + [soa.layout.nbytes(soa.rows) for soa in flat])
    assert NESTED.nbytes(NESTED_ROWS) == ends[-1] == soas.buffer.nbytes
    assert [NESTED.offset(name, NESTED_ROWS) for name in NESTED] == [0, ends[1], ends[3]]
    assert [soa.buffer.address - soas.buffer.address for soa in flat] == list(ends[:-1])
    assert (NESTED.count, NESTED.depth, INNER.depth) == (4, 2, 1)
    assert (len(NESTED), list(NESTED["inner"])) == (3, ["hits", "tracks"])
    assert inner.layout is INNER
    assert inner.rows == NESTED_ROWS["inner"]
    assert inner.buffer.nbytes == ends[3] - ends[1]
    inner["tracks"]["cov"][...] = 3
    assert soas.buffer.root[ends[2] :][384:].view("f4").max() == 3
    with pytest.raises(TypeError):
        soas.rows["inner"]["hits"] = 71
    assert repr(soas).startswith("SoABlocks(head: SoA(1 rows,")
    assert "inner: SoABlocks(hits: SoA(70 rows" in repr(soas)
    assert f"inner.hits: from byte {ends[1]} on, 70 rows" in soas.describe()


def test_blocks_in_blocks_are_values():
    """Equal, hashed, told as JSON, copied, pickled and replaced like any."""
    assert Blocks.from_json(NESTED.to_json()) == NESTED
    assert Blocks({**NESTED, "inner": Blocks(dict(INNER))}) == NESTED
    assert hash(Blocks({**NESTED, "inner": Blocks(dict(INNER))})) == hash(NESTED)
    assert Blocks({**NESTED, "inner": HITS}) != NESTED
    assert pickle.loads(pickle.dumps(NESTED)) == NESTED
    assert eval(repr(NESTED)) == NESTED
    soas = NESTED.allocate(NESTED_ROWS)
    soas["inner"]["hits"]["x"][...] = np.arange(210).reshape(70, 3)
    wanted = soas["inner"]["hits"]["x"].copy()
    own = [copy.deepcopy(soas), *(pickle.loads(pickle.dumps(soas, p)) for p in (2, 5))]
    own.append(pickle.loads(pickle.dumps(soas["inner"])))
    soas["inner"]["hits"]["x"][...] = 0
    for found in own:
        inner = found if found.layout == INNER else found["inner"]
        np.testing.assert_array_equal(inner["hits"]["x"], wanted)
        assert inner.rows == NESTED_ROWS["inner"]
    other = INNER.allocate(NESTED_ROWS["inner"])
    changed = soas.replace({"inner": other})
    assert changed["inner"] is other
    assert copy.deepcopy(changed).buffer.nbytes == NESTED.nbytes(NESTED_ROWS)
    for given, error, match in (
        (INNER.allocate({"hits": 1, "tracks": 33}), ValueError, "block 'inner' has"),
        (TRACKS.allocate(33), TypeError, "'inner': expected SoABlocks, got SoA"),
    ):
        with pytest.raises(error, match=match):
            soas.replace({"inner": given})
    with pytest.raises(TypeError, match="'head': expected an SoA, got SoABlocks"):
        soas.replace({"head": other})


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (
            {"head": 1, "inner": 3, "<tail>": 5},
            TypeError,
            "rows of block 'inner' must be a mapping",
        ),
        ({"head": {}, "inner": {}, "<tail>": 5}, TypeError, "'head' must be one integer, for it"),
        ({"head": 1, "inner": {"hits": 3}, "<tail>": 5}, KeyError, "for block 'inner.tracks'"),
        ({"head": 1, "inner": {"hit": 3}, "<tail>": 5}, KeyError, "did you mean 'hits'"),
        ({"head": 1, "<tail>": 5}, KeyError, "no row count for block 'inner'"),
    ],
)
def test_bad_rows_of_blocks_in_blocks(rows, error, match):
    """Of a count that does not fit the message names the block, and those that it is in."""
    for ask in (NESTED.nbytes, NESTED.allocate, NESTED.describe, NESTED.to_svg):
        with pytest.raises(error, match=match):
            ask(rows)


def test_blocks_too_deep():
    """There is an end to it, also in a description of them."""
    blocks, text = HITS, HITS.to_json()
    for _ in range(16):
        blocks, text = Blocks({"b": blocks}), f'{{"blocks": {{"b": {text}}}}}'
    assert Blocks.from_json(text) == blocks
    with pytest.raises(ValueError, match="1 layouts in blocks 17 deep are too many"):
        Blocks({"b": blocks})
    for more in (1, 100):
        deep = '{"blocks": {"b": ' * more + text + "}}" * more
        with pytest.raises(ValueError, match="more than 16 blocks lie in each other"):
            Blocks.from_json(deep)
    with pytest.raises(ValueError, match="one alignment: 'a' has 64, 'b' has 128"):
        Blocks({"a": Layout(HITS.fields, alignment=64), "b": blocks["b"]})


def test_blocks_in_blocks_drawn():
    """Each layout has its piece, and its tensors are asked for by a mapping of the same shape."""
    svg = NESTED.to_svg(NESTED_ROWS, {"inner": {"tracks": Spec(c="cov")}, "head": Spec(p="pt")})
    assert "inner.tracks: 33 rows" in svg
    assert "&lt;tail&gt;" in svg
    assert svg.count("strided view: ") == 2
    for spec, error, match in (
        ({"inner": Spec(c="cov")}, TypeError, "mapping from block to Spec, such as {'hits'"),
        ({"inner": {"hit": Spec(c="cov")}}, KeyError, "did you mean 'hits'"),
    ):
        with pytest.raises(error, match=match):
            NESTED.to_svg(NESTED_ROWS, spec)
    for shown in (NESTED, NESTED.allocate(NESTED_ROWS)):
        html = shown._repr_html_()
        assert "4 blocks" in html
        assert "<b>" not in html
        assert "inner.hits: " in html
    assert "first values" in html


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
        (
            '{"blocks": {"a": {"blocks": {"b": 3}}}}',
            TypeError,
            "'a': block 'b': the layout must be",
        ),
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
