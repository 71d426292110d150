"""The FlashAttention family: windows that end at the last query and key, tiles of many lengths.

An adapter of such a kernel adds `flash_forward` and `flash_backward`, which get a `Call`. Masks
become calls here: bands are aligned as these kernels align windows, and cut where the kernels
would misread them. Tiles of many lengths are as many in a call as a grid takes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ringspan.contracts import Grads, Lengths, Mask, MaskCase, TileOutput
from ringspan.contracts.adapters import cuda
from ringspan.contracts.adapters.cuda import CudaKernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Call", "FlashKernel", "calls", "contract_lse"]


def _all() -> slice:
    return slice(None)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the kernel: which queries it gets, and what it is told of them.

    The last query stands beside the last key: with `n` queries and `m` keys, query `i` sees the
    keys from `i + m - n - left` to `i + m - n + right`.
    """

    causal: bool = False
    """Of a square; then there is no window."""
    left: int | None = None
    """None: no border on this side."""
    right: int | None = None
    lengths: Lengths | None = None
    """Tiles of many lengths, one after the other; tensors are then `[rows, H, D]`."""
    rows: slice = field(default_factory=_all)
    """The queries of a band that the call is about."""

    @property
    def window(self) -> tuple[int, int]:
        """The window as FlashAttention 2 and 3 take it: -1 where there is no border."""
        left, right = (-1 if x is None else x for x in (self.left, self.right))
        return left, right


def calls(mask: Mask, queries: int, keys: int) -> tuple[Call, ...]:
    """What a `FULL`, `CAUSAL` or `BAND` mask means to these kernels.

    Example:
        >>> calls(Mask(MaskCase.BAND, left=3, right=4), queries=6, keys=8)[0].window
        (5, 2)
    """
    causal = mask.case is MaskCase.CAUSAL
    if mask.lengths is not None:
        return (Call(causal=causal, lengths=mask.lengths),)
    if mask.case is MaskCase.BAND:
        return tuple(_aligned(mask, rows, keys) for rows in _cuts(queries, keys))
    return (Call(causal=causal),)


def _cuts(queries: int, keys: int) -> Iterator[range]:
    """The rows of a band, no more in a piece than there are keys, unless its rows see all keys.

    FlashAttention 2 takes a window as wide as the keys for none, which is wrong where there are
    more queries. Rows behind the first `keys` see the last key, those before the last `keys` see
    the first.
    """
    if queries <= 2 * keys:
        yield range(min(queries, keys))
        if queries > keys:
            yield range(keys, queries)
    else:
        yield range(keys)
        yield range(keys, queries - keys)
        yield range(queries - keys, queries)


def _aligned(mask: Mask, rows: range, keys: int) -> Call:
    left = mask.left + keys - rows.stop
    right = mask.right + rows.stop - keys
    return Call(
        left=None if left >= keys - 1 else left,
        right=None if right >= len(rows) - 1 else right,
        rows=slice(rows.start, rows.stop),
    )


@dataclass(frozen=True, slots=True)
class Some:
    """Some of many tiles: where their rows lie, and their mask."""

    queries: slice
    keys: slice
    mask: Mask


def _within_grid(mask: Mask, lengths: Lengths) -> Iterator[Some]:
    """As many tiles at a time as lie along an axis of a grid, as batches do."""
    tiles, most = len(lengths.query_bounds) - 1, cuda.LARGEST_BATCH
    if tiles <= most:
        yield Some(_all(), _all(), mask)
        return
    for first in range(0, tiles, most):
        chosen = slice(first, min(first + most, tiles) + 1)
        query, key = lengths.query_bounds[chosen], lengths.key_bounds[chosen]
        some = replace(lengths, query_bounds=query - query[0], key_bounds=key - key[0])
        # Reading the borders waits for the GPU; few problems have so many tiles.
        yield Some(
            slice(int(query[0]), int(query[-1])),
            slice(int(key[0]), int(key[-1])),
            replace(mask, lengths=some),
        )


