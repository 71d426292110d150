"""Every layout, pattern and mode at every world size: the formula's numbers, and its bytes.

One launch for each world size runs all configurations.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.engine.ring.exchanges import connections
from ringspan.plan.orders import order
from ringspan.testing import assert_exact
from ringspan.testing.case import Case
from ringspan.testing.named import Named
from torch import Tensor

from tests.front_door import exact
from tests.test_ring_modes import joined

WORLD_SIZES = (1, 2, 3, 4, 5, 8)
ORDERINGS = (None, "zigzag", "striped", "hilbert")
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
N = 77
DOCUMENTS = (30, 0, 41, 5, 1)
DILATED = Named("Dilated", {"segment_lengths": (16, 40, 77), "dilation_rates": (1, 2, 5)})


@dataclass(frozen=True)
class Configuration:
    """One call and how its tokens are stored."""

    case: Case
    ordering: str | None
    uneven: bool

    def layout(self, world_size: int) -> rs.Layout:
        """Half of the configurations have shards of very different lengths, the last one empty."""
        weights = tuple(float(world_size - 1 - rank) for rank in range(world_size))
        tokens = self.case.tokens() if self.case.grid else N
        uneven = self.uneven and world_size > 1
        return rs.Layout(tokens, world_size, self.ordering, weights if uneven else None)


def configurations() -> list[Configuration]:
    """All, with dtypes and uneven shards in turn."""
    return [
        Configuration(
            _case(name, ordering, causal, packed, DTYPES[number % len(DTYPES)]),
            ordering,
            uneven=number % 3 == 1,
        )
        for number, (ordering, name, causal, packed) in enumerate(
            itertools.product(
                ORDERINGS, ("Dense", "Dilated", "Neighborhood"), (False, True), (False, True)
            )
        )
    ]


def _case(name: str, ordering: str | None, causal: bool, packed: bool, dtype: torch.dtype) -> Case:
    # A curve needs points, and several documents do not lie on one grid.
    on_points = ordering == "hilbert"
    window = (5, 4) if on_points else (9,)
    patterns = {"Dense": Named("Dense"), "Dilated": DILATED}
    return Case(
        N=N,
        heads=4,
        kv_heads=2,
        head_dim=8,
        value_head_dim=4,
        pattern=patterns.get(name) or Named("Neighborhood", {"window": window}),
        grid=(9, 11) if on_points else (),
        gaps=on_points,
        causal=causal,
        documents=DOCUMENTS if packed else None,
        dtype=dtype,
    )


@dataclass(frozen=True)
class Answer:
    """One rank's part: tensors, and bytes received in the forward and in the backward pass."""

    tensors: dict[str, Tensor]
    forward_bytes: int
    backward_bytes: int


def _received() -> int:
    return sum(each.exchange.bytes_received for each in connections(dist.group.WORLD))


def attend(rank: int, configuration: Configuration) -> Answer:
    layout, case = configuration.layout(dist.get_world_size()), configuration.case
    options = case.arguments()
    options.pop("tokens", None)
    *leaves, grad_out = (layout.shard(x, rank) for x in case.inputs())
    leaves = [x.detach().requires_grad_() for x in leaves]
    before = _received()
    out, lse = rs.attention(
        *leaves, pattern=case.pattern.built(rs), return_lse=True, layout=layout,
        group=dist.group.WORLD, **options,
    )  # fmt: skip
    between = _received()
    grads = torch.autograd.grad(out, leaves, grad_out)
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    tensors = dict(zip(names, (out.detach(), lse.detach(), *grads), strict=True))
    return Answer(tensors, between - before, _received() - between)


def attend_to_all(rank: int) -> list[Answer]:
    return [attend(rank, configuration) for configuration in configurations()]


def rows_that_travel(case: Case, layout: rs.Layout) -> Tensor:
    """`[p, o]`: key/value rows of rank `o`, over all heads, that some query of rank `p` sees."""
    seen = case.multiplicity(order).expand(case.heads, -1, -1) > 0
    seen = seen.reshape(case.kv_heads, -1, N, N)
    positions = [layout.positions(rank) for rank in range(layout.world_size)]
    rows = torch.zeros(layout.world_size, layout.world_size, dtype=torch.int64)
    for p, mine in enumerate(positions):
        wanted = seen[:, :, mine].flatten(1, 2).any(dim=1)
        for o, theirs in enumerate(positions):
            rows[p, o] = 0 if p == o else int(wanted[:, theirs].sum())
    return rows


@pytest.fixture(scope="module")
def yardsticks() -> list[Any]:
    return [exact(configuration.case) for configuration in configurations()]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_layout_pattern_and_mode_is_exact_and_moves_the_bytes_of_the_formula(
    run_ring: Any, yardsticks: list[Any], world_size: int
) -> None:
    answers = run_ring(world_size, attend_to_all)
    for number, configuration in enumerate(configurations()):
        case, layout = configuration.case, configuration.layout(world_size)
        parts = [of_rank[number] for of_rank in answers]
        assert_exact(joined(layout, [part.tensors for part in parts]), yardsticks[number])
        rows = rows_that_travel(case, layout)
        elements = case.batch * (case.head_dim + case.value_head_dim)
        wide = max(4, case.dtype.itemsize)
        for rank, part in enumerate(parts):
            received, sent = int(rows[rank].sum()), int(rows[:, rank].sum())
            again = received * elements * case.dtype.itemsize
            assert part.forward_bytes == again, configuration
            assert part.backward_bytes == again + sent * elements * wide, configuration
