"""What the shared memory of an architecture leaves room for; known without Triton."""

from __future__ import annotations

__all__ = ["OLDEST", "OLDEST_FOR_BFLOAT16", "has_much_memory", "widest"]

OLDEST = (7, 5)
OLDEST_FOR_BFLOAT16 = (8, 0)
WIDEST = 256


def has_much_memory(compute_capability: tuple[int, int]) -> bool:
    """Whether a block of threads may have 160 KiB of shared memory."""
    return compute_capability == (8, 0) or compute_capability[0] in (9, 10)


def widest(compute_capability: tuple[int, int], element_size: int) -> int:
    """The largest head dimension of which the least blocks fit, as Triton compiles them.

    Example:
        >>> widest((9, 0), 8), widest((8, 6), 8), widest((7, 5), 8)
        (256, 128, 64)
    """
    if compute_capability < OLDEST_FOR_BFLOAT16:
        row = 512
    else:
        row = 2048 if has_much_memory(compute_capability) else 1024
    return min(WIDEST, row // element_size)
