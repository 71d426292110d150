"""Process groups, however the user names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["Ranks", "group_named", "process_group"]


def process_group(group: Any) -> dist.ProcessGroup:
    """The ProcessGroup behind `group`: itself, a one-dimensional DeviceMesh's, or the default."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh

    if group is None:
        if not dist.is_initialized():
            raise InvalidArgument(
                "group",
                expected="an initialised process group",
                got="None without torch.distributed",
                remedy="Call torch.distributed.init_process_group first",
            )
        return dist.group.WORLD  # type: ignore[return-value]
    if isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise _not_a_member("a group of other processes")
    if isinstance(group, DeviceMesh):
        if group.get_coordinate() is None:
            raise _not_a_member("a DeviceMesh of other processes")
        if group.ndim != 1:
            raise InvalidArgument(
                "group",
                expected="a one-dimensional DeviceMesh",
                got=f"{group.ndim} dimensions",
                remedy="Pick one dimension, as in mesh['ring']",
            )
        return group.get_group()
    if isinstance(group, dist.ProcessGroup):
        return group
    raise InvalidArgument(
        "group", expected="a ProcessGroup or a one-dimensional DeviceMesh", got=repr(group)
    )


def _not_a_member(got: str) -> InvalidArgument:
    return InvalidArgument(
        "group",
        expected="a group that this process is a member of",
        got=got,
        remedy="Call on the members of the group only",
    )


def group_named(name: str) -> dist.ProcessGroup:
    """The ProcessGroup of that `group_name`: an operator's arguments can carry only its name."""
    from torch.distributed import distributed_c10d

    group: dist.ProcessGroup = distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    return group


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place in a group, with the group by name."""

    group: str | None = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """Of a ProcessGroup or DeviceMesh; None: this process alone."""
        if group is None:
            return cls()
        process = process_group(group)
        return cls(process.group_name, process.rank(), process.size())
