"""Columns that the containers of other libraries keep: bound where they lie, by address."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

import soaview_torch
from soaview import Spec, Value, bind

NEEDS = ["torch"]

pytestmark = pytest.mark.slow  # the libraries take seconds to be imported

N = 6


def address(array):
    return array.__array_interface__["data"][0]


def columns():
    return {"x": np.arange(N, dtype="f4"), "y": np.arange(10.0, 10 + N), "k": np.arange(N)}


def check(soa, arrays, first=0):
    """The columns are the arrays from a row on: their values, and their memory."""
    assert list(soa) == list(arrays)
    for name, array in arrays.items():
        part = array[first : first + len(soa)]
        np.testing.assert_array_equal(soa[name], part)
        assert soa[name].dtype == array.dtype
        assert address(soa[name]) == address(part), name


# Frames and tables


def test_pandas():
    """Of one block, of several, and after a column was inserted."""
    import pandas as pd

    block = np.arange(3.0 * N).reshape(N, 3)
    frame = pd.DataFrame(block, columns=["x", "y", "z"], copy=False)
    soa = bind(frame, readonly=False)
    check(soa, {name: block[:, i] for i, name in enumerate("xyz")})
    [xyz] = soaview_torch.tensors(soa, Spec(t=["x", "y", "z"]))
    assert (xyz.data_ptr(), xyz.stride()) == (address(block), (3, 1))
    arrays = columns()
    frame = pd.DataFrame(arrays, copy=False)
    check(bind(frame), arrays)
    arrays = {"x": arrays["x"], "new": np.ones(N, "i2"), "y": arrays["y"], "k": arrays["k"]}
    frame.insert(1, "new", arrays["new"])
    inserted = frame["new"].to_numpy()
    check(bind(frame), {**arrays, "new": inserted})


def test_a_frame_with_any_names():
    """A column of pandas is no attribute of the frame that tells what it is."""
    import pandas as pd

    names = ["column_names", "get_columns", "batch_size", "data_vars", "layout", "dims", "variable"]
    frame = pd.DataFrame({name: np.full(N, i, "f4") for i, name in enumerate(names)})
    soa = bind(frame)
    assert {name: int(soa[name][0]) for name in soa} == {n: i for i, n in enumerate(names)}
    named = pd.Series(np.arange(3.0), index=["dims", "variable", "layout"])
    assert bind({"x": named})["x"].tolist() == [0, 1, 2]


def test_polars():
    """A frame, and a slice of it."""
    import polars as pl

    frame = pl.DataFrame(columns())
    arrays = {name: frame[name].to_numpy(allow_copy=False) for name in frame.columns}
    check(bind(frame), arrays)
    check(bind(frame[2:5]), arrays, first=2)


def test_arrow(tmp_path):
    """On the heap, in a mapped file, and slices of both; the memory is read-only."""
    import pyarrow as pa

    arrays = columns()
    table = pa.table(arrays)
    check(bind(table), arrays)
    check(bind(table[2:5]), arrays, first=2)
    path = str(tmp_path / "x.arrow")
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pa.memory_map(path) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    kept = {name: batch[name].to_numpy() for name in arrays}
    for data, first in ((batch, 0), (batch.slice(3), 3)):
        soa = bind(data)
        check(soa, kept, first)
        assert soa.readonly
        with pytest.raises(BufferError, match="read-only"):
            soaview_torch.tensors(soa, Spec(x="x"))


def test_no_rows():
    """A table without rows may be without chunks as well."""
    import pyarrow as pa

    table = pa.table({"x": pa.chunked_array([], pa.float32()), "k": pa.chunked_array([[]], "i8")})
    soa = bind(table)
    assert (len(soa), soa["x"].dtype, soa["k"].dtype) == (0, "float32", "int64")


def test_chunks():
    """They are memory apart; what the message says makes them one."""
    import polars as pl
    import pyarrow as pa

    table = pa.concat_tables([pa.table(columns())] * 2)
    frame = pl.concat([pl.DataFrame(columns())] * 2, rechunk=False)
    for data, way in ((table, "combine_chunks"), (frame, "rechunk")):
        with pytest.raises(ValueError, match=rf"column 'x': it is in 2 chunks; {way}\(\) copies"):
            bind(data)
        assert bind(getattr(data, way)())["x"].tolist() == [*range(N)] * 2


# awkward


def test_records_of_awkward():
    """Flat numbers, vectors, records within records, and slices: all in the arrays' own memory."""
    import awkward as ak

    arrays = {**columns(), "v": np.arange(3.0 * N).reshape(N, 3), "m": np.zeros((N, 3, 2), "f4")}
    arrays["step"] = np.arange(2 * N)[::2]
    array = ak.zip(arrays, depth_limit=1)
    soa = bind(array)
    check(soa, arrays)
    soa["x"][1], soa["v"][2, 1] = 50, 60
    assert (array.x[1], array.v[2, 1]) == (50, 60)
    assert (arrays["x"][1], arrays["v"][2, 1]) == (50, 60)
    [v] = soaview_torch.tensors(soa, Spec(v="v"))
    assert v.data_ptr() == address(arrays["v"])
    check(bind(array[2:5]), arrays, first=2)
    check(bind({"x": array.x, "v": array.v}), {name: arrays[name] for name in "xv"})
    nested = ak.zip({"p": ak.zip({"x": arrays["x"], "y": arrays["y"]}), "k": arrays["k"]})
    flat = {"p.x": arrays["x"], "p.y": arrays["y"], "k": arrays["k"]}
    check(bind(nested), flat)
    check(bind(nested[1:4]), flat, first=1)
    deeper = ak.zip({"d": nested}, depth_limit=1)
    check(bind(deeper), {f"d.{name}": array for name, array in flat.items()})


