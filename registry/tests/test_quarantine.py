"""A provider that failed at work is not asked again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from ringspan_registry import (
    Candidate,
    CandidateState,
    Decision,
    DeviceInfo,
    NoEligibleProvider,
    Registry,
    UnknownProvider,
)

House = Callable[..., Registry]
Source = Callable[..., str]


@pytest.fixture
def registry(
    house: House, install: Callable[..., Path], cook_source: Source, driver_source: Source
) -> Registry:
    """anna before bert; a driver is called anna too."""
    body = "def priority(self, device):\n    return 10\n"
    probe = "def probe(self, device):\n    return Availability.yes(version='7.2')\n"
    install("anna", cook_source("anna", body=body + probe))
    install("bert", cook_source("bert"))
    install("cars", driver_source("anna"))
    return house()


def of(decision: Decision, name: str) -> Candidate:
    return next(each for each in decision.candidates if each.name == name)


def test_the_next_one_serves_and_earlier_decisions_are_forgotten(
    registry: Registry, cpu: DeviceInfo
) -> None:
    assert registry.select("cook", 4, cpu).chosen == "anna"
    bert = registry.select("cook", 4, cpu, requested="bert")
    registry.quarantine("cook", "anna", "burnt the soup")
    decision = registry.select("cook", 4, cpu)
    assert decision.chosen == "bert"
    anna = of(decision, "anna")
    assert anna.state is CandidateState.QUARANTINED
    assert str(anna) == "anna: quarantined: burnt the soup"
    assert registry.select("cook", 4, cpu, requested="bert") is bert
    assert registry.quarantined() == {("cook", "anna"): "burnt the soup"}


def test_other_kinds_are_left_alone(registry: Registry, cpu: DeviceInfo) -> None:
    driver = registry.select("driver", 4, cpu)
    registry.quarantine("cook", "anna", "burnt the soup")
    assert registry.select("driver", 4, cpu) is driver


def test_a_request_by_name_says_why_it_is_not_served(registry: Registry, cpu: DeviceInfo) -> None:
    registry.quarantine("cook", "anna", "burnt the soup")
    with pytest.raises(NoEligibleProvider) as raised:
        registry.select("cook", 4, cpu, requested="anna")
    assert "anna: quarantined: burnt the soup" in str(raised.value)
    assert "A new process tries it again" in str(raised.value)
    other = registry.select("cook", 4, cpu, requested="bert")
    assert of(other, "anna").state is CandidateState.NOT_REQUESTED


def test_when_everybody_is_quarantined_nobody_serves(registry: Registry, cpu: DeviceInfo) -> None:
    for name in ("anna", "bert"):
        registry.quarantine("cook", name, "quarrelled")
    with pytest.raises(NoEligibleProvider):
        registry.select("cook", 4, cpu)


def test_one_warning_says_who_and_why_and_the_first_reason_stays(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    assert registry.quarantined() == {}
    registry.quarantine("cook", "anna", "burnt the soup")
    registry.quarantine("cook", "anna", "was late")
    (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert warning.name == "ringspan"
    told = "cook 'anna' is quarantined for the rest of this process: burnt the soup"
    assert warning.getMessage() == told
    assert registry.quarantined() == {("cook", "anna"): "burnt the soup"}


def test_one_whom_nobody_offers_cannot_be_quarantined(registry: Registry) -> None:
    with pytest.raises(UnknownProvider, match="anna, bert"):
        registry.quarantine("cook", "ana", "burnt the soup")


def test_a_quarantined_rival_is_not_measured_nor_insisted_on(
    house: House, registry: Registry, cpu: DeviceInfo
) -> None:
    tuned = house(autotune="first-run")
    tuned.quarantine("cook", "anna", "burnt the soup")
    decision = tuned.select("cook", 4, cpu, measure=lambda _: 1 / 0)
    assert decision.chosen == "bert"
    assert tuned.select("cook", 4, cpu, insist="anna").chosen == "bert"


def test_versions_are_told_as_far_as_they_are_known(registry: Registry, cpu: DeviceInfo) -> None:
    assert registry.version("cook", "anna") == "house-anna 1.5"
    registry.probe("cook", "anna", cpu)
    assert registry.version("cook", "anna") == "house-anna 1.5, kernel 7.2"
    assert registry.version("cook", "nobody") == ""


def test_names_in_the_settings_that_nobody_offers_are_found(
    house: House, registry: Registry
) -> None:
    assert registry.unknown_names() == ()
    assert house(cook="anna,auto").unknown_names() == ()
    (error,) = house(cook="bert,ana").unknown_names()
    assert isinstance(error, UnknownProvider)
    assert "cook (from environment)" in str(error)
    assert "Did you mean 'anna'?" in str(error)
    (empty,) = house(cook=",").unknown_names()
    assert "a name or a list of names" in str(empty)
