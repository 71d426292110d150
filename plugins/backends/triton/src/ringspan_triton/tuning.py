"""Sizes of blocks, by architecture, dtype and head dimension.

An explicit table: tuning at run time would need a GPU idle, and costs every process again.
Not measured on a GPU; what is known is that each entry fits the shared memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from ringspan_triton.interpreting import INTERPRETED
from ringspan_triton.limits import OLDEST_FOR_BFLOAT16, has_much_memory

__all__ = ["Tuning", "backward_tuning", "forward_tuning", "padded"]

SMALLEST = 16
"""The least that a product of blocks has along any side."""


class Tuning(NamedTuple):
    """Rows of a block, and how a kernel is compiled."""

    queries: int
    keys: int
    warps: int
    stages: int

    def fitted(self, queries: int, keys: int) -> Tuning:
        """Blocks no larger than tiles of so many rows need."""
        return self._replace(
            queries=min(self.queries, padded(queries)), keys=min(self.keys, padded(keys))
        )


INTERPRETER = Tuning(64, 64, 1, 1)
FORWARD = {
    (2, 64): Tuning(128, 64, 4, 3),
    (2, 128): Tuning(128, 64, 8, 3),
    (2, 256): Tuning(64, 64, 8, 2),
    (4, 64): Tuning(64, 32, 4, 2),
    (4, 128): Tuning(64, 32, 8, 2),
    (4, 256): Tuning(32, 32, 8, 1),
    (8, 64): Tuning(32, 32, 4, 1),
    (8, 128): Tuning(32, 16, 4, 1),
    (8, 256): Tuning(16, 16, 4, 1),
}
"""By bytes of an element and the wider head dimension; for 160 KiB of shared memory."""
FORWARD_SMALL = FORWARD | {
    (2, 128): Tuning(64, 64, 4, 2),
    (2, 256): Tuning(64, 32, 8, 1),
    (4, 128): Tuning(32, 32, 4, 1),
    (4, 256): Tuning(16, 16, 4, 1),
    (8, 128): Tuning(16, 16, 4, 1),
}
"""For 64 KiB: Turing, and Ampere and Ada but the largest."""
BACKWARD = {
    (2, 64): Tuning(64, 64, 4, 2),
    (2, 128): Tuning(32, 64, 8, 2),
    (2, 256): Tuning(32, 32, 8, 1),
    (4, 64): Tuning(32, 32, 4, 1),
    (4, 128): Tuning(32, 32, 8, 1),
    (4, 256): Tuning(16, 16, 8, 1),
    (8, 64): Tuning(16, 16, 4, 1),
    (8, 128): Tuning(16, 16, 4, 1),
    (8, 256): Tuning(16, 16, 8, 1),
}
"""For a kernel whose program has keys; with queries of its own the sizes change places."""
BACKWARD_SMALL = BACKWARD | {
    (2, 128): Tuning(32, 32, 4, 1),
    (2, 256): Tuning(16, 16, 4, 1),
    (4, 128): Tuning(16, 16, 4, 1),
}


def padded(size: int) -> int:
    """The power of two that a block needs to hold `size`."""
    return max(SMALLEST, 1 << (size - 1).bit_length())


def forward_tuning(device: torch.device, element_size: int, width: int) -> Tuning:
    """For the forward kernel."""
    return _chosen(device, element_size, width, FORWARD, FORWARD_SMALL)


def backward_tuning(device: torch.device, element_size: int, width: int) -> Tuning:
    """For the kernel whose programs have keys."""
    return _chosen(device, element_size, width, BACKWARD, BACKWARD_SMALL)


def _chosen(
    device: torch.device,
    element_size: int,
    width: int,
    large: dict[tuple[int, int], Tuning],
    small: dict[tuple[int, int], Tuning],
) -> Tuning:
    if INTERPRETED.value:
        return INTERPRETER
    compute_capability = _compute_capability(device)
    if compute_capability < OLDEST_FOR_BFLOAT16:
        # Triton multiplies without tensor cores there, and loops are unrolled: small blocks.
        element_size = min(8, 2 * element_size)
    table = large if has_much_memory(compute_capability) else small
    return table[element_size, max(64, padded(width))]


@lru_cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
