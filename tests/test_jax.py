"""What is JAX's own: imports that alias, 64-bit types, and refusals word by word."""

from __future__ import annotations

import mmap
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import places
import pytest
from cases import layout_of, padded_rows

import soaview_jax
from soaview import Column, Layout, Scalar, Spec, Value
from soaview_jax import arrays, write

NEEDS = ["jax"]

LAYOUT = Layout(
    [Column("x", "float32"), Column("y", "float32"), Column("k", "int32"), Scalar("n", "int32")]
)
WIDE = Layout([Column("d", "float64"), Column("i", "int64"), Column("x", "float32")])


@pytest.mark.parametrize(
    ("entry", "rows", "message"),
    [
        (
            ["x", "y"],
            1000,
            "tensor 't': rows 1000, padded rows 1024: padding lies between its columns, and XLA "
            "imports only dense memory; padded=True gives all 1024 rows, layout.dense_rows(1000) "
            "is 1024, a row count without padding, and copy=None copies it",
        ),
        (
            "n",
            1000,
            "tensor 't': a scalar broadcast to the rows has no dense form, the only one that XLA "
            "imports; write Value(name) in the spec and let the model broadcast it, or let "
            "copy=None copy it",
        ),
    ],
)
def test_refusals_word_by_word(entry, rows, message):
    """What XLA cannot import is refused with the reason and the ways out."""
    message += (
        ". In a function under jax.jit, given the SoA as an argument, arrays works for every spec"
    )
    with pytest.raises(BufferError, match=f"^{re.escape(message)}$"):
        arrays(LAYOUT.allocate(rows), Spec(t=entry))


def test_more_refusals():
    """Slices, misaligned rows and columns apart have sentences of their own."""
    layout = layout_of("float32", "int8")
    soa = layout.allocate(1024)
    with pytest.raises(BufferError, match="rows 10 are a slice of 1024, whose columns lie apart"):
        arrays(soa[16:26], Spec(t=["x", "y"]))
    with pytest.raises(BufferError, match="4 bytes past a multiple of 64, .* slice"):
        arrays(soa[1:20], Spec(t="x"))
    with pytest.raises(BufferError, match="not neighbours .*declare the fields one after another"):
        arrays(soa, Spec(t=["x", "z"]))
    with pytest.raises(BufferError, match="not neighbours"):
        arrays(soa, Spec(t=["x", "z"]), padded=True)
    with pytest.raises(BufferError, match="cannot export bfloat16"):
        arrays(layout_of("bfloat16", "int8").allocate(64), Spec(t=["x", "y"]))


def test_the_ways_out_work():
    """What a refusal of padding proposes is zero-copy, or a copy of that tensor alone."""
    spec = Spec(t=["x", "y"], k="k")
    soa = LAYOUT.allocate(1000)
    soa["x"][:] = np.arange(1000)
    t, k = arrays(soa, spec, padded=True)
    assert (t.shape, k.shape) == ((1024, 2), (1024,))
    assert t.unsafe_buffer_pointer() == soa.buffer.address
    dense = LAYOUT.allocate(LAYOUT.dense_rows(1000))
    assert arrays(dense, spec)[0].unsafe_buffer_pointer() == dense.buffer.address
    t, k = arrays(soa, spec, copy=None)
    soa.buffer.root[:] = 0
    assert t[999, 0] == 999
    assert k.unsafe_buffer_pointer() == soa.buffer.address + LAYOUT.offset("k", 1000)


@pytest.mark.parametrize("name", ["d", "i"])
def test_64_bit_types_are_never_narrowed(name):
    """With 64-bit types off, such a column is refused whatever `copy` is, and works once on."""
    soa = WIDE.allocate(32)
    for copy in (False, None, True):
        with pytest.raises(TypeError, match=r"tensor 't' is .*64, .*narrow.*jax_enable_x64"):
            arrays(soa, Spec(x="x", t=name), copy=copy)
        assert arrays(soa, Spec(x="x"), copy=copy)[0].dtype == np.float32
    spec = Spec(t=name)
    with jax.enable_x64(True):
        [found] = arrays(soa, spec)
        assert found.dtype == soa[name].dtype
        assert found.unsafe_buffer_pointer() == soa.buffer.address + WIDE.offset(name, 32)
    with pytest.raises(TypeError, match="narrow"):
        arrays(soa, spec)


