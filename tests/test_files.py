"""Files of columns: Arrow's are mapped, Parquet's are read into one SoA."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

import soaview
from soaview import Column, Layout, Spec, open_arrow, read_parquet, views

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS = 10


def table(rows=ROWS):
    count = np.arange(rows)
    words = pa.array([f"w{i % 3}" for i in range(rows)], pa.string()).dictionary_encode()
    return pa.table(
        {
            "x": count.astype("f4"),
            "y": count.astype("f4") + 0.5,
            "z": count.astype("f4") * 2,
            "n": count,
            "v": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3.0 * rows)), 3),
            "t": pa.array(count, pa.timestamp("us")),
            "word": words,
        }
    )


def written(path, of, size=5, **options):
    with pa.ipc.new_file(path, of.schema, **options) as file:
        file.write_table(of, max_chunksize=size)
    return path


@pytest.fixture
def path(tmp_path):
    return written(tmp_path / "t.arrow", table())


def inside(soa):
    """The one allocation in which all of its columns are."""
    [piece] = soa.buffer.pieces
    return piece


@pytest.mark.parametrize("kind", [str, Path])
def test_batches_are_mapped(path, kind):
    """Each is an SoA of the file's own pages, and several columns are one tensor."""
    size = path.stat().st_size
    soas = open_arrow(kind(path))
    assert [soa.rows for soa in soas] == [5, 5]
    for number, soa in enumerate(soas):
        assert inside(soa).nbytes == size
        part = table().slice(5 * number, 5)
        for name in "xyzn":
            assert soa[name].tolist() == part[name].to_pylist()
        assert soa["v"].tolist() == part["v"].to_pylist()
        assert soa["t"].tolist() == part["t"].cast("int64").to_pylist()
        assert soa["word"].tolist() == [i % 3 for i in range(5 * number, 5 * number + 5)]
        [xyz] = views(soa, Spec(xyz=["x", "y", "z"]))
        assert xyz.shape == (5, 3)
        assert xyz.numpy()[:, 1].tolist() == part["y"].to_pylist()
    for number in (1, -1):
        assert open_arrow(path, batch=number)["n"].tolist() == [5, 6, 7, 8, 9]


def test_writes_stay_in_the_process(path):
    """Private pages are written, and the file is not; others are read-only."""
    whole = path.read_bytes()
    soa = open_arrow(path, batch=0)
    soa["x"] = np.full(5, 7, "f4")
    assert soa["x"].tolist() == [7] * 5
    assert path.read_bytes() == whole
    sealed = open_arrow(path, batch=0, mode="r")
    assert sealed.readonly
    assert sealed["x"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="read-only"):
        sealed["x"][0] = 1


def test_tensors_of_a_file(path):
    """Torch has one strided tensor of several columns, which outlives the SoA."""
    pytest.importorskip("torch")
    from soaview_torch import tensors

    [xyz] = tensors(open_arrow(path, batch=1), Spec(xyz=["x", "y", "z"]))
    gc.collect()
    assert xyz[:, 2].tolist() == [10, 12, 14, 16, 18]
    xyz.zero_()
    with pytest.raises(BufferError, match="copy=None"):
        tensors(open_arrow(path, batch=1, mode="r"), Spec(x="x"))


def test_columns_are_chosen(path):
    """In the order that is asked for."""
    assert list(open_arrow(path, batch=0, columns=["n", "x"])) == ["n", "x"]
    with pytest.raises(KeyError, match="no column 'nobody'"):
        open_arrow(path, columns=["nobody"])
    with pytest.raises(ValueError, match="'x' stands twice"):
        open_arrow(path, columns=["x", "x"])
    with pytest.raises(ValueError, match="no columns"):
        open_arrow(path, columns=[])


@pytest.mark.parametrize(
    ("column", "error", "message"),
    [
        (pa.array(["a", "b"]), TypeError, "column 'c': it holds string, not numbers; columns= can"),
        (pa.array([1, None]), ValueError, "column 'c': 1 nulls.*fill=0"),
        (pa.array([True, False]), ValueError, "column 'c': its numbers .bool. do not lie in the"),
        (pa.array([[1], [2, 3]]), TypeError, "column 'c': it holds list"),
        (pa.array([{"a": 1.0}, {"a": 2.0}]), ValueError, "do not lie in the file as they are"),
    ],
)
def test_columns_that_are_refused(tmp_path, column, error, message):
    """By name, with a way out; the others are to be had without them."""
    of = pa.table({"x": np.arange(2), "c": column})
    path = written(tmp_path / "odd.arrow", of)
    with pytest.raises(error, match=message):
        open_arrow(path)
    assert open_arrow(path, columns=["x"])[0]["x"].tolist() == [0, 1]


