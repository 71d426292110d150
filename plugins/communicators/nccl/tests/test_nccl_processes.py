"""Whether a process is gone, as the kernel of its machine knows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import ringspan_nccl.processes as processes
from ringspan_nccl.processes import Process

SAYS = "from ringspan_nccl.processes import Process; print(Process.current(), flush=True); input()"


def test_this_process_is_not_gone_and_survives_its_text() -> None:
    here = Process.current()
    assert not here.is_gone()
    assert Process.parsed(str(here)) == here


def test_a_killed_process_is_gone_before_and_after_it_is_reaped() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        there = Process.parsed(child.stdout.readline().strip())
        assert (there.number, there.is_gone()) == (child.pid, False)
        child.kill()
        # Its output closes with it; nobody has asked for its exit status yet.
        assert child.stdout.read() == ""
        while (Path("/proc") / str(child.pid) / "stat").read_text().rpartition(")")[2][1] != "Z":
            pass
        assert there.is_gone()
    assert there.is_gone()


def test_another_process_of_the_same_number_is_not_taken_for_it() -> None:
    assert dataclasses.replace(Process.current(), started="7").is_gone()


def test_nothing_is_said_of_processes_elsewhere() -> None:
    assert not Process("another boot", 2**22 + 1, "7").is_gone()


def test_nothing_is_said_where_the_system_does_not_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    here = Process.current()
    assert (here.surroundings, here.is_gone()) == ("", False)
    assert Process.parsed(str(here)) == here
