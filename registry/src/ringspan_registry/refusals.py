"""The two ways in which a choice fails, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ringspan_registry.decision import CandidateState, Decision
from ringspan_registry.discovery import AUTO, PluginRecord, PluginState
from ringspan_registry.errors import NoEligibleProvider, UnknownProvider
from ringspan_registry.suggest import did_you_mean, listed

__all__ = ["no_eligible_provider", "sourced", "unknown_provider"]


def unknown_provider(
    kind: str, name: str, source: str, known: Iterable[str], records: Sequence[PluginRecord]
) -> UnknownProvider:
    """Nobody offers `name`: says what is offered, and which plugins might have, but failed."""
    known = tuple(known)
    remarks = [did_you_mean(name, known), *_absent(records, name)]
    return UnknownProvider(
        sourced(kind, source),
        expected=f"one of {listed(known)}",
        got=repr(name),
        remedy=" ".join(remark for remark in remarks if remark),
    )


def no_eligible_provider(decision: Decision, records: Sequence[PluginRecord]) -> NoEligibleProvider:
    """Nobody can serve: says every candidate's every reason."""
    asked = [
        candidate
        for candidate in decision.candidates
        if candidate.state is not CandidateState.NOT_REQUESTED
    ]
    remedies = [candidate.remedy for candidate in asked]
    if AUTO not in decision.requested:
        remedies.append(f"Request {AUTO!r} to let another {decision.kind} serve")
    if not asked:
        remedies = [*_absent(records), f"Install a plugin that offers a {decision.kind}"]
    problem = "" if decision.problem is None else f" that serves {decision.problem}"
    error = NoEligibleProvider(
        sourced(decision.kind, decision.source),
        expected=f"a {decision.kind}{problem} (requested: {', '.join(decision.requested)})",
        got="".join(["none", *(f"\n  {candidate}" for candidate in asked)]),
        remedy=". ".join(dict.fromkeys(remedy.rstrip(".") for remedy in remedies if remedy)),
    )
    error.decision = decision
    return error


def sourced(kind: str, source: str) -> str:
    """The setting at fault, with where its value came from unless that is obvious."""
    return kind if source in ("call", "default") else f"{kind} (from {source})"


def _absent(records: Sequence[PluginRecord], name: str | None = None) -> Iterator[str]:
    """Plugins that failed, and the blocked ones, or only the blocked one of that name."""
    for record in records:
        blocked = record.state is PluginState.BLOCKED and name in (None, record.name)
        if blocked or record.state is PluginState.FAULTY:
            origin = f"Plugin {record.name!r} of {record.distribution}"
            yield f"{origin} is {record.state}: {record.reason}."
