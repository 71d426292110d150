"""The work between any two ranks, and the rows that travel for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Cliques, Domain, Part, Runs
from ringspan.contracts.work import Indexed, Work
from ringspan.plan.cells import Batch
from ringspan.plan.cut import Cut, cut
from ringspan.plan.holdings import Holdings
from ringspan.plan.lines import Lines, listed
from ringspan.plan.local import local_work
from ringspan.plan.parts import WHOLE_STEPS, heads_of_parts
from ringspan.plan.steps import Parcel, Step
from ringspan.plan.tiling import Joined, Unit, grouped_heads, join_heads

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Batches = list[tuple[int, Batch]]

__all__ = ["Meeting", "Meetings"]


class Meetings:
    """The work between any two ranks."""

    def __init__(
        self,
        parts: Sequence[tuple[int, Part]],
        queries: Holdings,
        keys: Holdings,
        domain: Domain,
    ) -> None:
        self._parts, self._domain = parts, domain
        self._queries, self._keys = queries, keys
        self._group = domain.heads // domain.kv_heads
        self._cuts: dict[int, Cut] = {}
        self._grouped: dict[int, list[tuple[int, int, int]]] = {}
        self._masks = itertools.count()
        self._met: dict[tuple[int, int], tuple[Batches, Bools]] = {}
        self._met_in = 0

    def work(self, index: int, rank: int, most_rows: int = WHOLE_STEPS) -> Iterator[Meeting]:
        """What `rank` does in the step of that index, and the rows that travel for it, by part."""
        world_size = len(self._keys.positions)
        source, target = (rank - index) % world_size, (rank + index) % world_size
        if index == 0:
            yield from self._own(rank, most_rows)
            return
        batches, arriving = self._meet(index, rank, source)
        _, leaving = self._meet(index, target, rank)
        parts = itertools.zip_longest(
            *(heads_of_parts(rows.sum(axis=1), most_rows) for rows in (arriving, leaving)),
            fillvalue=range(0),
        )
        for part, (heads_in, heads_out) in enumerate(parts):
            coming, going = _of_heads(arriving, heads_in), _of_heads(leaving, heads_out)
            # Rows that do not arrive, but fill a bitmap's columns, stand for the first that does.
            packed = np.maximum(np.cumsum(coming) - 1, 0).reshape(coming.shape)
            yield Meeting(
                index,
                part,
                source,
                target,
                going,
                join_heads(self._units(batches, packed, heads_in)),
                self._keys.positions[source][np.nonzero(coming)[1]],
                int(coming.sum()),
            )

    def _own(self, rank: int, most_rows: int) -> Iterator[Meeting]:
        """The work of a rank with its own keys: in a ring by part too, to keep pieces small."""
        positions = self._keys.positions[rank]
        if self._keys.in_order and self._queries is self._keys:
            yield Meeting.alone(tuple(self._in_order()), positions)
            return
        batches = list(self._batches(rank, rank))
        rows = [len(positions)] * self._domain.kv_heads
        for part, heads in enumerate(heads_of_parts(rows, most_rows)):
            alone = Meeting.alone(join_heads(self._units(batches, None, heads)), positions)
            yield replace(alone, part=part, source=rank, target=rank)

    def _in_order(self) -> Iterator[Joined]:
        """One rank holds everything in order: sets that are runs need no list of their rows."""
        units: list[Unit] = []
        for index, (number, part) in enumerate(self._parts):
            if isinstance(part, Cliques) and isinstance(part.sets, Runs):
                for work in local_work(part, number, self._domain):
                    if isinstance(work, Unit):
                        units.append(work)
                    else:
                        yield work
            else:
                batches = self._cut(index).meet(0, 0, causal=self._domain.causal)
                units += self._units([(index, batch) for batch in batches], None)
        yield from join_heads(units)

    def _heads(self, index: int, kv_heads: range | None) -> list[tuple[int, int, int]]:
        if index not in self._grouped:
            self._grouped[index] = list(grouped_heads(self._parts[index][1].heads, self._group))
        grouped = self._grouped[index]
        if kv_heads is None:
            return grouped
        return [each for each in grouped if each[0] // self._group in kv_heads]

    @staticmethod
    def _rows(holdings: Holdings, positions: Ints | Lines) -> Ints | Lines:
        return positions if holdings.in_order else holdings.rows(listed(positions))

    def _cut(self, index: int) -> Cut:
        if index not in self._cuts:
            self._cuts[index] = cut(self._parts[index][1], self._queries, self._keys)
        return self._cuts[index]

    def _batches(self, query_rank: int, key_rank: int) -> Iterator[tuple[int, Batch]]:
        for index in range(len(self._parts)):
            for batch in self._cut(index).meet(query_rank, key_rank, causal=self._domain.causal):
                yield index, batch

    def _meet(self, index: int, query_rank: int, key_rank: int) -> tuple[Batches, Bools]:
        """The tiles between two ranks, and the rows that travel for them.

        Found once for both, where the same step of all ranks is planned before the next one.
        """
        if index != self._met_in:
            self._met.clear()
            self._met_in = index
        pair = query_rank, key_rank
        if pair not in self._met:
            batches = list(self._batches(query_rank, key_rank))
            self._met[pair] = batches, self._needed(batches, key_rank)
        return self._met[pair]

    def _needed(self, batches: Sequence[tuple[int, Batch]], key_rank: int) -> npt.NDArray[np.bool_]:
        """`[Hkv, rows of key_rank]`: which rows some query sees. Shared rows count once."""
        rows = len(self._keys.positions[key_rank])
        needed = np.zeros((self._domain.kv_heads, rows), dtype=np.bool_)
        for index, batch in batches:
            heads = np.unique(np.asarray(self._parts[index][1].heads) // self._group)
            needed[heads[:, None], self._keys.rows(batch.seen_keys())] = True
        return needed

    def _units(
        self,
        batches: Sequence[tuple[int, Batch]],
        packed: Ints | None,
        kv_heads: range | None = None,
    ) -> Iterator[Unit]:
        """One unit per batch and group of heads, of some key/value heads or all.

        `packed[head, row]`: a row's place on arrival.
        """
        for index, batch in batches:
            chosen = self._heads(index, kv_heads)
            if not chosen:
                continue
            number, part = self._parts[index]
            query, key = self._rows(self._queries, batch.query), self._rows(self._keys, batch.key)
            masked = batch.high is not None or batch.seen is not None
            shared = next(self._masks) if masked else -1
            for head, group, apart in chosen:
                kv_head = head // self._group
                yield Unit(
                    query_head=head,
                    group=group,
                    query=query,
                    key_head=kv_head if packed is None else 0,
                    key=key if packed is None else packed[kv_head][listed(key)],
                    mask=batch.mask,
                    part=number,
                    low=batch.low,
                    high=batch.high,
                    seen=batch.seen,
                    batch=shared,
                    apart=apart,
                    keys_overlap=batch.keys_overlap or not isinstance(part, Cliques),
                    left=batch.left,
                    right=batch.right,
                )


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """One step, or a part of it, before its work is marked."""

    index: int
    part: int
    source: int
    target: int
    leaving: npt.NDArray[np.bool_]
    """`[Hkv, rows]` of this rank that `target` needs."""
    joined: tuple[Joined, ...]
    key_positions: Ints
    receive: int

    @classmethod
    def alone(cls, joined: tuple[Joined, ...], key_positions: Ints) -> Meeting:
        """The work of a rank with its own keys: nothing travels."""
        return cls(0, 0, 0, 0, np.zeros((0, 0), dtype=np.bool_), joined, key_positions, 0)

    def finished(self, work: tuple[Work, ...]) -> Step:
        """The step, with its work marked."""
        heads, rows = np.nonzero(self.leaving)
        return Step(
            self.index,
            self.part,
            self.source,
            self.target,
            Parcel(Indexed(rows), Indexed(heads)),
            self.receive,
            Indexed(self.key_positions),
            work,
        )


def _of_heads(rows: npt.NDArray[np.bool_], heads: range) -> npt.NDArray[np.bool_]:
    """`[Hkv, rows]` with those of some heads alone."""
    chosen = np.zeros_like(rows)
    chosen[heads.start : heads.stop] = rows[heads.start : heads.stop]
    return chosen
