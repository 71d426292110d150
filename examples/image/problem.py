"""What the image example runs: sizes, orderings, and a photograph as queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ringspan as rs
import torch

from examples.bundled import photograph
from examples.image.features import PATCH, patches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Inputs", "Problem", "pass_over", "rectangles"]

BACKEND = "sdpa"
"""One for all, so that times differ by the ordering alone."""


@dataclass(frozen=True)
class Problem:
    """How much is run."""

    size: int = 128
    """Tokens along each side of the image."""
    photographs: tuple[str, ...] = ("astronaut", "chelsea", "coffee")
    """The first is attended over, all of them are looked at for attention maps."""
    scales: tuple[float, ...] = (10.0, 20.0, 50.0)
    """Of the attention maps; the middle one is looked at by distance."""
    queries: int = 256
    """Rows of each attention map."""
    windows: tuple[int, ...] = (13, 25)
    """Of neighbourhoods; the first is also run."""
    heads: int = 8
    head_dim: int = 16
    rounds: int = 3

    @staticmethod
    def quick(size: int = 64) -> Problem:
        """Little enough for a test."""
        return Problem(
            size, photographs=("astronaut",), scales=(20.0,), queries=64, windows=(13,), rounds=1
        )

    @property
    def grid(self) -> rs.Grid:
        """The tokens."""
        return rs.Grid(self.size, self.size)

    @property
    def window(self) -> int:
        """The one that is run."""
        return self.windows[0]

    @property
    def scale(self) -> float:
        """The middle one."""
        return self.scales[len(self.scales) // 2]

    def dilated(self, ordering: str | None = None) -> rs.Dilated:
        """LongNet's pattern for this many tokens, along an ordering."""
        return rs.Dilated((64, 256, 1024, self.grid.N), (1, 2, 4, 8), along=ordering)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Queries, keys and values, `[1, N, heads, head_dim]` each."""

    q: Float[Tensor, "1 N H D"]
    k: Float[Tensor, "1 N H D"]
    v: Float[Tensor, "1 N H D"]

    def heads(self, count: int) -> Inputs:
        """The first heads of these."""
        return Inputs(*(x[:, :, :count] for x in (self.q, self.k, self.v)))

    @staticmethod
    def of(problem: Problem) -> Inputs:
        """The patches of the first photograph, through random projections."""
        pixels = patches(photograph(problem.photographs[0]), problem.size)
        pixels = ((pixels - pixels.mean(0)) / pixels.std()).float()
        generator = torch.Generator().manual_seed(0)
        shape = (3, pixels.shape[1], problem.heads * problem.head_dim)
        weights = torch.randn(shape, generator=generator) / pixels.shape[1] ** 0.5
        q, k, v = (pixels @ weights).unflatten(-1, (problem.heads, problem.head_dim))[:, None]
        return Inputs(q, k, v)

    def arranged(self, layout: rs.Layout) -> Inputs:
        """The same, stored in the order of a layout."""
        return Inputs(*(layout.arrange(x) for x in (self.q, self.k, self.v)))


def rectangles(problem: Problem) -> list[rs.Grid]:
    """The photographs' own shapes in patches, but for squares."""
    shapes = [photograph(name).shape[1:] for name in problem.photographs]
    return [rs.Grid(h // PATCH, w // PATCH) for h, w in shapes if h != w]


def pass_over(inputs: Inputs, **options: Any) -> Callable[[], Tensor]:
    """A function that runs attention forward and backward, and returns the output."""
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]

    def run() -> Tensor:
        out = rs.attention(*leaves, backend=BACKEND, **options)
        assert not isinstance(out, tuple)
        torch.autograd.grad(out, leaves, leaves[2].detach())
        return out.detach()

    return run
