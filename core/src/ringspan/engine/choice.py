"""Which backend and communicator run a call, decided before any work starts."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ringspan.catalogue import catalogue, configuration
from ringspan.contracts.backend import AttentionBackend, Problem, Task
from ringspan.contracts.communicator import Communicator, Link
from ringspan.contracts.errors import NoEligibleProvider, UnknownProvider
from ringspan.contracts.masks import MaskCase
from ringspan.contracts.work import Affine, Ragged, Tiles, Work
from ringspan.engine.ring.wire import Wire
from ringspan.engine.sample import Sample
from ringspan.engine.timing import seconds
from ringspan.plan.groups import group_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ringspan_registry import Decision, DeviceInfo, Provider

    from ringspan.engine.call import Call
    from ringspan.plan.steps import Plan

__all__ = [
    "WHOLE",
    "Caution",
    "Choice",
    "Operands",
    "Question",
    "choose",
    "choose_communicator",
    "decide",
    "device_info",
    "measures",
    "name_of",
    "named_virtual",
    "recall",
]

AUTO, OFF = "auto", "off"
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
class Caution:
    """What is done about kernels that fail, from the forward pass to the backward pass."""

    go_on: bool = False
    """Whether the next eligible backend takes the place of one that failed."""
    always: bool = False
    """Whether every result is looked at for NaN, not only the first of a kind."""

    @classmethod
    def configured(cls) -> Caution:
        """As the settings say now."""
        settings = configuration()
        return cls(settings.get("on_fault").value == "next", bool(settings.get("debug").value))


@dataclass(frozen=True)
class Choice:
    """The decisions of one call, by what was decided: backends, who moves rows, a communicator."""

    named: tuple[tuple[str, Decision], ...]
    wire: Wire
    """How the messages of its ring travel."""
    caution: Caution = Caution()

    @cached_property
    def decisions(self) -> dict[str, Decision]:
        """`"backend (causal)"` .. `"communicator"` -> decision."""
        return dict(self.named)

    @cached_property
    def whole(self) -> bool:
        """Whether block-sparse work is taken whole."""
        return WHOLE in self.decisions

    def ragged(self, mask: MaskCase) -> bool:
        """Whether tiles of many lengths are taken in one call."""
        return ragged_for(mask) in self.decisions

    @property
    def requested(self) -> tuple[str, ...]:
        """The backends that were asked for."""
        return self.named[0][1].requested

    def backend(self, work: Work) -> AttentionBackend:
        """The backend chosen for some work."""
        return self.named_backend(name_of(work))

    def named_backend(self, name: str) -> AttentionBackend:
        """The backend chosen under a name."""
        return self._backends[name]

    @cached_property
    def takes_branches(self) -> bool:
        """Whether any backend reads rows where they lie."""
        return any(backend.capabilities.branches for backend in self._tile_backends)

    @cached_property
    def only_branches(self) -> bool:
        """Whether all backends do."""
        return all(backend.capabilities.branches for backend in self._tile_backends)

    @property
    def gathers(self) -> bool:
        """Whether a kernel brings rows together; else torch's operators do."""
        return str(Task.GATHER) in self.decisions

    @property
    def merges(self) -> bool:
        """Whether a kernel puts pieces together; else torch's operators do."""
        return str(Task.MERGE) in self.decisions

    @cached_property
    def _backends(self) -> dict[str, AttentionBackend]:
        found = catalogue()
        return {
            name: cast("AttentionBackend", found.provider("backend", decision.chosen))
            for name, decision in self.named
            if decision.kind == "backend"
        }

    @property
    def _tile_backends(self) -> list[AttentionBackend]:
        moves = {str(task) for task in Task}
        return [backend for name, backend in self._backends.items() if name not in moves]

    @cached_property
    def ticket(self) -> int:
        """A number under which `recall` finds it, or an equal one, for the life of the process."""
        with _lock:
            if self not in _tickets:
                _choices.append(self)
                _tickets[self] = len(_choices) - 1
            return _tickets[self]

    def communicator(self) -> Communicator:
        """The communicator chosen for a ring."""
        chosen = self.decisions["communicator"].chosen
        return cast("Communicator", catalogue().provider("communicator", chosen))

    @cached_property
    def virtual(self) -> Communicator | None:
        """The communicator, if its ranks are virtual."""
        chosen = self.communicator() if "communicator" in self.decisions else None
        return chosen if chosen is not None and chosen.virtual else None


