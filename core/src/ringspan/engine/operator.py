"""The custom operators: all of a call is one node, for autograd, `torch.compile` and checkpointing.

Tensors cross the border, plus the call as text. A process group crosses as its name; settings
of the surrounding context are read inside. The ticket names the choice that the forward made,
for the backward to use again.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ringspan.contracts.errors import NotYetSupported
from ringspan.engine.call import Call
from ringspan.engine.choice import recall
from ringspan.engine.kernels import Saved
from ringspan.engine.passes import Traffic, backward_pass, empty_outputs, forward_pass
from ringspan.engine.run import Tensors, agreed_seed, prepare
from ringspan.engine.sink import grad_sink

if TYPE_CHECKING:
    from ringspan_registry import Decision

__all__ = ["LastRun", "attention", "attention_backward", "last_run"]


@dataclass(slots=True, weakref_slot=True, eq=False)
class LastRun:
    """What the last forward pass in this context really did; with virtual ranks, all of them."""

    rank: int
    world_size: int
    decisions: dict[str, Decision]
    bytes_sent: int
    bytes_received: int
    bytes_resident: int
    """With virtual ranks, the most bytes of tensors on the device at once; else 0."""
    backward: Traffic | None = None
    """What its backward pass moved, once that has run."""
    backward_decisions: dict[str, Decision] | None = None
    """What ran in its backward pass: the same, unless another took a failed kernel's place."""

    def __str__(self) -> str:
        chosen = {name: decision.chosen for name, decision in self.decisions.items()}
        lines = [f"rank {self.rank} of {self.world_size}: {_listed(chosen)}"]
        if self.world_size > 1 or self.bytes_resident:
            lines.append(f"  sent {self.bytes_sent} bytes, received {self.bytes_received}")
        later = {
            name: decision.chosen for name, decision in (self.backward_decisions or {}).items()
        }
        if later and later != chosen:
            lines.append(f"  backward: {_listed(later)}")
        return "\n".join(lines)


def _listed(chosen: dict[str, str]) -> str:
    return ", ".join(f"{name} {provider}" for name, provider in chosen.items())


# The backward pass finds its forward by where the saved ticket lies: what is on it must be the same
# for equal calls. Runs that nobody can ask for are not kept.
_runs: WeakValueDictionary[int, LastRun] = WeakValueDictionary()


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


@torch.library.custom_op("ringspan::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    seed: Tensor | None,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output `[B, Nq, H, Dv]`, lse `[B, H, Nq]`, and a ticket for the backward pass.

    The ticket has the number of the choice that ran, the seed, and the pass's number in its ring.

    Query, key and value hold this rank's rows; `call` is a `Call.text`; `N` counts the keys of
    all ranks, or is `AGREE_ON_LENGTHS`.
    """
    tensors = Tensors(query, key, value, sink, key_padding, documents, query_positions, seed)
    run = prepare(tensors.rows_last_contiguous(), call, N)
    agreed = agreed_seed(run)
    found = forward_pass(run, run.choose(), agreed)
    out, lse, choice = found.out, found.lse, found.choice
    padded = run.padded_queries()
    if padded is not None:
        out.masked_fill_(padded[:, :, None, None], 0.0)
        lse.masked_fill_(padded[:, None, :], -torch.inf)
    done = LastRun(run.plan.rank, run.plan.world_size, choice.decisions, *astuple(found.traffic))
    _last_run.set(done)
    ticket = torch.tensor([choice.ticket, agreed, found.number])
    _runs[ticket.data_ptr()] = done
    return out, lse, ticket


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_padding: Tensor | None,
    documents: Tensor | None,
    query_positions: Tensor | None,
    seed: Tensor | None,
    call: str,
    N: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return (*empty_outputs(query, value), torch.empty(3, dtype=torch.int64))


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
    chosen, seed, forward = ticket.tolist()
    choice = recall(chosen)
    run = prepare(tensors.rows_last_contiguous(), call, N, choice)
    if run.empty:
        grads = tuple(torch.zeros_like(x) for x in (query, key, value))
        return (*grads, _zero_sink(sink, query))  # type: ignore[return-value]
    padded = run.padded_queries()
    if padded is not None:
        grad_out = grad_out.masked_fill(padded[:, :, None, None], 0.0)
    elif grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    saved = Saved(grad_out, run.tensors.query, run.local, out, lse)
    found = backward_pass(run, choice, seed, forward, saved)
    grads, done = found.grads, _runs.get(ticket.data_ptr())
    if done is not None:
        done.backward, done.backward_decisions = found.traffic, found.choice.decisions
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
    *tensors, _, ctx.call, ctx.N = inputs
    # The text names held data by handle; they must live as long as the graph. While a graph is
    # traced the length may be a symbol: there the user keeps them, as the docs say.
    ctx.kept = Call.from_text(ctx.call, ctx.N) if type(ctx.N) is int else None
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
