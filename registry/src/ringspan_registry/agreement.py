"""Whether the settings and the installed plugins fit each other."""

from __future__ import annotations

import logging

from ringspan_registry.catalogue import Catalogue
from ringspan_registry.config import Configuration
from ringspan_registry.discovery import PluginRecord, PluginState, is_blocked
from ringspan_registry.errors import ConfigurationError
from ringspan_registry.refusals import sourced
from ringspan_registry.suggest import did_you_mean, listed

__all__ = ["check_sections", "hand_out_sections", "warn_of_unknown_blocked"]

_logger = logging.getLogger("ringspan")


def check_sections(configuration: Configuration, catalogue: Catalogue) -> None:
    """Validates every section in the files by the schema of the plugin that it is for.

    What a blocked or faulty plugin would take is not known: its section is left alone. One for
    a plugin that is not installed is warned about: a file may serve machines with other plugins.

    Raises:
        ConfigurationError: a key or value is not known, or the plugin takes no settings.
    """
    installed = {record.name for record in catalogue.records}
    loaded = {
        record.name: record for record in catalogue.records if record.state is PluginState.LOADED
    }
    for name, where in configuration.section_names().items():
        if name not in installed:
            _warn_of_unknown_section(where, name, installed)
        elif name in loaded:
            schemas = catalogue.schemas(name)
            if not schemas:
                raise _no_settings(where, loaded[name])
            for schema in schemas:
                configuration.section(name, schema)


def hand_out_sections(configuration: Configuration, catalogue: Catalogue) -> None:
    """Gives every provider that takes settings what the files say in its plugin's section."""
    for offer in catalogue.every_offer:
        schema = offer.provider.settings
        if schema is not None:
            offer.provider.section = configuration.section(offer.plugin, schema)


def warn_of_unknown_blocked(configuration: Configuration, catalogue: Catalogue) -> None:
    """Logs each name in `blocked` that no installed plugin or distribution has."""
    if "blocked" not in configuration.keys:
        return
    setting = configuration.get("blocked")
    records = catalogue.records
    known = {name for record in records for name in (record.name, record.distribution)}
    for name in setting.value:
        if not any(is_blocked(record.name, record.distribution, {name}) for record in records):
            _logger.warning(
                "%s: no plugin or distribution named %r is installed (installed: %s). %s",
                sourced("blocked", setting.source),
                name,
                listed(known),
                did_you_mean(name, known),
            )


def _warn_of_unknown_section(where: str, name: str, installed: set[str]) -> None:
    _logger.warning(
        "%s: no plugin of that name is installed (installed: %s). %s",
        where,
        listed(installed),
        did_you_mean(name, installed),
    )


def _no_settings(where: str, record: PluginRecord) -> ConfigurationError:
    return ConfigurationError(
        where,
        expected="a plugin that takes settings",
        got=f"plugin {record.name!r} of {record.distribution}, which takes no settings",
        remedy="Remove the section",
    )
