"""`ringspan plugin check`: the standard tests, on whatever is installed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ringspan.cli.extras import require
from ringspan.contracts.errors import UnknownProvider

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ringspan_registry import PluginRecord

    from ringspan.testing.suites.check import Checked

__all__ = ["app"]

app = typer.Typer(help="Plugins: the standard tests.", no_args_is_help=True)

_COLORS = {"passed": "green", "failed": "red", "faulty": "red"}


@app.callback()
def _plugin() -> None:
    # With a callback, typer keeps `check` a command of its own though it is the only one.
    pass


@app.command()
def check(
    name: Annotated[
        str | None, typer.Argument(help="A plugin or a provider; default: everything installed.")
    ] = None,
    select: Annotated[
        str, typer.Option("-k", help="Only the tests that match, as for pytest's -k.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Run the standard tests of every backend, ordering and communicator that is installed.

    Ends with 1 if a test fails or a plugin cannot be loaded.
    """
    require("pytest", "hypothesis")
    rows = _rows(_chosen(name), select, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        Console(highlight=False).print(_table(rows))
    if any(row["state"] in ("failed", "faulty") for row in rows):
        raise typer.Exit(1)


def _chosen(name: str | None) -> dict[PluginRecord, list[tuple[str, str]]]:
    """The plugins, and which of their providers, that `name` stands for."""
    from ringspan.catalogue import catalogue

    plugins = catalogue().plugins()
    if name is None:
        return {plugin: list(plugin.providers) for plugin in plugins}
    chosen = {
        plugin: [offer for offer in plugin.providers if name in (plugin.name, offer[1])]
        for plugin in plugins
        if name == plugin.name or any(name == offered for _, offered in plugin.providers)
    }
    if not chosen:
        known = {plugin.name for plugin in plugins}
        known |= {offered for plugin in plugins for _, offered in plugin.providers}
        raise UnknownProvider(
            "name", expected=f"one of {', '.join(sorted(known)) or 'none'}", got=repr(name)
        )
    return chosen


def _rows(
    chosen: dict[PluginRecord, list[tuple[str, str]]], select: str, *, quiet: bool
) -> list[dict[str, Any]]:
    """One row per provider, and one per plugin that could not be loaded."""
    from ringspan.catalogue import catalogue
    from ringspan.testing.suites.check import Offered
    from ringspan.testing.suites.check import check as run

    rows = [_unloaded(plugin) for plugin, offers in chosen.items() if not offers]
    everything = [
        Offered(plugin.name, kind, name, catalogue().provider(kind, name))
        for plugin, offers in chosen.items()
        for kind, name in offers
    ]
    found = run(everything, select=select, quiet=quiet) if everything else []
    return rows + [_row(checked) for checked in found]


def _unloaded(plugin: PluginRecord) -> dict[str, Any]:
    reason = ". ".join(part.rstrip(".") for part in (plugin.reason, plugin.remedy) if part)
    return {"plugin": plugin.name, "state": str(plugin.state), "remarks": [reason]}


def _row(checked: Checked) -> dict[str, Any]:
    return {
        "plugin": checked.offered.plugin,
        "kind": checked.offered.kind,
        "name": checked.offered.name,
        "state": checked.state,
        "passed": checked.passed,
        "served": checked.served,
        "refused": checked.refused,
        "failed": list(checked.failed),
        "remarks": list(checked.skipped),
    }


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("plugin", "offers", "result", "passed", "served", "refused", "remarks"):
        table.add_column(header, overflow="fold")
    for row in rows:
        offer = f"{row['kind']} {row['name']}" if "name" in row else ""
        failed = [f"{len(row['failed'])} tests failed"] if row.get("failed") else []
        table.add_row(
            row["plugin"],
            offer,
            Text(row["state"], _COLORS.get(row["state"], "yellow")),
            *(str(row.get(count, "")) for count in ("passed", "served", "refused")),
            Text("\n".join([*failed, *row["remarks"]])),
        )
    return table
