"""What discovery found: plugins, their providers by name, and the names that clash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan_registry.clashes import Clash, annotate, find_clashes
from ringspan_registry.discovery import Offer, PluginRecord, Rules, discover
from ringspan_registry.errors import InvalidArgument, UnknownProvider
from ringspan_registry.refusals import unknown_provider
from ringspan_registry.suggest import listed

if TYPE_CHECKING:
    import pydantic

__all__ = ["Catalogue"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every plugin of one group and what it offers; never changes."""

    records: tuple[PluginRecord, ...]
    offers: Mapping[str, Mapping[str, Offer]]
    """Kind -> name -> offer; of two that clash, the first."""
    clashes: tuple[Clash, ...]
    every_offer: tuple[Offer, ...]
    """Of two that clash, both."""

    @classmethod
    def discover(cls, rules: Rules) -> Catalogue:
        """Imports every plugin that is not blocked."""
        records, offers = discover(rules)
        clashes = find_clashes(records, offers, rules.how_to_block)
        by_kind: dict[str, dict[str, Offer]] = {kind: {} for kind in rules.kinds}
        for offer in offers:
            by_kind[offer.kind].setdefault(offer.name, offer)
        annotated = tuple(annotate(record, clashes) for record in records)
        return cls(annotated, by_kind, clashes, offers)

    def schemas(self, plugin: str) -> set[type[pydantic.BaseModel]]:
        """What the settings of a loaded plugin look like; empty where it takes none."""
        mine = (offer.provider.settings for offer in self.every_offer if offer.plugin == plugin)
        return {schema for schema in mine if schema is not None}

    def of_kind(self, kind: str) -> Mapping[str, Offer]:
        """The offers of one kind, by name."""
        if kind not in self.offers:
            raise InvalidArgument("kind", expected=f"one of {listed(self.offers)}", got=repr(kind))
        return self.offers[kind]

    def named(self, kind: str, name: str, source: str = "call") -> tuple[Offer, ...]:
        """The provider of that name, else every provider of the plugin of that name."""
        offers = self.of_kind(kind)
        if name in offers:
            return (offers[name],)
        named = tuple(offer for offer in offers.values() if offer.plugin == name)
        if not named:
            known = {*offers, *(offer.plugin for offer in offers.values())}
            raise unknown_provider(kind, name, source, known, self.records)
        return named

    def one(self, kind: str, name: str) -> Offer:
        """The provider of that name, or the only one of the plugin of that name."""
        named = self.named(kind, name)
        if len(named) > 1:
            raise UnknownProvider(
                kind,
                expected=f"one of {listed(offer.name for offer in named)}",
                got=f"the plugin {name!r}, which offers them all",
            )
        return named[0]

    def clash(self, kind: str) -> Clash | None:
        """What makes the names of a kind ambiguous, if anything does."""
        return next((clash for clash in self.clashes if clash.kind == kind), None)
