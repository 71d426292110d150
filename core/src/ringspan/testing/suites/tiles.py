"""Batches of tiles as data, with their random tensors and their exact results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ringspan.contracts import DeviceInfo, Dropout, Grads, Mask, MaskCase, Problem, kept
from ringspan.testing.accuracy import Yardstick, yardstick
from ringspan.testing.formula import Extras
from ringspan.testing.suites.devices import torch_device
from ringspan.testing.suites.masks import (
    banded,
    drawn_blocks,
    drawn_mask,
    drawn_padding,
    placed,
    restricted,
    stretches,
    visible,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts import AttentionBackend, TileOutput

__all__ = ["NAMES", "STRIDES", "Operands", "Tile", "strided", "wide"]

NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")
STRIDES = ("contiguous", "heads first", "gaps", "diagonal heads")


@dataclass(frozen=True)
class Tile:
    """One batch of tiles; a failing one is printed whole and can be pasted back."""

    batch: int = 2
    query_length: int = 33
    key_length: int = 29
    """Causal and block-sparse tiles have as many keys as queries, whatever this says."""
    kv_heads: int = 2
    group_size: int = 1
    head_dim: int = 16
    value_head_dim: int = 16
    mask: MaskCase = MaskCase.FULL
    band: tuple[int, int] | None = None
    """How much wider than it must be a band is to its left and right; None: drawn."""
    mask_axes: str = "BHL"
    """Which of batch, heads and queries have masks of their own; the others share one."""
    dtype: str = "float32"
    strides: str = "contiguous"
    blocks: bool = False
    """Whether it is block-sparse work, taken whole: a full mask with active blocks."""
    ragged: tuple[tuple[int, int], ...] = ()
    """Queries and keys of tiles of many lengths; `batch`, `query_length` and `key_length` are then
    ignored."""
    key_padding: bool = False
    dropout_p: float = 0.0
    largest_score: float = 3.0
    """About the largest score; ignored where `scale` is given."""
    scale: float | None = None
    seed: int = 0

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group_size

    @property
    def keys(self) -> int:
        """Keys of each tile."""
        square = self.mask is MaskCase.CAUSAL or self.blocks
        return self.query_length if square else self.key_length

    def problem(self, device: DeviceInfo, *, needs_backward: bool) -> Problem:
        """What selection is asked before such tiles are computed on `device`."""
        return Problem(
            device=device.type,
            dtype=self.dtype,
            mask=self.mask,
            head_dim=self.head_dim,
            value_head_dim=self.value_head_dim,
            group_size=self.group_size,
            needs_backward=needs_backward,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            key_padding=self.key_padding,
            dropout=self.dropout_p > 0,
            blocks=self.blocks,
            ragged=bool(self.ragged),
            device_info=device,
        )

    def operands(self, device: DeviceInfo) -> Operands:
        """Its tensors on `device`: normal, the same ones for the same tile."""
        if self.ragged:
            return self._joined()._operands(device)
        return self._operands(device)

    def _joined(self) -> Tile:
        """Tiles of many lengths as one batch entry; those that are causal have a key per query."""
        causal = self.mask is MaskCase.CAUSAL
        tiles = tuple((queries, queries if causal else keys) for queries, keys in self.ragged)
        queries, keys = (sum(tile[side] for tile in tiles) for side in (0, 1))
        return replace(self, batch=1, query_length=queries, key_length=keys, ragged=tiles)

    def _operands(self, device: DeviceInfo) -> Operands:
        where = torch_device(device)
        draw = torch.Generator().manual_seed(self.seed)

        def normal(length: int, heads: int, width: int) -> Tensor:
            shape = (self.batch, length, heads, width)
            x = torch.randn(shape, generator=draw, dtype=torch.float64)
            return strided(x.to(where, getattr(torch, self.dtype)), self.strides)

        return Operands(
            query=normal(self.query_length, self.heads, self.head_dim),
            key=normal(self.keys, self.kv_heads, self.head_dim),
            value=normal(self.keys, self.kv_heads, self.value_head_dim),
            grad_out=normal(self.query_length, self.heads, self.value_head_dim),
            mask=self._mask(draw, where),
            scale=self._scale,
            dropout=self._dropout(where) if self.dropout_p else None,
        )

    @property
    def _scale(self) -> float:
        root: float = self.head_dim**0.5
        return self.largest_score / (3 * root) if self.scale is None else self.scale

    def _mask(self, draw: torch.Generator, device: torch.device) -> Mask:
        if self.ragged:
            mask = Mask(self.mask, lengths=stretches(self.ragged, device))
        elif self.blocks:
            mask = Mask(MaskCase.FULL, blocks=drawn_blocks(self.keys, draw))
        elif self.mask is MaskCase.BAND:
            wider = self.band or _drawn_width(self.keys, draw)
            mask = banded(self.query_length, self.keys, wider)
        else:
            sizes = (("B", self.batch), ("H", self.heads), ("L", self.query_length))
            shape = tuple(size if axis in self.mask_axes else 1 for axis, size in sizes)
            shared = not {"B", "H"} & set(self.mask_axes)
            mask = drawn_mask(self.mask, shape[-1:] if shared else shape, self.keys, draw)
        if self.key_padding:
            batch = self.batch if "B" in self.mask_axes else 1
            heads = self.kv_heads if "H" in self.mask_axes else 1
            mask = replace(mask, key_seen=drawn_padding((batch, heads, self.keys), draw))
        return placed(mask, device, turned=self.strides != "contiguous")

    def _dropout(self, device: torch.device) -> Dropout:
        """Positions with gaps, as dilated rows have them; a group of heads shares its keys'."""
        own = torch.zeros(1, 1, 1, dtype=torch.int64)
        if "B" in self.mask_axes:
            own = own + 40 * torch.arange(self.batch)[:, None, None]
        if "H" in self.mask_axes:
            own = own + torch.arange(self.heads)[:, None] // self.group_size
        return Dropout(
            self.dropout_p,
            seed=self.seed,
            batch=torch.arange(self.batch, device=device).flip(0),
            heads=torch.arange(self.heads, device=device) + 5,
            query_positions=(3 * torch.arange(self.query_length) + own).to(device),
            key_positions=(3 * torch.arange(self.keys) + own).to(device),
        )


