"""In which way the chosen backend gets the rows of its work, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ringspan.catalogue import catalogue
from ringspan.contracts.backend import AttentionBackend, Task
from ringspan.contracts.work import Affine, Ragged
from ringspan.engine.choice import WHOLE, backend_for, ragged_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ringspan_registry import Decision

    from ringspan.contracts.work import Work
    from ringspan.plan.steps import Plan

__all__ = ["ways_of"]


def ways_of(decisions: Mapping[str, Decision], plan: Plan) -> dict[str, str]:
    """By the name of the decision, for what a rank computes."""
    if WHOLE in decisions and decisions[WHOLE].chosen:
        return {WHOLE: "compressed rows of blocks, whole"}
    found: dict[str, str] = {}
    for step in plan.steps:
        for work in step.work:
            for name, way in _ways(work, decisions):
                found[name] = way if found.get(name, way) == way else "some as views, some gathered"
    return found


def _ways(work: Work, decisions: Mapping[str, Decision]) -> Iterator[tuple[str, str]]:
    if isinstance(work, Ragged):
        ragged = decisions.get(ragged_for(work.mask))
        if ragged is not None and ragged.chosen:
            yield ragged_for(work.mask), "all lengths in one call"
            return
    name = backend_for(work.mask)
    if name not in decisions or not decisions[name].chosen:
        return
    provider = catalogue().provider("backend", decisions[name].chosen)
    declared = cast("AttentionBackend", provider).capabilities
    for tiles in work.tiles[:1]:
        if declared.branches and tiles.mask in declared.masks:
            yield name, "rows in place"
        elif isinstance(tiles.query, Affine) and isinstance(tiles.key, Affine) and declared.strided:
            yield name, "rows as strided views"
        else:
            gather = decisions.get(str(Task.GATHER))
            by = gather.chosen if gather is not None and gather.chosen else "torch's operators"
            yield name, f"rows gathered by {by}"
