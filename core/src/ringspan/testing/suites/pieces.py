"""Pieces of a result as data, and what they have to merge to, row by row in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.branch import Piece
from ringspan.contracts.selection import Selection
from ringspan.contracts.work import Affine
from ringspan.testing.accuracy import Yardstick, assert_exact
from ringspan.testing.formula import ReferenceResult
from ringspan.testing.suites.rows import heads_of, listed, place
from ringspan.testing.suites.tiles import wide

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts import AttentionBackend

__all__ = ["Merging", "MergingOperands"]


_EVERYWHERE = Selection(Affine(0, 0, 0, 0), heads=(), tiles=0, length=0)
"""What a base says of its rows: nothing."""


@dataclass(frozen=True)
class Merging:
    """One call of `merge`; a failing one is printed whole."""

    layouts: tuple[str, ...] = ("whole", "dilated", "indexed")
    """How the rows of each piece lie: its queries' layout; every second one has some heads only."""
    batch: int = 2
    width: int = 16
    dtype: str = "float32"
    with_lse: bool = True
    wide_pieces: int = 0
    """So many of the pieces, the last ones, are as wide as float32; the others have the dtype."""
    wide_result: bool = False
    base: bool = False
    """What was merged before, as wide as float32."""
    sink: str = ""
    largest_lse: float = 3.0
    seed: int = 0

    def operands(self, device: torch.device) -> MergingOperands:
        """Its tensors: normal, and one piece in three saw nothing in some rows."""
        draw = torch.Generator().manual_seed(self.seed)
        kv_heads, group = 3, 2
        placed = [
            place(
                layout,
                heads_of("some groups" if number % 2 else "all", kv_heads, group),
                *(2, (7, 5), draw),
            )
            for number, layout in enumerate(self.layouts)
        ]
        heads = kv_heads * group
        rows = max([needs[0] for _, _, needs in placed], default=5) + 1
        narrow: torch.dtype = getattr(torch, self.dtype)
        first_wide = len(placed) - self.wide_pieces
        return MergingOperands(
            pieces=tuple(
                self._drawn(
                    at,
                    (self.batch * at.tiles, at.length, len(at.heads) * at.group),
                    wide(narrow) if number >= first_wide else narrow,
                    *(draw, device),
                )
                for number, (at, _, _) in enumerate(placed)
            ),
            shape=(self.batch, rows, heads, self.width),
            dtype=wide(narrow) if self.wide_result else narrow,
            sink=self._sink(heads, rows, draw, device),
            base=self._drawn(_EVERYWHERE, (self.batch, rows, heads), wide(narrow), *(draw, device))
            if self.base
            else None,
        )

    def _drawn(
        self,
        rows: Selection,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        draw: torch.Generator,
        device: torch.device,
    ) -> Piece:
        x = torch.randn(*shape, self.width, generator=draw, dtype=torch.float64)
        lse = torch.randn(shape, generator=draw, dtype=torch.float64) * self.largest_lse / 3
        empty = torch.rand(shape, generator=draw) < 0.3
        if not self.with_lse:
            return Piece(rows, x.to(device, dtype))
        x, lse = x.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, -torch.inf)
        return Piece(
            rows,
            x.to(device, dtype),
            lse.transpose(1, 2).contiguous().to(device, wide(dtype)),
        )

    def _sink(
        self, heads: int, rows: int, draw: torch.Generator, device: torch.device
    ) -> Tensor | None:
        if not self.sink:
            return None
        shape = (heads, rows if self.sink == "row" else 1)
        logits = torch.randn(shape, generator=draw, dtype=torch.float64)
        logits[0, -1] = -torch.inf
        return logits.to(device, wide(getattr(torch, self.dtype)))


