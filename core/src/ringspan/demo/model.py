"""A small byte-level causal language model over dilated attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ringspan.demo.settings import Settings
from ringspan.nn import DilatedSelfAttention

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ringspan.plan.layout import Layout

__all__ = ["ByteModel", "summed_loss"]

BYTES = 256


class Block(nn.Module):
    """Pre-norm attention, then a pre-norm perceptron, each added to its input."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.attention_norm = nn.RMSNorm(width)
        self.attention = DilatedSelfAttention(
            width, settings.heads, settings.segment_lengths, settings.dilation_rates, causal=True
        )
        last = nn.Linear(4 * width, width, bias=False)
        self.perceptron = nn.Sequential(
            nn.RMSNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            nn.GELU(),
            last,
        )
        # Both branches start silent, so that the first steps fit the embedding undisturbed.
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, layout: Layout | None, group: Any) -> Tensor:
        """`[B, n, width]` to the same."""
        x = x + self.attention(self.attention_norm(x), layout=layout, group=group)
        y: Tensor = x + self.perceptron(x)
        return y


class ByteModel(nn.Module):
    """Predicts the next byte. Input and output share one embedding.

    Args:
        settings: sizes, and the seed of the first weights.

    Example:
        >>> import torch
        >>> ByteModel(Settings(context=64))(torch.zeros(1, 64, dtype=torch.int64)).shape
        torch.Size([1, 64, 256])
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.embedding = nn.Embedding(BYTES, settings.width)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
            self.norm = nn.RMSNorm(settings.width)

    def forward(
        self, tokens: Int[Tensor, "B n"], *, layout: Layout | None = None, group: Any = None
    ) -> Float[Tensor, "B n 256"]:
        """Logits of each position's next byte.

        Args:
            tokens: bytes, in order of position; with `layout` and `group` this rank's rows.
            layout: which positions this rank holds.
            group: the ring.
        """
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, layout, group)
        return functional.linear(self.norm(x), self.embedding.weight)


def summed_loss(logits: Float[Tensor, "B n 256"], targets: Int[Tensor, "B n"]) -> Tensor:
    """Sum over targets of their negative log-likelihood, in nats, in float32."""
    return functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), reduction="sum"
    )
