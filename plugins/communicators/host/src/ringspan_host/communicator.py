"""The provider: into how many shards a sequence is cut, and where they are computed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ringspan.contracts import Availability, Communicator, DeviceInfo, Exchange, InvalidArgument

from ringspan_host.exchange import HostExchange
from ringspan_host.settings import HostSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pydantic
    import torch.distributed as dist

__all__ = ["Host"]


class Host(Communicator):
    """Virtual ranks: one process computes all of them, one after the other.

    Example:
        >>> exchange = Host().open(None, torch.device("cpu"))
        >>> exchange.post([Message(0, shard, tag=0)], [Message(0, staged, tag=0)]).wait()
    """

    name: ClassVar[str] = "host"
    virtual: ClassVar[bool] = True
    settings: ClassVar[type[pydantic.BaseModel] | None] = HostSettings

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable everywhere: it needs nothing but memory."""
        return Availability.yes(torch.__version__)

    def reasons_against(self, problem: Any) -> Iterable[str]:
        """It has no way to another process."""
        if problem is not None and not problem.virtual:
            yield f"{problem} (supported: virtual ranks of one process, that is group=None)"

    def shards(self, N: int) -> int:
        """As few as hold at most `chunk` tokens each."""
        return max(1, -(-N // self._settings.chunk))

    def computes_on(self) -> torch.device:
        """The configured device; by default the current CUDA device where there is one."""
        if self._settings.device != "auto":
            return torch.device(self._settings.device)
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> Exchange:
        """An exchange between host memory and `device`.

        Errors:
            InvalidArgument: there is a process group.
        """
        if group is not None:
            raise InvalidArgument(
                "group",
                expected="None: all ranks of this communicator are virtual, in one process",
                got=f"a process group of {group.size()} ranks",
                remedy="Leave group out, or name another communicator",
            )
        return HostExchange(device)

    @property
    def _settings(self) -> HostSettings:
        # Outside of a registry nobody has handed the section over.
        return self.section if isinstance(self.section, HostSettings) else HostSettings()
