"""Real CMS events: masses and sums from zero-copy tensors against the files' own values.

Runs when the folder with the files is given: `pytest --data FOLDER`.
"""

from __future__ import annotations

from pathlib import Path

import awkward
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import uproot

import soaview_jax
import soaview_torch
from soaview import Column, Layout, Spec
from soaview.__main__ import root_columns

NEEDS = ["--data"]

MUONS = ["E1", "px1", "py1", "pz1", "E2", "px2", "py2", "pz2"]


@pytest.fixture
def data(request):
    return Path(request.config.getoption("--data"))


@pytest.fixture
def zmumu(data):
    """The file's columns as an SoA, read straight into it, and the mass that it says."""
    soa, _ = root_columns(data / "uproot-Zmumu.root", "events", MUONS)
    with uproot.open(data / "uproot-Zmumu.root") as file:
        return soa, file["events"]["M"].array(library="np")


SPEC = Spec(first=MUONS[:4], second=MUONS[4:])


class Mass(torch.nn.Module):
    def forward(self, first, second):
        total = first + second
        squares = total * total
        return torch.sqrt(squares[:, 0] - squares[:, 1:].sum(1))


@jax.jit
def mass(first, second):
    squares = (first + second) ** 2
    return jnp.sqrt(squares[:, 0] - squares[:, 1:].sum(1))


def test_invariant_mass_in_torch(zmumu):
    """A torch module gets the pair mass that the file holds, from the memory as it lies."""
    soa, expected = zmumu
    tensors = soaview_torch.tensors(soa, SPEC)
    assert tensors[0].data_ptr() == soa.buffer.address
    np.testing.assert_allclose(Mass()(*tensors).numpy(), expected, rtol=1e-6)


def test_invariant_mass_in_jax(zmumu):
    """A jitted function gets the pair mass that the file holds, from the memory as it lies."""
    soa, expected = zmumu
    with jax.enable_x64(True):
        arrays = soaview_jax.arrays(soa, SPEC)
        assert arrays[0].unsafe_buffer_pointer() == soa.buffer.address
        np.testing.assert_allclose(np.asarray(mass(*arrays)), expected, rtol=1e-6)


def test_invariant_mass_of_packed_columns(data):
    """Columns packed from the file's arrays give the same."""
    with uproot.open(data / "uproot-Zmumu.root") as file:
        columns = file["events"].arrays([*MUONS, "M"], library="np")
    layout = Layout([Column(name, values.dtype) for name, values in columns.items()])
    soa = layout.pack(columns)
    got = Mass()(*soaview_torch.tensors(soa, SPEC))
    np.testing.assert_allclose(got.numpy(), soa["M"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["Muon", "Jet"])
def test_flattened_particles(data, kind):
    """All muons and jets of all events: values and transverse momenta as awkward has them."""
    names = [f"{kind}_{c}" for c in ("Px", "Py", "Pz", "E")]
    soa, _ = root_columns(data / "uproot-HZZ.root", "events", names)
    with uproot.open(data / "uproot-HZZ.root") as file:
        events = file["events"].arrays(names)
    flat = np.stack([awkward.to_numpy(awkward.flatten(events[name])) for name in names], axis=1)
    pt = np.hypot(flat[:, 0], flat[:, 1])
    spec = Spec(p4=names)
    [p4] = soaview_torch.tensors(soa, spec)
    np.testing.assert_array_equal(p4.numpy(), flat)
    np.testing.assert_allclose(torch.hypot(p4[:, 0], p4[:, 1]).numpy(), pt, rtol=1e-6)
    [p4] = soaview_jax.arrays(soa, spec, padded=True)
    assert p4.unsafe_buffer_pointer() == soa.buffer.address
    np.testing.assert_array_equal(np.asarray(p4)[: len(soa)], flat)
    got = jax.jit(lambda p: jnp.hypot(p[:, 0], p[:, 1]))(p4)[: len(soa)]
    np.testing.assert_allclose(got, pt, rtol=1e-6)


def test_muons_of_each_event(data):
    """Sums and maxima by event, from nested tensors and segments over the memory, as awkward's."""
    names = [f"Muon_{c}" for c in ("Px", "Py", "Pz", "E")]
    soa, _ = root_columns(data / "uproot-HZZ.root", "events", names)
    with uproot.open(data / "uproot-HZZ.root") as file:
        events = file["events"].arrays([*names, "NMuon"])
    counts = awkward.to_numpy(events["NMuon"])
    sums = np.stack([awkward.to_numpy(awkward.sum(events[n], axis=1)) for n in names], axis=1)
    highest = awkward.to_numpy(awkward.fill_none(awkward.max(events["Muon_E"], axis=1), 0))

    spec = Spec(p4=names, energy="Muon_E")
    p4, energy = soaview_torch.jagged(soa, spec, counts=counts)
    assert p4.values().data_ptr() == soa.buffer.address
    assert p4.shape[0] == len(counts) == 2421
    np.testing.assert_allclose(p4.sum(1).numpy(), sums, rtol=1e-4, atol=1e-3)
    found = torch.where(torch.from_numpy(counts) > 0, energy.amax(1), 0)
    np.testing.assert_array_equal(found.numpy(), highest)

    @jax.jit
    def by_event(soa, counts):
        p4, energy = soaview_jax.arrays(soa, spec)
        ids = soaview_jax.segments(soa, counts=counts)
        found = jax.ops.segment_max(energy, ids, num_segments=len(counts))
        return jax.ops.segment_sum(p4, ids, num_segments=len(counts)), found

    totals, found = by_event(soa, counts)
    np.testing.assert_allclose(totals, sums, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(np.where(counts > 0, found, 0), highest)


@pytest.mark.parametrize("name", ["train_torch", "train_jax"])
def test_an_example_trains_on_the_file(name, data, run_python):
    """Z bosons of events that were not trained with are found, by muons of which each has some."""
    program = Path(__file__).parents[1] / "examples" / f"{name}.py"
    out = run_python(program, data / "uproot-HZZ.root", OMP_NUM_THREADS="1").stdout
    assert float(out.partition("accuracy ")[2].partition(",")[0]) > 0.8
