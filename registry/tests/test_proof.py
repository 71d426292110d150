"""A proof, which may have to compile, is asked of those alone who are about to be chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ringspan_registry import Candidate, CandidateState, Decision, DeviceInfo, Registry

House = Callable[..., Registry]
Source = Callable[..., str]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """A file to which each provider adds its name when it is asked for a proof."""
    return tmp_path / "asked"


def proving(asked: Path, name: str, priority: int, answer: str) -> str:
    return (
        f"def priority(self, device):\n    return {priority}\n"
        "def proof(self, device):\n"
        f"    with open({str(asked)!r}, 'a') as file:\n        file.write('{name} ')\n"
        f"    {answer}\n"
    )


@pytest.fixture
def registry(
    house: House, install: Callable[..., Path], cook_source: Source, asked: Path
) -> Registry:
    """anna raises when asked for a proof, bert refuses, carl and dora prove to work."""
    for name, priority, answer in (
        ("anna", 40, "raise OSError('no stove')"),
        ("bert", 30, "return Availability.no('burns water', remedy='Let carl cook')"),
        ("carl", 20, "return Availability.yes()"),
        ("dora", 10, "return Availability.yes()"),
    ):
        install(name, cook_source(name, body=proving(asked, name, priority, answer)))
    return house()


def of(decision: Decision, name: str) -> Candidate:
    return next(each for each in decision.candidates if each.name == name)


def test_the_first_who_proves_to_work_is_chosen_and_losers_are_not_asked(
    registry: Registry, cpu: DeviceInfo, asked: Path
) -> None:
    decision = registry.select("cook", 4, cpu)
    assert decision.chosen == "carl"
    assert asked.read_text().split() == ["anna", "bert", "carl"]
    assert of(decision, "anna").state is CandidateState.FAULTY
    assert "proof raised OSError: no stove" in of(decision, "anna").reasons[0]
    assert of(decision, "bert").state is CandidateState.UNAVAILABLE
    assert of(decision, "bert").reasons == ("burns water",)
    assert of(decision, "dora").state is CandidateState.ELIGIBLE


def test_a_proof_is_asked_for_once(registry: Registry, cpu: DeviceInfo, asked: Path) -> None:
    for problem in (4, 5):
        registry.select("cook", problem, cpu)
    assert not registry.probe("cook", "bert", cpu).usable
    assert registry.probe("cook", "carl", cpu).usable
    assert asked.read_text().split() == ["anna", "bert", "carl"]


def test_whoever_is_asked_about_proves_to_work(
    registry: Registry, cpu: DeviceInfo, asked: Path
) -> None:
    found = registry.probe("cook", "bert", cpu)
    assert (found.usable, found.reason) == (False, "burns water")
    assert asked.read_text().split() == ["bert"]
