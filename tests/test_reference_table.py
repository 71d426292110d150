"""The reference of patterns, modes and backends says what the library does."""

from __future__ import annotations

import re

import pytest

from tests.reference.page import PAGE, rendered

CELL = re.compile(r"exact|unmeasured|refused \(\d+(, \d+)*\)")


@pytest.fixture(scope="module")
def page() -> str:
    """The page as this library would write it."""
    return rendered()


def rows(page: str) -> list[list[str]]:
    """Cells of the tables that were computed, titles left out."""
    lines = page.partition("## manual")[2].splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [cells[1:] for cells in found if cells[0].startswith("`")]


def test_the_committed_page_is_what_a_run_finds(page: str) -> None:
    assert PAGE.read_text() == page, "the library changed: `make reference` writes the page anew"


def test_no_cell_is_blank_and_every_refusal_has_its_note(page: str) -> None:
    cells = [cell for row in rows(page) for cell in row]
    assert cells
    assert all(CELL.fullmatch(cell) for cell in cells)
    notes = set(re.findall(r"^(\d+)\. \S", page.partition("## Notes")[2], flags=re.MULTILINE))
    assert {number for cell in cells for number in re.findall(r"\d+", cell)} == notes


def test_on_a_cpu_every_pattern_is_exact_in_most_modes(page: str) -> None:
    manual = rows(page.partition("## sdpa-cpu")[0])
    for row in manual:
        assert row.count("exact") >= len(row) - 3, row
