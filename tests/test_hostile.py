"""Layout files and numbers that mean harm: refused in one sentence, and at no great cost."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soaview import Blocks, Column, Layout, Scalar, Spec, views

MOST = 1 << 17
ONE = '{"kind": "column", "name": "x", "dtype": "float32"}'


def layout_with(fields: str = ONE, alignment: str = "128") -> str:
    return f'{{"alignment": {alignment}, "fields": [{fields}]}}'


def column_with(**values: str) -> str:
    given = {"kind": '"column"', "name": '"x"', "dtype": '"float32"', **values}
    return layout_with("{" + ", ".join(f'"{key}": {value}' for key, value in given.items()) + "}")


def full_of(item: str, before: str = "[", after: str = "]") -> str:
    """As many items as a file may have."""
    return before + ",".join([item] * ((MOST - len(before + after)) // (len(item) + 1))) + after


NO_JSON = "not a layout's JSON: "
ATTACKS = {
    # No JSON, or none of one layout.
    "nothing": ("", NO_JSON + "Expecting value"),
    "blank": (" " * 1000, NO_JSON + "Expecting value"),
    "NUL": ("\x00", NO_JSON + "Expecting value"),
    "cut short": (layout_with()[:-1], NO_JSON + "Expecting ',' delimiter"),
    "cut in a string": (layout_with()[:20], NO_JSON + "Unterminated string"),
    "cut in an escape": ('{"\\u12', NO_JSON + "Invalid .u"),
    "two layouts": (layout_with() * 2, NO_JSON + "Extra data"),
    "a tail": (layout_with() + "x", NO_JSON + "Extra data"),
    "a comment": ("// " + layout_with(), NO_JSON + "Expecting value"),
    "a comma too many": (layout_with(ONE + ","), NO_JSON + "(Expecting value|Illegal trailing)"),
    "single quotes": (layout_with().replace('"', "'"), NO_JSON + "Expecting property name"),
    "bare keys": (layout_with().replace('"fields"', "fields"), NO_JSON + "Expecting"),
    "a line break in a name": (column_with(name='"a\nb"'), NO_JSON + "Invalid control character"),
    "a byte order mark": ("\ufeff" + layout_with(), NO_JSON + ".*BOM"),
    "UTF-16": (layout_with().encode("utf-16"), NO_JSON + ".*codec can't decode"),
    "no UTF-8": (b'{"fields": "\xff"}', NO_JSON + ".*codec can't decode"),
    "an overlong slash": (b'{"\xc0\xaf": 0}', NO_JSON + ".*codec can't decode"),
    "pickle": (b"\x80\x04\x95\x00.", NO_JSON + ".*codec can't decode"),
    "null": ("null", "the layout must be a mapping, got None"),
    "a string": ('"fields"', "the layout must be a mapping, got 'fields'"),
    "a list": ("[]", r"the layout must be a mapping, got \[\]"),
    "a number": ("1", "the layout must be a mapping, got 1"),
    # Keys.
    "no key": ("{}", "the layout lacks fields"),
    "alignment alone": ('{"alignment": 128}', "the layout lacks fields"),
    "fields twice": ('{"fields": [], "fields": [1]}', NO_JSON + "key 'fields' stands twice"),
    "fields twice, once escaped": (
        '{"fields": [], "\\u0066ields": [1]}',
        NO_JSON + "key 'fields' stands twice",
    ),
    "alignment twice": (layout_with()[:-1] + ', "alignment": 1}', "key 'alignment' stands twice"),
    "a name twice in one field": (
        column_with().replace('"name"', '"name": "y", "name"'),
        NO_JSON + "key 'name' stands twice",
    ),
    "rows": ('{"rows": 3, "fields": []}', "the layout has an unknown key 'rows'"),
    "offsets": (column_with(offset="64"), "field number 0 has an unknown key 'offset'"),
    "strides": (column_with(strides="[0]"), "field number 0 has an unknown key 'strides'"),
    "__class__": (column_with(__class__='"os"'), "has an unknown key '__class__'"),
    "__init__ arguments": (column_with(self="1"), "has an unknown key 'self'"),
    "an empty key": ('{"": 1, "fields": []}', "the layout has an unknown key ''"),
    "a key in capitals": ('{"Fields": []}', "the layout has an unknown key 'Fields'"),
    # Fields.
    "no fields": (layout_with(""), "a layout needs at least one field"),
    "fields are null": ('{"fields": null}', "the layout's fields must be a list, got None"),
    "fields are a string": ('{"fields": "xyz"}', "fields must be a list, got 'xyz'"),
    "fields are an object": ('{"fields": {"x": 1}}', "fields must be a list"),
    "a field is null": (layout_with("null"), "field number 0 must be a mapping, got None"),
    "a field is a list": (layout_with(f"{ONE}, []"), "field number 1 must be a mapping"),
    "one name, two fields": (layout_with(f"{ONE}, {ONE}"), "field name 'x' stands twice"),
    "one name, once escaped": (
        layout_with(f"{ONE}, {ONE}".replace('"x"', '"\\u0078"', 1)),
        "field name 'x' stands twice",
    ),
    "an unknown kind": (column_with(kind='"table"'), "kind must be 'column' or 'scalar'"),
    "kind is a list": (column_with(kind='["column"]'), "kind must be 'column' or 'scalar'"),
    "a scalar with an order": (column_with(kind='"scalar"', order='"C"'), "unknown key 'order'"),
    "a scalar of no numbers": (column_with(kind='"scalar"', shape="[0]"), "bad shape"),
    "no name": (layout_with('{"kind": "scalar", "dtype": "int8"}'), "field number 0 lacks name"),
    "an empty name": (column_with(name='""'), "a column's name must not be empty"),
    "a name that is null": (column_with(name="null"), "name must be a string, got None"),
    "a name that is a number": (column_with(name="7"), "name must be a string, got 7"),
    # Dtypes.
    "objects": (column_with(dtype='"O"'), "unknown dtype 'O'; known are bool"),
    "object": (column_with(dtype='"object"'), "unknown dtype 'object'"),
    "text": (column_with(dtype='"U9"'), "unknown dtype 'U9'"),
    "a structure": (column_with(dtype='"f4,f4"'), "unknown dtype 'f4,f4'"),
    "another byte order": (column_with(dtype='">f4"'), "unknown dtype '>f4'"),
    "eight gigabytes an item": (column_with(dtype='"V8000000000"'), "unknown dtype 'V8000000000'"),
    "what the machine calls it": (column_with(dtype='"longdouble"'), "unknown dtype"),
    "a capital letter": (column_with(dtype='"Float32"'), "unknown dtype 'Float32'"),
    "dtype is a list": (column_with(dtype='[["x", "f4"]]'), "unknown dtype"),
    "dtype is null": (column_with(dtype="null"), "unknown dtype None"),
    # Shapes and orders.
    "a shape of nothing": (column_with(shape="[0]"), r"field 'x': bad shape \(0,\)"),
    "a negative shape": (column_with(shape="[-3]"), r"bad shape \(-3,\)"),
    "negative twice": (column_with(shape="[-3, -3]"), r"bad shape \(-3, -3\)"),
    "three axes": (column_with(shape="[1, 1, 1]"), r"bad shape \(1, 1, 1\)"),
    "2^63 components": (column_with(shape="[9223372036854775808]"), "bad shape"),
    "2^64 wraps to 0": (column_with(shape="[18446744073709551616]"), "bad shape"),
    "a shape of floats": (column_with(shape="[3.0]"), "shape entry must be an integer, got 3.0"),
    "1e1 components": (column_with(shape="[1e1]"), "shape entry must be an integer, got 10.0"),
    "infinitely many": (column_with(shape="[1e999]"), "must be an integer, got inf"),
    "true components": (column_with(shape="[true]"), "must be an integer, got True"),
    "a shape that is a number": (column_with(shape="3"), "shape must be a tuple or list such as"),
    "a shape that is text": (column_with(shape='"3"'), "shape must be a tuple or list such as"),
    "a shape in a shape": (column_with(shape="[[3]]"), r"must be an integer, got \[3\]"),
    "an order of NumPy's": (column_with(order='"K"'), "order must be 'F' or 'C', got 'K'"),
    "an order that is null": (column_with(order="null"), "order must be 'F' or 'C', got None"),
    # Alignments and numbers.
    "no power of two": (layout_with(alignment="96"), "alignment must be a power of two, got 96"),
    "alignment 0": (layout_with(alignment="0"), "alignment must be a power of two, got 0"),
    "alignment -128": (layout_with(alignment="-128"), "must be a power of two, got -128"),
    "alignment 2^64": (layout_with(alignment=str(2**64)), "must be a power of two, got 184467"),
    "below the item size": (layout_with(alignment="2"), "alignment must be a multiple of every"),
    "alignment 128.0": (layout_with(alignment="128.0"), "must be an integer, got 128.0"),
    "alignment true": (layout_with(alignment="true"), "must be an integer, got True"),
    "alignment null": (layout_with(alignment="null"), "must be an integer, got None"),
    "alignment is text": (layout_with(alignment='"128"'), "must be an integer, got '128'"),
    "NaN": (layout_with(alignment="NaN"), NO_JSON + "NaN is no number of JSON"),
    "Infinity": (column_with(shape="[Infinity]"), NO_JSON + "Infinity is no number of JSON"),
    "-Infinity": (layout_with(alignment="-Infinity"), NO_JSON + "-Infinity is no number of JSON"),
    "hexadecimal": (layout_with(alignment="0x80"), NO_JSON + "Expecting"),
    "a leading zero": (layout_with(alignment="0128"), NO_JSON + "Expecting"),
    "5000 digits": (layout_with(alignment="1" * 5000), NO_JSON + ".* is a number of 5000 digits"),
    # Much of something.
    "too long": (" " * (1 << 24) + layout_with(), "more than 16777216 bytes are .*, got .*max_by"),
    "deep lists": ("[" * MOST, NO_JSON + "nested too deeply"),
    "deep objects": ('{"fields":' * 12_000, NO_JSON + "nested too deeply"),
    "deep names": (column_with(name="[" * 49_000 + "]" * 49_000), NO_JSON + "nested too deeply"),
    "digits alone": ("1" * MOST, NO_JSON + ".* is a number of 131072 digits"),
    "empty lists": (full_of("[]"), "the layout must be a mapping"),
    "empty objects": (full_of("{}"), "the layout must be a mapping"),
    "small objects": (full_of('{"":0}'), "the layout must be a mapping"),
    "wide characters": (full_of('"\U0001f600"'), "the layout must be a mapping"),
    "many keys": (
        "{" + ",".join(f'"{n}":0' for n in range(12_000)) + "}",
        "the layout has an unknown key '0'",
    ),
    "a key twice among many": (
        "{" + ",".join(f'"{n % 11_999}":0' for n in range(12_000)) + "}",
        NO_JSON + "key '0' stands twice",
    ),
    "many fields that are none": (full_of("0", '{"fields":[', "]}"), "field number 0 must be a"),
    "one field again and again": (full_of(ONE, '{"fields":[', "]}"), "name 'x' stands twice"),
    "a very long shape": (column_with(shape="[" + "1," * 49_000 + "1]"), r"bad shape \(1, 1, 1"),
    "a long shape of a long name": (
        column_with(name=f'"{"x" * 60_000}"', shape="[" + "1," * 30_000 + "1]"),
        r"bad shape \(1, 1, 1",
    ),
    "lists in lists": (full_of("[" * 200 + "]" * 200), "the layout must be a mapping"),
    "a surrogate": (column_with(name='"\\ud800"'), "name must be Unicode text, got '.ud800'"),
    "a very long name": (
        column_with(name=f'"{"x" * 100_000}"', dtype='"O"'),
        "unknown dtype 'O'; known are bool",
    ),
    "a very long dtype": (column_with(dtype=f'"{"f" * 100_000}"'), "unknown dtype 'fff"),
    "a very long key": (f'{{"{"k" * 100_000}": 0, "fields": []}}', "has an unknown key 'kkk"),
}


def test_enough_attacks():
    """There are more than sixty, of which no two are the same."""
    assert len({text for text, _ in ATTACKS.values()}) == len(ATTACKS) > 60


def outcome(call: Callable[[], object]) -> object:
    """What a call gives, or what it raises of the few errors that are allowed."""
    try:
        return call()
    except (MemoryError, TypeError, ValueError, BufferError) as error:
        return error


def seconds(text: str | bytes) -> float:
    """How long a text takes: the least of three."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        outcome(lambda: Layout.from_json(text))
        found.append(time.perf_counter() - begin)
    return min(found)


