"""The way between the memory where the caller's tensors lie and the device that computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ringspan.contracts.communicator import Exchange, Message, Pending
from ringspan.engine.ring.messages import KeyValue
from ringspan.engine.virtual.apart import parcel_apart
from ringspan.engine.virtual.resident import Resident
from ringspan.plan.steps import Parcel

__all__ = ["Load", "Staging", "Take", "ahead"]

Take = Callable[[Tensor], object]


@dataclass(frozen=True, slots=True)
class Load:
    """Tensors on their way to the device."""

    tensors: tuple[Tensor, ...]
    pending: Pending

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, once they are there."""
        self.pending.wait()
        return self.tensors


def ahead(loads: Iterable[Callable[[], Load]]) -> Iterator[tuple[Tensor, ...]]:
    """What each load brings, in order; the next one travels while the caller computes.

    Two loads are on the device at most, if the caller drops one before it asks for the next.
    """
    begun: Load | None = None
    for begin in loads:
        following = begin()
        if begun is not None:
            yield begun.wait()
        begun = following
    if begun is not None:
        yield begun.wait()


class Staging:
    """Tensors up to the device and results down from it, over one exchange.

    What is on the device already is used as it is. Where the device is the CPU all tensors count
    as the host's: a run there copies and counts what a run on a GPU does.
    """

    def __init__(self, exchange: Exchange, device: torch.device) -> None:
        self.device = device
        self.resident = Resident()
        self.bytes_up = self.bytes_down = 0
        """Bytes copied to the device, and from it."""
        self._exchange = exchange
        self._falling: tuple[Pending, list[tuple[Take, Tensor]]] | None = None

    def up(self, *tensors: Tensor) -> Load:
        """Starts to bring tensors, which may be views, to the device."""
        here = [self._is_device(x.device) for x in tensors]
        away = [x for x, known in zip(tensors, here, strict=True) if not known]
        there = [torch.empty(x.shape, dtype=x.dtype, device=self.device) for x in away]
        pending = self._post([self._in_one_run(x) for x in away], there)
        self.bytes_up += sum(x.nbytes for x in there)
        self.resident.hold(*there)
        arrived = iter(there)
        known = zip(tensors, here, strict=True)
        return Load(tuple(x if on else next(arrived) for x, on in known), pending)

    def up_gathered(self, local: KeyValue, parcel: Parcel) -> Load:
        """Starts to bring the rows of a parcel to the device, `[B, rows, 1, D]` each."""
        return self.up(*(self._gathered(x, parcel) for x in local))

    def down(self, home: torch.device, *results: tuple[Tensor, Take]) -> None:
        """Starts to bring results home, where the takers get them before `settle` returns."""
        self.settle()
        if self._is_device(home):
            for result, take in results:
                take(result)
            return
        sources = [result.contiguous() for result, _ in results]
        landings = [self._buffer(x.shape, x, home) for x in sources]
        takes = [take for _, take in results]
        self._falling = self._post(sources, landings), list(zip(takes, landings, strict=True))
        self.bytes_down += sum(x.nbytes for x in sources)

    def settle(self) -> None:
        """Waits for the result that is on its way home."""
        if self._falling is not None:
            (pending, landings), self._falling = self._falling, None
            pending.wait()
            for take, landing in landings:
                take(landing)

    def _is_device(self, place: torch.device) -> bool:
        return self.device.type != "cpu" and place == self.device

    def _gathered(self, x: Tensor, parcel: Parcel) -> Tensor:
        """The rows of a parcel, from `x` `[B, N, H, D]` and where it lies."""
        parcel = parcel_apart(parcel)
        rows, heads = (index.on(x.device) for index in (parcel.rows, parcel.heads))
        out = self._buffer((x.shape[0], len(parcel), x.shape[3]), x)
        torch.ops.aten.index.Tensor_out(x, [None, rows, heads], out=out)
        return out.unsqueeze(2)

    def _post(self, sources: list[Tensor], targets: list[Tensor]) -> Pending:
        return self._exchange.post(
            *(
                [Message(0, x, tag) for tag, x in enumerate(tensors) if x.numel()]
                for tensors in (sources, targets)
            )
        )

    def _in_one_run(self, x: Tensor) -> Tensor:
        return x if x.is_contiguous() else self._buffer(x.shape, x).copy_(x)

    def _buffer(
        self, shape: tuple[int, ...], like: Tensor, device: torch.device | None = None
    ) -> Tensor:
        """Memory where `like` lies, or on `device`; page-locked where a GPU copies from it."""
        device = like.device if device is None else device
        locked = device.type == "cpu" and self.device.type == "cuda"
        return torch.empty(shape, dtype=like.dtype, device=device, pin_memory=locked)
