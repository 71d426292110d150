"""The chosen backends, called on one batch of tiles at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ringspan.contracts.backend import AttentionBackend, Grads, TileOutput
from ringspan.contracts.dropout import Dropout
from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.masks import Mask
from ringspan.contracts.selection import Selection, key_rows, query_rows
from ringspan.contracts.work import Indexed, Tiles
from ringspan.engine.choice import Choice
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.ring.messages import KeyValue
from ringspan.plan.steps import Plan, Step

__all__ = ["Kernels", "Keys", "Saved", "Seed", "Watch", "unwatched"]

_ELEMENTS_AT_ONCE = 2**24
"""Elements that one launch gathers or whose bitmap it expands, at most."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What the backward pass starts from: `[B, N, H, D]` each, lse `[B, H, N]`."""

    grad_out: Tensor
    query: Tensor
    local: KeyValue
    out: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Seed:
    """Dropout of one call."""

    p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Keys:
    """The key/value rows at hand in a step, and what is known of each of them."""

    rows: KeyValue
    step: Step
    seen: Tensor | None
    """`[B, rows, heads, 1]`: False for padding."""

    def positions(self) -> Tensor:
        """`[1, rows, heads, 1]`"""
        return _per_head(self.step.key_positions, self.rows.key)


Watch = Callable[..., None]


def unwatched(*tensors: Tensor) -> None:
    """Watches nothing."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The chosen backends, and what they need to know of the call."""

    choice: Choice
    scale: float
    plan: Plan
    key_padding: Tensor | None = None
    """`[B, N]` by position, True for real tokens; here or on the host."""
    dropout: Seed | None = None
    watch: Watch = unwatched
    """Is shown the tensors that each launch reads and makes."""

    def keys(self, step: Step, rows: KeyValue) -> Keys:
        """The rows at hand in a step."""
        if self.key_padding is None:
            return Keys(rows, step, None)
        heads = rows.key.shape[2]
        seen = self.key_padding[:, step.key_positions.on(self.key_padding.device)]
        seen = seen.to(rows.key.device)
        return Keys(rows, step, seen[:, :, None, None].expand(-1, -1, heads, -1))

    def launches(self, query: Tensor, keys: Keys) -> Iterator[Tiles]:
        """A step's tiles, or block-sparse work as a whole where a kernel takes it."""
        if self.plan.whole is not None and self.choice.whole:
            yield from self.plan.whole.tiles
            return
        for tiles in keys.step.tiles:
            yield from self._bounded(tiles, query, keys)

    def _bounded(self, tiles: Tiles, query: Tensor, keys: Keys) -> Iterator[Tiles]:
        """The tiles in parts that gather no more than a bounded number of elements."""
        elements = 0
        if isinstance(tiles.key, Indexed) or isinstance(tiles.query, Indexed):
            width = keys.rows.key.shape[-1] + keys.rows.value.shape[-1]
            elements += max(tiles.key_length, tiles.query_length) * len(tiles.key_heads) * width
        if tiles.seen is not None:
            elements += tiles.query_length * tiles.key_length
        most = _ELEMENTS_AT_ONCE // max(1, elements * query.shape[0])
        yield from tiles.chunks(max(1, most) if elements else tiles.count)

    def forward(self, tiles: Tiles, query: Tensor, keys: Keys) -> TileOutput:
        """One batch of tiles: out and lse."""
        backend = self.choice.backend(tiles.mask)
        at_query, at_key = query_rows(tiles), key_rows(tiles)
        q, k, v = _fitting(
            backend,
            at_query.tile_batch(query),
            at_key.tile_batch(keys.rows.key),
            at_key.tile_batch(keys.rows.value),
        )
        options = self._options(tiles, query, keys)
        self.watch(q, k, v)
        with _no_autocast(q):
            result = backend.forward(q, k, v, **options)
        self.watch(*result)
        batch, length, heads, _ = q.shape
        wide = accumulation_dtype(q.dtype)
        _check(backend, "out", result.out, (batch, length, heads, v.shape[-1]), q.dtype)
        _check(backend, "lse", result.lse, (batch, heads, length), wide)
        return result

    def backward(self, tiles: Tiles, saved: Saved, keys: Keys) -> Grads:
        """One batch of tiles: its share of the gradients, given the final out and lse."""
        backend = self.choice.backend(tiles.mask)
        at_query, at_key = query_rows(tiles), key_rows(tiles)
        lse = at_query.tile_batch(saved.lse.transpose(1, 2).unsqueeze(-1))
        grad_out, q, k, v, out = _fitting(
            backend,
            at_query.tile_batch(saved.grad_out),
            at_query.tile_batch(saved.query),
            at_key.tile_batch(keys.rows.key),
            at_key.tile_batch(keys.rows.value),
            at_query.tile_batch(saved.out),
        )
        options = self._options(tiles, saved.query, keys)
        lse = lse.squeeze(-1).transpose(1, 2).contiguous()
        self.watch(grad_out, q, k, v, out, lse)
        with _no_autocast(q):
            grads = backend.backward(grad_out, q, k, v, out, lse, **options)
        self.watch(*grads)
        for name, grad, x in zip(Grads._fields, grads, (q, k, v), strict=True):
            _check(backend, f"gradient of {name}", grad, tuple(x.shape), x.dtype)
        return grads

    def _options(self, tiles: Tiles, query: Tensor, keys: Keys) -> dict[str, Any]:
        mask = _mask(tiles, query, keys)
        if mask.case not in self.choice.backend(tiles.mask).capabilities.masks:
            mask = mask.as_interval(tiles.query_length, tiles.key_length, query.device)
        options: dict[str, Any] = {"mask": mask, "scale": self.scale}
        if self.dropout is not None:
            options["dropout"] = self._dropout(self.dropout, tiles, query, keys)
        return options

    def _dropout(self, seed: Seed, tiles: Tiles, query: Tensor, keys: Keys) -> Dropout:
        batch, device = query.shape[0], query.device
        at_query, at_key = query_rows(tiles), key_rows(tiles)
        first = torch.tensor(tiles.query_heads, device=device).unsqueeze(-1)
        of_keys = _by_head(at_key, keys.positions()).repeat_interleave(tiles.group, dim=1)
        of_queries = _by_head(at_query, _per_head(self.plan.query_positions, query))
        return Dropout(
            p=seed.p,
            seed=seed.seed,
            batch=torch.arange(batch, device=device).repeat_interleave(tiles.count),
            heads=(first + torch.arange(tiles.group, device=device)).flatten(),
            query_positions=self._restarted(of_queries).repeat(batch, 1, 1),
            key_positions=self._restarted(of_keys).repeat(batch, 1, 1),
        )

    def _restarted(self, positions: Tensor) -> Tensor:
        """Positions within their document, so that packed documents draw as each alone does."""
        if self.plan.documents is None:
            return positions
        starts = torch.from_numpy(self.plan.documents.starts.copy()).to(positions.device)
        document = torch.searchsorted(starts, positions.contiguous(), right=True) - 1
        return positions - starts[document]


