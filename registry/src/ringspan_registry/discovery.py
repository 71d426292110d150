"""Finds and loads plugins, one entry point at a time; one broken plugin never stops another."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import Distribution, EntryPoint, distributions
from types import ModuleType

import pluggy
from packaging.utils import canonicalize_name

from ringspan_registry.provider import API_VERSION, Provider
from ringspan_registry.suggest import did_you_mean, listed

__all__ = ["AUTO", "Offer", "PluginRecord", "PluginState", "Rules", "discover", "is_blocked"]

AUTO = "auto"
"""The name that leaves the choice to the registry; no provider may have it."""

_logger = logging.getLogger("ringspan")


class PluginState(StrEnum):
    """What became of a plugin."""

    LOADED = "loaded"
    BLOCKED = "blocked"
    FAULTY = "faulty"


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin as it was found.

    A loaded plugin has a `reason` and a `remedy` too where something about it wants attention:
    it was slow to import, or another one offers the same name.
    """

    name: str
    distribution: str
    version: str
    state: PluginState
    reason: str = ""
    remedy: str = ""
    traceback: str = field(default="", repr=False)
    import_seconds: float = 0.0
    providers: tuple[tuple[str, str], ...] = ()
    """(kind, name) of every provider it offers."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider, stamped with where it came from."""

    kind: str
    name: str
    provider: Provider
    plugin: str
    distribution: str
    version: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What is looked for, and how strictly.

    `blocked` holds names of plugins or of distributions. `how_to_block` turns one of them into
    the words that tell a user how to block it.
    """

    group: str
    hookspecs: ModuleType
    kinds: Mapping[str, str]
    """Kind of provider -> name of the hook that offers it."""
    bases: Mapping[str, type]
    blocked: frozenset[str]
    how_to_block: Callable[[str], str]
    slow_seconds: float


class _RefusedError(Exception):
    """A plugin that imports but does not keep to the rules."""


def discover(rules: Rules) -> tuple[tuple[PluginRecord, ...], tuple[Offer, ...]]:
    """Every plugin of the group, loaded, blocked or faulty, and what the loaded ones offer."""
    records: list[PluginRecord] = []
    offers: list[Offer] = []
    for found in sorted(_installed(rules.group), key=lambda record: (record.name, record.origin)):
        record, offered = found.load(rules)
        _report(record, rules)
        records.append(record)
        offers.extend(offered)
    return tuple(records), tuple(offers)


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry point, or the error that kept a distribution from naming its entry points."""

    name: str
    origin: str
    version: str
    entry_point: EntryPoint | None
    error: Exception | None = None

    def load(self, rules: Rules) -> tuple[PluginRecord, tuple[Offer, ...]]:
        record = PluginRecord(self.name, self.origin, self.version, PluginState.LOADED)
        if is_blocked(self.name, self.origin, rules.blocked):
            reason = "blocked by configuration; not imported"
            return replace(record, state=PluginState.BLOCKED, reason=reason), ()
        started = time.perf_counter()
        try:
            offers = tuple(self._offers(rules))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - kept as the plugin's fault
            return _faulty(record, error, time.perf_counter() - started, rules), ()
        seconds = time.perf_counter() - started
        providers = tuple((offer.kind, offer.name) for offer in offers)
        record = replace(record, import_seconds=seconds, providers=providers)
        if seconds > rules.slow_seconds:
            record = replace(
                record,
                reason=f"took {seconds:.1f} s to import",
                remedy=f"Block it if you do not need it: {rules.how_to_block(self.name)}",
            )
        return record, offers

    def _offers(self, rules: Rules) -> Iterator[Offer]:
        if self.error is not None:
            raise self.error
        assert self.entry_point is not None
        plugin = self.entry_point.load()
        for kind, provider in _provided(plugin, self.name, rules):
            yield Offer(kind, provider.name, provider, self.name, self.origin, self.version)


def is_blocked(plugin: str, distribution: str, blocked: Collection[str]) -> bool:
    """Whether a name in `blocked` is the plugin's or the distribution's, however it is spelled."""
    names = {canonicalize_name(plugin), canonicalize_name(distribution)}
    return any(canonicalize_name(name) in names for name in blocked)


