"""One configuration at one length: what the plan says of it, and the call itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ringspan.api import Inputs, attention, explain
from ringspan.bench.communicators import virtual_named
from ringspan.bench.configuration import Configuration, tokens_of
from ringspan.bench.memory import shortage
from ringspan.bench.notes import during
from ringspan.contracts.errors import InvalidArgument
from ringspan.plan.layout import Layout

if TYPE_CHECKING:
    from ringspan.api import Explanation
    from ringspan.bench.settings import Settings
    from ringspan.bench.world import World

__all__ = ["Attempt", "Forecast", "Operands", "Problem", "attempted", "operands"]


class Operands(NamedTuple):
    """What a call takes: `[B, N, H, D]`, or this rank's rows of it."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor | None
    """None: forward only."""

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(x.nbytes for x in self if x is not None)

    def on_each(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """New operands, of which the first three are leaves."""
        q, k, v = (change(x.detach()).requires_grad_(x.requires_grad) for x in self[:3])
        return Operands(q, k, v, None if self.grad_out is None else change(self.grad_out))


@dataclass(frozen=True, slots=True)
class Problem:
    """One configuration at one length."""

    configuration: Configuration
    layout: Layout
    ranks: range
    """Whose rows this process has: its own; all, where ranks are virtual."""
    place: torch.device
    """Where the operands lie: virtual ranks take theirs from the host's memory."""
    options: dict[str, Any]
    """Of `rs.attention` and `rs.explain`, all but the ranks."""

    @classmethod
    def of(cls, configuration: Configuration, N: int, settings: Settings, world: World) -> Problem:
        """That configuration for `N` tokens.

        Raises:
            InvalidArgument: the pattern or the order of storage does not go with so many.
        """
        tokens = tokens_of(N, grid=settings.grid)
        options = {
            "pattern": configuration.pattern_for(N),
            "causal": settings.causal,
            "tokens": tokens,
        }
        provider = virtual_named(configuration.communicator)
        if provider is None:
            layout = Layout(tokens, world.size, configuration.ordering)
            return cls(
                configuration, layout, range(world.rank, world.rank + 1), world.device, options
            )
        layout = Layout(tokens, provider.shards(N), configuration.ordering)
        return cls(configuration, layout, range(layout.world_size), torch.device("cpu"), options)

    @property
    def rows(self) -> int:
        """Tokens in this process."""
        return sum(self.layout.sizes[rank] for rank in self.ranks)

    def shard(self, x: Tensor) -> Tensor:
        """This process's rows of all, where its operands lie."""
        own = [self.layout.shard(x, rank) for rank in self.ranks]
        return torch.cat(own, dim=1).to(self.place)

    def gather(self, x: Tensor, group: Any) -> Tensor:
        """All rows in order of position, from this process's. A collective of real ranks."""
        if len(self.ranks) == 1:
            return self.layout.gather(x, group)
        whole = torch.empty_like(x)
        whole[:, torch.cat([self.layout.positions(rank) for rank in self.ranks])] = x
        return whole

    def forward(self, given: Operands, group: Any) -> Tensor:
        """This rank's rows of the output."""
        return self._called(given, **self._ranks(group))

    def backward(self, given: Operands, out: Tensor) -> tuple[Tensor, ...]:
        """The gradients of query, key and value; none where only the forward is asked for."""
        if given.grad_out is None:
            return ()
        with during(f"in the backward pass of {self.configuration}"):
            return torch.autograd.grad(out, given[:3], given.grad_out)

    def alone(self, given: Operands) -> Tensor:
        """The output that this process computes by itself from the operands of all ranks."""
        return self._called(given)

    def explained(self, inputs: Inputs) -> Explanation:
        """What a call would do, on every rank."""
        request = self.configuration.request
        return explain(inputs, layout=self.layout, communicator=request, **self.options)

    def _ranks(self, group: Any) -> dict[str, Any]:
        request = self.configuration.request
        return {"layout": self.layout, "group": group, "communicator": request}

    def _called(self, given: Operands, **ranks: Any) -> Tensor:
        q, k, v, grad_out = given
        with during(f"in {self.configuration}"), torch.set_grad_enabled(grad_out is not None):
            out = attention(q, k, v, **self.options, **ranks)
        assert isinstance(out, Tensor), "no lse was asked for"
        return out


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `rs.explain` says of one call; lists have one entry per rank."""

    pattern: str
    layout: str
    flops: int
    """Of the forward pass, over all ranks."""
    memory: tuple[int, ...]
    """Estimated bytes of tensors at the peak where the operands lie, these included."""
    resident: tuple[int, ...]
    """Of virtual ranks, estimated bytes on the device at the peak; else 0."""
    received: tuple[int, ...]
    """Bytes in all passes; of virtual ranks, to the device."""
    received_forward: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A problem that may be run, or why not."""

    problem: Problem | None
    forecast: Forecast | None = None
    refused: str = ""


def attempted(configuration: Configuration, N: int, settings: Settings, world: World) -> Attempt:
    """The problem, unless Ringspan refuses it or memory does not suffice. A collective."""
    try:
        problem = Problem.of(configuration, N, settings, world)
    except InvalidArgument as refusal:
        return Attempt(None, refused=str(refusal))
    # Planned for all ranks at once, so by one.
    asked = _asked(problem, settings, world) if world.rank == 0 else ""
    forecast = world.from_first(asked)
    if isinstance(forecast, str):
        return Attempt(None, refused=forecast)
    limit = settings.memory_limit
    lacking = shortage(forecast.memory, problem.place, world, limit)
    if problem.place != world.device:
        lacking = lacking or shortage(forecast.resident, world.device, world, limit)
    return Attempt(None if lacking else problem, forecast, lacking)


def operands(
    settings: Settings, rows: int, place: torch.device, world: World, seed: int
) -> Operands:
    """Random query, key, value and upstream gradient of so many tokens, in memory of `place`."""
    drawn = torch.Generator().manual_seed(seed)
    heads, kv_heads = settings.heads, settings.kv_heads or settings.heads
    dtype = settings.dtype_on(world.device)

    def normal(of: int) -> Tensor:
        shape = (settings.batch, rows, of, settings.head_dim)
        # Drawn on the CPU in float32, so that a seed means the same everywhere.
        x = torch.randn(shape, generator=drawn).to(place, dtype)
        return x.pin_memory() if place != world.device else x

    q, k, v = (normal(of).requires_grad_(settings.backward) for of in (heads, kv_heads, kv_heads))
    return Operands(q, k, v, normal(heads) if settings.backward else None)


def _asked(problem: Problem, settings: Settings, world: World) -> Forecast | str:
    """What the plan says, or why it cannot run."""
    try:
        told = problem.explained(_inputs(settings, problem, world))
    except InvalidArgument as refusal:
        return str(refusal)
    if not told.can_run:
        return "; ".join(str(each) for each in told.decisions.values() if not each.chosen)
    costs = [report.cost for report in told.ranks]
    token = _token_bytes(settings, world)
    each = tuple(report.rows * token + report.cost.memory for report in told.ranks)
    if told.streamed is not None:
        moved, names = told.streamed.staged, (told.pattern, told.layout)
        up = moved.forward_up + moved.backward_up
        return Forecast(
            *names, told.flops, (sum(each),), (moved.resident,), (up,), (moved.forward_up,)
        )
    return Forecast(
        told.pattern,
        told.layout,
        told.flops,
        memory=each,
        resident=(0,) * len(each),
        received=tuple(cost.bytes_received + cost.backward_bytes_received for cost in costs),
        received_forward=tuple(cost.bytes_received for cost in costs),
    )


def _inputs(settings: Settings, problem: Problem, world: World) -> Inputs:
    return Inputs(
        N=problem.layout.N,
        heads=settings.heads,
        head_dim=settings.head_dim,
        kv_heads=settings.kv_heads,
        batch=settings.batch,
        dtype=settings.dtype_on(world.device),
        device=problem.place,
        needs_backward=settings.backward,
    )


def _token_bytes(settings: Settings, world: World) -> int:
    """Of one token's operands."""
    of_queries = settings.heads * (2 if settings.backward else 1)
    of_keys = 2 * (settings.kv_heads or settings.heads)
    itemsize = settings.dtype_on(world.device).itemsize
    return settings.batch * (of_queries + of_keys) * settings.head_dim * itemsize
