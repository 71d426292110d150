"""Ranks candidates and says in words why each one lost. Pure: probing happened before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ringspan_registry.autotune import Timing
from ringspan_registry.decision import Candidate, CandidateState
from ringspan_registry.discovery import AUTO, Offer
from ringspan_registry.suggest import listed

__all__ = ["Ranked", "Wish", "settle"]

INSISTED = "chosen by rank 0's measurement"


@dataclass(frozen=True, slots=True)
class Wish:
    """The names that were asked for, in order of preference, and by whom.

    A name is a provider's or a plugin's, which means all its providers. `auto` stands for
    every provider that is not named: `("flash", "auto")` prefers flash, `("flash",)` insists.
    """

    names: tuple[str, ...]
    source: str

    def position(self, offer: Offer) -> int | None:
        """How early the offer was asked for; None if it was not."""
        for name in (offer.name, offer.plugin, AUTO):
            if name in self.names:
                return self.names.index(name)
        return None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with what its place depends on."""

    candidate: Candidate
    position: int | None
    priority: int = 0
    timing: Timing | None = None
    """Measured time, where it was measured."""
    insisted: bool = False
    """Whether another rank's measurement settled for it."""

    @property
    def eligible(self) -> bool:
        """Whether it could be chosen."""
        return self.candidate.state is CandidateState.ELIGIBLE

    @property
    def order(self) -> tuple[bool, bool, int, bool, float, int, str]:
        """Sorts the winner first, and candidates that nobody asked for last."""
        return (
            not self.eligible,
            self.position is None,
            self.position or 0,
            not self.insisted,
            self.timing.seconds if self.timing else 0.0,
            -self.priority,
            self.candidate.name,
        )


def settle(ranked: Iterable[Ranked], wish: Wish) -> tuple[Candidate, ...]:
    """The candidates in order of preference; the first one is chosen if any was eligible."""
    ordered = sorted(ranked, key=lambda entry: entry.order)
    return tuple(_settled(entry, ordered, wish) for entry in ordered)


def _settled(entry: Ranked, ordered: Sequence[Ranked], wish: Wish) -> Candidate:
    candidate, winner = entry.candidate, ordered[0]
    if entry.position is None:
        reason = f"only {listed(wish.names)} may serve, from {wish.source}"
        return replace(candidate, state=CandidateState.NOT_REQUESTED, reasons=(reason,))
    if not entry.eligible:
        return candidate
    if entry is winner:
        return replace(candidate, state=CandidateState.CHOSEN, reasons=_why_it_won(winner))
    return replace(candidate, reasons=(_why_it_lost(entry, winner),))


def _why_it_won(winner: Ranked) -> tuple[str, ...]:
    if winner.insisted:
        return (INSISTED,)
    if winner.timing is not None:
        return (f"measured {winner.timing.seconds:.3g} s ({winner.timing.origin})",)
    return ()


def _why_it_lost(loser: Ranked, winner: Ranked) -> str:
    name = winner.candidate.name
    if loser.position != winner.position:
        return f"{name} comes earlier in the requested order"
    if winner.insisted:
        return f"{name} was {INSISTED}"
    if loser.timing and winner.timing and loser.timing.seconds > winner.timing.seconds:
        return _slower(loser.timing, name, winner.timing)
    if loser.priority < winner.priority:
        return f"lower priority: {loser.priority}, {name} has {winner.priority}"
    return f"same priority {loser.priority} as {name}, which comes first by name"


def _slower(loser: Timing, name: str, winner: Timing) -> str:
    if loser.origin == winner.origin:
        return f"measured {loser.seconds:.3g} s, {name} {winner.seconds:.3g} s ({loser.origin})"
    return (
        f"measured {loser.seconds:.3g} s ({loser.origin}), "
        f"{name} {winner.seconds:.3g} s ({winner.origin})"
    )