def _installed(group: str) -> Iterator[_Found]:
    seen: set[str] = set()
    for distribution in distributions():
        text = distribution.read_text("entry_points.txt") or ""
        if f"[{group}]" not in text.replace(" ", ""):
            continue
        name, version = _identity(distribution)
        if canonicalize_name(name) in seen:  # a copy further back on the path, which is shadowed
            continue
        seen.add(canonicalize_name(name))
        try:
            entry_points = tuple(distribution.entry_points.select(group=group))
        except Exception as error:  # noqa: BLE001 - malformed metadata of one distribution
            yield _Found(name, name, version, None, error)
            continue
        for entry_point in entry_points:
            yield _Found(entry_point.name, name, version, entry_point)


def _identity(distribution: Distribution) -> tuple[str, str]:
    metadata = distribution.metadata
    return str(metadata["Name"] or "unknown"), str(metadata["Version"] or "unknown")


def _provided(plugin: object, name: str, rules: Rules) -> Iterator[tuple[str, Provider]]:
    """What one plugin offers, asked through a plugin manager of its own."""
    manager = pluggy.PluginManager(rules.group)
    manager.add_hookspecs(rules.hookspecs)
    manager.register(plugin, name)
    _check_hooks(manager, plugin, rules)
    seen: set[tuple[str, str]] = set()
    for kind, hook in rules.kinds.items():
        for offered in _called(manager, hook):
            for provider in _listed(offered, hook):
                _check_provider(provider, hook, rules.bases[kind])
                if (kind, provider.name) in seen:
                    raise _RefusedError(f"{hook} offers two providers named {provider.name!r}")
                seen.add((kind, provider.name))
                yield kind, provider


def _check_hooks(manager: pluggy.PluginManager, plugin: object, rules: Rules) -> None:
    known = tuple(rules.kinds.values())
    callers = manager.get_hookcallers(plugin) or []
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        names = " and ".join(unknown)
        question = did_you_mean(unknown[0], known)
        raise _RefusedError(
            f"unknown hook {names} (known: {listed(known)}). {question}".rstrip()
        ) from error
    if not callers:
        raise _RefusedError(f"it implements no hook marked with hookimpl (known: {listed(known)})")


def _called(manager: pluggy.PluginManager, hook: str) -> Sequence[object]:
    try:
        return tuple(getattr(manager.hook, hook)())
    except Exception as error:
        raise _RefusedError(f"{hook} raised {type(error).__name__}: {error}") from error


def _listed(offered: object, hook: str) -> Sequence[Provider]:
    if isinstance(offered, Provider | str) or not isinstance(offered, Iterable):
        raise _RefusedError(f"{hook} returned {offered!r} (expected a list of providers)")
    return tuple(offered)


def _check_provider(provider: object, hook: str, base: type) -> None:
    if isinstance(provider, type):
        raise _RefusedError(
            f"{hook} offers the class {provider.__name__} (expected an instance of it)"
        )
    if not isinstance(provider, base) or not isinstance(provider, Provider):
        raise _RefusedError(
            f"{hook} offers {provider!r}, a {type(provider).__name__} "
            f"(expected an instance of {base.__name__})"
        )
    name = getattr(provider, "name", None)
    if not isinstance(name, str) or not name or name == AUTO or set(name) & set(", \t\n"):
        raise _RefusedError(
            f"{hook} offers a provider named {name!r} "
            f"(expected a string without commas and blanks, other than {AUTO!r})"
        )
    if provider.settings is not None and not hasattr(provider.settings, "model_fields"):
        raise _RefusedError(
            f"provider {name!r} has settings {provider.settings!r} (expected a pydantic model)"
        )
    if provider.api_version != API_VERSION:
        raise _RefusedError(
            f"provider {name!r} has api_version {provider.api_version} (expected {API_VERSION}); "
            "install the plugin's release for this version"
        )


def _faulty(
    record: PluginRecord, error: BaseException, seconds: float, rules: Rules
) -> PluginRecord:
    block = rules.how_to_block(record.name)
    return replace(
        record,
        state=PluginState.FAULTY,
        reason=str(error)
        if isinstance(error, _RefusedError)
        else f"{type(error).__name__}: {error}",
        remedy=f"Repair or uninstall {record.distribution}, or block it: {block}",
        traceback="".join(traceback.format_exception(error)),
        import_seconds=seconds,
    )


def _report(record: PluginRecord, rules: Rules) -> None:
    if record.state is PluginState.FAULTY or (
        record.state is PluginState.LOADED and record.import_seconds > rules.slow_seconds
    ):
        _logger.warning(
            "plugin %r (%s %s) %s %s. %s",
            record.name,
            record.distribution,
            record.version,
            "is faulty:" if record.state is PluginState.FAULTY else "is slow:",
            record.reason,
            record.remedy,
        )
