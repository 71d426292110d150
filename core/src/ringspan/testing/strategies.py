"""Hypothesis strategies for problems, leaning towards the cases that have broken other kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st

from ringspan.testing.case import STRIDES, Case
from ringspan.testing.configuration import DTYPES, Configuration, Inputs
from ringspan.testing.named_strategies import KINDS, branches, named

__all__ = [
    "DTYPES",
    "KINDS",
    "Case",
    "Configuration",
    "Inputs",
    "cases",
    "configurations",
    "lengths",
]

ORDERINGS = ("identity", "row-major", "snake", "tiles", "hilbert", "morton", "gilbert")
"""Of the plugins that come with the library."""


def lengths(max_N: int = 320) -> st.SearchStrategy[int]:
    """Sequence lengths: one token, `N % 128 == 64`, powers of two and their neighbours, any."""
    awkward = [64 + 128 * i for i in range(max_N // 128 + 1)]
    near_powers = [2**i + d for i in range(1, max_N.bit_length()) for d in (-1, 0, 1)]
    return st.one_of(
        st.sampled_from([N for N in (1, *awkward, *near_powers) if 1 <= N <= max_N]),
        st.integers(1, max_N),
        st.integers(max_N // 2 + 1, max_N),
    )


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
    segment_lengths, dilation_rates = draw(branches(N))
    return Configuration(
        N=N,
        segment_lengths=segment_lengths,
        dilation_rates=dilation_rates,
        **draw(_heads()),
        batch=draw(st.sampled_from((1, 1, 2))),
        causal=draw(st.booleans()),
        dtype=draw(st.sampled_from(list(dtypes))),
        head_offsets=draw(st.sampled_from(("modulo", "blocked"))),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    max_N: int = 96,
    dtypes: Sequence[torch.dtype] = DTYPES,
    kinds: Sequence[str] = KINDS,
    orderings: Sequence[str] = ORDERINGS,
) -> Case:
    """Any `Case` that is not refused: every pattern, with any of the modes at once.

    Example:
        >>> from hypothesis import given
        >>> @given(cases(kinds=["Neighborhood"], orderings=["identity"]))
        ... def test_any_neighbourhood_is_exact(case): ...
    """
    kind = draw(st.sampled_from(list(kinds)))
    grid, gaps, N = draw(_places(max_N))
    documents = draw(_documents(kind, N))
    # One grid cannot hold several documents.
    gaps = gaps or bool(grid and documents is not None)
    heads = draw(_heads())
    pattern = draw(
        named(kind, N=N, documents=documents, grid=grid, gaps=gaps, orderings=orderings, **heads)
    )
    case = Case(
        N=N,
        pattern=pattern,
        grid=grid,
        gaps=gaps,
        documents=documents,
        batch=draw(st.sampled_from((1, 1, 1, 1, 2, 2, 3, 0))),
        causal=pattern.fields.get("edges") != "shift" and draw(st.booleans()),
        dtype=draw(st.sampled_from(list(dtypes))),
        seed=draw(st.integers(0, 2**16)),
        strides=draw(st.sampled_from((STRIDES[0], *STRIDES))),
        **heads,
    )
    return draw(_with_modes(case, orderings))


@st.composite
def _with_modes(draw: st.DrawFn, case: Case, orderings: Sequence[str]) -> Case:
    """The case with modes that change rows, each rarely enough for most others to be absent."""
    given: dict[str, Any] = {}
    if case.pattern.kind != "Dilated.torchscale" and _one_in(draw, 3):
        given["padding"] = draw(st.sampled_from(("right", "left", "scattered", "all")))
    if _one_in(draw, 3):
        # A sink far above the scores makes outputs that are subnormal in float16, of which a unit
        # roundoff says nothing.
        large = () if case.dtype == torch.float16 else (10.0, 1e4)
        given["sink"] = draw(st.sampled_from((1.0, *large)))
    if _one_in(draw, 6):
        given["dropout_p"] = draw(st.sampled_from((0.1, 0.5, 0.99)))
    if _one_in(draw, 4):
        given["largest_score"] = draw(st.sampled_from((0.0, 100.0, 1e4, -1e4)))
    if case.documents is None and _one_in(draw, 2 if case.pattern.kind == "Dense" else 4):
        given |= draw(_queries(case))
    elif _one_in(draw, 3):
        given["stored"] = draw(st.sampled_from(list(orderings if case.grid else ("identity",))))
    return replace(case, **given)


@st.composite
def _queries(draw: st.DrawFn, case: Case) -> dict[str, Any]:
    """Queries that are not all tokens: another sequence, a chunk of this one, or any of its."""
    dense = case.pattern.reaches_beyond
    unplaced = dense and not case.causal and case.pattern.fields["window"] is None
    if unplaced and draw(st.booleans()):
        return {"cross": draw(st.integers(1, case.N + 9).filter(lambda count: count != case.N))}
    if dense and draw(st.booleans()):
        return {"positions": tuple(draw(st.lists(st.integers(0, case.N + 9), min_size=1)))}
    first, last = sorted(draw(st.tuples(*[st.integers(0, case.N - 1)] * 2)))
    chunk = list(range(first, last + 1))
    return {"positions": tuple(draw(st.one_of(st.just(chunk), st.permutations(chunk))))}


def _one_in(draw: st.DrawFn, count: int) -> bool:
    return draw(st.integers(0, count - 1)) == count - 1


@st.composite
def _heads(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads, group_size = draw(st.integers(1, 5)), draw(st.sampled_from((1, 1, 2, 3)))
    head_dim = draw(st.sampled_from((1, 4, 8, 24)))
    return {
        "heads": kv_heads * group_size,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "value_head_dim": draw(st.one_of(st.just(head_dim), st.sampled_from((1, 8, 12)))),
    }


@st.composite
def _places(draw: st.DrawFn, max_N: int) -> tuple[tuple[int, ...], bool, int]:
    """The shape of a grid or `()`, whether it has gaps, and the number of tokens."""
    if draw(st.booleans()):
        return (), False, draw(lengths(max_N))
    sizes: list[int] = []
    for axes_left in range(draw(st.integers(2, 3)), 0, -1):
        room = max_N // math.prod(sizes)
        # Squarish or long: no axis takes all that is left to the others.
        sizes.append(draw(st.integers(1, min(room, 2 * math.ceil(room ** (1 / axes_left))))))
    grid = tuple(sizes)
    if _one_in(draw, 3):
        return grid, True, draw(st.integers(1, max_N))
    return grid, False, math.prod(grid)


@st.composite
def _documents(draw: st.DrawFn, kind: str, N: int) -> tuple[int, ...] | None:
    """Lengths that sum to `N`, some perhaps 0; equal ones where blocks are counted beforehand."""
    if not _one_in(draw, 3):
        return None
    if kind in ("BlockSparse.from_blocks", "BlockSparse.from_mask"):
        count = draw(st.sampled_from([d for d in range(1, N + 1) if N % d == 0]))
        return (N // count,) * count
    cuts = sorted(draw(st.lists(st.integers(0, N), max_size=4)))
    return tuple(b - a for a, b in zip((0, *cuts), (*cuts, N), strict=True))