def contract_lse(lse: Float[Tensor, "*batch H padded"], rows: int) -> Float[Tensor, "*batch H L"]:
    """A log-sum-exp as the contract has it: without padding, -inf where a row saw no key.

    Kernels write +inf or -inf there.

    Example:
        >>> contract_lse(torch.tensor([[0.5, torch.inf, 7.0, 7.0]]), 2)
        tensor([[0.5000,   -inf]])
    """
    return torch.nan_to_num(lse[..., :rows], nan=torch.nan, posinf=-torch.inf, neginf=-torch.inf)


class FlashKernel(CudaKernel):
    """A kernel of this family. Its adapter adds what is below and its limits.

    Tensors of `flash_forward` and `flash_backward` are `[B, L, H, D]`, and `[rows, H, D]` where
    `call.lengths` is given; the log-sum-exp is `[B, H, L]` or `[H, rows]`, float32.
    """

    @abstractmethod
    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp as the kernel returns them."""

    @abstractmethod
    def flash_backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        call: Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of query, key and value; `lse` is contiguous."""

    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Calls of the kernel, each on as many tiles as it takes."""
        if mask.lengths is None:
            return super().attend(query, key, value, mask=mask, scale=scale)
        outs, lses = [], []
        for some in _within_grid(mask, mask.lengths):
            q, k, v = query[:, some.queries], key[:, some.keys], value[:, some.keys]
            out, lse = super().attend(q, k, v, mask=some.mask, scale=scale)
            outs.append(out)
            lses.append(lse)
        return TileOutput(_joined(outs, 1), _joined(lses, 2))

    def attend_backward(
        self,
        grad_out: Float[Tensor, "B Lq H Dv"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        out: Float[Tensor, "B Lq H Dv"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """As forward."""
        if mask.lengths is None:
            tensors = (grad_out, query, key, value, out, lse)
            return super().attend_backward(*tensors, mask=mask, scale=scale)
        parts = []
        for some in _within_grid(mask, mask.lengths):
            dO, q, final = (x[:, some.queries] for x in (grad_out, query, out))
            k, v, row_lse = key[:, some.keys], value[:, some.keys], lse[:, :, some.queries]
            tensors = (dO, q, k, v, final, row_lse)
            parts.append(super().attend_backward(*tensors, mask=some.mask, scale=scale))
        return Grads(*(_joined(part, 1) for part in zip(*parts, strict=True)))

    def kernel_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """One call of the kernel, or for some bands one for each of a few parts of the rows."""
        outs, lses = [], []
        for call in calls(mask, query.shape[1], key.shape[1]):
            q = query[:, call.rows]
            if call.lengths is None:
                out, lse = self.flash_forward(q, key, value, call=call, scale=scale)
            else:
                out, lse = self.flash_forward(q[0], key[0], value[0], call=call, scale=scale)
                out, lse = out[None], lse[None]
            outs.append(out)
            lses.append(contract_lse(lse, q.shape[1]))
        return TileOutput(_joined(outs, 1), _joined(lses, 2))

    def kernel_backward(
        self,
        grad_out: Float[Tensor, "B Lq H Dv"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        out: Float[Tensor, "B Lq H Dv"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """As forward; what parts of the rows say about the same keys is added."""
        if mask.lengths is not None:
            (call,) = calls(mask, query.shape[1], key.shape[1])
            flat = (x[0] for x in (grad_out, query, key, value, out, lse))
            dq, dk, dv = self.flash_backward(*flat, call=call, scale=scale)
            return Grads(dq[None], dk[None], dv[None])
        parts = []
        for call in calls(mask, query.shape[1], key.shape[1]):
            dO, q, final = (x[:, call.rows] for x in (grad_out, query, out))
            row_lse = lse[:, :, call.rows].contiguous()
            tensors = (dO, q, key, value, final, row_lse)
            parts.append(self.flash_backward(*tensors, call=call, scale=scale))
        dqs, dks, dvs = zip(*parts, strict=True)
        return Grads(_joined(dqs, 1), _added(dks), _added(dvs))


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _added(parts: Sequence[Tensor]) -> Tensor:
    """The sum, in float32 at least: the kernel has rounded each part once already."""
    if len(parts) == 1:
        return parts[0]
    total = parts[0].to(torch.promote_types(parts[0].dtype, torch.float32), copy=True)
    for x in parts[1:]:
        total += x
    return total
