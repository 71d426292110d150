"""What the slide example runs: sizes, patterns and orderings."""

from __future__ import annotations

from dataclasses import dataclass, field

import ringspan as rs

from examples.slide.encoder import GIGAPATH_PATTERN, Width

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """How much is run."""

    size: int = 128
    """Tiles along each side of the picture, most of which have no tissue."""
    width: Width = field(default_factory=lambda: Width(layers=2, embed_dim=192))
    """GigaPath has 12 layers of 768 channels, which take a CPU minutes."""
    window: int = 13
    sigma: float = 2.0
    """Of a local attention mass, in tiles."""
    queries: int = 256
    rounds: int = 3

    @staticmethod
    def quick() -> Problem:
        """Little enough for a test."""
        return Problem(64, Width(layers=1, embed_dim=96), queries=64, rounds=1)

    def patterns(self) -> dict[str, rs.Dilated]:
        """By name, what layers attend to."""
        return {
            "GigaPath": GIGAPATH_PATTERN,
            "geometric": rs.Dilated((64, 256, 1024, 4096), (1, 2, 4, 8), head_offsets="blocked"),
        }
