"""Sums up what the branches of a pattern contribute to the tokens of one chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.engine.merge import accumulation_dtype, merge_

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from ringspan.decoding.sizes import Sizes

__all__ = ["Merging"]


class Merging:
    """Output and log-sum-exp of a chunk while pieces arrive, in float32 or float64."""

    def __init__(self, query: Float[Tensor, "B n H D"], sizes: Sizes) -> None:
        wide = accumulation_dtype(query.dtype)
        self._dtype = query.dtype
        self._out = query.new_zeros((*query.shape[:3], sizes.value_head_dim), dtype=wide)
        self._lse = query.new_full((*query.shape[:3], 1), -torch.inf, dtype=wide)

    def add(
        self,
        rows: Int[Tensor, " R"],
        heads: Int[Tensor, " h"],
        out: Float[Tensor, "B R h Dv"],
        lse: Float[Tensor, "B h R"],
    ) -> None:
        """Merges a piece of these rows and heads."""
        at = (slice(None), rows[:, None], heads)
        merged, merged_lse = self._out[at], self._lse[at]
        merge_(merged, merged_lse, out, lse.transpose(1, 2).unsqueeze(-1))
        self._out[at], self._lse[at] = merged, merged_lse

    def finish(self, sink: Float[Tensor, " H"] | None) -> Float[Tensor, "B n H Dv"]:
        """The output in the query's dtype, after a sink where there is one."""
        if sink is not None:
            logit = sink.to(self._lse.dtype)[:, None].expand_as(self._lse)
            merge_(self._out, self._lse, torch.zeros_like(self._out), logit)
        return self._out.to(self._dtype)