@dataclass(frozen=True, slots=True)
class Question:
    """Something to decide."""

    name: str
    ask: Callable[[], Decision]
    otherwise: str = ""
    """What happens where nobody serves; empty: the call cannot run."""


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
    call: Call,
    operands: Operands,
    plan: Plan,
    *,
    virtual: bool = False,
    led: Mapping[str, str] | None = None,
) -> Iterator[Question]:
    """What has to be decided: every mask case that can occur on any rank, and the rest.

    All ranks ask for the same cases, so that all choose alike; where backends are measured, `led`
    says what rank 0 chose.
    """
    for question in _decide(call, operands, plan, virtual=virtual):
        insist = None if led is None else led.get(question.name)
        if insist is not None:
            # Nothing is measured here: rank 0 did.
            asked = partial(cast("partial[Decision]", question.ask), measure=None, insist=insist)
            question = replace(question, ask=asked)
        yield question


def _decide(call: Call, operands: Operands, plan: Plan, *, virtual: bool) -> Iterator[Question]:
    shaped = plan if measures() else None
    if plan.whole is not None:
        yield _of_backend(call, operands, shaped, WHOLE, "they are cut into tiles", blocks=True)
    for mask in sorted(plan.masks):
        yield _of_backend(call, operands, shaped, backend_for(mask), mask=mask)
    if not call.padded and not call.dropout_p:
        for mask in sorted(plan.ragged_masks):
            name = ragged_for(mask)
            yield _of_backend(
                call, operands, shaped, name, "they run by length", mask=mask, ragged=True
            )
    yield from _decide_moves(call, operands)
    if plan.world_size > 1 or virtual:
        device, ranks = operands.device, plan.world_size
        ask = partial(_decide_communicator, call, device, ranks, virtual=virtual)
        yield Question("communicator", ask)


def _of_backend(
    call: Call, operands: Operands, plan: Plan | None, name: str, otherwise: str = "", **kind: Any
) -> Question:
    """Without a plan, nothing is measured."""
    info = device_info(operands.device)
    problem = _problem(call, operands, info, **kind)
    select = partial(catalogue().select, "backend", problem, info, requested=call.backend)
    sample = None if plan is None else _sample(plan, operands, problem)
    if sample is not None:
        measure = partial(_seconds, problem=problem, sample=sample)
        select = partial(select, measure=measure, shape=sample)
    return Question(name, select, otherwise)


def _sample(plan: Plan, operands: Operands, problem: Problem) -> Sample | None:
    """The largest launch of a kind, where this rank has any."""
    if not operands.batch:
        return None
    if problem.blocks:
        return Sample(operands.batch, plan.rows, plan.rows, plan.heads) if plan.rows else None
    found = [
        work
        for step in plan.steps
        for work in step.work
        if work.mask is problem.mask and isinstance(work, Ragged) == problem.ragged
    ]
    if not found:
        return None
    largest = max(found, key=lambda work: work.area)
    lengths = (np.max(x) for x in (largest.query_length, largest.key_length))
    query_length, key_length = (int(x) for x in lengths)
    heads = len(largest.query_heads) * largest.group
    rows = largest.query if isinstance(largest, Tiles) else None
    step = max(1, rows.step) if isinstance(rows, Affine) else 1
    return Sample(operands.batch * largest.count, query_length, key_length, heads, step)