def test_what_is_kept_from_one_call_never_answers_another():
    """Specs, paddedness, slices and 64-bit mode are told apart, and arrays may be donated."""
    soa, spec = LAYOUT.allocate(64), Spec(x="x", y="y")
    for _ in range(2):
        assert arrays(soa, spec)[0].shape == (64,)
        assert arrays(soa[:16], spec)[0].shape == (16,)
        assert len(arrays(soa, Spec(x="x"))) == 1
        with jax.enable_x64(True):
            assert arrays(soa, spec)[1].shape == (64,)
        odd = LAYOUT.allocate(33)
        assert arrays(odd, spec)[0].shape == (33,)
        assert arrays(odd, spec, padded=True)[0].shape == (64,)
        assert arrays(odd, spec)[0].shape == (33,)
        jax.jit(lambda x: x + 1, donate_argnums=0)(arrays(soa, spec)[0]).block_until_ready()
        assert not soa["x"].any()


def test_donation_never_writes_the_memory():
    """A donated array is XLA's to reuse, but never the user's memory under it."""
    soa = LAYOUT.allocate(1024)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    for copy in (False, None, True):
        for padded in (False, True):
            for array in arrays(soa, Spec(x="x", xy=["x", "y"]), copy=copy, padded=padded):
                add(array).block_until_ready()
    assert not soa.buffer.root.any()


def test_read_only_mappings(tmp_path):
    """A mapped file is read where it lies."""
    path = tmp_path / "soa.bin"
    soa = LAYOUT.allocate(64)
    soa["y"][:] = np.arange(64)
    path.write_bytes(soa.buffer.root.tobytes())
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped = LAYOUT.wrap(memory, 64)
    [xy] = arrays(mapped, Spec(xy=["x", "y"]))
    assert xy.unsafe_buffer_pointer() == mapped.buffer.address
    assert jax.jit(jnp.sum)(xy) == 63 * 32
    with pytest.raises(BufferError):
        memory.close()
    del mapped, xy
    assert places.soon(lambda: places.unheld(memory.close))


@pytest.mark.slow
def test_lifetime_of_a_running_computation():
    """The memory outlives a computation that was started on it."""
    layout = Layout([Column("x", "float32")])
    soa = layout.allocate(1 << 20)
    soa["x"][:] = 1
    gone = weakref.ref(soa.buffer.root.base)
    result = jax.jit(lambda x: jnp.sort(x).sum())(*arrays(soa, Spec(x="x")))
    del soa
    assert result == 1 << 20
    del result
    assert places.soon(lambda: gone() is None)


def test_bfloat16():
    """Single bfloat16 columns alias; several are copied where that is allowed."""
    layout = layout_of("bfloat16", "int8")
    soa = layout.allocate(100)
    soa["y"][:] = np.arange(100)
    x, y = arrays(soa, Spec(x="x", y="y"))
    assert x.dtype == y.dtype == jnp.bfloat16
    assert y.unsafe_buffer_pointer() == soa.buffer.address + layout.offset("y", 100)
    [xy] = arrays(soa, Spec(xy=["x", "y"]), copy=None)
    assert (xy.dtype, xy[99, 1]) == (jnp.bfloat16, 99)


def test_jax_arrays_can_be_wrapped():
    """A JAX array on the CPU holds an SoA as read-only memory."""
    soa = LAYOUT.allocate(32)
    soa["y"][:] = 5
    owner = jnp.array(soa.buffer.root)
    frozen = LAYOUT.wrap(owner, 32)
    assert frozen.readonly
    assert frozen.buffer.owner is owner
    assert frozen.buffer.address == owner.unsafe_buffer_pointer()
    assert arrays(frozen, Spec(y="y"))[0].tolist() == [5] * 32
    with pytest.raises(BufferError, match="read-only"):
        write(frozen, Spec(y="y"), [jnp.zeros(32)])


def test_the_device_of_jax_does_not_matter():
    """A default device changes nothing: arrays stay where the memory is."""
    soa = LAYOUT.allocate(32)
    with jax.default_device(jax.local_devices(backend="cpu")[-1]):
        for copy in (False, None, True):
            for array in arrays(soa, Spec(t=["x", "y"], n=Value("n")), copy=copy):
                assert array.devices() == {jax.local_devices(backend="cpu")[0]}


