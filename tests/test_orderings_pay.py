"""What orderings save where tokens have coordinates, in active blocks: counts, not seconds."""

from __future__ import annotations

import numpy as np
import pytest
from ringspan import Grid, Neighborhood
from ringspan.plan.activity import Seen
from ringspan.plan.orders import order

BLOCK = 64


def active(seen: Seen, ordering: str, tokens: Grid) -> int:
    numbers = np.empty(tokens.N, np.int64)
    numbers[order(ordering, tokens)] = np.arange(tokens.N) // BLOCK
    return seen.active(numbers, -(-tokens.N // BLOCK))


@pytest.mark.parametrize(("window", "by_rows", "by_squares"), [(13, 6488, 2116), (25, 12176, 5476)])
def test_squares_of_tokens_see_a_third_to_a_half_of_the_blocks_that_rows_see(
    window: int, by_rows: int, by_squares: int
) -> None:
    # On 128 x 128, a block of 64 is half a row, or 8 x 8 along all of these curves.
    tokens = Grid(128, 128)
    seen = Seen.of(Neighborhood(window), tokens)
    assert {name: active(seen, name, tokens) for name in ("identity", "row-major", "snake")} == {
        "identity": by_rows,
        "row-major": by_rows,
        "snake": by_rows,
    }
    assert {name: active(seen, name, tokens) for name in ("tiles", "morton", "hilbert")} == {
        "tiles": by_squares,
        "morton": by_squares,
        "hilbert": by_squares,
    }
