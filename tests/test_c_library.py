"""Memory that a library in C or C++ has allocated, and reads back: an event loop over it."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import weakref

import numpy as np
import pytest
import torch

import soaview_jax
import soaview_torch
from soaview import Spec, Value, bind, views

NEEDS = ["torch", "jax"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cc") is None or shutil.which("c++") is None,
        reason="the libraries under test are compiled by cc and c++",
    ),
]

EVENTS = [5, 1, 0, 64, 33, 1000, 7]  # each with another row count

C = r"""
#include <stdint.h>
#include <stdlib.h>

enum { MOST = 1024 };

/* Each column is an allocation, of which XLA shares those on multiples of 64 bytes. */
typedef struct { int n; float *pt, *eta, *score; double (*at)[3]; } Pointers;
typedef struct { int n; float pt[MOST], eta[MOST], score[MOST]; double at[MOST][3]; } Arrays;
typedef struct { float pt, eta; int8_t charge; float score; } Particle;

static void *get(size_t bytes) { return aligned_alloc(64, (bytes + 64) / 64 * 64); }
static float pt(int event, int i) { return event + i; }
static float eta(int event, int i) { return (float)(i % 8) / 4; }

Pointers *pointers_new(int event, int n) {
    Pointers *p = malloc(sizeof *p);
    p->n = n;
    p->pt = get(n * sizeof(float));
    p->eta = get(n * sizeof(float));
    p->score = get(n * sizeof(float));
    p->at = get(n * sizeof *p->at);
    for (int i = 0; i < n; ++i) {
        p->pt[i] = pt(event, i); p->eta[i] = eta(event, i); p->score[i] = -1;
        for (int j = 0; j < 3; ++j) p->at[i][j] = i + j / 4.0;
    }
    return p;
}
void pointers_delete(Pointers *p) {
    free(p->pt); free(p->eta); free(p->score); free(p->at); free(p);
}
double pointers_sum(const Pointers *p) {
    double sum = 0;
    for (int i = 0; i < p->n; ++i) sum += p->score[i] * (i + 1);
    return sum;
}

Arrays all;  /* the library's own, filled anew for each event */
void arrays_fill(int event, int n) {
    all.n = n;
    for (int i = 0; i < n; ++i) {
        all.pt[i] = pt(event, i); all.eta[i] = eta(event, i); all.score[i] = -1;
        for (int j = 0; j < 3; ++j) all.at[i][j] = i + j / 4.0;
    }
    for (int i = n; i < MOST; ++i) all.score[i] = -2;
}
double arrays_sum(void) {
    double sum = 0;
    for (int i = 0; i < MOST; ++i) sum += i < all.n ? all.score[i] * (i + 1) : all.score[i] + 2;
    return sum;
}

Particle *particles_new(int event, int n) {
    Particle *p = get(n * sizeof *p);
    for (int i = 0; i < n; ++i) p[i] = (Particle){pt(event, i), eta(event, i), i % 3 - 1, -1};
    return p;
}
double particles_sum(const Particle *p, int n) {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += p[i].score * (i + 1);
    return sum;
}
void particles_delete(Particle *p) { free(p); }

/* As AMReX has its particles: an id, real and integer components, each an allocation. */
typedef struct { uint64_t *idcpu; double *rdata[4]; int *idata[1]; long n; } Tile;
Tile *tile_new(int event, int n) {
    Tile *t = malloc(sizeof *t);
    t->n = n;
    t->idcpu = get(n * sizeof(uint64_t));
    t->idata[0] = get(n * sizeof(int));
    for (int k = 0; k < 4; ++k) t->rdata[k] = get(n * sizeof(double));
    for (int i = 0; i < n; ++i) {
        t->idcpu[i] = (1ull << 63) + i;
        t->idata[0][i] = -i;
        for (int k = 0; k < 4; ++k) t->rdata[k][i] = event + i + 1000.0 * k;
    }
    return t;
}
void tile_delete(Tile *t) {
    for (int k = 0; k < 4; ++k) free(t->rdata[k]);
    free(t->idcpu); free(t->idata[0]); free(t);
}
"""

CPP = r"""
#include <array>
#include <vector>

class Tracks {
public:
    Tracks(int event, int n) : pt(n), eta(n), score(n, -1), at(n) {
        for (int i = 0; i < n; ++i) {
            pt[i] = event + i;
            eta[i] = (i % 8) / 4.f;
            at[i] = {double(i), i + 0.25, i + 0.5};
        }
    }
    double sum() const {
        double sum = 0;
        for (std::size_t i = 0; i < score.size(); ++i) sum += score[i] * (i + 1);
        return sum;
    }
    std::vector<float> pt, eta, score;
    std::vector<std::array<double, 3>> at;
};

