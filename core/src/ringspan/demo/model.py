"""A small byte-level causal language model over dilated attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ringspan.demo.settings import Settings
from ringspan.nn import LongNet
from ringspan.patterns import Dilated

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["ByteModel", "summed_loss"]

BYTES = 256


class ByteModel(LongNet):
    """Predicts the next byte: the `LongNet` that the settings describe.

    Args:
        settings: sizes, and the seed of the first weights.

    Example:
        >>> import torch
        >>> ByteModel(Settings(context=64))(torch.zeros(1, 64, dtype=torch.int64)).shape
        torch.Size([1, 64, 256])
    """

    def __init__(self, settings: Settings) -> None:
        pattern = Dilated(settings.segment_lengths, settings.dilation_rates)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            super().__init__(BYTES, settings.width, settings.layers, settings.heads, pattern)


def summed_loss(logits: Float[Tensor, "B n 256"], targets: Int[Tensor, "B n"]) -> Tensor:
    """Sum over targets of their negative log-likelihood, in nats, in float32."""
    return functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), reduction="sum"
    )
