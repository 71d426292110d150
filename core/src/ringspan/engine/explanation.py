"""What a call would do, as data: inputs, plan, cost and decisions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from ringspan.contracts.errors import InvalidArgument, NoEligibleProvider
from ringspan.engine.call import Call
from ringspan.engine.choice import WHOLE, Operands, decide
from ringspan.engine.plans import cached_plan, cached_plans
from ringspan.engine.ring.wire import Wire
from ringspan.engine.virtual.calls import check_queries, device_of, layout_of
from ringspan.engine.ways import ways_of
from ringspan.plan.activity import Seen
from ringspan.plan.balance import EVEN, busiest
from ringspan.plan.best import Activity, activity_of, layouts_beside
from ringspan.plan.cost import Cost, cost_of
from ringspan.plan.staged import Staged, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ringspan_registry import Decision
    from torch import Tensor

    from ringspan.contracts.communicator import Communicator
    from ringspan.contracts.documents import Documents
    from ringspan.plan.layout import Layout
    from ringspan.plan.queries import QueryPositions
    from ringspan.plan.steps import Plan

__all__ = ["Explanation", "Inputs", "RankReport", "StepReport", "Streamed", "explain_call"]

_MOST_PAIRS = 2**24
"""Of a head: with more, counting active blocks takes seconds."""
_MOST_DOCUMENTS = 64
"""Each is put in order along every curve."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """A described problem: the shapes of q, k and v over all ranks, without tensors.

    Args:
        N: tokens over all ranks.
        heads: query heads.
        head_dim: dimensions of a query and key head.
        kv_heads: key/value heads, a divisor of `heads`; None: as many as `heads`.
        value_head_dim: dimensions of a value head; None: as `head_dim`.
        batch: sequences.
        dtype: a torch dtype or its name; kept as the name.
        device: a torch device or its name; kept as the name.
        needs_backward: whether gradients are asked for.

    Raises:
        InvalidArgument: a field has the wrong type or value; names it.

    Example:
        >>> Inputs(N=1024, heads=8, head_dim=64).kv_heads
        8
    """

    N: int
    heads: int
    head_dim: int
    kv_heads: int | None = None
    value_head_dim: int | None = None
    batch: int = 1
    dtype: str | torch.dtype = "float32"
    device: str | torch.device = "cpu"
    needs_backward: bool = True

    def __post_init__(self) -> None:
        for name, default in {"kv_heads": self.heads, "value_head_dim": self.head_dim}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for name in ("N", "batch"):
            _check_count(name, getattr(self, name), 0)
        for name in ("heads", "head_dim", "kv_heads", "value_head_dim"):
            _check_count(name, getattr(self, name), 1)
        if self.heads % (self.kv_heads or self.heads):
            raise InvalidArgument(
                "heads", expected=f"a multiple of kv_heads {self.kv_heads}", got=str(self.heads)
            )
        object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        object.__setattr__(self, "device", _device_name(self.device))
        if not isinstance(self.needs_backward, bool):
            raise InvalidArgument(
                "needs_backward", expected="True or False", got=repr(self.needs_backward)
            )

    @classmethod
    def of(cls, q: Tensor, k: Tensor, v: Tensor, *, N: int, needs_backward: bool) -> Inputs:
        """From one rank's tensors, with the number of tokens over all ranks."""
        batch, _, heads, head_dim = q.shape
        dtype = str(q.dtype).removeprefix("torch.")
        return cls(
            N, heads, head_dim, k.shape[2], v.shape[3], batch, dtype, str(q.device), needs_backward
        )

    def operands(self, rows: int) -> Operands:
        """The tensors of a rank that holds `rows` tokens."""
        return Operands(
            self.batch,
            rows,
            self.heads,
            self.kv_heads or self.heads,
            self.head_dim,
            self.value_head_dim or self.head_dim,
            getattr(torch, str(self.dtype)),
            torch.device(self.device),
        )


def _dtype_name(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str) or name not in ("float16", "bfloat16", "float32", "float64"):
        raise InvalidArgument(
            "dtype", expected="float16, bfloat16, float32 or float64", got=repr(dtype)
        )
    return name


def _device_name(device: object) -> str:
    refusal = InvalidArgument(
        "device", expected="a torch device such as 'cpu' or 'cuda:0'", got=repr(device)
    )
    if not isinstance(device, str | torch.device):
        raise refusal
    try:
        return str(torch.device(device))
    except RuntimeError:
        raise refusal from None


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of one rank, or a part of a large one: peers, rows that travel, and launches."""

    index: int
    part: int
    source: int
    target: int
    rows_received: int
    rows_sent: int
    launches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankReport:
    """One rank's part."""

    rank: int
    rows: int
    tiles: int
    """Dense problems, counted per key/value head batch."""
    cost: Cost
    steps: tuple[StepReport, ...]


