"""Which backend and communicator run a call, decided before any work starts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ringspan.catalogue import catalogue, configuration
from ringspan.contracts.backend import AttentionBackend, Problem
from ringspan.contracts.communicator import Communicator, Link
from ringspan.contracts.errors import NoEligibleProvider
from ringspan.contracts.masks import MaskCase
from ringspan.engine.ring.wire import Wire
from ringspan.engine.timing import seconds
from ringspan.plan.groups import group_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ringspan_registry import Decision, DeviceInfo, Provider

    from ringspan.engine.call import Call
    from ringspan.plan.steps import Plan

__all__ = [
    "WHOLE",
    "Choice",
    "Operands",
    "choose",
    "choose_communicator",
    "decide",
    "decide_whole",
    "device_info",
    "named_virtual",
    "recall",
    "remember",
]

AUTO = "auto"
WHOLE = "backend (blocks)"
"""The name of the decision about block-sparse work as a whole."""


@dataclass(frozen=True, slots=True)
class Operands:
    """The shapes of one call's tensors on this rank."""

    batch: int
    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> Operands:
        """From `[B, N, H, D]`, `[B, N, Hkv, D]`, `[B, N, Hkv, Dv]`."""
        batch, rows, heads, head_dim = query.shape
        kv_heads, value_head_dim = value.shape[2:]
        return cls(
            batch, rows, heads, kv_heads, head_dim, value_head_dim, query.dtype, query.device
        )

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads if self.kv_heads else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's key and value, over the batch."""
        return self.batch * (self.head_dim + self.value_head_dim) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """As in `"float32"`."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class Choice:
    """The decisions of one call, by what was decided: a backend per mask case, a communicator."""

    named: tuple[tuple[str, Decision], ...]
    wire: Wire
    """How the messages of its ring travel."""

    @property
    def decisions(self) -> dict[str, Decision]:
        """`"backend (causal)"` .. `"communicator"` -> decision."""
        return dict(self.named)

    @property
    def whole(self) -> bool:
        """Whether block-sparse work is taken whole."""
        return self.named[0][0] == WHOLE

    def backend(self, mask: MaskCase) -> AttentionBackend:
        """The backend chosen for a mask case, or for block-sparse work as a whole."""
        chosen = self.decisions[WHOLE if self.whole else backend_for(mask)].chosen
        return cast("AttentionBackend", catalogue().provider("backend", chosen))

    def communicator(self) -> Communicator:
        """The communicator chosen for a ring."""
        chosen = self.decisions["communicator"].chosen
        return cast("Communicator", catalogue().provider("communicator", chosen))

    @property
    def virtual(self) -> Communicator | None:
        """The communicator, if its ranks are virtual."""
        chosen = self.communicator() if "communicator" in self.decisions else None
        return chosen if chosen is not None and chosen.virtual else None


def named_virtual(call: Call) -> Communicator | None:
    """The first communicator of virtual ranks that a call, its context or the settings name."""
    names = configuration().get("communicator", call=call.communicator).value
    for name in [names] if isinstance(names, str) else names:
        if name != AUTO and name in catalogue().names("communicator"):
            provider = cast("Communicator", catalogue().provider("communicator", name))
            if provider.virtual:
                return provider
    return None


@lru_cache(maxsize=64)
def device_info(device: torch.device) -> DeviceInfo:
    """The device as selection sees it, probed once.

    A device that this machine lacks can still be asked about: probes then say that it is missing.
    """
    from ringspan_registry import DeviceInfo, InvalidArgument, detect

    try:
        return detect(device)
    except InvalidArgument:
        return DeviceInfo(type=device.type, index=device.index, name="not on this machine")


def decide(
    call: Call, operands: Operands, plan: Plan, *, virtual: bool = False
) -> Iterator[tuple[str, Callable[[], Decision]]]:
    """What has to be decided, and how to ask: every mask case that can occur on any rank.

    All ranks ask for the same cases, so that all choose alike.
    """
    yield from _decide_backends(call, operands, plan)
    if plan.world_size > 1 or virtual:
        device, ranks = operands.device, plan.world_size
        yield "communicator", partial(_decide_communicator, call, device, ranks, virtual=virtual)


def _decide_backends(
    call: Call, operands: Operands, plan: Plan
) -> Iterator[tuple[str, Callable[[], Decision]]]:
    info = device_info(operands.device)
    for mask in sorted(plan.masks):
        problem = _problem(call, operands, mask, info)
        yield (
            backend_for(mask),
            partial(
                catalogue().select,
                "backend",
                problem,
                info,
                requested=call.backend,
                measure=partial(_seconds, problem=problem),
            ),
        )


def _decide_communicator(
    call: Call, device: torch.device, world_size: int, *, virtual: bool
) -> Decision:
    info = device_info(device)
    link = Link(info.type, world_size, _group_backends(call), virtual)
    return catalogue().select("communicator", link, info, requested=call.communicator)


def choose_communicator(call: Call, device: torch.device, world_size: int) -> Communicator:
    """The communicator of a ring of processes, which `choose` would choose.

    Raises:
        NoEligibleProvider: with every candidate's reasons.
    """
    chosen = _decide_communicator(call, device, world_size, virtual=False).chosen
    return cast("Communicator", catalogue().provider("communicator", chosen))


def decide_whole(call: Call, operands: Operands) -> Decision:
    """The backend for block-sparse work as a whole.

    Raises:
        NoEligibleProvider: none takes it; the work is then cut into tiles.
    """
    info = device_info(operands.device)
    problem = _problem(call, operands, MaskCase.FULL, info, blocks=True)
    return catalogue().select("backend", problem, info, requested=call.backend, measure=None)


def choose(
    call: Call, operands: Operands, plan: Plan, wire: Wire, *, virtual: bool = False
) -> Choice:
    """Decides everything before any work starts; `virtual`: for ranks of this process alone.

    Raises:
        NoEligibleProvider: with every candidate's reasons.
    """
    asked = dict(decide(call, operands, plan, virtual=virtual))
    if plan.whole is not None:
        try:
            whole = decide_whole(call, operands)
        except NoEligibleProvider:
            # Not a failure: every backend takes the same work as tiles. `explain` tells both.
            pass
        else:
            others = ((name, ask()) for name, ask in asked.items() if name == "communicator")
            return Choice(((WHOLE, whole), *others), wire)
    return Choice(tuple((name, ask()) for name, ask in asked.items()), wire)


def _group_backends(call: Call) -> str:
    """As torch says; nothing is known of a described group."""
    if call.group is None:
        return ""
    import torch.distributed as dist

    return dist.get_backend_config(group_named(call.group))


def backend_for(mask: MaskCase) -> str:
    """The name of the decision about the backend for a mask case."""
    return f"backend ({mask})"


def _seconds(provider: Provider, problem: Problem) -> float:
    return seconds(cast("AttentionBackend", provider), problem)


def _problem(
    call: Call, operands: Operands, mask: MaskCase, info: DeviceInfo, *, blocks: bool = False
) -> Problem:
    return Problem(
        device=operands.device.type,
        dtype=operands.dtype_name,
        mask=mask,
        head_dim=operands.head_dim,
        value_head_dim=operands.value_head_dim,
        group_size=operands.group_size,
        needs_backward=call.needs_backward,
        key_padding=call.padded,
        dropout=call.dropout_p > 0,
        blocks=blocks,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        device_info=info,
    )


# A choice crosses from the forward to the backward operator as a number in a tensor: the
# backward must use what ran, also outside the `use` context that chose it.
_choices: list[Choice] = []
_tickets: dict[Choice, int] = {}
_lock = threading.Lock()


def remember(choice: Choice) -> int:
    """A number under which `recall` finds the choice for the life of the process."""
    with _lock:
        if choice not in _tickets:
            _choices.append(choice)
            _tickets[choice] = len(_choices) - 1
        return _tickets[choice]


def recall(ticket: int) -> Choice:
    """The choice remembered under a number."""
    return _choices[ticket]
