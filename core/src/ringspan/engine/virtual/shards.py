"""The shards of all ranks inside one tensor, and which of them meet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from ringspan.engine.ring.messages import KeyValue
from ringspan.plan.steps import Parcel, Plan, Step

__all__ = ["Shards"]


class Shards:
    """Where each rank's rows lie in tensors that hold those of all ranks, one after the other."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        self.rows = _slices(plan.rows for plan in plans)
        """The queries of each rank."""
        self._key_rows = _slices(plan.key_rows for plan in plans)
        self._parcels: list[dict[tuple[int, int], Parcel]] = []
        self._steps: list[dict[int, list[Step]]] = []
        for plan in plans:
            self._parcels.append({(step.index, step.part): step.send for step in plan.steps})
            by_index: dict[int, list[Step]] = defaultdict(list)
            for step in plan.steps:
                if step.work:
                    by_index[step.index].append(step)
            self._steps.append(by_index)

    def keys(self, rows: KeyValue, rank: int) -> KeyValue:
        """The keys and values of one rank, or their gradients: views."""
        return KeyValue(*(x[:, self._key_rows[rank]] for x in rows))

    def parcel(self, step: Step) -> Parcel:
        """The rows that arrive in a step: those that its source sends."""
        return self._parcels[step.source][step.index, step.part]

    def visits(self, rank: int) -> Iterator[tuple[int, list[Step]]]:
        """Whose queries see keys of this rank, and the work of each: its own first."""
        for index in range(len(self.plans)):
            asking = (rank + index) % len(self.plans)
            if self._steps[asking][index]:
                yield asking, self._steps[asking][index]


def _slices(sizes: Iterator[int]) -> list[slice]:
    return [slice(*ends) for ends in pairwise((0, *accumulate(sizes)))]
