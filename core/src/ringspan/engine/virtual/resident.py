"""How many bytes of tensors are on the device at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["Resident"]


class Resident:
    """Counts the memory of tensors for as long as anybody holds them, and the most at once."""

    def __init__(self) -> None:
        self.peak = 0
        """The most bytes at once so far."""
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._beside = 0

    @property
    def now(self) -> int:
        """Bytes held now."""
        gone = [key for key, (storage, _) in self._held.items() if _is_gone(storage)]
        for key in gone:
            del self._held[key]
        return self._beside + sum(nbytes for _, nbytes in self._held.values())

    def hold(self, *tensors: Tensor) -> None:
        """Counts the memory behind these tensors, once however many views of it there are."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            # While it is weakly referenced, no other storage takes its address.
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._held.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.peak = max(self.peak, self.now)

    @contextmanager
    def beside(self, nbytes: int) -> Iterator[None]:
        """Counts so many bytes more, of what is held without being seen here."""
        self._beside += nbytes
        self.peak = max(self.peak, self.now)
        try:
            yield
        finally:
            self._beside -= nbytes


def _is_gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]