extern "C" {
Tracks *tracks_new(int event, int n) { return new Tracks(event, n); }
void tracks_delete(Tracks *t) { delete t; }
double tracks_sum(const Tracks *t) { return t->sum(); }
float *tracks_pt(Tracks *t) { return t->pt.data(); }
float *tracks_eta(Tracks *t) { return t->eta.data(); }
float *tracks_score(Tracks *t) { return t->score.data(); }
double *tracks_at(Tracks *t) { return t->at.empty() ? nullptr : t->at.data()->data(); }
}
"""


class Pointers(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_int),
        ("pt", ctypes.POINTER(ctypes.c_float)),
        ("eta", ctypes.POINTER(ctypes.c_float)),
        ("score", ctypes.POINTER(ctypes.c_float)),
        ("at", ctypes.POINTER(ctypes.c_double * 3)),
    ]


class Arrays(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_int),
        *((name, ctypes.c_float * 1024) for name in ("pt", "eta", "score")),
        ("at", (ctypes.c_double * 3) * 1024),
    ]


class Particle(ctypes.Structure):
    _fields_ = [
        ("pt", ctypes.c_float),
        ("eta", ctypes.c_float),
        ("charge", ctypes.c_int8),
        ("score", ctypes.c_float),
    ]


class Tile(ctypes.Structure):
    _fields_ = [
        ("idcpu", ctypes.POINTER(ctypes.c_uint64)),
        ("rdata", ctypes.POINTER(ctypes.c_double) * 4),
        ("idata", ctypes.POINTER(ctypes.c_int) * 1),
        ("n", ctypes.c_long),
    ]


def compiled(folder, compiler, name, text):
    source, library = folder / name, folder / f"{name}.so"
    source.write_text(text)
    flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    found = compiled(tmp_path_factory.mktemp("c"), "cc", "library.c", C)
    for kind, made in (("pointers", Pointers), ("particles", Particle), ("tile", Tile)):
        getattr(found, f"{kind}_new").restype = ctypes.POINTER(made)
        getattr(found, f"{kind}_delete").argtypes = [ctypes.c_void_p]
    for kind in ("pointers", "arrays", "particles"):
        getattr(found, f"{kind}_sum").restype = ctypes.c_double
    return found


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    found = compiled(tmp_path_factory.mktemp("cpp"), "c++", "library.cpp", CPP)
    found.tracks_new.restype = ctypes.c_void_p
    found.tracks_sum.restype = ctypes.c_double
    for name in ("delete", "sum", "pt", "eta", "score", "at"):
        getattr(found, f"tracks_{name}").argtypes = [ctypes.c_void_p]
    for name in ("pt", "eta", "score", "at"):
        getattr(found, f"tracks_{name}").restype = ctypes.c_void_p
    return found


class Owned:
    """What a library has allocated, given back once nobody needs it."""

    def __init__(self, pointer, delete, deleted):
        self.pointer, self.delete, self.deleted = pointer, delete, deleted

    def __del__(self):
        self.delete(self.pointer)
        self.deleted.append(1)


def address_of(pointer):
    return ctypes.cast(pointer, ctypes.c_void_p).value


def run(framework, soa):
    """A model, from the columns into the column `score`: 2 pt + eta."""
    inputs, output = Spec(pt="pt", eta="eta"), Spec(score="score")
    forward = soaview_torch.forward if framework == "torch" else soaview_jax.forward
    forward(model, (soa, inputs), (soa, output))


def model(pt, eta):
    return 2 * pt + eta


def wanted(event, n):
    """What the library sums: each row's score by its number."""
    i = np.arange(n)
    return float(np.sum((2 * (event + i) + i % 8 / 4) * (i + 1)))


