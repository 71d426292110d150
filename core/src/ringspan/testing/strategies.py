"""Hypothesis strategies for problems, leaning towards the cases that have broken other kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ringspan.testing.configuration import DTYPES, Configuration, Inputs

__all__ = ["DTYPES", "Configuration", "Inputs", "configurations", "lengths"]


def lengths(max_N: int = 320) -> st.SearchStrategy[int]:
    """Sequence lengths: one token, `N % 128 == 64`, powers of two and their neighbours, any."""
    awkward = [64 + 128 * i for i in range(max_N // 128 + 1)]
    near_powers = [2**i + d for i in range(1, max_N.bit_length()) for d in (-1, 0, 1)]
    return st.one_of(
        st.sampled_from([N for N in (1, *awkward, *near_powers) if 1 <= N <= max_N]),
        st.integers(1, max_N),
    )


@st.composite
def _branch(draw: st.DrawFn, N: int) -> tuple[int, int]:
    """Segment length and dilation rate: shorter or longer than N, dividing or not."""
    w = draw(st.one_of(st.integers(1, N + 8), st.sampled_from((N, 2 * N, max(1, N // 2)))))
    r = draw(st.one_of(st.integers(1, min(w, 9)), st.just(1), st.just(w)))
    return w, r


@st.composite
def configurations(
    draw: st.DrawFn, *, max_N: int = 320, dtypes: Sequence[torch.dtype] = DTYPES
) -> Configuration:
    """Any `Configuration`: grouped heads, fewer heads than offsets, values of another dimension.

    Example:
        >>> from hypothesis import given
        >>> @given(configurations(max_N=96, dtypes=[torch.float32]))
        ... def test_any_configuration_is_exact(configuration): ...
    """
    N = draw(lengths(max_N))
    branches = draw(st.lists(_branch(N), min_size=1, max_size=3))
    kv_heads, group_size = draw(st.integers(1, 5)), draw(st.sampled_from((1, 1, 2, 3)))
    head_dim = draw(st.sampled_from((1, 4, 8, 24)))
    return Configuration(
        N=N,
        segment_lengths=tuple(w for w, _ in branches),
        dilation_rates=tuple(r for _, r in branches),
        heads=kv_heads * group_size,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_head_dim=draw(st.one_of(st.just(head_dim), st.sampled_from((1, 8, 12)))),
        batch=draw(st.sampled_from((1, 1, 2))),
        causal=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(dtypes))),
        head_offsets=draw(st.sampled_from(("modulo", "blocked"))),
        seed=draw(st.integers(0, 2**16)),
    )
