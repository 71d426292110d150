"""One call of the front door as data: any pattern, any modes, with its random tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ringspan.contracts.documents import Documents
from ringspan.contracts.dropout import kept
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens
from ringspan.testing import multiplicity
from ringspan.testing.configuration import Inputs, Shapes
from ringspan.testing.formula import Extras
from ringspan.testing.named import Named

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from ringspan.testing.curve import Order

__all__ = ["STRIDES", "Case"]

STRIDES = ("contiguous", "heads first", "every other", "tokens first", "one for all")


def _no_order(name: str, tokens: Tokens) -> np.ndarray[Any, np.dtype[np.int64]]:
    raise InvalidArgument(
        "order", expected="a function that gives the token at each place", got=f"none for {name!r}"
    )


@dataclass(frozen=True, kw_only=True)
class Case(Shapes):
    """One call with any pattern and any modes. A failing one is printed whole.

    Example:
        >>> case = Case(N=5, pattern=Named("Dense", {"window": (1, 0)}), documents=(2, 3))
        >>> case.multiplicity()[0].sum(-1)
        tensor([1, 2, 1, 2, 2])
    """

    pattern: Named
    grid: tuple[int, ...] = ()
    """The shape of a grid, if the tokens lie on one."""
    gaps: bool = False
    """The `N` tokens lie on random points of the grid instead, some perhaps on the same."""
    documents: tuple[int, ...] | None = None
    padding: str | None = None
    """Keys that are padding: `"right"`, `"left"`, `"scattered"` or `"all"`, else none."""
    sink: float | None = None
    """How large a head's sink logit is, about; None: no sink."""
    dropout_p: float = 0.0
    positions: tuple[int, ...] | None = None
    """Query positions."""
    cross: int | None = None
    """Number of queries, where it is not that of keys and no positions are given."""
    largest_score: float | None = None
    """Sets the scale so that no score is larger, with its sign; None: the default scale."""
    stored: str | None = None
    """The ordering in which the tokens are stored."""
    strides: str = "contiguous"
    """How the inputs lie in memory, one of `STRIDES`."""

    @property
    def queries(self) -> int:
        """Number of queries."""
        if self.positions is not None:
            return len(self.positions)
        return self.N if self.cross is None else self.cross

    def inputs(self) -> Inputs:
        """q, k, v and an upstream gradient, lying in memory as `strides` says."""
        return Inputs(*(_laid_out(x, self.strides) for x in super().inputs()))

    def tokens(self) -> Tokens:
        """The tokens of all documents together."""
        if not self.grid:
            return Sequence(self.N)
        if not self.gaps:
            return Grid(*self.grid)
        points = [
            torch.randint(0, size, (self.N,), generator=self._generator(axis))
            for axis, size in enumerate(self.grid)
        ]
        return Coordinates(torch.stack(points, dim=-1))

    def scale(self) -> float | None:
        """The scale, where it is not the default."""
        q, k, *_ = super().inputs()
        if self.largest_score is None or 0 in (q.numel(), k.numel()):
            return None
        longest = [float(x.double().norm(dim=-1).max()) for x in (q, k)]
        return self.largest_score / max(longest[0] * longest[1], 1e-6)

    def sink_logits(self) -> Float[Tensor, " H"] | None:
        """A logit per head, float32 (float64 for float64)."""
        if self.sink is None:
            return None
        logits = self.sink * torch.randn(self.heads, generator=self._generator(7))
        return logits.to(torch.promote_types(self.dtype, torch.float32))

    def key_padding(self) -> Bool[Tensor, "B N"] | None:
        """True where a token is real."""
        if self.padding is None:
            return None
        generator = self._generator(8)
        share = torch.rand(self.batch, 1, generator=generator) * (self.padding != "all")
        if self.padding == "scattered":
            return torch.rand(self.batch, self.N, generator=generator) < share
        places = torch.arange(self.N)
        places = places.flip(0) if self.padding == "left" else places
        return places < (share * (self.N + 1)).long()

    def arguments(self) -> dict[str, Any]:
        """What the front door takes beside tensors, pattern and layout."""
        given: dict[str, Any] = {"causal": self.causal, "scale": self.scale()}
        if self.grid:
            given["tokens"] = self.tokens()
        if self.documents is not None:
            given["documents"] = Documents.from_lengths(self.documents)
        if self.padding is not None:
            given["key_padding"] = self.key_padding()
        if self.sink is not None:
            given["sink"] = self.sink_logits()
        if self.dropout_p:
            given |= {"dropout_p": self.dropout_p, "seed": self.seed}
        if self.positions is not None:
            given["query_positions"] = self.positions
        return given

    def multiplicity(self, order: Order = _no_order) -> Int[Tensor, "H Nq N"]:
        """How often each query sees each key; `[B, H, Nq, N]` with padding.

        `order(name, tokens)` gives the token at each place along a named ordering.
        """
        if self.cross is not None:
            m = torch.ones(1, self.cross, self.N, dtype=torch.int64)
        elif self.positions is not None and self.pattern.reaches_beyond:
            m = self._dense_at_positions()
        else:
            m = multiplicity.packed([self._alone(tokens, order) for tokens in self._documents()])
            m = multiplicity.causal_part(m) if self.causal else m
            m = m if self.positions is None else m[:, list(self.positions)]
        padding = self.key_padding()
        return m if padding is None else multiplicity.without_padding(m, padding)

    def extras(self) -> Extras:
        """What else changes the rows: torchscale's padding, padded queries, dropout."""
        return Extras(
            null_keys=self._null_keys(),
            padded=self._padded_queries(),
            keep=self._keep() if self.dropout_p else None,
            dropout_p=self.dropout_p,
        )

    def _documents(self) -> list[Tokens]:
        """The tokens of each document alone."""
        tokens = self.tokens()
        if self.documents is None:
            return [tokens]
        if isinstance(tokens, Sequence):
            return [Sequence(length) for length in self.documents]
        ends = np.cumsum(self.documents)
        return [
            Coordinates(tokens.coordinates[end - length : end])
            for end, length in zip(ends, self.documents, strict=True)
        ]

    def _alone(self, tokens: Tokens, order: Order) -> Int[Tensor, "H N N"]:
        return self.pattern.in_positions(tokens, self.heads, self.kv_heads, order)

    def _dense_at_positions(self) -> Int[Tensor, "1 Nq N"]:
        """Positions of queries that are not among the keys may lie beyond them, and recur."""
        assert self.positions is not None
        beyond = max(self.N, *self.positions, 0) + 1
        m = multiplicity.dense(beyond, causal=self.causal, window=self.pattern.fields.get("window"))
        return m[:, list(self.positions), : self.N]

    def _null_keys(self) -> Int[Tensor, "H Nq"] | None:
        if self.causal:
            return None
        alone = [
            self.pattern.null_keys(tokens.N, self.heads, self.kv_heads)
            for tokens in self._documents()
        ]
        found = [null_keys for null_keys in alone if null_keys is not None]
        if not found:
            return None
        everywhere = torch.cat(found, dim=-1)
        return everywhere if self.positions is None else everywhere[:, list(self.positions)]

    def _padded_queries(self) -> Bool[Tensor, "B Nq"] | None:
        """Queries are padding where they are tokens that are; beyond the keys they are none."""
        real = self.key_padding()
        if real is None or self.cross is not None:
            return None
        if self.positions is None:
            return ~real
        beyond = max(self.N, *self.positions) + 1 - self.N
        real = torch.cat((real, real.new_ones(self.batch, beyond)), dim=-1)
        return ~real[:, list(self.positions)]

    def _keep(self) -> Bool[Tensor, "B H Nq N"]:
        queries = torch.arange(self.queries) if self.positions is None else self.positions
        return kept(
            self.dropout_p,
            self.seed,
            torch.arange(self.batch)[:, None],
            torch.arange(self.heads)[None],
            self._within_documents(torch.as_tensor(queries)),
            self._within_documents(torch.arange(self.N)),
        )

    def _within_documents(self, positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Positions restart at each document."""
        if self.documents is None:
            return positions
        own = torch.cat([torch.arange(length) for length in self.documents])
        return own[positions]

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + purpose)


def _laid_out(x: Tensor, strides: str) -> Tensor:
    """The same values with other strides; `"one for all"`: those of the first of the batch."""
    if strides == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if strides == "every other":
        return torch.stack((x, x), dim=-1).flatten(-2)[..., ::2]
    if strides == "one for all":
        return x[:1].expand_as(x)
    if strides == "tokens first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x.contiguous()
