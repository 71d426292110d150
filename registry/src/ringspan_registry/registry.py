"""The front of this package: plugins by name, and the choice among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeAlias

from ringspan_registry.autotune import Timings
from ringspan_registry.clashes import Clash, annotate, find_clashes
from ringspan_registry.config import Configuration
from ringspan_registry.decision import Candidate, CandidateState, Decision
from ringspan_registry.devices import DeviceInfo
from ringspan_registry.discovery import (
    AUTO,
    Offer,
    PluginRecord,
    PluginState,
    Rules,
    discover,
)
from ringspan_registry.errors import (
    InvalidArgument,
    NoEligibleProvider,
    PluginError,
    UnknownProvider,
)
from ringspan_registry.evaluation import evaluate, faulted, probe
from ringspan_registry.provider import Availability, Provider
from ringspan_registry.selection import Ranked, Wish, settle
from ringspan_registry.suggest import did_you_mean, listed

__all__ = ["Registry"]

RankOf: TypeAlias = Callable[[Provider], int]
Measure: TypeAlias = Callable[[Provider], float]

_logger = logging.getLogger("ringspan")


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """What discovery found."""

    records: tuple[PluginRecord, ...]
    offers: Mapping[str, Mapping[str, Offer]]
    clashes: tuple[Clash, ...]


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
        self._found: _Catalogue | None = None
        self._discovering = False
        self._probes: dict[tuple[str, str, DeviceInfo], Availability] = {}
        self._decisions: dict[Hashable, Decision] = {}
        self._timings = Timings()

    def plugins(self) -> tuple[PluginRecord, ...]:
        """Every plugin that is installed: loaded, blocked or faulty."""
        return self._catalogue().records

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of a kind's providers, sorted."""
        return tuple(sorted(self._offers(kind)))

    def provider(self, kind: str, name: str) -> Provider:
        """The provider of that name, or the only one of the plugin of that name.

        Raises:
            UnknownProvider: nobody offers it, or the plugin offers several.
            DuplicateProvider: a name of this kind is taken twice.
        """
        self._refuse_clashes(kind)
        named = self._resolve(kind, name)
        if len(named) > 1:
            raise UnknownProvider(
                kind,
                expected=f"one of {listed(offer.name for offer in named)}",
                got=f"the plugin {name!r}, which offers them all",
            )
        return named[0].provider

    def probe(self, kind: str, name: str, device: DeviceInfo) -> Availability:
        """Whether a provider runs on a device. Asked once per device.

        Never raises what a probe raised: that is an `evaluation.Faulty`, with the traceback. A
        name that is taken twice is not usable.
        """
        for clash in self._catalogue().clashes:
            if clash.kind == kind and name in clash.providers:
                return Availability.no(f"offered by {clash.parties}", remedy=clash.remedy)
        named = self._resolve(kind, name)
        return self._probe(named[0], device)

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
        self._refuse_clashes(kind)
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
                self._resolve(kind, name, wish.source)
        offers = self._offers(kind)
        ranked = [self._ranked(offer, problem, device, wish, rank_of) for offer in offers.values()]
        if measure is not None:
            ranked = self._timed(ranked, offers, (kind, problem, device), measure)
        candidates = settle(ranked, wish)
        decision = _decision(kind, problem, wish, candidates)
        if not decision.chosen:
            raise self._no_eligible(decision)
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
            priority = provider.priority(device) if rank_of is None else rank_of(provider)
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
        names = (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))
        if not names or not all(isinstance(name, str) and name for name in names):
            raise InvalidArgument(
                _sourced(kind, source), expected="a name or a list of names", got=repr(value)
            )
        return Wish(names, source)

    def _setting(self, key: str, default: Any) -> Any:
        known = key in self._configuration.keys
        return self._configuration.get(key).value if known else default

    def _resolve(self, kind: str, name: str, source: str = "call") -> tuple[Offer, ...]:
        """The provider of that name, else all providers of the plugin of that name."""
        offers = self._offers(kind)
        if name in offers:
            return (offers[name],)
        named = tuple(offer for offer in offers.values() if offer.plugin == name)
        if not named:
            raise self._unknown(kind, name, source)
        return named

    def _unknown(self, kind: str, name: str, source: str) -> UnknownProvider:
        offers = self._offers(kind)
        known = {*offers, *(offer.plugin for offer in offers.values())}
        remarks = [did_you_mean(name, known), *self._troubles(PluginState.FAULTY)]
        remarks += (trouble for trouble in self._troubles(PluginState.BLOCKED, name) if trouble)
        return UnknownProvider(
            _sourced(kind, source),
            expected=f"one of {listed(known)}",
            got=repr(name),
            remedy=" ".join(remark for remark in remarks if remark),
        )

    def _troubles(self, state: PluginState, name: str | None = None) -> list[str]:
        return [
            f"Plugin {record.name!r} of {record.distribution} is {state}: {record.reason}."
            for record in self.plugins()
            if record.state is state and name in (None, record.name)
        ]

    def _no_eligible(self, decision: Decision) -> NoEligibleProvider:
        asked = [
            candidate
            for candidate in decision.candidates
            if candidate.state is not CandidateState.NOT_REQUESTED
        ]
        reasons = "".join(f"\n  {candidate}" for candidate in asked)
        remedies = [candidate.remedy for candidate in asked if candidate.remedy]
        if AUTO not in decision.requested:
            remedies.append(f"Request {AUTO!r} to let another {decision.kind} serve")
        if not asked:
            remedies += self._troubles(PluginState.FAULTY) + self._troubles(PluginState.BLOCKED)
            remedies.append(f"Install a plugin that offers a {decision.kind}")
        what = "" if decision.problem is None else f" that serves {decision.problem}"
        error = NoEligibleProvider(
            _sourced(decision.kind, decision.source),
            expected=f"a {decision.kind}{what} (requested: {', '.join(decision.requested)})",
            got=f"none{':' if reasons else ''}{reasons}",
            remedy=_sentences(remedies),
        )
        error.decision = decision
        return error

    def _refuse_clashes(self, kind: str) -> None:
        self._offers(kind)
        for clash in self._catalogue().clashes:
            if clash.kind == kind:
                raise clash.error()

    def _offers(self, kind: str) -> Mapping[str, Offer]:
        if kind not in self._kinds:
            raise InvalidArgument("kind", expected=f"one of {listed(self._kinds)}", got=repr(kind))
        return self._catalogue().offers[kind]

    def _catalogue(self) -> _Catalogue:
        if self._found is None:
            with self._lock:
                if self._found is None:
                    self._found = self._discover()
        return self._found

    def _discover(self) -> _Catalogue:
        if self._discovering:
            raise PluginError(
                "plugin",
                expected="an import without use of other plugins",
                got="a question to the registry while plugins are being loaded",
                remedy="Move it into a function that runs later",
            )
        self._discovering = True
        try:
            rules = self._rules()
            records, offers = discover(rules)
        finally:
            self._discovering = False
        clashes = find_clashes(records, offers, rules.how_to_block)
        self._warn_of_unknown_sections(records)
        by_kind: dict[str, dict[str, Offer]] = {kind: {} for kind in self._kinds}
        for offer in offers:
            by_kind[offer.kind].setdefault(offer.name, offer)
        annotated = tuple(annotate(record, clashes) for record in records)
        return _Catalogue(annotated, by_kind, clashes)

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

    def _warn_of_unknown_sections(self, records: Sequence[PluginRecord]) -> None:
        # Not an error: one file may serve machines with different plugins.
        installed = {record.name for record in records}
        for name, where in self._configuration.section_names().items():
            if name not in installed:
                _logger.warning(
                    "%s: no plugin of that name is installed (installed: %s). %s",
                    where,
                    listed(installed),
                    did_you_mean(name, installed),
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


def _sourced(kind: str, source: str) -> str:
    return kind if source in ("call", "default") else f"{kind} (from {source})"


def _sentences(remedies: Sequence[str]) -> str:
    return ". ".join(dict.fromkeys(remedy.rstrip(".") for remedy in remedies))
