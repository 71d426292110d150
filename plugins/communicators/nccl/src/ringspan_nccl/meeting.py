"""The ranks of a group come together, once for each exchange."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist
from ringspan.contracts import RingError, RingTimeout

from ringspan_nccl.carrier import Membership
from ringspan_nccl.exchange import NcclExchange
from ringspan_nccl.faults import fault_of
from ringspan_nccl.flights import Flights, happens
from ringspan_nccl.processes import Process

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

    from ringspan_nccl.carrier import Carrier
    from ringspan_nccl.settings import NcclSettings

__all__ = ["meet"]

_ROUGHER = timedelta(minutes=1)
"""How much later, at least, the carrier gives up by itself: our error is the better one."""


def meet(
    group: dist.ProcessGroup,
    device: torch.device,
    carrier_class: type[Carrier],
    settings: NcclSettings,
) -> NcclExchange:
    """Opens an exchange between the ranks of `group`: all of them do, and nobody else.

    Raises:
        RingTimeout: a rank did not come within the group's timeout.
        RingError: the ranks could not be connected.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    timeout: timedelta = group._get_backend(device).options._timeout
    try:
        store = _own_store(group, rank)
        processes = _introduced(store, rank, world_size, timeout)
        carrier = carrier_class(
            Membership(
                rank,
                world_size,
                tuple(dist.get_process_group_ranks(group)),
                store,
                device,
                max(2 * timeout, timeout + _ROUGHER),
            )
        )
        _warm_up(carrier, rank, timeout)
    except RuntimeError as error:
        raise _unconnected(rank, error) from error
    flights = Flights(carrier, rank, processes, timeout.total_seconds())
    return NcclExchange(flights, rank, world_size, device, settings)


def _own_store(group: dist.ProcessGroup, rank: int) -> Store:
    """A part of the group's store that only this meeting of its ranks uses."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_process_group_store

    shared = _get_process_group_store(group)
    meetings = shared.add(f"ringspan-nccl/meetings/{rank}", 1)
    return PrefixStore(f"ringspan-nccl/{meetings}", shared)


def _introduced(
    store: Store, rank: int, world_size: int, timeout: timedelta
) -> tuple[Process, ...]:
    """Where each rank runs; waits for all of them."""
    store.set(str(rank), str(Process.current()))
    deadline = time.monotonic() + timeout.total_seconds()
    for peer in range(world_size):
        if not happens(lambda key=str(peer): bool(store.check([key])), deadline):  # type: ignore[misc]
            raise _absent(rank, f"rank {peer}", timeout, peer)
    return tuple(Process.parsed(store.get(str(peer)).decode()) for peer in range(world_size))


def _warm_up(carrier: Carrier, rank: int, timeout: timedelta) -> None:
    work = carrier.warm_up()
    if not happens(work.is_completed, time.monotonic() + timeout.total_seconds()):
        carrier.abort()
        raise _absent(rank, "every rank", timeout)
    work.wait()


def _absent(rank: int, whom: str, timeout: timedelta, peer: int | None = None) -> RingTimeout:
    error = RingTimeout(
        f"rank {rank}",
        expected=f"{whom} to open the ring over NCCL too",
        got=f"nothing for {timeout.total_seconds():g} s",
        remedy="Call attention on every rank of the group",
    )
    error.rank, error.peer = rank, peer
    return error


def _unconnected(rank: int, cause: RuntimeError) -> RingError:
    fault = fault_of(cause)
    error = fault.kind(
        f"rank {rank}",
        expected="a connection to every rank of the group",
        got=fault.got,
        remedy=fault.remedy,
    )
    error.rank = rank
    return error