def _decide_moves(call: Call, operands: Operands) -> Iterator[Question]:
    """Who gathers and merges rows: not on a CPU, where torch's operators do, unless asked to."""
    setting = configuration().get("fused")
    fused = setting.value
    if fused == OFF or (fused == AUTO and operands.device.type == "cpu"):
        return
    if fused != AUTO and fused not in catalogue().names("backend"):
        raise UnknownProvider(
            f"fused (from {setting.source})",
            expected=f"auto, off or one of {', '.join(catalogue().names('backend'))}",
            got=repr(fused),
        )
    info = device_info(operands.device)
    otherwise = "torch's operators do" if fused == AUTO else ""
    for task in (Task.GATHER, Task.MERGE):
        problem = _problem(call, operands, info, task=task)
        ask = partial(catalogue().select, "backend", problem, info, requested=fused, measure=None)
        yield Question(str(task), ask, otherwise)


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


def measures() -> bool:
    """Whether backends are measured before one is chosen."""
    return bool(configuration().get("autotune").value == "first-run")


def choose(
    call: Call,
    operands: Operands,
    plan: Plan,
    wire: Wire,
    *,
    virtual: bool = False,
    led: Mapping[str, str] | None = None,
    caution: Caution | None = None,
) -> Choice:
    """Decides everything before any work starts; `virtual`: for ranks of this process alone.

    `caution` is as the settings say, unless given.

    Raises:
        NoEligibleProvider: with every candidate's reasons.
    """
    named: list[tuple[str, Decision]] = []
    for question in decide(call, operands, plan, virtual=virtual, led=led):
        if named and named[0][0] == WHOLE and question.name.startswith("backend"):
            continue
        try:
            named.append((question.name, question.ask()))
        except NoEligibleProvider:
            # Not a failure where the same work is done in another way, of which `explain` tells.
            if not question.otherwise:
                raise
    return _one_of_each(tuple(named), wire, caution or Caution.configured())


def _one_of_each(named: tuple[tuple[str, Decision], ...], wire: Wire, caution: Caution) -> Choice:
    """The same object for the same decisions: what is found out about it is found out once."""
    key = (tuple((name, id(decision)) for name, decision in named), wire, caution)
    with _lock:
        if key not in _made:
            # It keeps its decisions, so that no other one is ever found at their addresses.
            _made[key] = Choice(named, wire, caution)
        return _made[key]


def _group_backends(call: Call) -> str:
    """As torch says; nothing is known of a described group."""
    if call.group is None:
        return ""
    import torch.distributed as dist

    return dist.get_backend_config(group_named(call.group))


def backend_for(mask: MaskCase) -> str:
    """The name of the decision about the backend for a mask case."""
    return f"backend ({mask})"


def name_of(work: Work) -> str:
    """The name of the decision about some work."""
    if isinstance(work, Ragged):
        return ragged_for(work.mask)
    return WHOLE if work.blocks is not None else backend_for(work.mask)


def ragged_for(mask: MaskCase) -> str:
    """The name of the decision about tiles of many lengths in one call."""
    return f"backend (ragged {mask})"


def _seconds(provider: Provider, problem: Problem, sample: Sample) -> float:
    return seconds(cast("AttentionBackend", provider), problem, sample)


def _problem(
    call: Call,
    operands: Operands,
    info: DeviceInfo,
    *,
    mask: MaskCase = MaskCase.FULL,
    blocks: bool = False,
    ragged: bool = False,
    task: Task = Task.ATTEND,
) -> Problem:
    moves = task is not Task.ATTEND
    return Problem(
        device=operands.device.type,
        dtype=operands.dtype_name,
        mask=mask,
        head_dim=operands.head_dim,
        value_head_dim=operands.value_head_dim,
        group_size=operands.group_size,
        needs_backward=call.needs_backward,
        key_padding=call.padded and not moves,
        dropout=call.dropout_p > 0 and not moves,
        blocks=blocks,
        ragged=ragged,
        task=task,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        device_info=info,
    )


# A choice crosses from the forward to the backward operator as a number in a tensor: the
# backward must use what ran, also outside the `use` context that chose it.
_choices: list[Choice] = []
_tickets: dict[Choice, int] = {}
_made: dict[tuple[object, ...], Choice] = {}
_lock = threading.Lock()


def recall(ticket: int) -> Choice:
    """The choice of that ticket."""
    return _choices[ticket]
