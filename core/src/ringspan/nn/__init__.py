"""Modules: attention with its projections, and rotary embedding by position."""

from ringspan.nn.rotary import RotaryEmbedding
from ringspan.nn.self_attention import DilatedSelfAttention

__all__ = ["DilatedSelfAttention", "RotaryEmbedding"]