@cache
def largest() -> str:
    """The largest layout that is read without being asked for."""
    fields = (f'{{"kind":"column","name":"{n}","dtype":"int8","shape":[3,3]}}' for n in range(1900))
    return layout_with(",".join(fields))


@cache
def of_the_largest() -> float:
    """How long that takes, looked at once for the very many that take far less."""
    return seconds(largest())


def costs_little(text: str | bytes) -> bool:
    """Whether it takes no longer than a few of the largest; looked at again where it seems to."""
    once = seconds(text) < of_the_largest()
    return once or any(seconds(text) < 5 * seconds(largest()) for _ in range(5))


def check_refusal(text: str | bytes) -> object:
    """The layout, or the refusal; neither costs much memory, and nothing else is raised."""
    tracemalloc.start()
    found = outcome(lambda: Layout.from_json(text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert type(found) in (Layout, TypeError, ValueError)
    assert isinstance(found, Layout) or len(str(found)) < 500
    assert "set_int_max_str_digits" not in str(found)
    return found


@pytest.mark.slow_but_every(8)
@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_layout_files(attack):
    """Each is refused in one sentence of its own, without much memory or time."""
    text, message = ATTACKS[attack]
    with pytest.raises((TypeError, ValueError), match=message):
        Layout.from_json(text)
    check_refusal(text)
    assert costs_little(text)


def test_what_is_no_text():
    """JSON comes as a string or bytes."""
    for odd in (None, 3, {"fields": []}, [b"{}"], memoryview(b"{}")):
        with pytest.raises(TypeError, match="JSON must be a string or bytes, such as .*, got"):
            Layout.from_json(odd)


@pytest.mark.slow
def test_larger_layouts_are_asked_for():
    """The limit can be lowered, and raised, as far as a layout can go."""
    layout = Layout([Scalar(str(n), "int8") for n in range(3000)])
    text = layout.to_json()
    with pytest.raises(ValueError, match=f"max_bytes={len(text)}$"):
        Layout.from_json(text, max_bytes=len(text) - 1)
    assert Layout.from_json(text, max_bytes=len(text)) == layout
    long = layout_with(f'{{"kind":"scalar","name":"{"x" * (1 << 24)}","dtype":"int8"}}')
    assert Layout.from_json(long, max_bytes=len(long)).fields[0].name == "x" * (1 << 24)


@pytest.mark.slow
def test_the_largest_layout_is_read_again():
    """What `to_json` wrote is read, and no limit need be raised, to the last field there can be."""
    fields = [Column(f"column_{n:08}", "bfloat16", (3, 3), "C") for n in range(65_536)]
    text = Layout(fields).to_json()
    tracemalloc.start()
    layout = Layout.from_json(text.encode())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layout.fields == tuple(fields)
    assert Layout.from_json(text) == layout
    assert peak < 12 * len(text)


@pytest.mark.slow_but_every(5)
@pytest.mark.parametrize(
    "many",
    [
        lambda n: "[" + "[]," * (n // 3) + "[]]",
        lambda n: "[" + "{}," * (n // 3) + "{}]",
        lambda n: "[" + "1," * (n // 2) + "1]",
        lambda n: "[" + "1.5," * (n // 4) + "1]",
        lambda n: "[" + '"ab",' * (n // 5) + "1]",
        lambda n: "[" + '"\\"[",' * (n // 6) + "1]",
        lambda n: '{"fields": [' + "[[[[[]]]]]," * (n // 11) + "[]]}",
        lambda n: '{"fields": [' + '{"a": 1},' * (n // 9) + "{}]}",
        lambda n: "[" * n,
        lambda n: '"' + "x" * n,
        lambda n: '"\\' * (n // 2),
        lambda n: '"' * (n - 1),
        lambda n: '"\\\n' * (n // 3),
        lambda n: "1" * n,
    ],
)
def test_hostile_texts_cost_in_proportion(many):
    """A long text that is no layout takes no more memory, byte by byte, than a short one may."""
    text = many(1 << 20)
    tracemalloc.start()
    for source in (text, text.encode()):
        with pytest.raises(ValueError, match="not a layout's JSON"):
            Layout.from_json(source)
        with pytest.raises(ValueError, match="not a layout's JSON"):
            Blocks.from_json(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * len(text)


def test_names_with_brackets_are_names():
    """What stands in strings is no structure, however much of it there is."""
    layout = Layout([Column('[{,"\\' * 40 + str(n), "float32", (2,)) for n in range(2000)])
    assert Layout.from_json(layout.to_json()) == layout


VALID = [
    Layout([Column("pt", "float32")]).to_json(),
    Layout(
        [
            Column("cov", "float64", (3, 3)),
            Column("k", "int8", (2, 5), order="C"),
            Column("état \U0001f600", "complex128", (4,)),
            Scalar("n\n", "bool"),
        ],
        alignment=4096,
    ).to_json(),
    json.dumps({"fields": [json.loads(ONE)]}, indent=1),
]
TOKENS = [
    *'{}[],:"\\',
    *("true", "null", "NaN", "Infinity", "-", "-1", "0", "1e999", "1.5", "\\u0000", "\\ud800"),
    *(str(2**n) for n in (31, 32, 62, 63, 64, 100)),
    *('"shape":', '"order":"C"', '"fields":', '"kind":"scalar"', '"name":"pt"', '"O"', "\x00", "é"),
    *("1" * 5000, "[" * 2000, '{"a":' * 2000, " " * 1000),
]
mutation = st.tuples(
    st.sampled_from(["cut", "double", "insert", "replace", "swap"]),
    st.floats(0, 1),
    st.integers(1, 40),
    st.one_of(st.sampled_from(TOKENS), st.characters(), st.sampled_from(VALID)),
)


def mutated(text: str, mutations: list[tuple[str, float, int, str]]) -> str:
    for how, where, length, token in mutations:
        at = int(where * len(text))
        part, rest = text[at : at + length], text[at + length :]
        match how:
            case "cut":
                text = text[:at] + rest
            case "double":
                text = text[:at] + part + part + rest
            case "insert":
                text = text[:at] + token + text[at:]
            case "replace":
                text = text[:at] + token + rest
            case "swap":
                text = text[:at] + rest[:length] + part + rest[length:]
    return text


@pytest.mark.slow
@settings(max_examples=10 * settings.default.max_examples, deadline=None)
@given(st.sampled_from(VALID), st.lists(mutation, min_size=1, max_size=4))
@example(VALID[0], [("insert", 0.1, 1, '"alignment": 256,')])
def test_mutated_layout_files(text, mutations):
    """What became of a good file is a layout that is written and read back, or is refused."""
    text = mutated(text, mutations)
    found = check_refusal(text)
    if isinstance(found, Layout):
        assert Layout.from_json(found.to_json()) == found
        assert found.nbytes(1000) % found.alignment == 0
        found.describe(1000)
    if len(text) < 10_000:
        assert seconds(text) < of_the_largest()


NUMBERS = [0, 1, 2, 3, 7, 64, 127, 128, 129, 1000, -1, -2, -64, 10**30, -(10**30), 10**5000]
NUMBERS += [2**n + d for n in (31, 32, 53, 61, 62, 63, 64) for d in (-1, 0, 1)]
KINDS = [np.int8, np.int32, np.int64, np.uint64, np.float32, float, str, bool, np.bool_, np.array]
CALLS = {
    "nbytes": lambda n: LAYOUT.nbytes(n),
    "offset": lambda n: LAYOUT.offset("y", n),
    "pitch": lambda n: LAYOUT.pitch("x", n),
    "dense_rows": lambda n: LAYOUT.dense_rows(n),
    "describe": lambda n: LAYOUT.describe(n),
    "to_svg": lambda n: len(LAYOUT.to_svg(n)),
    "alignment": lambda n: Layout([Column("x", "int8")], alignment=n).nbytes(100),
    "shape": lambda n: Column("x", "int8", (n,)).components,
    "matrix": lambda n: Layout([Column("x", "int8", (n, n))]).nbytes(3),
    "allocate": lambda n: LAYOUT.allocate(n).buffer.nbytes,
    "wrap": lambda n: LAYOUT.wrap(MEMORY, n).buffer.nbytes,
    "scalars alone": lambda n: len(Layout([Scalar("n", "int8")]).wrap(MEMORY, n).layout.fields),
    "batches": lambda n: [len(batch) for batch in SOA.batches(n)],
    "first row": lambda n: SOA[n:].rows,
    "last row": lambda n: SOA[:n].rows,
    "the last rows": lambda n: SOA[n:][-3:].rows,
    "address": lambda n: LAYOUT.from_pointer(n, 3, device="cuda:0").buffer.address,
    "rows of a pointer": lambda n: LAYOUT.from_pointer(4096, n, device="cuda:0").buffer.nbytes,
    "bytes": lambda n: LAYOUT.from_pointer(4096, 3, device="cuda:0", nbytes=n).rows,
    "stream": lambda n: LAYOUT.from_pointer(4096, 3, device="cuda:0", stream=n).rows,
    "blocks": lambda n: Blocks({"a": LAYOUT, "b": LAYOUT}).nbytes({"a": 3, "b": n}),
    "max_bytes": lambda n: len(Layout.from_json(VALID[0], max_bytes=n).fields),
}
# More memory than there is; an address that the items cannot have.
MAY_ALSO_RAISE = {MemoryError: ["allocate"], BufferError: ["address"]}
LAYOUT = Layout([Column("x", "float32"), Column("y", "complex128", (3,)), Scalar("n", "int16")])
MEMORY = bytearray(1 << 16)
SOA = LAYOUT.allocate(10)


@settings(max_examples=10 * settings.default.max_examples, deadline=None)
@given(st.sampled_from(list(CALLS)), st.sampled_from(NUMBERS), st.sampled_from([int, *KINDS]))
def test_numbers_of_every_kind_and_size(call, number, kind):
    """A number counts as the integer that it is, or is refused: nothing wraps around."""
    try:
        number_of_kind = kind(number)
    except (OverflowError, ValueError):  # this kind cannot hold it
        return
    if kind is np.array and number_of_kind.dtype == object:
        return
    if kind is bool and "row" in call:  # Python's slices take True for 1
        number = int(number_of_kind)
    expected = outcome(lambda: CALLS[call](number))
    found = outcome(lambda: CALLS[call](number_of_kind))
    assert "set_int_max_str_digits" not in str(found)
    if isinstance(found, Exception):
        inexact = (float, str, bool, np.bool_, np.float32)
        assert type(found) is (TypeError if kind in inexact else type(expected))
        assert call in MAY_ALSO_RAISE.get(type(found), CALLS)
    else:
        assert kind in (int, *KINDS[:4], np.array) or (kind is bool and "row" in call)
        assert found == expected


def test_names_are_data():
    """A field's or tensor's name is never code, a format or a path."""
    for name in ("__class__", "{0}", "%s", "x; import os", "n0", "rows", "b4", "../x", "'", "\x00"):
        layout = Layout([Column(name, "float32"), Scalar("other", "int32")])
        soa = Layout.from_json(layout.to_json()).allocate(3)
        soa[name][:] = 2
        assert soa[name].sum() == 6
        assert views(soa, Spec({name: [name]}))[0].numpy().sum() == 6
