"""The custom operators: all of a call is one node, for autograd, `torch.compile` and checkpointing.

Tensors cross the border, plus the call as text. A process group crosses as its name; settings
of the surrounding context are read inside. The ticket names the choice that the forward made,
for the backward to use again.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import NotYetSupported, RanksDisagree
from ringspan.contracts.tokens import Sequence
from ringspan.engine import execute
from ringspan.engine.agreement import agree
from ringspan.engine.call import Call
from ringspan.engine.choice import Choice, Operands, choose, recall, remember
from ringspan.engine.kernels import Kernels, Saved, Seed
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.plans import cached_plan
from ringspan.engine.ring import Channel, KeyValue
from ringspan.engine.sink import grad_sink
from ringspan.plan.groups import group_named
from ringspan.plan.layout import Layout
from ringspan.plan.queries import QueryPositions

if TYPE_CHECKING:
    from ringspan_registry import Decision

    from ringspan.plan.steps import Plan

__all__ = [
    "AGREE_ON_LENGTHS",
    "DRAW_SEED",
    "LastRun",
    "Tensors",
    "attention",
    "attention_backward",
    "last_run",
]

AGREE_ON_LENGTHS = -1
"""In place of `N`: the ranks hold contiguous shards and tell each other how long they are."""

DRAW_SEED = -1
"""In place of a seed: dropout draws one from torch's generator."""


class Tensors(NamedTuple):
    """All tensors that a call takes, besides a backward pass's own."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None = None
    key_padding: Tensor | None = None
    documents: Tensor | None = None
    """Lengths, on the host."""
    query_positions: Tensor | None = None

    def rows_last_contiguous(self) -> Tensors:
        """Kernels read each head's row as one run of memory."""
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in self[:3])
        return self._replace(query=query, key=key, value=value)


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
    tensors: Tensors
    documents: Documents | None
    queries: QueryPositions | None

    @property
    def scale(self) -> float:
        return self.operands.head_dim**-0.5 if self.call.scale is None else self.call.scale

    @property
    def local(self) -> KeyValue:
        return KeyValue(self.tensors.key, self.tensors.value)

    @property
    def empty(self) -> bool:
        """Nothing to compute on any rank."""
        queries = self.layout.N if self.queries is None else self.queries.length
        return self.operands.batch == 0 or queries == 0

    def kernels(self, choice: Choice, seed: int) -> Kernels:
        p = self.call.dropout_p
        return Kernels(
            choice,
            self.scale,
            self.plan,
            self.tensors.key_padding,
            Seed(p, seed) if p > 0 else None,
        )

    def choose(self) -> Choice:
        return choose(self.call, self.operands, self.plan)

    def open(self, choice: Choice) -> Channel | None:
        """The channel of a ring, after all ranks agreed on what they are about to do."""
        if self.group is None:
            return None
        number = agree(self.group, self._facts(choice), self.operands.device)
        return Channel(choice.communicator().open(self.group, self.operands.device), number)

    def padded_queries(self) -> Tensor | None:
        """`[B, rows]`, True where a query is padding itself: its row is empty."""
        padding, positions = self.tensors.key_padding, self.plan.query_positions
        if padding is None or (self.queries is not None and self.queries.positions is None):
            return None
        at = positions.on(padding.device)
        # Queries beyond the keys are not among those that may be padding.
        return ~padding[:, at.clamp(max=self.layout.N - 1)] & (at < self.layout.N)

    def without_padding(self) -> _Run:
        """The same call with zeros in padded rows, which may hold anything, NaN too."""
        padding = self.tensors.key_padding
        if padding is None:
            return self
        keys = ~padding[:, self.plan.steps[0].key_positions.on(padding.device)]
        queries = self.padded_queries()
        query, key, value = self.tensors[:3]
        tensors = self.tensors._replace(
            query=query if queries is None else _zeroed(query, queries),
            key=_zeroed(key, keys),
            value=_zeroed(value, keys),
        )
        return replace(self, tensors=tensors)

    def _facts(self, choice: Choice) -> dict[str, str]:
        call, operands = self.call, self.operands
        return {
            "pattern": call.pattern.fingerprint,
            "causal": repr(call.causal),
            "scale": repr(call.scale),
            "layout": repr(self.layout),
            "documents": repr(self.documents and self.documents.digest),
            "key_padding": repr(call.padded),
            "sink": repr(self.tensors.sink is not None),
            "dropout_p": repr(call.dropout_p),
            "batch": repr(operands.batch),
            "heads": repr((operands.heads, operands.kv_heads)),
            "head_dim": repr((operands.head_dim, operands.value_head_dim)),
            "dtype": operands.dtype_name,
            "needs_backward": repr(call.needs_backward),
            "decisions": repr({name: decision.chosen for name, decision in choice.named}),
        }


def _prepare(tensors: Tensors, text: str, N: int) -> _Run:
    call = Call.from_text(text, N)
    group = _group(call)
    if N == AGREE_ON_LENGTHS:
        layout = _agreed_layout(call, group, tensors.query.shape[1])
    else:
        layout = call.layout_for(N)
    rank = 0 if group is None else group.rank()
    documents = _documents(tensors.documents)
    queries = _queries(tensors, group)
    operands = Operands.of(*tensors[:3])
    plan = cached_plan(
        call.pattern,
        call.causal,
        operands.heads,
        operands.kv_heads,
        layout,
        rank,
        documents,
        queries,
    )
    run = _Run(call, layout, plan, operands, group, tensors, documents, queries)
    return run.without_padding()


def _zeroed(x: Tensor, padded: Tensor) -> Tensor:
    return x.masked_fill(padded[:, :, None, None], 0.0)


