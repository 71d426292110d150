"""The chosen backends, called on one batch of tiles at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ringspan.contracts.backend import AttentionBackend, Grads, TileOutput
from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.masks import Mask, MaskCase
from ringspan.contracts.work import Tiles
from ringspan.engine.choice import Choice
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.ring import KeyValue
from ringspan.engine.rows import key_rows, query_rows

__all__ = ["Kernels", "Saved"]


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass starts from: `[B, N, H, D]` each, lse `[B, H, N]`."""

    grad_out: Tensor
    query: Tensor
    local: KeyValue
    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Kernels:
    """The chosen backends, and what they need to know of the call."""

    choice: Choice
    scale: float
    group: int
    """Query heads per key/value head."""

    def forward(self, tiles: Tiles, query: Tensor, rows: KeyValue) -> TileOutput:
        """One batch of tiles: out and lse."""
        backend = self.choice.backend(tiles.mask)
        at_query, at_key = query_rows(tiles, self.group), key_rows(tiles)
        q, k, v = _fitting(
            backend,
            at_query.tile_batch(query),
            at_key.tile_batch(rows.key),
            at_key.tile_batch(rows.value),
        )
        mask = _mask(tiles, query, self.group)
        result = backend.forward(q, k, v, mask=mask, scale=self.scale)
        batch, length, heads, _ = q.shape
        wide = accumulation_dtype(q.dtype)
        _check(backend, "out", result.out, (batch, length, heads, v.shape[-1]), q.dtype)
        _check(backend, "lse", result.lse, (batch, heads, length), wide)
        return result

    def backward(self, tiles: Tiles, saved: Saved, rows: KeyValue) -> Grads:
        """One batch of tiles: its share of the gradients, given the final out and lse."""
        backend = self.choice.backend(tiles.mask)
        at_query, at_key = query_rows(tiles, self.group), key_rows(tiles)
        lse = at_query.tile_batch(saved.lse.transpose(1, 2).unsqueeze(-1))
        grad_out, q, k, v, out = _fitting(
            backend,
            at_query.tile_batch(saved.grad_out),
            at_query.tile_batch(saved.query),
            at_key.tile_batch(rows.key),
            at_key.tile_batch(rows.value),
            at_query.tile_batch(saved.out),
        )
        grads = backend.backward(
            grad_out,
            q,
            k,
            v,
            out,
            lse.squeeze(-1).transpose(1, 2).contiguous(),
            mask=_mask(tiles, saved.query, self.group),
            scale=self.scale,
        )
        for name, grad, x in zip(Grads._fields, grads, (q, k, v), strict=True):
            _check(backend, f"gradient of {name}", grad, tuple(x.shape), x.dtype)
        return grads


def _fitting(backend: AttentionBackend, *tensors: Tensor) -> tuple[Tensor, ...]:
    """As they are for kernels that take strides, else contiguous."""
    if backend.capabilities.strided:
        return tensors
    return tuple(x.contiguous() for x in tensors)


def _check(
    backend: AttentionBackend, what: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Refuses a kernel's result that would be merged into nonsense."""
    wide = accumulation_dtype(dtype)
    if tuple(x.shape) != shape or x.dtype not in (dtype, wide):
        raise BrokenContract(
            f"backend {backend.name!r}",
            expected=f"{what} of shape {list(shape)} in {dtype} or {wide}",
            got=f"shape {list(x.shape)} in {x.dtype}",
        )


def _mask(tiles: Tiles, query: Tensor, group: int) -> Mask:
    if tiles.high is None:
        return Mask(tiles.mask)
    # [T, K, L] -> [B * T, K * G, L]
    high = tiles.high.on(query.device).repeat_interleave(group, dim=1)
    high = high.repeat(query.shape[0], 1, 1)
    return Mask(MaskCase.INTERVAL, torch.zeros_like(high), high)
