"""The provider: says which groups it serves, and brings their ranks together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from ringspan.contracts import (
    Availability,
    Communicator,
    DeviceInfo,
    Exchange,
    InvalidArgument,
    Link,
)

from ringspan_nccl.carrier import NcclCarrier
from ringspan_nccl.meeting import meet
from ringspan_nccl.settings import NcclSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pydantic

    from ringspan_nccl.carrier import Carrier

__all__ = ["Nccl"]


class Nccl(Communicator):
    """Grouped messages over NCCL, in a process group and on a stream of their own.

    Example:
        >>> exchange = Nccl().open(group, torch.device("cuda", 0))
        >>> exchange.post([Message(1, rows, tag=0)], [Message(2, buffer, tag=0)]).wait()
    """

    name: ClassVar[str] = "nccl"
    settings: ClassVar[type[pydantic.BaseModel] | None] = NcclSettings
    device_type: ClassVar[str] = "cuda"
    backend: ClassVar[str] = "nccl"
    """What the group must use for that type of device."""
    carrier: ClassVar[type[Carrier]] = NcclCarrier

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable on CUDA devices, where torch was built with NCCL."""
        if device.type != self.device_type:
            return Availability.no(f"{device.type} device (supported: {self.device_type})")
        if not (dist.is_available() and dist.is_nccl_available()):
            return Availability.no(
                "torch was built without NCCL",
                remedy="Install a CUDA build of torch",
                version=torch.__version__,
            )
        version: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        return Availability.yes(".".join(map(str, version)))

    def priority(self, device: DeviceInfo) -> int:
        """Before what also works elsewhere."""
        return 10 if device.type == self.device_type else 0

    def reasons_against(self, problem: Any) -> Iterable[str]:
        """Virtual ranks, other devices, and groups that do not use NCCL for them."""
        link: Link = problem
        if link.virtual:
            yield f"{link.world_size} virtual ranks in one process (supported: a process group)"
        if link.device != self.device_type:
            yield f"{link.device} tensors (supported: {self.device_type})"
        if link.group_backends:
            by_device = dict(each.split(":", 1) for each in link.group_backends.split(","))
            found = by_device.get(self.device_type)
            if found != self.backend:
                yield (
                    f"a group with {found or 'no backend'} for {self.device_type} tensors "
                    f"(supported: {self.backend})"
                )

    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> Exchange:
        """An exchange for tensors on `device`: a collective of `group`, and of nobody else.

        Raises:
            InvalidArgument: no group, as for virtual ranks; this process is not in it; tensors on
                `device` do not travel by NCCL in it.
            RingTimeout: a rank did not come within the group's timeout.
            RingError: the ranks could not be connected.
        """
        members = self._checked(group, device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return meet(members, device, self.carrier, self._configured)

    def _checked(self, group: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup:
        if group is None:
            raise InvalidArgument(
                "group",
                expected="a process group",
                got="None, as for virtual ranks of one process",
                remedy='Virtual ranks are served by communicator="host"',
            )
        if dist.get_rank(group) < 0:
            raise InvalidArgument(
                "group",
                expected="a process group that this process belongs to",
                got=f"a group without global rank {dist.get_rank()}",
            )
        link = Link(device.type, dist.get_world_size(group), dist.get_backend_config(group))
        if reasons := list(self.reasons_against(link)):
            raise InvalidArgument(
                "group",
                expected=f"a process group that carries {self.device_type} tensors by "
                f"{self.backend}",
                got="; ".join(reasons),
                remedy="Create it with init_process_group('cpu:gloo,cuda:nccl')",
            )
        return group

    @property
    def _configured(self) -> NcclSettings:
        # Outside of a registry nobody has handed the section over.
        return self.section if isinstance(self.section, NcclSettings) else NcclSettings()
