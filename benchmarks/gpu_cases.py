"""The problems that are tried: seeded, so that every machine meets the same ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import ringspan as rs
import torch
from ringspan.testing import Yardstick, yardstick
from ringspan.testing.configuration import Configuration
from ringspan.testing.multiplicity import dense, dilated

__all__ = ["Case", "Tried", "sample", "tried"]

KINDS = tuple(product(("dense", "dilated", "hilbert"), (False, True), (1, 3)))
STRIDE = 5
"""No divisor in common with the number of kinds, so that a few cases already differ in all."""
LARGEST_SCORE = 1e4
HUGE_EVERY = 7
"""Likewise, so that every kind gets huge scores in time."""


@dataclass(frozen=True)
class Case:
    """One problem: a pattern of a kind, with or without a grid, with common or huge scores."""

    kind: str
    """`"dense"`, `"dilated"`, or `"hilbert"`: dilated along the Hilbert curve of `grid`."""
    configuration: Configuration
    grid: tuple[int, int] | None = None
    huge_scores: bool = False

    @property
    def tokens(self) -> rs.Grid | None:
        return None if self.grid is None else rs.Grid(*self.grid)

    @property
    def pattern(self) -> rs.Dense | rs.Dilated:
        if self.kind == "dense":
            return rs.Dense()
        along = "hilbert" if self.kind == "hilbert" else None
        c = self.configuration
        offsets = c.head_offsets
        return rs.Dilated(c.segment_lengths, c.dilation_rates, head_offsets=offsets, along=along)

    def of(self, dtype: torch.dtype) -> Case:
        """The same problem in another dtype."""
        return replace(self, configuration=replace(self.configuration, dtype=dtype))

    def multiplicity(self) -> torch.Tensor:
        c = self.configuration
        if self.kind == "dense":
            return dense(c.N, causal=c.causal)
        if self.tokens is None:
            return c.multiplicity()
        places = rs.Layout(self.tokens, ordering="hilbert").positions(0).argsort()
        return dilated(
            c.N,
            c.heads,
            c.kv_heads,
            c.segment_lengths,
            c.dilation_rates,
            c.head_offsets,
            c.causal,
            places,
        )

    def scale(self) -> float | None:
        if not self.huge_scores:
            return None
        q, k, *_ = self.configuration.inputs()
        return LARGEST_SCORE / float(q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max())

    def as_dict(self) -> dict[str, Any]:
        return {
            "pattern": repr(self.pattern),
            "configuration": repr(self.configuration),
            "grid": self.grid,
            "huge_scores": self.huge_scores,
        }


@dataclass(frozen=True, eq=False)
class Tried:
    """A case with its tensors on a device, and what exact results for them are."""

    case: Case
    inputs: tuple[torch.Tensor, ...]
    options: dict[str, Any]
    """Of `ringspan.attention`."""
    exact: Yardstick


def tried(case: Case, device: torch.device) -> Tried:
    """The yardstick is computed on the device too, in float64."""
    q, k, v, grad_out = (x.to(device) for x in case.configuration.inputs())
    multiplicity, scale = case.multiplicity().to(device), case.scale()
    exact = yardstick(q, k, v, multiplicity, scale=scale, grad_out=grad_out)
    options = {"pattern": case.pattern, "causal": case.configuration.causal, "scale": scale}
    return Tried(case, (q, k, v, grad_out), {**options, "tokens": case.tokens}, exact)


def sample(count: int, largest_N: int, seed: int = 0) -> Iterator[Case]:
    """`count` cases of at most `largest_N` tokens: all kinds in turn, everything else by chance."""
    draw = random.Random(seed)
    for number in range(count):
        kind, causal, group = KINDS[number * STRIDE % len(KINDS)]
        grid = None
        N = _length(draw, largest_N)
        if kind == "hilbert":
            rows = draw.randint(1, int(N**0.5))
            grid = (rows, N // rows)
            N = grid[0] * grid[1]
        kv_heads, head_dim = draw.randint(1, 3), draw.choice((16, 24, 64, 128))
        branches = [_branch(draw, N) for _ in range(draw.randint(1, 3))]
        configuration = Configuration(
            N=N,
            segment_lengths=tuple(w for w, _ in branches),
            dilation_rates=tuple(r for _, r in branches),
            heads=kv_heads * group,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_head_dim=draw.choice((head_dim, head_dim, head_dim, 32)),
            batch=draw.choice((1, 1, 2)),
            causal=causal,
            head_offsets=draw.choice(("modulo", "blocked")),
            seed=draw.randrange(2**16),
        )
        yield Case(kind, configuration, grid, huge_scores=number % HUGE_EVERY == 5)


def _length(draw: random.Random, largest_N: int) -> int:
    """Any length, or one at the edges of a kernel's blocks."""
    near_powers = [2**i + d for i in range(4, largest_N.bit_length()) for d in (-1, 0, 1)]
    awkward = [64 + 128 * i for i in range(largest_N // 128 + 1)]
    edges = [edge for edge in (*near_powers, *awkward) if edge <= largest_N]
    return draw.choice((draw.randint(1, largest_N), draw.choice(edges)))


def _branch(draw: random.Random, N: int) -> tuple[int, int]:
    w = draw.choice((draw.randint(1, N + 8), N, 2 * N, max(1, N // 2)))
    return w, draw.randint(1, min(w, 9))