@dataclass(frozen=True, eq=False)
class MergingOperands:
    """What a backend is given, and what it has to answer."""

    pieces: tuple[Piece, ...]
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    sink: Tensor | None
    base: Piece | None

    def tensors(self) -> Iterator[Tensor]:
        """All that is given."""
        for piece in (*self.pieces, *(() if self.base is None else (self.base,))):
            yield from (x for x in (piece.x, piece.lse) if x is not None)
        if self.sink is not None:
            yield self.sink

    def merged(self, backend: AttentionBackend) -> tuple[Tensor, Tensor | None]:
        """What the backend makes of them."""
        return backend.merge(
            self.pieces, self.shape, dtype=self.dtype, sink=self.sink, base=self.base
        )

    def assert_merged(self, out: Tensor, lse: Tensor | None) -> None:
        """Fails unless both keep the one rule of accuracy, each for its dtype."""
        with_lse = self._with_lse
        assert out.shape == self.shape
        assert out.dtype == self.dtype
        assert out.is_contiguous()
        assert (lse is not None) == with_lse
        assert_exact({"out": out.cpu()}, self._yardstick(self.dtype))
        if lse is not None:
            assert lse.dtype == wide(self.dtype)
            assert_exact({"lse": lse.cpu()}, self._yardstick(lse.dtype))

    @property
    def _with_lse(self) -> bool:
        piece = self.pieces[0] if self.pieces else self.base
        return piece is not None and piece.lse is not None

    def _yardstick(self, dtype: torch.dtype) -> Yardstick:
        formula, plain = self._literally(torch.float64), self._literally(wide(self.dtype))
        finite = formula.lse[formula.lse.isfinite()].abs()
        largest = float(finite.max()) if len(finite) else 0.0
        return Yardstick(
            formula=formula,
            plain=ReferenceResult(plain.out.to(self.dtype).double(), plain.lse.double()),
            absolute=self._literally(torch.float64, absolute=True),
            terms=ReferenceResult(self._terms(), torch.ones_like(formula.lse)),
            dtype=dtype,
            largest_score=largest,
            largest_product=largest,
        )

    def _literally(self, dtype: torch.dtype, *, absolute: bool = False) -> ReferenceResult:
        """The merged result in one dtype, or the same sums over absolute values."""
        x, lse = (torch.stack(tensors) for tensors in zip(*self._everywhere(), strict=True))
        x, lse = (x.abs() if absolute else x).to(dtype), lse.to(dtype)
        if not self._with_lse:
            return ReferenceResult(x.sum(0), torch.zeros_like(lse[0]))
        total = lse.logsumexp(0)
        if self.sink is not None:
            total = torch.logaddexp(total, self.sink.cpu().to(dtype))
        share = (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()
        out = (x * share.transpose(-1, -2)[..., None]).sum(0)
        return ReferenceResult(out, torch.ones_like(total) if absolute else total)

    def _terms(self) -> Tensor:
        """How many pieces there are for each element."""
        there = torch.stack([lse != -torch.inf for _, lse in self._everywhere()]).sum(0)
        return there.double().transpose(1, 2)[..., None].expand(self.shape)

    def _everywhere(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each piece for all rows, in float64: empty, with an lse of -inf, where it has none."""
        batch, rows, heads, _ = self.shape
        for piece in self.pieces:
            x = torch.zeros(self.shape, dtype=torch.float64)
            lse = x.new_full((batch, heads, rows), -torch.inf)
            at = piece.rows
            new = torch.unflatten(piece.x.cpu().double(), 0, (batch, at.tiles))
            own = torch.zeros_like(new[..., 0]).transpose(-1, -2)
            if piece.lse is not None:
                own = torch.unflatten(piece.lse.cpu().double(), 0, (batch, at.tiles))
            for tile, groups in enumerate(listed(at)):
                for index, where in enumerate(groups):
                    for member in range(at.group):
                        head, place = at.heads[index] + member, index * at.group + member
                        x[:, where, head] = new[:, tile, :, place]
                        lse[:, head, where] = own[:, tile, place]
            yield x, lse
        if self.base is not None:
            x = self.base.x.cpu().double()
            no_lse = torch.zeros(batch, heads, rows, dtype=torch.float64)
            yield x, no_lse if self.base.lse is None else self.base.lse.cpu().double()
