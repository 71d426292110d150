"""Which cache a pattern needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.pattern import Pattern
from ringspan.decoding.dilated import DilatedCache
from ringspan.decoding.sizes import Sizes
from ringspan.decoding.window import DenseCache, WindowCache
from ringspan.patterns import Dense, Dilated, Neighborhood

if TYPE_CHECKING:
    from ringspan.decoding.cache import Cache

__all__ = ["make_cache"]


def make_cache(
    pattern: Pattern,
    *,
    batch: int,
    heads: int,
    head_dim: int,
    kv_heads: int | None = None,
    value_head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Cache:
    """An empty cache for causal attention over `pattern`, of one layer.

    Args:
        pattern: `Dilated` (a `DilatedCache`), `Dense` (`DenseCache`, or `WindowCache` with a
            window) or a one-dimensional `Neighborhood` with `edges="clip"` and without stride
            (`WindowCache`); along no ordering.
        batch: sequences that advance together.
        heads: query heads.
        head_dim: of queries and keys.
        kv_heads: key/value heads, a divisor of `heads`; None: as many.
        value_head_dim: of values; None: `head_dim`.
        dtype: of all that enters.
        device: likewise.

    Raises:
        NotYetSupported: no cache serves this pattern; names what it is that cannot be cached.
        InvalidArgument: a size is wrong; names it.

    Example:
        >>> import ringspan as rs
        >>> cache = make_cache(rs.Dilated((4, 16), (1, 4)), batch=2, heads=4, head_dim=8)
        >>> cache.row_limit
        (8, 8, 8, 8)
    """
    sizes = Sizes(
        batch,
        heads,
        heads if kv_heads is None else kv_heads,
        head_dim,
        head_dim if value_head_dim is None else value_head_dim,
        dtype,
        # With its index: "cuda" is not equal to the "cuda:0" of a tensor.
        torch.empty(0, device=device).device,
    )
    if not isinstance(pattern, Pattern):
        raise InvalidArgument(
            "pattern", expected="a pattern such as Dense() or Dilated(...)", got=repr(pattern)
        )
    _check_order(pattern)
    if isinstance(pattern, Dilated):
        return DilatedCache(pattern, sizes)
    if isinstance(pattern, Dense):
        left = None if pattern.window is None else pattern.window[0]
        if left is None:
            return DenseCache(pattern, sizes)
        return WindowCache(pattern, sizes, left=left)
    if isinstance(pattern, Neighborhood):
        return _neighborhood_cache(pattern, sizes)
    raise _refused(pattern, "Dense, Dilated or a one-dimensional Neighborhood")


def _neighborhood_cache(pattern: Neighborhood, sizes: Sizes) -> WindowCache:
    """Half of a window looks back, or on a causal axis all of it."""
    if pattern.edges != "clip":
        # A shifted window of an early token looks ahead, at tokens that are not there yet.
        raise _refused(pattern, "a Neighborhood with edges='clip'")
    window, dilation, stride = (
        value if isinstance(value, tuple) else (value,)
        for value in (pattern.window, pattern.dilation, pattern.stride)
    )
    if stride != (1,) * len(stride):
        raise _refused(pattern, "a Neighborhood with stride=1")
    if max(len(window), len(dilation), *(axis + 1 for axis in (*pattern.causal_axes, 0))) > 1:
        raise _refused(pattern, "a Neighborhood of one dimension")
    left = window[0] - 1 if pattern.causal_axes else window[0] // 2
    return WindowCache(pattern, sizes, left=left, dilation=dilation[0])


def _check_order(pattern: Pattern) -> None:
    """A cache is filled in order of position: along a curve, the past is spread over it."""
    along = getattr(pattern, "along", None)
    if along is not None and along.ordering != "identity":
        raise _refused(pattern, "a pattern in order of position (along=None)")


def _refused(pattern: Pattern, expected: str) -> NotYetSupported:
    return NotYetSupported(
        "pattern",
        expected=f"{expected}, to decode with a cache",
        got=repr(pattern),
        remedy="Call ringspan.attention on all tokens instead",
    )
