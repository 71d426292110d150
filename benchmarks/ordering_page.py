"""The page docs/guides/ordering.md: prose from a template, tables from results/ordering.json."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.ordering_tables import Table, Target, markdown, shown

__all__ = ["PAGE", "TEMPLATE", "rendered"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "ordering.md"
TEMPLATE = Path(__file__).with_name("ordering_page.md")
SLOT = re.compile(r"\{\{ (?P<what>table|cell|fact) (?P<name>[^}]+?) \}\}")


def rendered(record: dict[str, Any]) -> str:
    """The page.

    In the template, `{{ table NAME }}` is a table with its title; `{{ cell NAME | ROW | COLUMN }}`
    one value of it; `{{ fact NAME }}` a fact of the machine.

    Raises:
        KeyError: the template asks for what was not measured.
    """
    tables = {table["name"]: Table.of(**table) for table in record["tables"]}
    tables["targets"] = _targets([Target(**target) for target in record["targets"]])

    def filled(slot: re.Match[str]) -> str:
        what, name = slot["what"], slot["name"]
        if what == "fact":
            return str(record["environment"][name])
        if what == "cell":
            name, row, column = (part.strip() for part in name.split("|"))
            return shown(tables[name].cell(row, column))
        table = tables[name]
        return f"**{table.title}**\n\n{markdown(table.header, table.rows)}"

    return SLOT.sub(filled, TEMPLATE.read_text())


def _targets(targets: list[Target]) -> Table:
    header = ("figure", "target", "measured", "")
    return Table.of("targets", "Targets", header, [target.row for target in targets])
