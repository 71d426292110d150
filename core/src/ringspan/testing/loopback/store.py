"""The store of a loopback's groups, in this process's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch._C._distributed_c10d import HashStore, Store

if TYPE_CHECKING:
    from ringspan.testing.loopback.wires import Wires

__all__ = ["LoopbackStore"]


class LoopbackStore(Store):
    """A store that raises once a rank has failed.

    Ranks that look for each other in a store would otherwise do so until their timeout.
    """

    def __init__(self, wires: Wires) -> None:
        super().__init__()
        self._wires = wires
        self._kept = HashStore()

    def clone(self) -> LoopbackStore:
        """There is one memory; a connection of one's own to it is the same."""
        return self

    def _ask(self, name: str, *args: Any) -> Any:
        self._wires.raise_if_failed()
        return getattr(self._kept, name)(*args)

    def set(self, key: str, value: Any) -> None:
        """As of any store."""
        self._ask("set", key, value)

    def get(self, key: str) -> bytes:
        """As of any store."""
        return self._ask("get", key)  # type: ignore[no-any-return]

    def add(self, key: str, value: int) -> int:
        """As of any store."""
        return self._ask("add", key, value)  # type: ignore[no-any-return]

    def check(self, keys: list[str]) -> bool:
        """As of any store."""
        return self._ask("check", keys)  # type: ignore[no-any-return]

    def wait(self, keys: list[str], *timeout: Any) -> None:
        """As of any store."""
        self._ask("wait", keys, *timeout)

    # torch asks a store of Python's for these two by their C++ names.
    def deleteKey(self, key: str) -> bool:  # noqa: N802
        """As `delete_key` of any store."""
        return self._ask("delete_key", key)  # type: ignore[no-any-return]

    def getNumKeys(self) -> int:  # noqa: N802
        """As `num_keys` of any store."""
        return self._ask("num_keys")  # type: ignore[no-any-return]