def test_awkward_memory_is_as_writable_as_it_was():
    """What NumPy calls read-only stays so."""
    import awkward as ak

    x = np.arange(3.0)
    assert not bind(ak.zip({"x": x})).readonly
    x.flags.writeable = False
    assert bind(ak.zip({"x": x})).readonly


def test_lists_longer_than_the_rows():
    """Values after the last whole row are no row."""
    import awkward as ak

    values = np.arange(17.0)
    content = ak.contents.RegularArray(ak.contents.NumpyArray(values), 3)
    check(bind({"v": ak.Array(content)}), {"v": values[:15].reshape(5, 3)})
    records = ak.contents.RecordArray([ak.contents.NumpyArray(values)], ["x"], length=4)
    check(bind(ak.Array(records)), {"x": values[:4]})


def awkward_cases(ak):
    """What is refused: the array, the message, a way out, and what that gives."""
    flat = ak.zip({"x": np.arange(5.0)})
    missing = ak.Array([{"x": 1.0}, {"x": None}, {"x": 3.0}])
    jagged = ak.zip({"x": ak.Array([[1.0, 2.0], [], [3.0]])})
    form = {"class": "NumpyArray", "primitive": "float64", "form_key": "x"}
    record = {"class": "RecordArray", "fields": ["x"], "contents": [form], "form_key": "r"}
    virtual = ak.from_buffers(record, 3, {"x-data": lambda: np.arange(3.0)})
    pairs = ak.Array(ak.contents.RegularArray(ak.zip({"x": np.arange(6.0)}).layout, 2))
    return [
        (flat[flat.x > 2], "got Array: its rows are chosen", ak.to_packed, [3, 4]),
        (
            {"x": flat[flat.x > 2].x},
            "column 'x': its rows are chosen",
            lambda a: {"x": ak.to_packed(a["x"])},
            [3, 4],
        ),
        (missing, "column 'x': values may be missing", lambda a: ak.fill_none(a, 2), [1, 2, 3]),
        (
            missing,
            "column 'x': values may be missing",
            lambda a: {"x": ak.to_packed(ak.drop_none(a.x))},
            [1, 3],
        ),
        (jagged, "got Array: it is jagged; ak.flatten", ak.flatten, [1, 2, 3]),
        (
            ak.zip({"x": jagged.x}, depth_limit=1),
            "column 'x': it is jagged; ak.flatten",
            lambda a: {"x": ak.flatten(a.x)},
            [1, 2, 3],
        ),
        (pairs, "got Array: its rows are lists of one length", ak.flatten, [0, 1, 2, 3, 4, 5]),
        (virtual, "column 'x': it is read when it is needed", ak.materialize, [0, 1, 2]),
        (ak.Array(["a", "b"]), "got Array: it is jagged", dict, None),
        (ak.zip({"x": ["a", "b"]}), "column 'x': it is jagged", dict, None),
        (ak.zip({"x": ak.Array([1, "b"])}), "column 'x': awkward's UnionArray", dict, None),
        (ak.zip({"x": ak.Array([])}), "column 'x': awkward's EmptyArray", dict, None),
        (flat[0], "got Record$", dict, None),
    ]


