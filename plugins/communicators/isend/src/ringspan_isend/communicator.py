"""The provider: says whether torch can send at all, and opens exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ringspan.contracts import (
    Availability,
    Communicator,
    DeviceInfo,
    Exchange,
    InvalidArgument,
    Link,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch.distributed as dist

__all__ = ["Isend"]


class Isend(Communicator):
    """Messages by `torch.distributed` isend and irecv, over gloo, NCCL or any other backend.

    Example:
        >>> exchange = Isend().open(group, torch.device("cpu"))
        >>> exchange.post([Message(1, rows, tag=0)], [Message(2, buffer, tag=0)]).wait()
    """

    name: ClassVar[str] = "isend"

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable wherever torch was built with distributed support."""
        if not torch.distributed.is_available():
            return Availability.no(
                "torch was built without torch.distributed",
                remedy="Install a torch with distributed support",
                version=torch.__version__,
            )
        return Availability.yes(torch.__version__)

    def reasons_against(self, problem: Any) -> Iterable[str]:
        """Virtual ranks, and a group that no host memory travels through."""
        link: Link = problem
        if link.virtual:
            yield f"{link.world_size} virtual ranks in one process (supported: a process group)"
        elif link.group_backends and torch.distributed.is_available():
            from ringspan_isend.route import choose

            if choose(link.group_backends, link.device) is None:
                yield (
                    f"a group with the backends {link.group_backends} for {link.device} tensors "
                    "(supported: one for them, or for cpu)"
                )

    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> Exchange:
        """An exchange for tensors on `device`.

        Over NCCL this is a collective: all ranks of `group` open together, because the first
        message of a communicator needs all of them.

        Raises:
            InvalidArgument: no group, as for virtual ranks; this process is not in `group`; no
                backend of `group` can carry tensors on `device`, even by way of host memory.
        """
        if group is None:
            raise InvalidArgument(
                "group",
                expected="a process group",
                got="None, as for virtual ranks of one process",
                remedy='Virtual ranks are served by communicator="host"',
            )
        # Without distributed support this module still imports, so that `probe` can say so.
        from ringspan_isend.exchange import IsendExchange
        from ringspan_isend.route import route_of

        return IsendExchange(group, device, route_of(group, device))
