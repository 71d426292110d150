"""A plan as data: one rank's steps, the rows that travel and the work to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ringspan.contracts.documents import Documents
from ringspan.contracts.masks import MaskCase
from ringspan.contracts.work import Indexed, Ragged, Tiles, Work
from ringspan.plan.whole import Whole

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
    """One step of the ring: `source = rank - index`, `target = rank + index` (mod world size).

    A large step comes in several parts, some key/value heads each, one after the other.
    """

    index: int
    part: int
    source: int
    target: int
    send: Parcel
    """This rank's rows that `target` needs."""
    receive: int
    """How many rows come from `source`; the work's key rows count them in order of arrival."""
    key_positions: Indexed
    """The position of each key row at hand: this rank's own, or those that arrive."""
    work: tuple[Work, ...]

    @property
    def tiles(self) -> Iterator[Tiles]:
        """The work as batches of equal tiles."""
        return (tiles for work in self.work for tiles in work.tiles)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One rank's part of one attention call."""

    rank: int
    world_size: int
    rows: int
    """Queries this rank holds."""
    key_rows: int
    """Keys this rank holds."""
    heads: int
    kv_heads: int
    query_positions: Indexed
    """The position of each query row of this rank."""
    null_keys: Indexed | None
    """`[heads, rows]`: how many keys of score 0 and value 0 each query also sees."""
    steps: tuple[Step, ...]
    """In the order of the forward pass: this rank's own keys first, then part by part."""
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
    documents: Documents | None = None
    """In which positions restart."""
    whole: Whole | None = None
    """The same work as one tile for each part, where all of it is block-sparse."""

    @property
    def ragged_masks(self) -> frozenset[MaskCase]:
        """The cases of work of many lengths, which one rank alone meets."""
        return frozenset(
            work.mask for step in self.steps for work in step.work if isinstance(work, Ragged)
        )

    @property
    def backward_steps(self) -> tuple[Step, ...]:
        """This rank's own keys last, so that gradients travel behind that work."""
        return tuple(sorted(self.steps, key=lambda step: step.index == 0))

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
        """Query-key pairs over all steps and query heads."""
        return sum(work.area for step in self.steps for work in step.work)