@dataclass(frozen=True, eq=False)
class Operands:
    """What a backend is given for one batch of tiles, and what it has to answer."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    mask: Mask
    scale: float
    dropout: Dropout | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Query, key, value and upstream gradient."""
        return self.query, self.key, self.value, self.grad_out

    def contiguous(self) -> Operands:
        """As the engine hands tiles to a backend that takes no strides."""
        query, key, value, grad_out = (x.contiguous() for x in self.tensors)
        return replace(self, query=query, key=key, value=value, grad_out=grad_out)

    def forward(self, backend: AttentionBackend) -> TileOutput:
        """What the backend makes of them."""
        return backend.forward(self.query, self.key, self.value, **self._options(backend))

    def backward(self, backend: AttentionBackend, out: Tensor, lse: Tensor) -> Grads:
        """Its gradients for a final `out` and `lse`; rows that saw no key have `lse = +inf`."""
        final = lse.masked_fill(lse == -torch.inf, torch.inf)
        given = (self.grad_out, self.query, self.key, self.value, out, final)
        return backend.backward(*given, **self._options(backend))

    def results(self, backend: AttentionBackend) -> dict[str, Tensor]:
        """By name: `out` and `lse`, and the gradients of a backend that has a backward."""
        output = self.forward(backend)
        if not backend.capabilities.backward:
            return dict(zip(NAMES, output, strict=False))
        return dict(zip(NAMES, (*output, *self.backward(backend, *output)), strict=True))

    def exact(self, *, padded: Tensor | None = None) -> Yardstick:
        """What all results have to be, computed on the CPU.

        Args:
            padded: bool `[B, Lq]`, rows that see nothing whatever the mask says.
        """
        query, key, value, grad_out = (x.cpu().contiguous() for x in self.tensors)
        extras = Extras(padded=padded)
        if self.dropout is not None:
            extras = Extras(padded=padded, keep=self._kept(), dropout_p=self.dropout.p)
        return yardstick(
            query,
            key,
            value,
            self.multiplicity,
            scale=self.scale,
            grad_out=grad_out,
            extras=extras,
        )

    @property
    def multiplicity(self) -> Tensor:
        """int64 `[B, H, Lq, Lk]` on the CPU, from the mask's definition."""
        batch, queries, heads, _ = self.query.shape
        keys, kv_heads = self.key.shape[1:3]
        shape = (batch, heads, queries, keys)
        seen = visible(self.mask, queries, keys).expand(shape)
        if self.mask.key_seen is not None:
            padding = self.mask.key_seen.cpu().expand(batch, kv_heads, keys)
            seen = seen & padding.repeat_interleave(heads // kv_heads, 1)[:, :, None]
        return seen.long()

    def halves(self) -> Iterator[tuple[slice, slice, Operands]]:
        """The same tiles as parts that see half of the keys each, with their rows and keys.

        A causal triangle falls into two triangles and the square between them, a band into two
        bands of the rows that see any of the keys.
        """
        queries, keys = slice(None), self.key.shape[1]
        cut = (keys + 1) // 2
        first, second = slice(0, cut), slice(cut, keys)
        if self.mask.case is MaskCase.CAUSAL:
            yield first, first, self._part(first, first, MaskCase.CAUSAL)
            yield second, first, self._part(second, first, MaskCase.FULL)
            yield second, second, self._part(second, second, MaskCase.CAUSAL)
        elif self.mask.case is MaskCase.BAND:
            upper = slice(0, min(self.query.shape[1], cut + self.mask.left))
            lower = slice(max(0, cut - self.mask.right), self.query.shape[1])
            yield upper, first, self._part(upper, first, MaskCase.BAND)
            yield lower, second, self._part(lower, second, MaskCase.BAND)
        else:
            for half in (first, second):
                yield queries, half, self._part(queries, half, self.mask.case)

    def _part(self, rows: slice, keys: slice, case: MaskCase) -> Operands:
        at_rows, at_keys = (slice(None), rows), (slice(None), keys)
        return Operands(
            self.query[at_rows],
            self.key[at_keys],
            self.value[at_keys],
            self.grad_out[at_rows],
            restricted(self.mask, rows, keys, case),
            self.scale,
            None
            if self.dropout is None
            else replace(
                self.dropout,
                query_positions=self.dropout.query_positions[..., rows],
                key_positions=self.dropout.key_positions[..., keys],
            ),
        )

    def _options(self, backend: AttentionBackend) -> dict[str, Any]:
        mask = self.mask
        if mask.case is MaskCase.BAND and mask.case not in backend.capabilities.masks:
            mask = mask.as_interval(self.query.shape[1], self.key.shape[1], self.query.device)
        options: dict[str, Any] = {"mask": mask, "scale": self.scale}
        return options if self.dropout is None else options | {"dropout": self.dropout}

    def _kept(self) -> Tensor:
        assert self.dropout is not None
        given, (batch, queries, heads, _) = self.dropout, self.query.shape
        keep = kept(
            given.p,
            given.seed,
            given.batch.cpu()[:, None],
            given.heads.cpu(),
            given.query_positions.cpu(),
            given.key_positions.cpu(),
        )
        return keep.expand(batch, heads, queries, self.key.shape[1])


def _drawn_width(keys: int, draw: torch.Generator) -> tuple[int, int]:
    left, right = (int(torch.randint(keys // 2 + 1, (), generator=draw)) for _ in "lr")
    return left, right


def strided(x: Tensor, style: str) -> Tensor:
    """The values of `x` `[B, L, H, D]` laid out in one of `STRIDES`, last stride 1.

    What lies between them is NaN.
    """
    _, length, heads, width = x.shape
    if style == "contiguous":
        return x.contiguous()
    if style == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    row, tile, offset = 2 * heads * width, 3 * length * heads * width + 7, 5
    if style == "gaps":
        strides = (tile, row, width, 1)
    else:  # each head one row and one head further on, as the heads of a dilated branch lie
        strides = (tile * heads, row * heads, row + width, 1)
    last = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    poison = torch.full((offset + last + 1,), torch.nan, dtype=x.dtype, device=x.device)
    return poison.as_strided(x.shape, strides, offset).copy_(x)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What log-sum-exps are in, and gradients may be in: float32, float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
