"""Rings of real processes in the middle of a step, of which one dies or falls silent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.failing import plain, torchrun

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for orphans in /proc")


@linux
@pytest.mark.parametrize(
    ("victim", "ordering"), [(2, "none"), (0, "zigzag")], ids=["any", "with_the_store"]
)
def test_every_survivor_names_the_killed_rank_in_time_and_ends(victim: int, ordering: str) -> None:
    assert plain.interrupt(victim, ordering=ordering, seed=victim).complaints() == []


@linux
def test_every_survivor_names_the_silent_rank_in_time_and_ends() -> None:
    found = plain.interrupt(1, how=signal.SIGSTOP)
    assert found.complaints() == []
    assert {report.error["kind"] for report in found.survivors.values()} == {"RingTimeout"}


@linux
def test_a_store_whose_host_is_silent_keeps_nobody_waiting() -> None:
    found = plain.interrupt(0, how=signal.SIGSTOP)
    assert found.complaints() == []
    assert "RingTimeout" in {report.error["kind"] for report in found.survivors.values()}


@linux
def test_a_restart_under_torchrun_ends_with_the_same_losses() -> None:
    assert torchrun.restart(victim=1, fatal_step=3).complaints(fatal_step=3) == []
