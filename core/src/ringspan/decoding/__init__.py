"""Decoding: caches that hold no more than a next token can see, and tokens from a model."""

from ringspan.decoding.cache import Cache
from ringspan.decoding.dilated import DilatedCache
from ringspan.decoding.generate import generate, make_caches, stream
from ringspan.decoding.make import make_cache
from ringspan.decoding.window import DenseCache, WindowCache

__all__ = [
    "Cache",
    "DenseCache",
    "DilatedCache",
    "WindowCache",
    "generate",
    "make_cache",
    "make_caches",
    "stream",
]
