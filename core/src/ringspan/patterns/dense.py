"""Every token sees every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ringspan.contracts.errors import NotYetSupported
from ringspan.contracts.pattern import Cliques, Domain, Pattern

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Pattern):
    """Ordinary attention: `m(i, j) = 1`.

    Args:
        window: refused until windows are supported; None.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 100, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.Dense(), causal=True).shape
        torch.Size([1, 100, 4, 16])
    """

    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            raise NotYetSupported(
                "Dense.window",
                expected="None in this version",
                got=repr(self.window),
                remedy="Leave the window out",
            )
        super().__post_init__()

    def cliques(self, domain: Domain) -> Iterable[Cliques]:
        """One set of all tokens."""
        everyone = np.arange(domain.N, dtype=np.int64)
        yield Cliques.of(tuple(range(domain.kv_heads)), everyone, np.array([domain.N]))
