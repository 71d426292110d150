"""The orderings that follow a space-filling curve."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ringspan.contracts import Availability, DeviceInfo, Ordering, Permutation, Tokens

from ringspan_hilbert.box import Box
from ringspan_hilbert.interleave import sort_by_interleaved_bits
from ringspan_hilbert.skilling import hilbert_transpose

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Curve", "Hilbert", "Morton"]


class Curve(Ordering):
    """Orders tokens by their index along a curve through the power-of-two box around them.

    Serves any `Grid` and any `Coordinates`; tokens at the same point keep their order. On a
    box that the tokens fill, every aligned block of side `2**j` occupies consecutive places.
    """

    @abstractmethod
    def transpose(self, axes: Sequence[Int[Tensor, " N"]], bits: int) -> Sequence[Tensor]:
        """Numbers, one int64 `[N]` per axis, whose interleaved bits are the curve's indices."""

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable everywhere: integer arithmetic and a sort."""
        return Availability.yes()

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`; shards and weights make no difference to a curve.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`.
        """
        box = Box.around(tokens, ordering=self.name, device=device)
        digits = self.transpose(box.axes, box.bits)
        return Permutation.from_tokens(sort_by_interleaved_bits(digits, box.bits))


class Hilbert(Curve):
    """The Hilbert curve: consecutive places of a full box are always neighbours.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Hilbert().places(Grid(2, 2)).tokens.tolist()
        [0, 1, 3, 2]
    """

    name: ClassVar[str] = "hilbert"

    def transpose(self, axes: Sequence[Int[Tensor, " N"]], bits: int) -> Sequence[Tensor]:
        """Skilling's transposed index."""
        return hilbert_transpose(axes, bits)


class Morton(Curve):
    """Morton's curve (Z-order): the coordinates' own bits, interleaved.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Morton().places(Grid(2, 2)).tokens.tolist()
        [0, 1, 2, 3]
    """

    name: ClassVar[str] = "morton"

    def transpose(self, axes: Sequence[Int[Tensor, " N"]], bits: int) -> Sequence[Tensor]:
        """The coordinates as they are."""
        return axes