def test_compressed_files_say_so(tmp_path):
    """What they hold is not in the file as it is; the way out is right."""
    path = tmp_path / "c.feather"
    feather.write_feather(pa.table({"x": np.zeros(1000)}), path, compression="lz4")
    with pytest.raises(
        ValueError, match=r"compressed.*soaview\.pack\(pyarrow\.feather\.read_table"
    ):
        open_arrow(path)
    assert len(soaview.pack(feather.read_table(path))) == 1000
    feather.write_feather(pa.table({"x": np.zeros(1000)}), path, compression="uncompressed")
    assert len(open_arrow(path)[0]) == 1000


def test_files_of_no_rows(tmp_path):
    """No batches are no SoAs; a batch without rows is one without rows."""
    assert open_arrow(written(tmp_path / "none.arrow", table(0))) == []
    path = tmp_path / "empty.arrow"
    of = table(0)
    with pa.ipc.new_file(path, of.schema) as file:
        columns = [of[name].combine_chunks() for name in of.column_names]
        file.write_batch(pa.record_batch(columns, of.schema.names))
    [soa] = open_arrow(path)
    assert (len(soa), soa["v"].shape) == (0, (0, 3))


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 1000, b"ARROW1\0\0" + b"\0" * 100])
def test_foreign_files(tmp_path, content):
    """They end in one sentence, with the file's name."""
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="foreign") as refusal:
        open_arrow(path)
    assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(ValueError, match="foreign is no Parquet file"):
        read_parquet(path)


def test_wrong_arguments(path, tmp_path):
    """Each is named."""
    with pytest.raises(ValueError, match="mode must be 'c' or 'r', got 'w'"):
        open_arrow(path, mode="w")
    for number in (2, -3):
        with pytest.raises(IndexError, match=f"there are 2 batches, got batch {number}"):
            open_arrow(path, batch=number)
    with pytest.raises(TypeError, match="batch must be an integer"):
        open_arrow(path, batch="one")
    for where, error in ((tmp_path / "absent", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error):
            open_arrow(where)
    with pytest.raises(ValueError, match="paths is empty"):
        read_parquet([])


@pytest.mark.parametrize("name", ["open_arrow", "read_parquet"])
def test_without_pyarrow(monkeypatch, name):
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "soaview\[arrow\]"'):
        getattr(soaview, name)("any")


def test_parquet_into_one_soa(tmp_path):
    """Row groups of files, one after another, converted where asked."""
    path = tmp_path / "t.parquet"
    of = table().drop_columns(["word"])
    parquet.write_table(of, path, row_group_size=3)
    soa = read_parquet([path, str(path)], columns=["n", "x", "v"], dtypes={"n": "float32"})
    layout = [Column("n", "float32"), Column("x", "float32"), Column("v", "float64", (3,))]
    assert soa.layout == Layout(layout)
    for name in ("n", "x", "v"):
        assert soa[name].tolist() == of[name].to_pylist() * 2
    assert read_parquet(path)["t"].tolist() == list(range(ROWS))


def test_rows_that_a_file_does_not_have(tmp_path, monkeypatch):
    """What gives other rows than it says is refused, and nothing is left as it was allocated."""
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": np.arange(4)}), path)
    right = parquet.ParquetFile.iter_batches
    for batches in (
        lambda self, *args, **options: list(right(self, *args, **options))[:0],
        lambda self, *args, **options: list(right(self, *args, **options)) * 2,
    ):
        monkeypatch.setattr(parquet.ParquetFile, "iter_batches", batches)
        with pytest.raises(ValueError, match="has 4 rows by its own word|more rows than"):
            read_parquet(path)


def test_parquet_that_is_refused(tmp_path):
    """Nulls by their number, or filled; other columns by the file."""
    path, other = tmp_path / "a.parquet", tmp_path / "b.parquet"
    parquet.write_table(pa.table({"x": pa.array([1, None, 3])}), path)
    parquet.write_table(pa.table({"x": np.zeros(2)}), other)
    with pytest.raises(ValueError, match="column 'x': 1 null"):
        read_parquet(path)
    assert read_parquet(path, fill=-1)["x"].tolist() == [1, -1, 3]
    with pytest.raises(ValueError, match=r"b\.parquet has .*float64.*a\.parquet has .*int64"):
        read_parquet([path, other], fill=0)
    damaged = bytearray(path.read_bytes())
    damaged[4:40] = b"\xff" * 36
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read: "):
        read_parquet(path, fill=0)


@pytest.mark.slow
def test_changed_bytes_end_in_values_or_an_error(run_python, path):
    """Never in a crash, nor in a view beyond the file."""
    done = run_python(Path(__file__).with_name("flips.py"), path, "400")
    assert done.stdout.split() == ["True", "True", "400"]