def _no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Inside, products are computed in the dtypes that the kernel chose."""
    if not torch.amp.is_autocast_available(like.device.type):
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def _per_head(positions: Indexed, like: Tensor) -> Tensor:
    """Positions `[rows]` as `[1, rows, heads, 1]` for the heads of `like`."""
    rows = positions.on(like.device)[None, :, None, None]
    return rows.expand(-1, -1, like.shape[2], -1)


def _by_head(selection: Selection, x: Tensor) -> Tensor:
    """Selected entries of `x` `[B, N, H, 1]` as `[B * T, heads, L]`."""
    return selection.tile_batch(x).squeeze(-1).transpose(1, 2)


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


def _mask(tiles: Tiles, query: Tensor, keys: Keys) -> Mask:
    batch, device = query.shape[0], query.device
    low, high = (
        # [T, K or 1, L] -> [B * T, K * G or 1, L]
        None if bound is None else _spread(bound.on(device), tiles.group).repeat(batch, 1, 1)
        for bound in (tiles.low, tiles.high)
    )
    seen = None
    if tiles.seen is not None:
        seen = tiles.seen.on(device).unsqueeze(1).repeat(batch, 1, 1, 1)
    key_seen = None if keys.seen is None else _by_head(key_rows(tiles), keys.seen)
    return Mask(tiles.mask, low, high, seen, key_seen, tiles.blocks, tiles.left, tiles.right)


def _spread(bound: Tensor, group: int) -> Tensor:
    return bound if bound.shape[1] == 1 else bound.repeat_interleave(group, dim=1)
