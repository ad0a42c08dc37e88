"""Torch and JAX in the memory of a C library: `python examples/c_library.py` compiles it with cc.

The library allocates each event's columns one by one; the models read them where they are, and
write their result into the library's memory.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import soaview_jax
import soaview_torch
from soaview import Spec, bind

SOURCE = Path(__file__).with_suffix(".c")


class Tracks(ctypes.Structure):
    """The C struct of pointers, with the same members."""

    _fields_ = [
        ("n", ctypes.c_int),
        *((name, ctypes.POINTER(ctypes.c_float)) for name in ("px", "py", "pt")),
    ]


class Event:
    """Keeps an event's memory: the library frees it when nothing needs it any more."""

    def __init__(self, library: ctypes.CDLL, n: int) -> None:
        self.library, self.tracks = library, library.tracks_new(n)

    def __del__(self) -> None:
        self.library.tracks_delete(self.tracks)


def load(folder: str) -> ctypes.CDLL:
    """Compile the library, and say what its functions take."""
    path = Path(folder) / "tracks.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, SOURCE], check=True)
    library, pointer = ctypes.CDLL(str(path)), ctypes.POINTER(Tracks)
    library.tracks_new.restype = pointer
    library.tracks_delete.argtypes = library.tracks_sum.argtypes = [pointer]
    library.tracks_sum.restype = ctypes.c_double
    return library


def model(px, py):
    """What a network would do, in either framework."""
    return (px**2 + py**2) ** 0.5


def main() -> None:
    """Each event has another row count, and other addresses."""
    inputs, output = Spec(px="px", py="py"), Spec(pt="pt")
    with tempfile.TemporaryDirectory() as folder:
        library = load(folder)
        for n in (3, 0, 1000, 64):
            for adapter in (soaview_torch, soaview_jax):
                event = Event(library, n)
                soa = bind(event.tracks.contents, rows=n, owner=event)
                adapter.forward(model, (soa, inputs), (soa, output))
                print(f"{adapter.__name__}: {n} rows, C sums {library.tracks_sum(event.tracks):g}")


if __name__ == "__main__":
    main()
