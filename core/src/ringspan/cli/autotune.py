"""`ringspan autotune`: the measured times that are kept between processes."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ringspan.cli.problem import print_json
from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ringspan_registry.measurements import Subject

__all__ = ["autotune"]

_SHARED = ("problem", "shape", "device", "compute_capability", "driver", "software")
"""What the times of one contest have in common."""


def autotune(
    show: Annotated[bool, typer.Option("--show", help="A table of them (default).")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove them all.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Show them as JSON.")] = False,
) -> None:
    """The times that `autotune = "first-run"` has measured: the winner of each problem and shape.

    They are in one file of this user, which `autotune_file` moves.
    """
    if clear and (show or as_json):
        raise InvalidArgument("--clear", expected="no --show or --json beside it", got="both")
    from ringspan.catalogue import catalogue

    file = catalogue().measurements()
    if clear:
        typer.echo(f"Removed {file.clear():,} times from {file.path}")
        return
    contests = _contests(file.read())
    if as_json:
        print_json({"file": str(file.path), "contests": contests})
        return
    console = Console(highlight=False)
    console.print(
        f"{len(contests):,} measured problems in {file.path}", markup=False, soft_wrap=True
    )
    if contests:
        console.print(_table(contests))


def _contests(seconds: Mapping[Subject, float]) -> list[dict[str, Any]]:
    """One entry per problem, shape and machine, the fastest provider first."""
    times: dict[tuple[str, ...], list[tuple[float, Subject]]] = defaultdict(list)
    for subject, value in seconds.items():
        times[tuple(getattr(subject, name) for name in _SHARED)].append((value, subject))
    return [
        dict(zip(_SHARED, shared, strict=True))
        | {"times": [_time(*each) for each in sorted(found, key=lambda each: each[0])]}
        for shared, found in times.items()
    ]


def _time(value: float, subject: Subject) -> dict[str, Any]:
    own = dataclasses.asdict(subject)
    return {name: own[name] for name in ("provider", "distribution", "kernel")} | {"seconds": value}


def _table(contests: Iterable[dict[str, Any]]) -> Table:
    rows = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("problem", "shape", "device", "winner", "times"):
        rows.add_column(header, overflow="fold")
    for contest in contests:
        times = contest["times"]
        rows.add_row(
            contest["problem"],
            contest["shape"],
            _machine(contest),
            times[0]["provider"],
            "\n".join(f"{_version(time)}: {time['seconds']:.3g} s" for time in times),
        )
    return rows


def _machine(contest: Mapping[str, str]) -> str:
    capability, driver = contest["compute_capability"], contest["driver"]
    facts = (
        contest["device"],
        capability and f"compute capability {capability}",
        driver and f"driver {driver}",
        contest["software"],
    )
    return ", ".join(fact for fact in facts if fact)


def _version(time: Mapping[str, Any]) -> str:
    known = ", ".join(part for part in (time["distribution"], time["kernel"]) if part)
    return f"{time['provider']} ({known})"