@dataclass(frozen=True, slots=True)
class Streamed:
    """How virtual ranks stream tensors that lie in host memory through a device."""

    device: str
    shards: int
    shard_tokens: int
    """Of the longest shard."""
    staged: Staged

    def __str__(self) -> str:
        moved, mib = self.staged, 2**20
        return (
            f"{self.shards} shards of up to {self.shard_tokens} tokens in host memory, about "
            f"{moved.resident / mib:.1f} MiB at a time on {self.device}; MiB to it and back: "
            f"forward {moved.forward_up / mib:.1f} and {moved.forward_down / mib:.1f}, "
            f"backward {moved.backward_up / mib:.1f} and {moved.backward_down / mib:.1f}"
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan and the decisions of one call. Print it, or take `as_dict()`."""

    inputs: Inputs
    pattern: str
    causal: bool
    layout: str
    layout_reason: str
    """Why tokens lie as they do, or how even the work of a ring's ranks is; may be empty."""
    world_size: int
    ranks: tuple[RankReport, ...]
    decisions: dict[str, Decision]
    """By what was decided: `"backend (causal)"`, .., `"communicator"`."""
    streamed: Streamed | None = None
    """With virtual ranks: what goes to the device and back, and stays there."""
    otherwise: dict[str, str] = field(default_factory=dict)
    """What happens where nobody serves a decision that a call can do without, by its name."""
    ways: dict[str, str] = field(default_factory=dict)
    """In which way rank 0's chosen backends get their rows, by the name of the decision."""
    active_blocks: Activity | None = None
    """How many pairs of blocks of storage are active under each ordering that serves the tokens;
    for tokens with coordinates and block-sparse patterns, of up to 16,777,216 pairs a head and 64
    documents."""

    @property
    def can_run(self) -> bool:
        """Whether everything that a call needs was found."""
        return all(
            decision.chosen or name in self.otherwise for name, decision in self.decisions.items()
        )

    @property
    def flops(self) -> int:
        """Of a forward pass, over all ranks; a backward pass costs 2.5 times as much."""
        return sum(report.cost.flops for report in self.ranks)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON-able data."""
        return {
            "inputs": asdict(self.inputs),
            "pattern": self.pattern,
            "causal": self.causal,
            "layout": self.layout,
            "layout_reason": self.layout_reason,
            "world_size": self.world_size,
            "flops": self.flops,
            "ranks": [asdict(report) for report in self.ranks],
            "decisions": {name: decision.as_dict() for name, decision in self.decisions.items()},
            "ways": self.ways,
            "active_blocks": None if self.active_blocks is None else asdict(self.active_blocks),
            "streamed": None if self.streamed is None else asdict(self.streamed),
        }

    def __str__(self) -> str:
        inputs = self.inputs
        lines = [
            f"{self.pattern}{', causal' if self.causal else ''}",
            f"  {inputs.N} tokens, batch {inputs.batch}, {inputs.heads} heads "
            f"({inputs.kv_heads} key/value), head_dim {inputs.head_dim}, {inputs.dtype} "
            f"on {inputs.device}",
            f"  {self.layout}",
            *([f"  layout {self.layout_reason}"] if self.layout_reason else []),
            *([f"  {self.active_blocks}"] if self.active_blocks else []),
            f"  forward: {self.flops / 1e9:.3f} GFLOP over {self.world_size} rank(s)",
            *([f"  {self.streamed}"] if self.streamed else []),
        ]
        for report in self.ranks:
            cost = report.cost
            lines.append(
                f"  rank {report.rank}: {report.rows} rows, {report.tiles} tiles in "
                f"{sum(len(step.launches) for step in report.steps)} launches, "
                f"{cost.flops / 1e9:.3f} GFLOP, receives {cost.bytes_received} bytes, "
                f"about {cost.memory / 2**20:.1f} MiB above the inputs"
            )
        for name, decision in self.decisions.items():
            instead = "" if decision.chosen else self.otherwise.get(name, "")
            lines.append(f"  {name}{', nobody: ' if instead else ''}{instead}:")
            lines += [f"    {self.ways[name]}"] if name in self.ways else []
            lines += [f"    {line}" for line in str(decision).splitlines()]
        return "\n".join(lines)


def explain_call(
    call: Call,
    inputs: Inputs,
    documents: Documents | None = None,
    queries: QueryPositions | None = None,
    virtual: Communicator | None = None,
) -> Explanation:
    """Plans every rank's part and asks for the decisions, computing nothing."""
    call = replace(call, needs_backward=inputs.needs_backward)
    layout = layout_of(call, inputs.N, virtual)
    device = torch.device(inputs.device)
    if virtual is not None:
        check_queries(virtual, queries)
        device = device_of(virtual, device)
    world_size = layout.world_size
    wire = Wire() if world_size == 1 else Wire.configured()
    row_bytes = inputs.operands(inputs.N).row_bytes
    most_rows = wire.most_rows(row_bytes, device.type, world_size)
    asked = (call.pattern.fingerprint, call.pattern, call.causal)
    heads = (inputs.heads, inputs.kv_heads or inputs.heads)
    if virtual is None:
        ranks = range(world_size)
        plans = [
            cached_plan(*asked, *heads, layout, rank, documents, queries, most_rows)
            for rank in ranks
        ]
    else:
        plans = list(cached_plans(*asked, *heads, layout, documents, most_rows))
    decisions = list(_decisions(call, inputs, plans[0], device, virtual=virtual is not None))
    return Explanation(
        inputs,
        repr(call.pattern),
        call.causal,
        repr(layout),
        _layout_reason(layout, plans, call.causal),
        world_size,
        tuple(_report(plan, inputs, wire) for plan in plans),
        {name: decision for name, decision, _ in decisions},
        None if virtual is None else _streamed(plans, inputs, device),
        {name: otherwise for name, _, otherwise in decisions if otherwise},
        ways_of({name: decision for name, decision, _ in decisions}, plans[0]),
        _active_blocks(call, inputs, layout, plans, documents) if queries is None else None,
    )


def _active_blocks(
    call: Call,
    inputs: Inputs,
    layout: Layout,
    plans: Sequence[Plan],
    documents: Documents | None,
) -> Activity | None:
    blocks = layout.tokens.coordinates is not None or any(plan.whole for plan in plans)
    pairs = sum(plan.area for plan in plans) // inputs.heads
    many = pairs > _MOST_PAIRS or (documents is not None and len(documents) > _MOST_DOCUMENTS)
    if not blocks or layout.block_size is None or many:
        return None
    seen = Seen.of(
        call.pattern,
        layout.tokens,
        heads=inputs.heads,
        kv_heads=inputs.kv_heads,
        causal=call.causal,
        documents=documents,
    )
    return activity_of(seen, layouts_beside(layout, documents), layout.block_size)


def _layout_reason(layout: Layout, plans: Sequence[Plan], causal: bool) -> str:
    if layout.world_size == 1:
        return ""
    name = layout.ordering or "contiguous"
    if layout.reason:
        return f"{name}: {layout.reason}"
    uneven = busiest([plan.area for plan in plans], layout.sizes)
    said = f"{name}: busiest rank {uneven:.2f}x the mean work"
    if not causal or not layout.contiguous or uneven <= EVEN:
        return said
    return f"{said}; zigzag evens that out, and choose_layout weighs it against rows that travel"


def _report(plan: Plan, inputs: Inputs, wire: Wire) -> RankReport:
    operands = inputs.operands(plan.rows)
    return RankReport(
        rank=plan.rank,
        rows=plan.rows,
        tiles=sum(work.count for step in plan.steps for work in step.work),
        cost=cost_of(
            plan,
            batch=operands.batch,
            head_dim=operands.head_dim,
            value_head_dim=operands.value_head_dim,
            itemsize=operands.dtype.itemsize,
            gradient_itemsize=wire.gradient_itemsize(operands.dtype),
            backward=inputs.needs_backward,
        ),
        steps=tuple(
            StepReport(
                step.index,
                step.part,
                step.source,
                step.target,
                step.receive,
                len(step.send),
                tuple(work.summary for work in step.work),
            )
            for step in plan.steps
        ),
    )


def _streamed(plans: Sequence[Plan], inputs: Inputs, device: torch.device) -> Streamed:
    operands = inputs.operands(inputs.N)
    found = staged(
        plans,
        batch=operands.batch,
        head_dim=operands.head_dim,
        value_head_dim=operands.value_head_dim,
        itemsize=operands.dtype.itemsize,
        backward=inputs.needs_backward,
    )
    return Streamed(str(device), len(plans), max(plan.rows for plan in plans), found)


def _decisions(
    call: Call, inputs: Inputs, plan: Plan, device: torch.device, *, virtual: bool
) -> Iterator[tuple[str, Decision, str]]:
    """Name, decision, and what happens where nobody serves."""
    operands = replace(inputs.operands(plan.rows), device=device)
    whole = False
    for question in decide(call, operands, plan, virtual=virtual):
        if whole and question.name.startswith("backend"):
            continue
        decision = _answer(question.ask)
        whole |= question.name == WHOLE and bool(decision.chosen)
        yield question.name, decision, question.otherwise


def _answer(ask: Callable[[], Decision]) -> Decision:
    """The decision, or the one that says why there is none."""
    try:
        return ask()
    except NoEligibleProvider as refusal:
        refused: Decision = refusal.decision  # type: ignore[assignment]
        return refused
