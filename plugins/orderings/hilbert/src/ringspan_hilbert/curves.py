"""The orderings that follow a space-filling curve."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ringspan.contracts import Availability, DeviceInfo, Ordering, Permutation, Tokens

from ringspan_hilbert.box import Box
from ringspan_hilbert.chunks import in_chunks
from ringspan_hilbert.fused import has_kernels
from ringspan_hilbert.gilbert import gilbert_word, parts
from ringspan_hilbert.interleave import bits_of_word, interleave
from ringspan_hilbert.skilling import hilbert_transpose
from ringspan_hilbert.sorting import sort_by_words

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Curve", "Gilbert", "Hilbert", "Morton"]


class Curve(Ordering):
    """Orders tokens by their index along a curve through the box around them.

    Serves any `Grid` and any `Coordinates`; tokens at the same point keep their order. On a
    power-of-two box that the tokens fill, every aligned block of side `2**j` occupies
    consecutive places.
    """

    @abstractmethod
    def keys(self, box: Box, word: int) -> Int[Tensor, " N"]:
        """One int64 word, never negative, of each point's index along the curve.

        Word 0 is the most significant.
        """

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
        return Permutation.from_tokens(sort_by_words(box, self.keys))


class Hilbert(Curve):
    """The Hilbert curve: consecutive places of a full power-of-two box are always neighbours.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Hilbert().places(Grid(2, 2)).tokens.tolist()
        [0, 1, 3, 2]
    """

    name: ClassVar[str] = "hilbert"

    def keys(self, box: Box, word: int) -> Int[Tensor, " N"]:
        """Skilling's transposed index, interleaved."""
        if has_kernels(box.axes[0].device):
            from ringspan_hilbert.kernels import interleaved_keys

            return interleaved_keys(box, word, hilbert=True)
        low, high = bits_of_word(word, box.bits, len(box.axes))
        kept = (1 << (high - low)) - 1
        return in_chunks(
            lambda axes: interleave(
                [x & kept for x in hilbert_transpose([x >> low for x in axes], box.bits - low)]
            ),
            box.axes,
        )


class Morton(Curve):
    """Morton's curve (Z-order): the coordinates' own bits, interleaved.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Morton().places(Grid(2, 2)).tokens.tolist()
        [0, 1, 2, 3]
    """

    name: ClassVar[str] = "morton"

    def keys(self, box: Box, word: int) -> Int[Tensor, " N"]:
        """The coordinates as they are, interleaved."""
        if has_kernels(box.axes[0].device):
            from ringspan_hilbert.kernels import interleaved_keys

            return interleaved_keys(box, word, hilbert=False)
        low, high = bits_of_word(word, box.bits, len(box.axes))
        kept = (1 << (high - low)) - 1
        return in_chunks(lambda axes: interleave([(x >> low) & kept for x in axes]), box.axes)


class Gilbert(Curve):
    """A Hilbert-like curve through a box of any size, which need not be a power of two.

    Consecutive places of a full box are always neighbours, at least across a corner. It runs
    along the first axis as a whole. See `ringspan_hilbert.splitting`.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Gilbert().places(Grid(2, 3)).tokens.tolist()
        [0, 1, 2, 5, 4, 3]
    """

    name: ClassVar[str] = "gilbert"

    def keys(self, box: Box, word: int) -> Int[Tensor, " N"]:
        """The numbers of the parts in which the point lies, from the largest down."""
        device = box.axes[0].device
        of_box = parts(box.sizes).to(device)
        if has_kernels(device):
            from ringspan_hilbert.kernels import gilbert_keys

            return gilbert_keys(box, of_box, word)
        return in_chunks(lambda axes: gilbert_word(axes, of_box, word), box.axes)
