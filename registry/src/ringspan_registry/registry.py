"""The front of this package: plugins by name, and the choice among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, TypeAlias

from ringspan_registry.agreement import (
    check_sections,
    hand_out_sections,
    warn_of_unknown_blocked,
)
from ringspan_registry.autotune import Timings
from ringspan_registry.catalogue import Catalogue
from ringspan_registry.config import Configuration
from ringspan_registry.decision import Candidate, CandidateState, Decision
from ringspan_registry.devices import DeviceInfo
from ringspan_registry.discovery import AUTO, Offer, PluginRecord, Rules
from ringspan_registry.errors import (
    ConfigurationError,
    InvalidArgument,
    PluginError,
)
from ringspan_registry.evaluation import checked_priority, evaluate, faulted, probe
from ringspan_registry.provider import Availability, Provider
from ringspan_registry.refusals import no_eligible_provider, sourced
from ringspan_registry.selection import Ranked, Wish, settle

__all__ = ["Registry"]

RankOf: TypeAlias = Callable[[Provider], int]
Measure: TypeAlias = Callable[[Provider], float]

_logger = logging.getLogger("ringspan")


class Registry:
    """Finds plugins, probes them, and chooses. Nothing is imported before the first question.

    Args:
        group: the entry-point group, which is also the project name of the hook markers.
        hookspecs: the module that specifies the hooks.
        kinds: kind of provider -> name of the hook that offers it.
        bases: kind of provider -> the class that its providers are instances of.
        configuration: where `blocked`, `autotune` and a setting per kind come from; a kind
            without a setting defaults to `"auto"`.
        slow_seconds: a plugin that takes longer to import is reported.
    """

    def __init__(
        self,
        *,
        group: str,
        hookspecs: ModuleType,
        kinds: Mapping[str, str],
        bases: Mapping[str, type],
        configuration: Configuration,
        slow_seconds: float = 2.0,
    ) -> None:
        self._group = group
        self._hookspecs = hookspecs
        self._kinds = dict(kinds)
        self._bases = dict(bases)
        self._configuration = configuration
        self._slow_seconds = slow_seconds
        self._lock = threading.RLock()
        self._found: Catalogue | None = None
        self._discovering = False
        self._probes: dict[tuple[str, str, DeviceInfo], Availability] = {}
        self._decisions: dict[Hashable, Decision] = {}
        self._timings = Timings()

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that is installed: loaded, blocked or faulty."""
        return self._catalogue().records

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of a kind's providers, sorted."""
        return tuple(sorted(self._catalogue().of_kind(kind)))

    def provider(self, kind: str, name: str) -> Provider:
        """The provider of that name, or the only one of the plugin of that name.

        Raises:
            UnknownProvider: nobody offers it, or the plugin offers several.
            DuplicateProvider: a name of this kind is taken twice.
        """
        self._refuse_clash(kind)
        return self._catalogue().one(kind, name).provider

    def probe(self, kind: str, name: str, device: DeviceInfo) -> Availability:
        """Whether a provider runs on a device. Asked once per device.

        Never raises what a probe raised: that is an `evaluation.Faulty`, with the traceback. A
        name that is taken twice is not usable.
        """
        for clash in self._catalogue().clashes:
            if clash.kind == kind and name in clash.providers:
                return Availability.no(f"offered by {clash.parties}", remedy=clash.remedy)
        return self._probe(self._catalogue().one(kind, name), device)

    def select(
        self,
        kind: str,
        problem: Hashable,
        device: DeviceInfo,
        *,
        requested: str | Sequence[str] | None = None,
        rank_of: RankOf | None = None,
        measure: Measure | None = None,
    ) -> Decision:
        """Chooses the provider that serves `problem` on `device`.

        A request by name is strict: it is served, or every reason against it is raised. `auto`
        takes the eligible provider of highest priority; with the setting `autotune` on and
        `measure` given, the fastest one. Decisions are kept by all arguments but `measure`.

        Args:
            kind: kind of provider.
            problem: what is to be served, handed to the providers' `reasons_against`.
            device: where.
            requested: a name, names in order of preference, or None: what is configured.
            rank_of: preference among eligible providers instead of `Provider.priority`.
            measure: seconds that a provider takes for the problem.

        Raises:
            NoEligibleProvider: nobody can; `.decision` has every candidate's reasons.
            UnknownProvider: a requested name is not offered.
            DuplicateProvider: a name of this kind is taken twice.
        """
        self._refuse_clash(kind)
        wish = self._wish(kind, requested)
        tuned = measure if measure is not None and self._setting("autotune", False) else None
        key = (kind, problem, wish, device, rank_of, tuned is not None)
        decision = self._decisions.get(key)
        if decision is None:
            with self._lock:
                decision = self._decisions.get(key)
                if decision is None:
                    decision = self._decide(kind, problem, device, wish, rank_of, tuned)
                    self._decisions[key] = decision
        return decision

    def _decide(
        self,
        kind: str,
        problem: Hashable,
        device: DeviceInfo,
        wish: Wish,
        rank_of: RankOf | None,
        measure: Measure | None,
    ) -> Decision:
        for name in wish.names:
            if name != AUTO:
                self._catalogue().named(kind, name, wish.source)
        offers = self._catalogue().of_kind(kind)
        ranked = [self._ranked(offer, problem, device, wish, rank_of) for offer in offers.values()]
        if measure is not None:
            ranked = self._timed(ranked, offers, (kind, problem, device), measure)
        candidates = settle(ranked, wish)
        decision = _decision(kind, problem, wish, candidates)
        if not decision.chosen:
            raise no_eligible_provider(decision, self.plugins())
        _logger.info("%s", _summary(decision, device))
        return decision

    def _ranked(
        self,
        offer: Offer,
        problem: Hashable,
        device: DeviceInfo,
        wish: Wish,
        rank_of: RankOf | None,
    ) -> Ranked:
        position = wish.position(offer)
        if position is None:
            return Ranked(_stamped(offer), None)
        candidate = evaluate(offer, problem, self._probe(offer, device))
        provider = offer.provider
        try:
            answer = provider.priority(device) if rank_of is None else rank_of(provider)
            priority = checked_priority(answer)
        except Exception as error:  # noqa: BLE001 - third-party code; kept as this provider's fault
            return Ranked(faulted(candidate, error, "priority"), position)
        return Ranked(candidate, position, priority)

    def _timed(
        self,
        ranked: Sequence[Ranked],
        offers: Mapping[str, Offer],
        key: Hashable,
        measure: Measure,
    ) -> list[Ranked]:
        """The same with measured times, where there is a choice to make between equals."""
        first = min((entry.position or 0 for entry in ranked if entry.eligible), default=None)
        rivals = [entry for entry in ranked if entry.eligible and entry.position == first]
        if len(rivals) < 2:
            return list(ranked)
        return [
            self._timed_one(entry, offers[entry.candidate.name], key, measure)
            if entry in rivals
            else entry
            for entry in ranked
        ]

    def _timed_one(self, entry: Ranked, offer: Offer, key: Hashable, measure: Measure) -> Ranked:
        try:
            seconds = self._timings.seconds(key, offer.provider, measure)
        except Exception as error:  # noqa: BLE001 - third-party code; kept as this provider's fault
            return replace(entry, candidate=faulted(entry.candidate, error, "being measured"))
        return replace(entry, seconds=seconds)

    def _probe(self, offer: Offer, device: DeviceInfo) -> Availability:
        key = (offer.kind, offer.name, device)
        if key not in self._probes:
            with self._lock:
                if key not in self._probes:
                    self._probes[key] = probe(offer.provider, device)
        return self._probes[key]

    def _wish(self, kind: str, requested: str | Sequence[str] | None) -> Wish:
        if kind in self._configuration.keys:
            setting = self._configuration.get(kind, call=requested)
            value, source = setting.value, setting.source
        else:
            value, source = (AUTO, "default") if requested is None else (requested, "call")
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, tuple | list) or not names or not all(map(_is_name, names)):
            error = InvalidArgument if source == "call" else ConfigurationError
            raise error(
                sourced(kind, source), expected="a name or a list of names", got=repr(value)
            )
        return Wish(tuple(dict.fromkeys(names)), source)

    def _setting(self, key: str, default: Any) -> Any:
        known = key in self._configuration.keys
        return self._configuration.get(key).value if known else default

    def _refuse_clash(self, kind: str) -> None:
        clash = self._catalogue().clash(kind)
        if clash is not None:
            raise clash.error()

    def _catalogue(self) -> Catalogue:
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = self._discover()
        return self._found

    def _discover(self) -> Catalogue:
        if self._discovering:
            raise PluginError(
                "plugin",
                expected="an import without use of other plugins",
                got="a question to the registry while plugins are being loaded",
                remedy="Move it into a function that runs later",
            )
        self._discovering = True
        try:
            found = Catalogue.discover(self._rules())
        finally:
            self._discovering = False
        check_sections(self._configuration, found)
        hand_out_sections(self._configuration, found)
        warn_of_unknown_blocked(self._configuration, found)
        return found

    def _rules(self) -> Rules:
        return Rules(
            group=self._group,
            hookspecs=self._hookspecs,
            kinds=self._kinds,
            bases=self._bases,
            blocked=frozenset(self._setting("blocked", ())),
            how_to_block=lambda name: self._configuration.advice("blocked", name),
            slow_seconds=self._slow_seconds,
        )


def _stamped(offer: Offer) -> Candidate:
    return Candidate(
        offer.name,
        offer.plugin,
        offer.distribution,
        CandidateState.NOT_REQUESTED,
        version=offer.version,
    )


def _decision(
    kind: str, problem: Hashable, wish: Wish, candidates: tuple[Candidate, ...]
) -> Decision:
    chosen = next((each for each in candidates if each.state is CandidateState.CHOSEN), None)
    return Decision(
        kind=kind,
        problem=problem,
        requested=wish.names,
        source=wish.source,
        chosen=chosen.name if chosen else "",
        plugin=chosen.plugin if chosen else "",
        distribution=chosen.distribution if chosen else "",
        version=chosen.version if chosen else "",
        candidates=candidates,
    )


def _summary(decision: Decision, device: DeviceInfo) -> str:
    losers = "; ".join(str(candidate) for candidate in decision.candidates[1:])
    what = "" if decision.problem is None else f" for {decision.problem}"
    return (
        f"{decision.kind} {decision.chosen!r} ({decision.distribution} {decision.version}) "
        f"on {device.name or device.type}{what}, requested {', '.join(decision.requested)} "
        f"from {decision.source}. Not chosen: {losers or 'no other candidates'}"
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
