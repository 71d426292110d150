"""The custom operators: all of a call is one node, for autograd, `torch.compile` and checkpointing.

Tensors cross the border, plus the call as text. A process group crosses as its name; settings
of the surrounding context are read inside. The ticket names the choice that the forward made,
for the backward to use again.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ringspan.contracts.tokens import Sequence
from ringspan.engine import execute
from ringspan.engine.agreement import agree
from ringspan.engine.call import Call
from ringspan.engine.choice import Choice, Operands, choose, recall, remember
from ringspan.engine.kernels import Kernels, Saved
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.plans import cached_plan
from ringspan.engine.ring import Channel, KeyValue
from ringspan.plan.groups import group_named
from ringspan.plan.layout import Layout

if TYPE_CHECKING:
    from ringspan_registry import Decision

    from ringspan.plan.steps import Plan

__all__ = ["AGREE_ON_LENGTHS", "LastRun", "attention", "attention_backward", "last_run"]

AGREE_ON_LENGTHS = -1
"""In place of `N`: the ranks hold contiguous shards and tell each other how long they are."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """What the last forward pass in this context really did."""

    rank: int
    world_size: int
    decisions: dict[str, Decision]
    bytes_sent: int
    bytes_received: int


_last_run: ContextVar[LastRun | None] = ContextVar("ringspan_last_run", default=None)


def last_run() -> LastRun | None:
    """What the last `attention` call of this thread or task ran: decisions, and bytes moved.

    None where nothing ran yet.

    Example:
        >>> import torch, ringspan as rs
        >>> q = torch.randn(1, 8, 2, 4)
        >>> _ = rs.attention(q, q, q)
        >>> rs.last_run().bytes_received
        0
    """
    return _last_run.get()


@dataclass(frozen=True, slots=True)
class _Run:
    """One call on one rank, ready to go."""

    call: Call
    layout: Layout
    plan: Plan
    operands: Operands
    group: Any

    @property
    def scale(self) -> float:
        return self.operands.head_dim**-0.5 if self.call.scale is None else self.call.scale

    @property
    def empty(self) -> bool:
        """Nothing to compute on any rank."""
        return self.operands.batch == 0 or self.layout.N == 0

    def kernels(self, choice: Choice) -> Kernels:
        return Kernels(choice, self.scale, self.operands.group_size)

    def choose(self) -> Choice:
        return choose(self.call, self.operands, self.plan.masks, self.group is not None)

    def open(self, choice: Choice) -> Channel | None:
        """The channel of a ring, after all ranks agreed on what they are about to do."""
        if self.group is None:
            return None
        number = agree(self.group, self._facts(choice), self.operands.device)
        return Channel(choice.communicator().open(self.group, self.operands.device), number)

    def _facts(self, choice: Choice) -> dict[str, str]:
        call, operands = self.call, self.operands
        return {
            "pattern": call.pattern.text,
            "causal": repr(call.causal),
            "scale": repr(call.scale),
            "layout": repr(self.layout),
            "batch": repr(operands.batch),
            "heads": repr((operands.heads, operands.kv_heads)),
            "head_dim": repr((operands.head_dim, operands.value_head_dim)),
            "dtype": operands.dtype_name,
            "needs_backward": repr(call.needs_backward),
            "decisions": repr({name: decision.chosen for name, decision in choice.named}),
        }


def _prepare(query: Tensor, key: Tensor, value: Tensor, text: str, N: int) -> _Run:
    call = Call.from_text(text, N)
    group = _group(call)
    if N == AGREE_ON_LENGTHS:
        layout = _agreed_layout(call, group, query.shape[1])
    else:
        layout = call.layout_for(N)
    rank = 0 if group is None else group.rank()
    plan = cached_plan(call.pattern, call.causal, key.shape[2], layout, rank)
    return _Run(call, layout, plan, Operands.of(query, key, value), group)


def _group(call: Call) -> Any:
    if call.group is None:
        return None
    group = group_named(call.group)
    return group if group.size() > 1 else None


def _agreed_layout(call: Call, group: Any, rows: int) -> Layout:
    """Contiguous shards as long as they are: one small all-gather per pass.

    Asked every time, because a rank whose own length stayed the same cannot know that another's
    changed. A given layout needs no such question.
    """
    if group is None:
        return Layout(call.tokens or Sequence(rows))
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.tensor([rows], device=device)
    lengths = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(lengths, mine, group=group)
    sizes = tuple(int(length) for length in lengths)
    return Layout(call.tokens or Sequence(sum(sizes)), group.size(), sizes=sizes)


def _rows_last_contiguous(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Kernels read each head's row as one run of memory."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


@torch.library.custom_op("ringspan::attention", mutates_args=())
def attention(
    query: Tensor, key: Tensor, value: Tensor, call: str, N: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[B, N, H, Dv]`, lse `[B, H, N]` and the ticket of the choice that ran.

    Tensors hold this rank's rows; `call` is a `Call.text`; `N` counts the tokens of all ranks,
    or is `AGREE_ON_LENGTHS`.
    """
    query, key, value = _rows_last_contiguous(query, key, value)
    run = _prepare(query, key, value, call, N)
    choice = run.choose()
    channel = run.open(choice)
    if run.empty:
        out, lse = _empty_outputs(query, key, value)
    else:
        out, lse = execute.forward(
            run.plan, run.kernels(choice), query, KeyValue(key, value), channel
        )
    _last_run.set(
        LastRun(
            run.plan.rank,
            run.plan.world_size,
            choice.decisions,
            channel.exchange.bytes_sent if channel else 0,
            channel.exchange.bytes_received if channel else 0,
        )
    )
    return out, lse, torch.tensor([remember(choice)])


@attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, call: str, N: int
) -> tuple[Tensor, Tensor, Tensor]:
    return (*_empty_outputs(query, key, value), torch.empty(1, dtype=torch.int64))


def _empty_outputs(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, heads, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    return out, query.new_empty(batch, heads, rows, dtype=accumulation_dtype(query.dtype))


@torch.library.custom_op("ringspan::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    ticket: Tensor,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, from the final out and lse."""
    grad_out, query, key, value = _rows_last_contiguous(grad_out, query, key, value)
    run = _prepare(query, key, value, call, N)
    if run.empty:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    choice = recall(int(ticket))
    saved = Saved(grad_out, query, KeyValue(key, value), out, lse)
    return execute.backward(run.plan, run.kernels(choice), saved, run.open(choice))


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    ticket: Tensor,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, value, ctx.call, ctx.N = inputs
    out, lse, ticket = output
    ctx.mark_non_differentiable(lse, ticket)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, out, lse, ticket)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None, None, None
    grads = attention_backward(grad_out, *ctx.saved_tensors, ctx.call, ctx.N)
    return (*grads, None, None)


attention.register_autograd(_backward, setup_context=_setup_context)