def check_columns(soa, event, n, addresses):
    """The values that the library wrote, at its addresses; torch's tensors too."""
    assert len(soa) == n
    assert soa["pt"].tolist() == [event + i for i in range(n)]
    if n:
        assert {name: views(soa, Spec({name: name}))[0].address for name in addresses} == addresses
        for name, address in addresses.items():
            assert soaview_torch.tensors(soa, Spec({name: name}))[0].data_ptr() == address


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_structure_of_pointers(library, framework):
    """Every event is other allocations; the library sees what the model has written."""
    deleted = []
    for event, n in enumerate(EVENTS):
        pointer = library.pointers_new(event, n)
        data = pointer.contents
        soa = bind(data, rows=n, owner=Owned(pointer, library.pointers_delete, deleted))
        names = ("pt", "eta", "score", "at")
        addresses = {name: address_of(getattr(data, name)) for name in names}
        check_columns(soa, event, n, addresses)
        assert soa[Value("n")] == n
        assert soa["at"].tolist() == [[i, i + 0.25, i + 0.5] for i in range(n)]
        run(framework, soa)
        assert library.pointers_sum(pointer) == wanted(event, n)
        if framework == "jax" and n:  # these are on multiples of 64 bytes
            [pt] = soaview_jax.arrays(soa, Spec(pt="pt"))
            assert pt.unsafe_buffer_pointer() == addresses["pt"]
            del pt
        assert len(deleted) == event
        column = soa["at"]
        del soa
        gc.collect()
        assert len(deleted) == event  # a column keeps what it lies in
        del column
        gc.collect()
        assert len(deleted) == event + 1


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_structure_of_arrays(library, framework):
    """One structure of a fixed capacity, with its own count: rows after it stay as they are."""
    data = Arrays.in_dll(library, "all")
    whole = bind(data, owner=library)
    for event, n in enumerate(EVENTS):
        library.arrays_fill(event, n)
        soa = whole.counted("n")
        names = ("pt", "eta", "score", "at")
        first = ctypes.addressof(data)
        addresses = {name: first + getattr(Arrays, name).offset for name in names}
        check_columns(soa, event, n, addresses)
        run(framework, soa)
        assert library.arrays_sum() == wanted(event, n)
    [three] = soaview_torch.tensors(whole, Spec(t=["pt", "eta", "score"]))
    assert three.stride() == (1, 1024)  # one tensor of three arrays of one structure
    assert three.data_ptr() == addresses["pt"]


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_records(library, framework):
    """Rows of records that the library allocates and gives back."""
    size, deleted = ctypes.sizeof(Particle), []
    for event, n in enumerate(EVENTS):
        pointer = library.particles_new(event, n)
        records = ctypes.cast(pointer, ctypes.POINTER(Particle * n)).contents
        records.owner = Owned(pointer, library.particles_delete, deleted)
        soa = bind(records)
        first = address_of(pointer)
        check_columns(soa, event, n, {"pt": first, "eta": first + 4, "charge": first + 8})
        run(framework, soa)
        assert library.particles_sum(pointer, n) == wanted(event, n)
        if n:
            [both] = soaview_torch.tensors(soa, Spec(t=["pt", "eta"]))
            assert (both.data_ptr(), both.stride()) == (first, (size // 4, 1))
            both[0, 0] = 77
            assert pointer[0].pt == 77
            del both
        alive = weakref.ref(records)
        del records
        gc.collect()
        assert alive() is not None
        assert len(deleted) == event
        del soa
        gc.collect()
        assert len(deleted) == event + 1


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_vectors_of_a_class(cpp, framework):
    """`std::vector` members of a class, whose accessors give their addresses."""
    deleted, names = [], ("pt", "eta", "score", "at")
    for event, n in enumerate(EVENTS):
        tracks = cpp.tracks_new(event, n)
        addresses = {name: getattr(cpp, f"tracks_{name}")(tracks) for name in names}
        columns = {name: (address or 0, "float32") for name, address in addresses.items()}
        columns["at"] = addresses["at"] or 0, "float64", (3,)
        soa = bind(columns, rows=n, owner=Owned(tracks, cpp.tracks_delete, deleted))
        check_columns(soa, event, n, addresses)
        assert soa["at"].tolist() == [[i, i + 0.25, i + 0.5] for i in range(n)]
        run(framework, soa)
        assert cpp.tracks_sum(tracks) == wanted(event, n)
        del soa
        gc.collect()
        assert len(deleted) == event + 1


def test_particles_of_amrex(library):
    """Components in allocations of their own, and an array of pointers to them."""
    deleted = []
    for event, n in enumerate(EVENTS):
        pointer = library.tile_new(event, n)
        tile, owner = pointer.contents, Owned(pointer, library.tile_delete, deleted)
        with pytest.raises(TypeError, match=r"'rdata' has pointers, .* \(address, dtype\)"):
            bind(tile, rows=n, owner=owner)
        reals = {f"r{k}": (address_of(p), "float64") for k, p in enumerate(tile.rdata)}
        idcpu, charge = address_of(tile.idcpu), address_of(tile.idata[0])
        columns = {**reals, "idcpu": (idcpu, "uint64"), "charge": (charge, "int32")}
        soa = bind(columns, rows=n, owner=owner)
        del owner
        assert soa["idcpu"].tolist() == [2**63 + i for i in range(n)]
        assert soa["charge"].tolist() == [-i for i in range(n)]
        soaview_torch.forward(
            lambda x, y, z: x + y + z, (soa, Spec(x="r0", y="r1", z="r2")), (soa, Spec(w="r3"))
        )
        assert tile.rdata[3][:n] == [3.0 * (event + i + 1000) for i in range(n)]
        if n:
            apart = Spec({f"r{k}": f"r{k}" for k in range(3)})
            found = [t.data_ptr() for t in soaview_torch.tensors(soa, apart)]
            assert found == [reals[name][0] for name in apart]
            with pytest.raises(BufferError, match="in memory apart"):
                soaview_torch.tensors(soa, Spec(x=["r0", "r1"]))
        [both] = soaview_torch.tensors(soa, Spec(x=["r0", "r1"]), copy=None)
        expected = np.arange(n)[:, None] + [event, event + 1000.0]
        torch.testing.assert_close(both, torch.from_numpy(expected), rtol=0, atol=0)
        del soa, both
        gc.collect()
        assert len(deleted) == event + 1
