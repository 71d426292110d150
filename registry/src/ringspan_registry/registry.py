"""The front of this package: plugins by name, and the choice among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from ringspan_registry.agreement import (
    check_sections,
    hand_out_sections,
    warn_of_unknown_blocked,
)
from ringspan_registry.autotune import Timing, Timings, software
from ringspan_registry.catalogue import Catalogue
from ringspan_registry.config import Configuration
from ringspan_registry.decision import Candidate, CandidateState, Decision
from ringspan_registry.devices import DeviceInfo
from ringspan_registry.discovery import AUTO, Offer, PluginRecord, Rules
from ringspan_registry.errors import (
    ConfigurationError,
    InvalidArgument,
    PluginError,
    RingspanError,
    UnknownProvider,
)
from ringspan_registry.evaluation import (
    checked_priority,
    evaluate,
    faulted,
    probe,
    prove,
    refuted,
)
from ringspan_registry.measurements import MeasurementFile, Subject, default_path, text_of
from ringspan_registry.provider import Availability, Provider
from ringspan_registry.refusals import no_eligible_provider, sourced
from ringspan_registry.selection import Ranked, Wish, settle

__all__ = ["Registry"]

RankOf: TypeAlias = Callable[[Provider], int]
Measure: TypeAlias = Callable[[Provider], float]

_logger = logging.getLogger("ringspan")


@dataclass(frozen=True, slots=True)
class _Question:
    """What one decision is about, and all that it depends on but the measuring function."""

    kind: str
    problem: Hashable
    device: DeviceInfo
    wish: Wish
    rank_of: RankOf | None
    tuned: bool = False
    shape: Hashable = None
    insist: str | None = None


class Registry:
    """Finds plugins, probes them, and chooses. Nothing is imported before the first question.

    Args:
        group: the entry-point group, which is also the project name of the hook markers.
        hookspecs: the module that specifies the hooks.
        kinds: kind of provider -> name of the hook that offers it.
        bases: kind of provider -> the class that its providers are instances of.
        configuration: where `blocked`, `autotune` (`"first-run"` or `"off"`), `autotune_file` and
            a setting per kind come from; a kind without a setting defaults to `"auto"`.
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
        self._proofs: dict[tuple[str, str, DeviceInfo], Availability] = {}
        self._decisions: dict[_Question, Decision] = {}
        self._quarantined: dict[tuple[str, str], str] = {}
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
        offer = self._catalogue().one(kind, name)
        found = self._probe(offer, device)
        proof = self._prove(offer, device) if found.usable else found
        return found if proof.usable else proof

    def select(
        self,
        kind: str,
        problem: Hashable,
        device: DeviceInfo,
        *,
        requested: str | Sequence[str] | None = None,
        rank_of: RankOf | None = None,
        measure: Measure | None = None,
        shape: Hashable = None,
        insist: str | None = None,
    ) -> Decision:
        """Chooses the provider that serves `problem` on `device`.

        A request by name is strict: it is served, or every reason against it is raised. `auto`
        takes the eligible provider of highest priority; with the setting `autotune` at
        `"first-run"` and `measure` given, the fastest one. Decisions are kept by all arguments but
        `measure`; those that chose a provider are forgotten when it is quarantined.

        Args:
            kind: kind of provider.
            problem: what is to be served, handed to the providers' `reasons_against`.
            device: where.
            requested: a name, names in order of preference, or None: what is configured.
            rank_of: preference among eligible providers instead of `Provider.priority`.
            measure: seconds that a provider takes for the problem, in this shape.
            shape: what times depend on beside the problem, such as lengths; used with `autotune`
                alone. Its words (`text_of`) must be the same in every process, as the problem's.
            insist: with `autotune`: what another rank's measurement chose. It wins among eligible
                rivals, and nothing is measured here; where it is not eligible, priorities decide.

        Raises:
            CannotMeasure: `measure` says that nothing can be measured now.
            NoEligibleProvider: nobody can; `.decision` has every candidate's reasons.
            UnknownProvider: a requested name is not offered.
            DuplicateProvider: a name of this kind is taken twice.
        """
        self._refuse_clash(kind)
        wish = self._wish(kind, requested)
        question = _Question(kind, problem, device, wish, rank_of)
        if (measure or insist) and self._setting("autotune", "off") == "first-run":
            question = replace(question, tuned=measure is not None, shape=shape, insist=insist)
        decision = self._decisions.get(question)
        if decision is None:
            with self._lock:
                decision = self._decisions.get(question)
                if decision is None:
                    decision = self._decide(question, measure)
                    self._decisions[question] = decision
        return decision

    def quarantine(self, kind: str, name: str, reason: str) -> None:
        """Keeps a provider that failed at work from being chosen again in this process.

        Decisions that chose it are forgotten. The first reason is kept, and logged as a warning.

        Raises:
            UnknownProvider: nobody offers it.
        """
        name = self._catalogue().one(kind, name).name
        with self._lock:
            if (kind, name) in self._quarantined:
                return
            self._quarantined[kind, name] = reason
            for question, decision in list(self._decisions.items()):
                if (decision.kind, decision.chosen) == (kind, name):
                    del self._decisions[question]
        _logger.warning("%s %r is quarantined for the rest of this process: %s", kind, name, reason)

    def quarantined(self) -> Mapping[tuple[str, str], str]:
        """(kind, name) of every provider that is not used again in this process -> why."""
        return dict(self._quarantined)

    def version(self, kind: str, name: str) -> str:
        """A provider's distribution and kernel with their versions, as far as they are known.

        Asks nothing of the machine; empty where nobody offers the name.
        """
        offer = self._catalogue().of_kind(kind).get(name)
        if offer is None:
            return ""
        probed = (each for (k, n, _), each in list(self._probes.items()) if (k, n) == (kind, name))
        kernels = dict.fromkeys(f"kernel {each.version}" for each in probed if each.version)
        return ", ".join((_distribution(offer), *kernels))

    def unknown_names(self) -> tuple[RingspanError, ...]:
        """What `select` would raise for the names in the settings, at most one error per kind."""
        return tuple(error for kind in self._kinds for error in [self._unknown_name(kind)] if error)

    def measurements(self) -> MeasurementFile:
        """Where measured times are kept."""
        path = self._setting("autotune_file", None)
        chosen = default_path(self._group) if path is None else Path(path).expanduser()
        return MeasurementFile(chosen)

    def _unknown_name(self, kind: str) -> RingspanError | None:
        try:
            self._check_names(kind, self._wish(kind, None))
        except (ConfigurationError, UnknownProvider) as error:
            return error
        return None

    def _check_names(self, kind: str, wish: Wish) -> None:
        for name in wish.names:
            if name != AUTO:
                self._catalogue().named(kind, name, wish.source)

    def _decide(self, question: _Question, measure: Measure | None) -> Decision:
        kind, wish, device = question.kind, question.wish, question.device
        self._check_names(kind, wish)
        offers = self._catalogue().of_kind(kind)
        ranked = [self._ranked(offer, question) for offer in offers.values()]
        if question.insist is not None:
            ranked = [_insisted(entry, question.insist) for entry in ranked]
        ranked = self._proven(ranked, offers, question)
        if question.insist is None and question.tuned and measure is not None:
            ranked = self._timed(ranked, offers, question, measure)
        decision = _decision(kind, question.problem, wish, settle(ranked, wish))
        if not decision.chosen:
            raise no_eligible_provider(decision, self.plugins())
        _logger.info("%s", _summary(decision, device))
        return decision

    def _ranked(self, offer: Offer, question: _Question) -> Ranked:
        position, device = question.wish.position(offer), question.device
        if position is None:
            return Ranked(_stamped(offer), None)
        if (offer.kind, offer.name) in self._quarantined:
            return Ranked(_shut_out(offer, self._quarantined[offer.kind, offer.name]), position)
        candidate = evaluate(offer, question.problem, self._probe(offer, device))
        provider, rank_of = offer.provider, question.rank_of
        try:
            answer = provider.priority(device) if rank_of is None else rank_of(provider)
            priority = checked_priority(answer)
        except Exception as error:  # noqa: BLE001 - third-party code; kept as this provider's fault
            return Ranked(faulted(candidate, error, "priority"), position)
        return Ranked(candidate, position, priority)

    def _proven(
        self, ranked: Sequence[Ranked], offers: Mapping[str, Offer], question: _Question
    ) -> list[Ranked]:
        """The same, where who is about to be chosen, or to be measured, has proved to work.

        A proof may compile: those who would lose anyway are not asked for one.
        """
        found, proved = list(ranked), set[str]()
        while True:
            rivals = sorted((each for each in found if each.eligible), key=lambda each: each.order)
            if not question.tuned:
                rivals = rivals[:1]
            rivals = [
                each
                for each in rivals
                if each.position == rivals[0].position and each.candidate.name not in proved
            ]
            if not rivals:
                return found
            for entry in rivals:
                proof = self._prove(offers[entry.candidate.name], question.device)
                proved.add(entry.candidate.name)
                if not proof.usable:
                    failed = replace(entry, candidate=refuted(entry.candidate, proof))
                    found[found.index(entry)] = failed

    def _timed(
        self,
        ranked: Sequence[Ranked],
        offers: Mapping[str, Offer],
        question: _Question,
        measure: Measure,
    ) -> list[Ranked]:
        """The same with measured times, where there is a choice to make between equals."""
        first = min((entry.position or 0 for entry in ranked if entry.eligible), default=None)
        rivals = [entry for entry in ranked if entry.eligible and entry.position == first]
        if len(rivals) < 2:
            return list(ranked)
        named = {entry.candidate.name: offers[entry.candidate.name] for entry in rivals}
        timings = self._timings.of(
            {
                name: (self._subject(offer, question), partial(measure, offer.provider))
                for name, offer in named.items()
            },
            self.measurements(),
        )
        return [_with_timing(entry, timings.get(entry.candidate.name)) for entry in ranked]

    def _subject(self, offer: Offer, question: _Question) -> Subject:
        device = question.device
        return Subject(
            kind=question.kind,
            problem=text_of(question.problem),
            shape=text_of(question.shape),
            device=device.name or device.type,
            compute_capability=".".join(map(str, device.compute_capability or ())),
            driver=device.driver,
            software=software(device.type),
            provider=offer.name,
            distribution=_distribution(offer),
            kernel=self._probe(offer, device).version,
        )

    def _probe(self, offer: Offer, device: DeviceInfo) -> Availability:
        key = (offer.kind, offer.name, device)
        if key not in self._probes:
            with self._lock:
                if key not in self._probes:
                    self._probes[key] = probe(offer.provider, device)
        return self._probes[key]

    def _prove(self, offer: Offer, device: DeviceInfo) -> Availability:
        key = (offer.kind, offer.name, device)
        if key not in self._proofs:
            with self._lock:
                if key not in self._proofs:
                    self._proofs[key] = prove(offer.provider, device)
        return self._proofs[key]

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


def _shut_out(offer: Offer, reason: str) -> Candidate:
    return replace(
        _stamped(offer),
        state=CandidateState.QUARANTINED,
        reasons=(reason,),
        remedy="A new process tries it again",
    )


def _insisted(entry: Ranked, name: str) -> Ranked:
    return replace(entry, insisted=entry.eligible and entry.candidate.name == name)


def _with_timing(entry: Ranked, found: Timing | Exception | None) -> Ranked:
    if isinstance(found, Exception):
        return replace(entry, candidate=faulted(entry.candidate, found, "being measured"))
    return replace(entry, timing=found)


def _distribution(offer: Offer) -> str:
    return f"{offer.distribution} {offer.version}"


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
