"""Branches in geometric progression, for a sequence length or a budget of operations."""

from __future__ import annotations

from collections.abc import Iterator

from ringspan.contracts.errors import InvalidArgument
from ringspan.patterns.integers import checked_integer

__all__ = ["flops_of", "geometric_branches", "within_budget"]

Branches = tuple[tuple[int, ...], tuple[int, ...]]


def geometric_branches(max_length: int, base: int, growth: int) -> Branches:
    """Segment lengths `base * growth ** c` below `max_length`, then that; rates `growth ** c`."""
    max_length = checked_integer("max_length", max_length)
    growth = checked_integer("growth", growth, least=2)
    # From here on no rate exceeds its segment length.
    base = checked_integer("base", base, least=growth)
    lengths, rates = [base], [1]
    while lengths[-1] < max_length:
        lengths.append(lengths[-1] * growth)
        rates.append(rates[-1] * growth)
    return (*lengths[:-1], max_length), tuple(rates)


def flops_of(branches: Branches, N: int, heads: int, head_dim: int) -> int:
    """Operations of a forward pass: `4 * head_dim` for each pair that the pattern counts."""
    pairs = sum(
        N // length * _kept(length, rate, head % rate) ** 2
        + _kept(N % length, rate, head % rate) ** 2
        for length, rate in zip(*branches, strict=True)
        for head in range(heads)
    )
    return 4 * head_dim * pairs


def _kept(length: int, rate: int, offset: int) -> int:
    return max(0, -((offset - length) // rate))


def within_budget(
    flops: float,
    max_length: int,
    base: int,
    growth: int,
    *,
    heads: int | None,
    head_dim: int | None,
) -> Branches:
    """The branches of the largest `base // growth ** k` that cost at most `flops`."""
    if isinstance(flops, bool) or not isinstance(flops, int | float) or not flops > 0:
        raise InvalidArgument("flops", expected="a number > 0, or None", got=repr(flops))
    heads = checked_integer("heads", heads)
    head_dim = checked_integer("head_dim", head_dim)
    cost = 0
    for smaller in _bases(base, growth):
        branches = geometric_branches(max_length, smaller, growth)
        cost = flops_of(branches, max_length, heads, head_dim)
        if cost <= flops:
            return branches
    raise InvalidArgument(
        "flops",
        expected=f"at least {cost:.4g}, what the smallest base {smaller} costs",
        got=f"{flops:.4g}",
        remedy="Raise the budget, or use a larger growth",
    )


def _bases(base: int, growth: int) -> Iterator[int]:
    yield base
    while (base := base // growth) >= growth:
        yield base
