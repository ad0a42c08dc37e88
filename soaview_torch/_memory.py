"""An SoA's memory as torch has it: one import, of one storage and one version counter."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from numpy.typing import NDArray

from soaview import SoA
from soaview.adapter import ITEMSIZE, Allocations, Buffer, Strided

DTYPE = {name: getattr(torch, name) for name in ITEMSIZE}
"""torch's dtypes."""

NAME = {dtype: name for name, dtype in DTYPE.items()}
"""What soaview calls them."""


def name_of(device: torch.device) -> str:
    """What soaview calls a device: torch calls ROCm's cuda, too."""
    name = str(device)
    return name if torch.version.hip is None else name.replace("cuda", "rocm")


def device_of(name: torch.device | str) -> torch.device | str:
    """What torch takes for a device, by its own name or soaview's."""
    if not isinstance(name, (str, torch.device)):
        raise TypeError(
            f"device must be a torch.device or a name such as 'cuda:0', got {name!r:.60}"
        )
    if torch.version.hip is None or not isinstance(name, str):
        return name
    return name.replace("rocm", "cuda")


class Import(dict[str, torch.Tensor]):
    """A buffer's memory as flat tensors, one per dtype, of one storage and one version counter.

    Attributes:
        base: the one that was imported; the others are its views.
        address: where its storage was then.
        nbytes: how many bytes it has.
        root: the host's memory, whose read-only flag may be set later; None where none can be.
        wait: lets torch's current stream wait for the producer; None where nothing has to be.
        later: what has taken its place; see `import_of`.
    """

    __slots__ = ("address", "base", "later", "nbytes", "root", "wait")

    address: int
    base: torch.Tensor
    wait: Callable[[], object] | None

    def __init__(self, flat: torch.Tensor, nbytes: int, root: NDArray[Any] | None = None) -> None:
        self.nbytes = nbytes
        self.wait = None
        self.root = root
        self.later: list[Import] = []
        self.base = self[NAME[flat.dtype]] = flat
        try:
            self.address = flat.data_ptr() if type(flat) is torch.Tensor else 0
        except RuntimeError:
            self.address = 0
        if not self.address and flat.numel():
            raise TypeError(
                "inside fake tensors, functionalize, torch.func.grad or export, torch gives no "
                "tensor of real memory; take the tensors outside, and pass them in"
            )

    def __missing__(self, dtype: str) -> torch.Tensor:
        # Of several threads' the first: a graph is looked for in that one.
        whole = self.base
        rest = whole.numel() * whole.element_size() % ITEMSIZE[dtype]
        if rest:  # of memory that a layout has not rounded up
            whole = whole[:-rest]
        return self.setdefault(dtype, whole.view(DTYPE[dtype]))

    def as_imported(self) -> bool:
        """Whether it may be used: as it was, with no graph written into it, and not read-only.

        `share_memory_` of a tensor moves it; a value that requires a gradient brings its graph.
        """
        for flat in tuple(self.values()):
            if flat.requires_grad:
                return False
        root = self.root
        return self.base.data_ptr() == self.address and (root is None or root.flags.writeable)

    def replaced(self, buffer: Buffer) -> Import:
        """What takes its place, the same for all threads.

        The same storage without the graph, which belongs to the tensors of the call that brought
        it; or the memory imported anew.
        """
        if not self.later:
            same = self._detached()
            self.later.append(same if same.as_imported() else _imported(buffer))
        return self.later[0]

    def _detached(self) -> Import:
        found = Import.__new__(Import)
        found.address, found.wait, found.root, found.later = self.address, self.wait, self.root, []
        found.base, found.nbytes = self.base.detach(), self.nbytes
        found.update({dtype: flat.detach() for dtype, flat in tuple(self.items())})
        return found

    @property
    def moved(self) -> bool:
        """Whether the storage is elsewhere than it was."""
        return self.base.data_ptr() != self.address

    @property
    def version(self) -> int:
        """Torch's count of the writes."""
        return self.base._version

    def alias(self, at: Strided) -> torch.Tensor:
        """The tensor over these elements."""
        flat = self[at.dtype]
        return torch.as_strided(flat, at.shape, at.strides, flat.storage_offset() + at.offset)


