"""A large step travels in several parts, some key/value heads each, so that buffers stay small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["WHOLE_STEPS", "heads_of_parts"]

WHOLE_STEPS = 2**62
"""More rows than any step has: every step travels in one part."""


def heads_of_parts(rows: Sequence[int], most: int) -> Iterator[range]:
    """Consecutive heads that travel together, given how many rows of each head do.

    A part has at most `most` rows, but one head at least; a step that moves nothing is one part.
    Sender and receiver of a step count the same rows, and so cut alike without a word.

    Example:
        >>> list(heads_of_parts([4, 4, 0, 4], most=8))
        [range(0, 3), range(3, 4)]
    """
    start = total = 0
    for head, count in enumerate(rows):
        if total and total + count > most:
            yield range(start, head)
            start, total = head, 0
        total += count
    yield range(start, len(rows))
