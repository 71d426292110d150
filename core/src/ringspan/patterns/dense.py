"""Every token sees every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from ringspan.contracts.errors import NotYetSupported
from ringspan.contracts.pattern import Cliques, Domain, Part, Pattern, Runs

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

    documents_at_once: ClassVar[bool] = True

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

    def parts(self, domain: Domain) -> Iterable[Part]:
        """One set per document: all its tokens."""
        yield Cliques(tuple(range(domain.heads)), Runs(domain.starts, domain.lengths))
