"""Modules: attention with its projections, a transformer block and a small language model."""

from ringspan.nn.block import TransformerBlock
from ringspan.nn.cache import Cache
from ringspan.nn.cross_attention import CrossAttention
from ringspan.nn.longnet import LongNet
from ringspan.nn.rotary import RotaryEmbedding
from ringspan.nn.self_attention import DilatedSelfAttention, SelfAttention

__all__ = [
    "Cache",
    "CrossAttention",
    "DilatedSelfAttention",
    "LongNet",
    "RotaryEmbedding",
    "SelfAttention",
    "TransformerBlock",
]
