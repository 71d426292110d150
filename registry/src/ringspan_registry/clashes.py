"""Names that two plugins offer at once: nobody can say which is meant, so nobody guesses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ringspan_registry.discovery import Offer, PluginRecord, PluginState
from ringspan_registry.errors import DuplicateProvider

__all__ = ["Clash", "annotate", "find_clashes"]


@dataclass(frozen=True, slots=True)
class Clash:
    """One name that is taken twice; every use of `kind` is refused until one is blocked."""

    kind: str
    subject: str
    """`"backend 'sdpa'"` or `"plugin 'sdpa'"`."""
    providers: frozenset[str]
    """The names of the kind's providers that are ambiguous; empty for a plugin's name."""
    plugins: frozenset[tuple[str, str]]
    """(plugin, distribution) of everybody who takes part."""
    remedy: str

    @property
    def parties(self) -> str:
        """Everybody who takes part, in words."""
        return " and ".join(
            f"plugin {plugin!r} of {distribution}" for plugin, distribution in sorted(self.plugins)
        )

    def error(self) -> DuplicateProvider:
        """What a use of the kind raises."""
        return DuplicateProvider(
            self.subject, expected="one plugin that offers it", got=self.parties, remedy=self.remedy
        )


def find_clashes(
    records: Sequence[PluginRecord], offers: Sequence[Offer], how_to_block: Callable[[str], str]
) -> tuple[Clash, ...]:
    """Every name that two loaded providers of a kind, or two plugins, have in common."""
    return (
        *_provider_clashes(offers, how_to_block),
        *_plugin_clashes(records, how_to_block),
    )


def annotate(record: PluginRecord, clashes: Sequence[Clash]) -> PluginRecord:
    """The record with what it clashes with, for those who only list plugins."""
    mine = [clash for clash in clashes if (record.name, record.distribution) in clash.plugins]
    if record.state is not PluginState.LOADED or not mine:
        return record
    reasons = [record.reason, *(f"{clash.subject} is offered by {clash.parties}" for clash in mine)]
    remedies = [record.remedy, *(clash.remedy for clash in mine)]
    return replace(record, reason=_joined(reasons, "; "), remedy=_joined(remedies, ". "))


def _joined(parts: Sequence[str], separator: str) -> str:
    return separator.join(dict.fromkeys(part for part in parts if part))


def _provider_clashes(
    offers: Sequence[Offer], how_to_block: Callable[[str], str]
) -> Iterator[Clash]:
    by_name: dict[tuple[str, str], list[Offer]] = defaultdict(list)
    for offer in offers:
        by_name[offer.kind, offer.name].append(offer)
    for (kind, name), same in by_name.items():
        if len(same) > 1:
            plugins = frozenset((offer.plugin, offer.distribution) for offer in same)
            yield Clash(
                kind, f"{kind} {name!r}", frozenset({name}), plugins, _remedy(plugins, how_to_block)
            )


def _plugin_clashes(
    records: Sequence[PluginRecord], how_to_block: Callable[[str], str]
) -> Iterator[Clash]:
    by_name: dict[str, list[PluginRecord]] = defaultdict(list)
    for record in records:
        if record.state is not PluginState.BLOCKED:
            by_name[record.name].append(record)
    for name, same in by_name.items():
        plugins = frozenset((record.name, record.distribution) for record in same)
        kinds = {kind for record in same for kind, _ in record.providers} if len(same) > 1 else ()
        for kind in sorted(kinds):
            yield Clash(
                kind, f"plugin {name!r}", frozenset(), plugins, _remedy(plugins, how_to_block)
            )


def _remedy(plugins: frozenset[tuple[str, str]], how_to_block: Callable[[str], str]) -> str:
    """Block one by its plugin's name or, where these are equal, by its distribution's."""
    names = {plugin for plugin, _ in plugins}
    blockable = names if len(names) > 1 else {distribution for _, distribution in plugins}
    return "Uninstall one, or block one: " + ", or ".join(map(how_to_block, sorted(blockable)))
