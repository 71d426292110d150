"""Whether a pattern in a mode is exact on a backend, or why it is refused: asked, not claimed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from ringspan.contracts import DeviceInfo
from ringspan.testing import assert_exact

from tests.front_door import computed, exact, poisoned
from tests.reference.cases import in_mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ringspan.engine.operator import LastRun
    from ringspan.testing.case import Case

    from tests.reference.cases import Row

__all__ = ["ON_CPU", "ON_CUDA", "reasons"]

ON_CPU = ("manual", "sdpa-cpu")
ON_CUDA = ("sdpa-cudnn", "sdpa-flash", "sdpa-efficient", "sdpa-efficient-bias", "triton")
HOPPER = DeviceInfo(type="cuda", compute_capability=(9, 0))


def reasons(row: Row, mode: str, changes: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """For each backend the reasons against one pattern in one mode; none: it serves.

    A backend of `ON_CPU` serves where the output, the log-sum-exp and every gradient are exact by
    the one rule of accuracy. Of `ON_CUDA` only declared limits are asked.

    Raises:
        AssertionError: a result is not exact.
    """
    case = in_mode(row, mode, changes)
    if isinstance(case, str):
        return dict.fromkeys((*ON_CPU, *ON_CUDA), (case,))
    try:
        return dict(_asked(case, mode, changes.get("dtype", torch.bfloat16)))
    except rs.errors.InvalidArgument as refusal:
        reason = f"`{refusal.argument}`: expected {refusal.expected}"
        return dict.fromkeys((*ON_CPU, *ON_CUDA), (reason,))


def _asked(case: Case, mode: str, cuda_dtype: torch.dtype) -> Iterator[tuple[str, tuple[str, ...]]]:
    formula = None
    for backend in ON_CPU:
        found = _called(case, backend, repeats=mode == "deterministic")
        # Only now: what the front door refuses, the formula need not be able to say.
        formula = exact(case) if formula is None else formula
        assert_exact(found, formula)
        yield backend, _against(backend, _last_run())
    for backend in ON_CUDA:
        yield backend, _declared_against(backend, _last_run(), cuda_dtype)


def _called(case: Case, backend: str, repeats: bool) -> dict[str, torch.Tensor]:
    """All results; of another backend where this one declares that it cannot."""
    if not repeats:
        return computed(case, backend)
    with poisoned():
        found, again = computed(case, backend), computed(case, backend)
    assert all(torch.equal(x, again[name]) for name, x in found.items())
    return found


def _last_run() -> LastRun:
    run = rs.last_run()
    assert run is not None
    return run


def _against(backend: str, run: LastRun) -> tuple[str, ...]:
    """What kept a backend from running; nothing where it did."""
    return _once(
        reason
        for decision in run.decisions.values()
        for candidate in decision.candidates
        if candidate.name == backend != decision.chosen
        for reason in candidate.reasons
    )


def _declared_against(backend: str, run: LastRun, dtype: torch.dtype) -> tuple[str, ...]:
    """What a CUDA kernel declares against the masks of this run, in a dtype."""
    provider: Any = catalogue().provider("backend", backend)
    name = str(dtype).removeprefix("torch.")
    on_cuda = {"device": "cuda", "device_info": HOPPER, "dtype": name}
    problems = [replace(decision.problem, **on_cuda) for decision in run.decisions.values()]
    return _once(reason for problem in problems for reason in provider.reasons_against(problem))


def _once(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
