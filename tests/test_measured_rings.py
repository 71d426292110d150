"""Ranks that measure their backends choose alike."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.testing.ranks import Ring


def measured(rank: int, file: str) -> list[tuple[str, tuple[str, ...], int]]:
    """What three calls on lengths of each rank's own chose, why, and the bytes that moved."""
    q = torch.randn(1, 64 + rank, 2, 16, requires_grad=True)
    layout = rs.Layout(195, 3, sizes=(64, 65, 66))
    found = []
    for _ in range(3):
        with rs.use(autotune="first-run", autotune_file=file):
            rs.attention(q, q, q, group=dist.group.WORLD, layout=layout).sum().backward()
        run = rs.last_run()
        assert run is not None
        decision = run.decisions["backend (full)"]
        winner = next(each for each in decision.candidates if each.name == decision.chosen)
        found.append((decision.chosen, winner.reasons, run.bytes_received))
    return found


def test_all_ranks_take_what_rank_0_measured_and_steady_calls_add_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Ring(3)) as ring:
        by_rank = ring.run(measured, str(tmp_path / "autotune.json"))
    assert len({chosen for calls in by_rank for chosen, _, _ in calls}) == 1
    assert all("rank 0" in reasons[0] for calls in by_rank for _, reasons, _ in calls)
    for calls in by_rank:
        assert len({received for _, _, received in calls}) == 1


@pytest.mark.parametrize("setting", ["off", "first-run"])
def test_only_measuring_writes_times(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "autotune.json"
    q = torch.randn(1, 64, 2, 16)
    with rs.use(autotune=setting, autotune_file=str(file)):
        rs.attention(q, q, q)
    assert file.exists() == (setting == "first-run")