@pytest.mark.parametrize("number", range(13))
def test_what_awkward_would_copy(number):
    """It is refused, by the column's name; the way out that the message has works."""
    import awkward as ak

    cases = awkward_cases(ak)
    assert len(cases) == 13
    data, message, way, values = cases[number]
    with pytest.raises(TypeError, match=message):
        bind(data)
    if values is not None:
        assert bind(way(data))["x"].tolist() == values


# xarray


def dataset(arrays):
    import xarray as xr

    more = {"v": (("row", "c"), np.arange(3.0 * N).reshape(N, 3)), "field": ((), np.array(3.8))}
    data = {**{name: ("row", array) for name, array in arrays.items()}, **more}
    return xr.Dataset(data, coords={"row": np.arange(N)})


def test_a_dataset_of_xarray():
    """Variables along one dimension, and scalars; coordinates are no columns."""
    arrays = columns()
    data = dataset(arrays)
    soa = bind(data)
    assert [field.name for field in soa.layout.fields] == ["x", "y", "k", "v", "field"]
    assert soa[Value("field")] == 3.8
    check(bind(data[["x", "y", "k"]]), arrays)
    assert address(soa["v"]) == address(data["v"].data)
    soa["x"][2] = 9
    assert data["x"][2] == arrays["x"][2] == 9
    check(bind(data[["x", "y"]].isel(row=slice(1, 4))), {n: arrays[n] for n in "xy"}, first=1)
    check(bind({"x": data["x"]}), {"x": arrays["x"]})


def test_dimensions_of_xarray():
    """Rows are told by name, not by how many there are."""
    data = dataset(columns()).assign(w=(("other", "row"), np.arange(N * N * 1.0).reshape(N, N)))
    with pytest.raises(ValueError, match="column 'w' lies along 'other', and 'x' along 'row'"):
        bind(data)
    soa = bind(data.transpose("row", ...))
    np.testing.assert_array_equal(soa["w"], data["w"].data.T)
    assert address(soa["w"]) == address(data["w"].data)


def test_what_xarray_has_not_in_memory(tmp_path):
    """A file is not read, and nothing is worked out; an index is no array."""
    import xarray as xr

    data = dataset(columns())[["x", "y"]]
    path = tmp_path / "x.nc"
    data.to_netcdf(path, engine="scipy")
    with xr.open_dataset(path, engine="scipy") as lazy:
        with pytest.raises(TypeError, match=r"column 'x': it is not in memory as an array; .load"):
            bind(lazy)
        assert "[6 values with dtype=float32]" in repr(lazy["x"])
        lazy.load()
        soa = bind(lazy)
        assert soa["x"].tolist() == [*range(N)]
        assert address(soa["y"]) == address(lazy["y"].data)
    chunks = data.chunk(row=2)
    with pytest.raises(TypeError, match=r"column 'x': it is not in memory as an array; .load"):
        bind(chunks)
    assert bind(chunks.load())["x"].tolist() == [*range(N)]
    with pytest.raises(TypeError, match=r"column 'row': .* of an index, .to_numpy\(\) is a copy"):
        bind({"row": data["row"]})
    assert bind({"row": data["row"].to_numpy()})["row"].tolist() == [*range(N)]


# tensordict


def test_a_dictionary_of_tensors(tmp_path):
    """Tensors, dictionaries within it, slices and files; torch gets the same memory back."""
    from tensordict import TensorDict

    tensors = {name: torch.from_numpy(array) for name, array in columns().items()}
    inner = {"q": torch.zeros(N, dtype=torch.int8), "v": torch.zeros(N, 3)}
    data = TensorDict({**tensors, "track": inner}, batch_size=[N])
    soa = bind(data)
    assert list(soa) == ["x", "y", "k", "track.q", "track.v"]
    for name, tensor in {**tensors, "track.v": inner["v"]}.items():
        [found] = soaview_torch.tensors(soa, Spec(t=name))
        assert (found.data_ptr(), found.shape) == (tensor.data_ptr(), tensor.shape)
    soaview_torch.tensors(soa, Spec(v="track.v"))[0][1, 2] = 4
    assert data["track", "v"][1, 2] == 4
    deeper = TensorDict({"a": {"b": {"x": tensors["x"]}}}, [N])
    assert list(bind(deeper)) == ["a.b.x"]
    part = bind(data[2:4])
    assert soaview_torch.tensors(part, Spec(x="x"))[0].data_ptr() == tensors["x"][2:].data_ptr()
    filed = data.memmap(tmp_path / "td")
    assert address(bind(filed)["x"]) == filed["x"].data_ptr()


