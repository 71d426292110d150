"""A plan as data: one rank's steps, the rows that travel and the tiles to compute."""

from __future__ import annotations

from dataclasses import dataclass

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.work import Indexed, Tiles

__all__ = ["Parcel", "Plan", "Step"]


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """Key/value rows that travel from one rank to another: rows and heads on the sender."""

    rows: Indexed
    heads: Indexed

    def __len__(self) -> int:
        return self.rows.rows.size


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step of the ring: `source = rank - index`, `target = rank + index` (mod world size)."""

    index: int
    source: int
    target: int
    send: Parcel
    """This rank's rows that `target` needs."""
    receive: int
    """How many rows come from `source`; the tiles' key rows count them in order of arrival."""
    tiles: tuple[Tiles, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One rank's part of one attention call."""

    rank: int
    world_size: int
    rows: int
    """Tokens this rank holds."""
    kv_heads: int
    steps: tuple[Step, ...]
    """In the order of the forward pass: this rank's own keys first."""
    masks: frozenset[MaskCase]
    """Every case that can occur on any rank, so that all ranks choose alike."""
    one_piece: bool
    """Every query row is computed by at most one tile: results need no merging."""
    key_one_piece: bool
    """Every key row of this rank gets its gradient from at most one tile."""
    forward_covered: bool
    """Every query row is first written by work marked `forward_first`."""
    backward_covered: bool
    key_covered: bool

    @property
    def backward_steps(self) -> tuple[Step, ...]:
        """This rank's own keys last, so that gradients travel behind that work."""
        return (*self.steps[1:], *self.steps[:1])

    @property
    def rows_received(self) -> int:
        """Key/value rows, summed over key/value heads, that arrive in a forward pass."""
        return sum(step.receive for step in self.steps)

    @property
    def rows_sent(self) -> int:
        """Key/value rows, summed over key/value heads, that leave in a forward pass."""
        return sum(len(step.send) for step in self.steps)

    @property
    def area(self) -> int:
        """Query-key pairs over all steps and key/value heads."""
        return sum(tiles.area for step in self.steps for tiles in step.tiles)