_HAS_GRAPH = attrgetter("requires_grad")
_WRITEABLE = attrgetter("flags.writeable")
_ADDRESS = torch.Tensor.data_ptr


class Imports:
    """The memory of several allocations, as one is asked.

    Attributes:
        parts: of each, the import; `flats` are those tensors of theirs whose views are given.
        wait: lets torch's current stream wait for all producers; None where nothing has to be.
    """

    __slots__ = ("_addresses", "_bases", "_flats", "_roots", "parts", "wait")

    def __init__(self, parts: list[Import], flats: list[torch.Tensor]) -> None:
        self.parts = parts
        self._flats = flats
        self._bases = [part.base for part in parts]
        self._addresses = [part.address for part in parts]
        self._roots = [part.root for part in parts if part.root is not None]
        waits = [part.wait for part in parts if part.wait is not None]
        self.wait = (lambda: [wait() for wait in waits]) if waits else None

    def as_imported(self) -> bool:
        """Whether all may be used as they are; see `Import.as_imported`."""
        return (
            not any(map(_HAS_GRAPH, self._flats))
            and [*map(_ADDRESS, self._bases)] == self._addresses
            and all(map(_WRITEABLE, self._roots))
        )

    @property
    def version(self) -> tuple[int, ...]:
        """Torch's counts of the writes."""
        return tuple([part.version for part in self.parts])


def memory_of(soa: SoA, key: str) -> Import | Imports | None:
    """What counts the writes into memory that was imported under the key; None where none was.

    Read-only memory is not: a model gets copies of it.
    """
    if isinstance(soa.buffer, Allocations):
        pieces = soa.buffer.pieces
        return Imports([piece.imports[key] for piece in pieces if key in piece.imports], [])
    # Nothing is imported of what NumPy puts together.
    found: Import | None = None if soa.readonly else soa.buffer.imports.get(key)
    return found


def import_of(buffer: Buffer, key: str = "torch") -> Import:
    """The buffer's memory as it was imported under this key: one for all threads.

    Whoever comes first, and whenever it has to be replaced, all get the same one, and so one count
    of writes: setting a dictionary's default and appending to a list are one step each.
    """
    imports = buffer.imports
    known: Any = imports.get(key)
    if type(known) is torch.Tensor:
        imports[key] = known = imports.setdefault(f"{key}, adopted", _adopted(buffer, known))
    kept: Import | None = known
    if kept is None:
        own = _imported(buffer)
        kept = imports.setdefault(key, own)
        if kept is own:
            return own
    assert kept is not None
    while not kept.as_imported() and (kept.root is None or kept.root.flags.writeable):
        kept = imports[key] = kept.replaced(buffer)
    return kept


def _adopted(buffer: Buffer, tensor: torch.Tensor) -> Import:
    """What an event has imported of an array that is an allocation, and handed out.

    Whoever has got that tensor may have given it another shape, or memory, in place.
    """
    storage = tensor.untyped_storage()
    if storage.data_ptr() != buffer.address or storage.nbytes() < buffer.nbytes:
        return _imported(buffer)
    count = buffer.nbytes // tensor.element_size()
    with torch.enable_grad():  # what is viewed without could never be written with a gradient
        flat = torch.as_strided(
            tensor.detach() if tensor.requires_grad else tensor, (count,), (1,), 0
        )
    return Import(flat, buffer.nbytes, buffer.root)


def to_read(buffer: Buffer, key: str = "torch") -> Import:
    """As `import_of`, also of memory of the host that is read-only: for reading, and no more."""
    if buffer.readonly and buffer.on_host:
        return Import(torch.from_numpy(buffer.unguarded), buffer.nbytes)
    return import_of(buffer, key)


def _imported(buffer: Buffer) -> Import:
    if buffer.on_host:
        return Import(torch.from_numpy(buffer.words), buffer.nbytes, buffer.root)
    found = Import(buffer.bytes_in("torch"), buffer.nbytes)
    buffer.check_imported(found.address)
    found.wait = buffer.waiter("torch", found.base.device)
    return found


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense memory, without anything of torch's around it.

    Only then is it sure to be read as it is, without a word, when it is copied.
    """
    return (
        type(tensor) in _PLAIN
        and not tensor.is_nested  # which has no shape
        and tensor.layout is torch.strided
        and not tensor._is_zerotensor()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