def test_tensors_that_are_made_when_they_are_asked_for():
    """A stack of dictionaries has no such memory; `contiguous` makes it."""
    from tensordict import TensorDict, lazy_stack

    one = [TensorDict({"a": {"x": torch.tensor(float(i))}}, []) for i in range(3)]
    stacked = lazy_stack(one)
    with pytest.raises(TypeError, match="column 'a' is made anew whenever it is asked for"):
        bind(stacked)
    with pytest.raises(TypeError, match=r"column 'a.x' is made anew whenever it is asked for"):
        bind(TensorDict({"a": stacked["a"]}, [3]))
    assert bind(stacked.contiguous())["a.x"].tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="column 's': got "):
        bind(TensorDict({"x": torch.zeros(3), "s": "text"}, []))
    with pytest.raises(ValueError, match="there are no columns"):
        bind(TensorDict({}, []))


def test_a_class_of_tensors():
    """Its members are columns, also within a dictionary."""
    from tensordict import TensorDict, tensorclass

    @tensorclass
    class Hits:
        x: torch.Tensor

    hits = Hits(x=torch.arange(3.0), batch_size=[3])
    assert address(bind(hits)["x"]) == hits.x.data_ptr()
    assert list(bind(TensorDict({"hits": hits}, [3]))) == ["hits.x"]


def test_names_that_two_columns_would_have():
    """None of them is lost in silence, in a dictionary within one or in records."""
    from tensordict import TensorDict

    data = TensorDict({"a.b": torch.zeros(3), "a": {"b": torch.ones(3)}}, [3])
    records = np.zeros(3, [("a.b", "f4"), ("a", [("b", "f4")])])
    for twice in (data, records):
        with pytest.raises(ValueError, match=r"column 'a\.b' stands twice; names must be unique"):
            bind(twice)


# Files of HDF5


def test_a_dataset_of_hdf5(tmp_path):
    """It is a file: what it is read into is bound, as records or as a column."""
    import h5py

    records = np.zeros(N, [("x", "f4"), ("y", "f8"), ("n", "i4")])
    records["x"] = np.arange(N)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["tracks"], file["x"] = records, records["x"]
        with pytest.raises(TypeError, match=r"Dataset, which is not in memory; np.asarray\(data\)"):
            bind(file["tracks"])
        with pytest.raises(TypeError, match=r"'x': got Dataset, .* np.asarray of it is a copy"):
            bind({"x": file["x"]})
        with pytest.raises(TypeError, match="column 'tracks': got Dataset"):
            bind(file)
        with pytest.raises(TypeError, match="got Dataset$"):
            bind(file["x"])
        read, x = np.asarray(file["tracks"]), np.asarray(file["x"])
    check(bind(read), {name: read[name] for name in ("x", "y", "n")})
    check(bind({"x": x}), {"x": x})


# What they come from goes


def test_frames_and_tables_that_go(tmp_path):
    """The columns stay as they were when their frame is changed, and live when it is gone."""
    pd, pa, pl = map(pytest.importorskip, ("pandas", "pyarrow", "polars"))
    values = np.arange(1000.0)
    frame = pd.DataFrame({"x": values.copy(), "y": values + 1})
    of_pandas = bind(frame)
    frame["x"] = 0.0  # another column in its place
    del frame["y"]
    table = pa.table({"x": values.copy(), "y": values + 1})
    of_arrow = bind(table)
    path = str(tmp_path / "t.arrow")
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    mapped = pa.memory_map(path)
    [batch] = [pa.ipc.open_file(mapped).get_batch(0)]
    of_file = bind(batch)
    mapped.close()
    of_polars = bind(pl.DataFrame({"x": values.copy(), "y": values + 1}))
    del frame, table, batch, mapped
    gc.collect()
    fill = [np.full(1000, -1.0) for _ in range(50)]  # where freed memory would be
    for soa in (of_pandas, of_arrow, of_file, of_polars):
        assert soa.readonly
        [x, y] = soaview_torch.tensors(soa, Spec(x="x", y="y"), copy=None)
        np.testing.assert_array_equal(x, values)
        np.testing.assert_array_equal(soa["y"], values + 1)
        assert y[-1] == 1000
    assert len(fill) == 50
