"""Compares keys by Triton's kernels, interpreted, with those by torch; prints how many it did.

Run as `TRITON_INTERPRET=1 python interpreted_keys.py`: Triton reads that when it is imported.
"""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringspan_hilbert import Curve, Gilbert, Hilbert, Morton, curves
from ringspan_hilbert.box import Box
from ringspan_hilbert.fused import has_kernels

WORDS = 6
compared = {"hilbert": 0, "morton": 0, "gilbert": 0}


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Of any number of bits, and as often small, so that all words have something to say."""
    most = draw(st.sampled_from([2, 13, 2**10, 2**22 + 5, 2**31]))
    sizes = draw(st.lists(st.integers(1, most), min_size=1, max_size=3))
    count = draw(st.sampled_from([0, 1, 7, 300]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    axes = (torch.randint(0, size, (count,), generator=generator) for size in sizes)
    return Box(tuple(axis.to(torch.int32) for axis in axes), tuple(sizes))


@settings(
    deadline=None, max_examples=25, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(boxes())
def compare(box: Box) -> None:
    for curve in (Hilbert(), Morton(), Gilbert()):
        for word in range(WORDS):
            assert torch.equal(curve.keys(box, word), by_torch(curve, box, word)), (curve, word)
            compared[curve.name] += 1


def by_torch(curve: Curve, box: Box, word: int) -> torch.Tensor:
    with patch.object(curves, "has_kernels", lambda device: False):
        return curve.keys(box, word)


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1"
    assert has_kernels(torch.device("cpu"))
    torch.set_num_threads(1)
    compare()
    sys.stdout.write(" ".join(f"{name}={count}" for name, count in compared.items()))
