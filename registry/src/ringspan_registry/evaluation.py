"""One provider's answers: does it run on this device, and what speaks against the problem?"""

from __future__ import annotations

import operator
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ringspan_registry.decision import Candidate, CandidateState
from ringspan_registry.devices import DeviceInfo
from ringspan_registry.discovery import Offer
from ringspan_registry.provider import Availability, Provider

__all__ = ["Faulty", "checked_priority", "evaluate", "faulted", "probe", "prove", "refuted"]


@dataclass(frozen=True, slots=True)
class Faulty(Availability):
    """Not usable because the provider itself raised; its author should see the traceback."""

    traceback: str = field(default="", repr=False)


def _fault(error: Exception, doing: str) -> Faulty:
    return Faulty(
        usable=False,
        reason=f"{doing} raised {type(error).__name__}: {error}",
        remedy="Report this to the plugin's authors, with the traceback",
        traceback="".join(traceback.format_exception(error)),
    )


def probe(provider: Provider, device: DeviceInfo) -> Availability:
    """What the provider's probe says; never raises what the probe raised."""
    return _asked(provider.probe, device, "probe")


def prove(provider: Provider, device: DeviceInfo) -> Availability:
    """What the provider's proof says; never raises what the proof raised."""
    return _asked(provider.proof, device, "proof")


def _asked(
    ask: Callable[[DeviceInfo], Availability], device: DeviceInfo, doing: str
) -> Availability:
    try:
        answer = ask(device)
        if not isinstance(answer, Availability):
            raise TypeError(f"expected an Availability, got {answer!r}")
    except Exception as error:  # noqa: BLE001 - third-party code; kept as this provider's fault
        return _fault(error, doing)
    return answer


def evaluate(offer: Offer, problem: Any, availability: Availability) -> Candidate:
    """The candidate with every reason against it, before anything is chosen."""
    candidate = _probed(offer, availability)
    try:
        against = _checked(offer.provider.reasons_against(problem))
    except Exception as error:  # noqa: BLE001 - third-party code; kept as this provider's fault
        return faulted(candidate, error, "reasons_against")
    if against and candidate.state is CandidateState.ELIGIBLE:
        candidate = replace(candidate, state=CandidateState.UNSUPPORTED)
    every = dict.fromkeys((*candidate.reasons, *against))  # a probe may say the same
    return replace(candidate, reasons=tuple(every))


def checked_priority(value: object) -> int:
    """A priority as it was answered; raises TypeError where others cannot be compared with it."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"expected an integer, got {value!r}") from None


def faulted(candidate: Candidate, error: Exception, doing: str) -> Candidate:
    """The same candidate, faulty for one more reason."""
    fault = _fault(error, doing)
    return replace(
        candidate,
        state=CandidateState.FAULTY,
        reasons=(*candidate.reasons, fault.reason),
        remedy=fault.remedy,
        traceback=candidate.traceback + fault.traceback,
    )


def _probed(offer: Offer, availability: Availability) -> Candidate:
    candidate = Candidate(
        offer.name,
        offer.plugin,
        offer.distribution,
        CandidateState.ELIGIBLE,
        version=offer.version,
    )
    return candidate if availability.usable else refuted(candidate, availability)


def refuted(candidate: Candidate, availability: Availability) -> Candidate:
    """The same candidate, of which a probe or a proof says that it is not usable."""
    candidate = replace(
        candidate,
        state=CandidateState.UNAVAILABLE,
        reasons=(availability.reason or "its probe gives no reason",),
        remedy=availability.remedy,
    )
    if isinstance(availability, Faulty):
        return replace(candidate, state=CandidateState.FAULTY, traceback=availability.traceback)
    return candidate


def _checked(reasons: Iterable[str]) -> tuple[str, ...]:
    if isinstance(reasons, str):
        raise TypeError(f"expected several strings, got the one string {reasons!r}")
    found = tuple(reasons)
    for reason in found:
        if not isinstance(reason, str):
            raise TypeError(f"expected strings, got {reason!r}")
    return found
