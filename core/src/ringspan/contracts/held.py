"""Host-side data that an operator's arguments can carry by name only."""

from __future__ import annotations

import hashlib
import itertools
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Held", "integers"]

_serial = itertools.count()
_living: weakref.WeakValueDictionary[str, Held] = weakref.WeakValueDictionary()


class Held:
    """Immutable arrays on the host, known by the digest of their content.

    Two with equal arrays are equal, on every rank. `handle` names one object in this process;
    `text` is what stands for it where only text may go, and `find` gives the object back.
    """

    __slots__ = ("__weakref__", "arrays", "digest", "handle", "text")

    kind: ClassVar[str]
    """Names the class in `text`."""

    arrays: tuple[npt.NDArray[Any], ...]
    digest: str
    handle: str
    text: str

    def _hold(self, *arrays: npt.NDArray[Any]) -> None:
        """Takes the content; called once, by the constructor."""
        content = hashlib.sha256(self.kind.encode())
        for array in arrays:
            array.flags.writeable = False
            content.update(f"{array.dtype}{array.shape}".encode())
            content.update(np.ascontiguousarray(array).data)
        self.arrays = arrays
        self.digest = content.hexdigest()[:32]
        self.handle = f"{self.digest}.{next(_serial)}"
        # Made here: torch.compile turns numbers that change into symbols, which have no text.
        self.text = f"({self.kind!r}, {self.handle!r})"
        _living[self.handle] = self

    @classmethod
    def find(cls, handle: str) -> Self:
        """The living object of that handle."""
        found = _living.get(handle)
        if not isinstance(found, cls):
            raise InvalidArgument(
                cls.kind,
                expected=f"{cls.__name__} that are still alive",
                got=f"a reference to collected {cls.__name__} {handle}",
                remedy=f"Keep the {cls.__name__} object as long as the graph that uses it",
            )
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and (self.kind, self.digest) == (other.kind, other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)


def integers(name: str, values: Any, *, expected: str) -> npt.NDArray[np.int64]:
    """`values` (tensor, array or nested lists) as a new int64 array on the host."""
    try:
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError, NotImplementedError):
        raise InvalidArgument(name, expected=expected, got=type(values).__name__) from None
    if array.size == 0 and array.dtype.kind == "f" and not hasattr(values, "dtype"):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        floats = "Round them, or divide by the size of a cell and round"
        raise InvalidArgument(
            name,
            expected=expected,
            got=f"{array.dtype} of shape {list(array.shape)}",
            remedy=floats if array.dtype.kind == "f" else "",
        )
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise InvalidArgument(name, expected=f"{expected}, of 64 bits", got=str(array.max()))
    return np.array(array, dtype=np.int64)