def _documents(lengths: Tensor | None) -> Documents | None:
    return None if lengths is None else _documents_of(lengths.numpy().tobytes())


@lru_cache(maxsize=256)
def _documents_of(lengths: bytes) -> Documents:
    return Documents(np.frombuffer(lengths, dtype=np.int64))


def _queries(tensors: Tensors, group: Any) -> QueryPositions | None:
    if tensors.query_positions is not None:
        return _queries_at(tensors.query_positions.cpu().numpy().tobytes())
    length = tensors.query.shape[1]
    if group is None and length != tensors.key.shape[1]:
        return QueryPositions(length=length)
    return None


@lru_cache(maxsize=256)
def _queries_at(positions: bytes) -> QueryPositions:
    return QueryPositions(np.frombuffer(positions, dtype=np.int64))


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
    sizes = tuple(_from_all(group, rows))
    return Layout(call.tokens or Sequence(sum(sizes)), group.size(), sizes=sizes)


def _from_all(group: Any, number: int) -> list[int]:
    """A number from each rank."""
    import torch.distributed as dist

    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    mine = torch.tensor([number], device=device)
    numbers = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(numbers, mine, group=group)
    return [int(each) for each in numbers]


def _agreed_seed(run: _Run, seed: int) -> int:
    """The given seed, or one from torch's generator; in a ring rank 0's, by a small all-gather."""
    if run.call.dropout_p == 0:
        return 0
    drawn = int(torch.randint(2**62, ())) if seed == DRAW_SEED else seed
    if run.group is None:
        return drawn
    seeds = _from_all(run.group, drawn)
    if seed != DRAW_SEED and len(set(seeds)) > 1:
        raise RanksDisagree(
            "seed",
            expected=f"the same on every rank; rank {run.plan.rank} has {seed}",
            got=f"{seeds} by rank",
            remedy="Pass the same seed on every rank",
        )
    return seeds[0]


@torch.library.custom_op("ringspan::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    call: str,
    N: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[B, Nq, H, Dv]`, lse `[B, H, Nq]`, and a ticket: the choice that ran, and the seed.

    Query, key and value hold this rank's rows; `call` is a `Call.text`; `N` counts the keys of
    all ranks, or is `AGREE_ON_LENGTHS`; `seed` may be `DRAW_SEED`.
    """
    tensors = Tensors(query, key, value, sink, key_padding, documents, query_positions)
    run = _prepare(tensors.rows_last_contiguous(), call, N)
    choice = run.choose()
    seed = _agreed_seed(run, seed)
    channel = run.open(choice)
    if run.empty:
        out, lse = _empty_outputs(query, value)
    else:
        out, lse = execute.forward(
            run.plan, run.kernels(choice, seed), run.tensors.query, run.local, sink, channel
        )
        padded = run.padded_queries()
        if padded is not None:
            out.masked_fill_(padded[:, :, None, None], 0.0)
            lse.masked_fill_(padded[:, None, :], -torch.inf)
    _last_run.set(
        LastRun(
            run.plan.rank,
            run.plan.world_size,
            choice.decisions,
            channel.exchange.bytes_sent if channel else 0,
            channel.exchange.bytes_received if channel else 0,
        )
    )
    return out, lse, torch.tensor([remember(choice), seed])


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    call: str,
    N: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return (*_empty_outputs(query, value), torch.empty(2, dtype=torch.int64))


def _empty_outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, rows, heads, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    return out, query.new_empty(batch, heads, rows, dtype=accumulation_dtype(query.dtype))


@torch.library.custom_op("ringspan::attention_backward", mutates_args=())
def attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    out: Tensor,
    lse: Tensor,
    ticket: Tensor,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sink (empty without one), from the final out and lse."""
    tensors = Tensors(query, key, value, sink, key_padding, documents, query_positions)
    run = _prepare(tensors.rows_last_contiguous(), call, N)
    if run.empty:
        grads = tuple(torch.zeros_like(x) for x in (query, key, value))
        return (*grads, _zero_sink(sink, query))  # type: ignore[return-value]
    number, seed = ticket.tolist()
    choice = recall(number)
    padded = run.padded_queries()
    if padded is not None:
        grad_out = grad_out.masked_fill(padded[:, :, None, None], 0.0)
    elif grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    saved = Saved(grad_out, run.tensors.query, run.local, out, lse)
    grads = execute.backward(run.plan, run.kernels(choice, seed), saved, run.open(choice))
    of_sink = _zero_sink(sink, query) if sink is None else grad_sink(sink, grad_out, out, lse)
    return (*grads, of_sink)


def _zero_sink(sink: Tensor | None, query: Tensor) -> Tensor:
    return query.new_empty(0) if sink is None else torch.zeros_like(sink)


@attention_backward.register_fake
def _(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    out: Tensor,
    lse: Tensor,
    ticket: Tensor,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = (x.new_empty(x.shape) for x in (query, key, value))
    return (*grads, _zero_sink(sink, query))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.call, ctx.N, _ = inputs
    out, lse, ticket = output
    ctx.mark_non_differentiable(lse, ticket)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, out, lse, ticket)


def _backward(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 10
    # Asked for once: checkpointing computes them anew each time.
    saved = ctx.saved_tensors
    *grads, of_sink = attention_backward(grad_out, *saved, ctx.call, ctx.N)
    return (*grads, None if saved[3] is None else of_sink, *(None,) * 6)


attention.register_autograd(_backward, setup_context=_setup_context)


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise NotYetSupported(
        "create_graph",
        expected="first derivatives of attention",
        got="a backward pass through its gradients",
        remedy="Drop create_graph=True, or compute that term with a plain softmax",
    )


attention_backward.register_autograd(_refuse_second_derivative)