@pytest.mark.slow
def test_several_host_devices(run_python):
    """With several CPU devices, arrays are on the first, whatever the default is."""
    code = """if True:
        import jax
        from soaview import *
        from soaview_jax import arrays
        first, *_, last = jax.devices()
        assert first != last
        soa = Layout([Column("h", "bfloat16"), Column("x", "float32")]).allocate(64)
        with jax.default_device(last):
            for copy in (False, None, True):
                for array in arrays(soa, Spec(h="h", x="x"), copy=copy):
                    assert array.devices() == {first}, copy
        print("end")
    """
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    assert run_python("-c", code, **flags).stdout == "end\n"


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([np.zeros(10, "f4")], TypeError, "tensor 'x': got ndarray, expected a jax.Array"),
        (jnp.zeros(10), TypeError, "arrays must be a list in spec order, got ArrayImpl"),
    ],
)
def test_bad_writes(bad, error, message):
    """Only JAX arrays, in a list, are written."""
    with pytest.raises(error, match=message):
        write(LAYOUT.allocate(10), Spec(x="x"), bad)


def test_write_inside_jit_is_refused():
    """A traced array has no values to write."""
    soa = LAYOUT.allocate(10)
    with pytest.raises(TypeError, match="tensor 'x' is traced: write outside of jit"):
        jax.jit(lambda x: write(soa, Spec(x="x"), [x]))(jnp.zeros(10))


@pytest.mark.parametrize("copy", [False, None, True])
def test_arrays_of_an_soa_inside_jit(copy):
    """Taken inside a transformation, arrays are constants of it, also when they are copies."""
    layout = layout_of("bfloat16", "float32")
    soa = layout.allocate(128)
    soa["gap"][:] = soa["x"][:] = 3
    spec = Spec(gap="gap", x="x") if copy is False else Spec(gap="gap", x="x", xz=["x", "z"])

    def add(y):
        gap, x, *_ = arrays(soa, spec, copy=copy)
        return gap + x.astype(jnp.float32) + y

    for _ in range(2):
        assert jax.jit(lambda y: add(y))(jnp.ones(128))[5] == 7  # traced anew
        assert jax.vmap(add)(jnp.ones((2, 128)))[1, 5] == 7
        assert jax.eval_shape(add, jnp.ones(128)).shape == (128,)
        assert add(jnp.ones(128))[5] == 7


@pytest.mark.parametrize("make", [lambda x: LAYOUT.wrap(x, 3), lambda x: LAYOUT.wrap(x, 3)["x"]])
def test_traced_arrays_have_no_memory(make):
    """A tracer cannot be wrapped."""
    with pytest.raises(BufferError, match="has no memory to wrap"):
        jax.jit(make)(jnp.ones(1000))


def test_padded_rows_differ_by_dtype():
    """Padded rows are those of each tensor's own dtype."""
    soa = layout_of("float32", "int8").allocate(33)
    x, gap = arrays(soa, Spec(x="x", gap="gap"), padded=True)
    assert (len(x), len(gap)) == (padded_rows("float32", 33), padded_rows("int8", 33)) == (64, 128)


def test_the_copying_import_is_still_an_alias():
    """Why `copy=True` of JAX's importer is never used: on the CPU it has returned an alias.

    When this fails, JAX has mended it; say so in the comment in `soaview_jax`.
    """
    memory = LAYOUT.allocate(64)["x"]
    array = jax.dlpack.from_dlpack(memory, copy=True)
    assert array.unsafe_buffer_pointer() == memory.__array_interface__["data"][0]


def test_public_names():
    """The public door is what it is."""
    assert soaview_jax.__all__ == [
        "arrays",
        "concatenate",
        "explain",
        "forward",
        "loader",
        "mask",
        "prepare",
        "segments",
        "take",
        "to",
        "update",
        "write",
    ]


def test_devices_that_are_not_there():
    """Memory that JAX cannot reach is refused, with where it is; so it is as an argument of jit."""
    soa = Layout([Column("x", "float32"), Column("y", "float32")]).from_pointer(
        1 << 40, 32, device="cuda:0"
    )
    spec = Spec(x="x")
    for bad in (
        lambda: arrays(soa, spec),
        lambda: arrays(soa, spec, copy=True),
        lambda: arrays(soa, Spec(x=["y", "x"]), copy=None),
        lambda: jax.jit(lambda s: arrays(s, spec))(soa),
    ):
        with pytest.raises(BufferError, match="does not take memory on cuda:0"):
            bad()
    with pytest.raises(ValueError, match="got device cpu, the SoA is on cuda:0"):
        write(soa, spec, [jnp.zeros(32)])
