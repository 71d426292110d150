"""Results in words, as they are printed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import overhead

__all__ = [
    "accuracy_lines",
    "conformance_lines",
    "machine_lines",
    "overhead_lines",
    "ring_lines",
    "steps_lines",
]


def machine_lines(facts: dict[str, Any]) -> Iterator[str]:
    yield from (f"{key}: {value}" for key, value in facts["machine"].items() if value)
    for each in facts["providers"]:
        verdict = "usable" if each["usable"] else f"not usable: {each['reason']}"
        yield f"  {each['kind'] or 'plugin':13} {each['name'] or each['plugin']:15} {verdict}"


def conformance_lines(found: dict[str, Any]) -> Iterator[str]:
    yield _row("provider", "state", "passed", "refused", "failed", "left out")
    for each in found["conformance"]:
        counts = (each.get(name, "") for name in ("passed", "refused"))
        failed = len(each.get("failed", ()))
        yield _row(each["name"], each["state"], *counts, failed, each.get("left_out", "all"))
        yield from (f"    FAILED {failure['test']}" for failure in each.get("failed", ()))
        if "ended" in each:
            yield f"    CRASHED ({each['ended']}) in {', '.join(each['unfinished']) or 'no test'}"
    yield from (f"  {name} not run: {reason}" for name, reason in found["not_run"].items())


def accuracy_lines(found: dict[str, Any]) -> Iterator[str]:
    yield _row("backend", "dtype", "computed", "refused", "inexact", "largest error / limit")
    for each in found["accuracy"]:
        counts = (each["computed"], each["refused"], len(each["inexact"]))
        yield _row(each["backend"], each["dtype"], *counts, _largest(each["ratios"]))
        yield from (f"    refused {n}: {why}" for why, n in each["refusals"].items())
        yield from _inexact_lines(each["inexact"])


def steps_lines(found: dict[str, Any]) -> Iterator[str]:
    for each in found["steps"]:
        where = "checkpointed in a CUDA graph" if each["graph"] else "checkpointed"
        yield f"  {each['backend']}"
        yield f"    compiled whole ({each['compiler']}): {each['compile']}"
        yield f"    {where}: {each['checkpoint']}"
        yield f"    host synchronisations in a warm step: {each['syncs']}"
        forward, both = each["host_microseconds"], each["host_microseconds_with_backward"]
        if isinstance(forward, str):
            yield f"    host time: {forward}"
        else:
            yield f"    host time: {forward:.0f} us forward, {both:.0f} us with backward"


def ring_lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"  one process: {_largest(found['ratios_of_one_process'])}"
    for each in found["rings"]:
        what = _largest(each["ratios"]) if "ratios" in each else "failed"
        bytes_received = each.get("bytes_received", "?")
        yield f"  {each['world_size']} over {each['transport']}: {what}, {bytes_received} bytes"
        yield from _inexact_lines(each["inexact"])
    yield from (f"  {name} not run: {reason}" for name, reason in found["not_run"].items())


def overhead_lines(found: dict[str, Any]) -> Iterator[str]:
    yield from (f"  {overhead.line(each)}" for each in found["overhead"])


def _inexact_lines(inexact: list[dict[str, Any]]) -> Iterator[str]:
    for each in inexact:
        yield f"    NOT EXACT {each.get('case', '')}"
        yield from (f"      {what}" for what in each["what"])


def _row(*cells: object) -> str:
    return "  " + "".join(f"{cell!s:16}" for cell in cells).rstrip()


def _largest(ratios: dict[str, float]) -> str:
    name = max(ratios, key=ratios.__getitem__)
    return f"{ratios[name]:.3f} ({name})"
