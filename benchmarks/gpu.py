"""Accuracy, rings and overhead on a CUDA device, offline; results as JSON.

    python benchmarks/gpu.py [--quick] [--configurations 40] [--device cuda:1] [--out DIR]
    python benchmarks/gpu.py --device cpu [--out DIR]      tries the harness itself

Needs Python 3.11 or newer and torch 2.11 or newer; neither Ringspan nor pytest need be installed.
Whatever else is missing is taken from `.gpu-wheels/`; see `benchmarks/results/README.md`.

Exit status: 0 if every number is exact, however slow; 1 if one is not; 2 if nothing can be run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_site import ROOT, Unprepared, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch


PARTS = ("accuracy", "ring", "overhead")
MOST_ON_A_RING = 24


@dataclass(frozen=True)
class Size:
    """How much is tried."""

    configurations: int
    longest: int
    """Length of a case."""
    tokens: tuple[int, ...]
    """Lengths of the overhead figure."""
    pairs: int


SIZES = {
    ("cuda", False): Size(40, 1024, (16384, 65536), 9),
    ("cuda", True): Size(6, 160, (16384,), 3),
    ("cpu", False): Size(40, 160, (16384,), 9),
    ("cpu", True): Size(6, 160, (1024,), 3),
}
"""By type of device, and whether it is to be quick."""


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as site:
        try:
            prepare(Path(site), options.wheels)
            device = _device(options.device)
        except Unprepared as lack:
            print(f"benchmarks/gpu.py {lack}", file=sys.stderr)
            return 2
        return _run(device, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few small cases")
    parser.add_argument("--configurations", type=int, help="per backend and dtype; default 40")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--wheels", type=Path, help="use wheels of ringspan from this folder")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<GPU>, if it is one")
    return parser.parse_args()


def _device(name: str) -> torch.device:
    import torch

    device = torch.device(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise Unprepared(
            f"needs a CUDA device: torch {torch.__version__} sees {torch.cuda.device_count()} of "
            "them. To try the harness itself, pass --device cpu"
        )
    torch.cuda.set_device(device)
    return torch.device("cuda", torch.cuda.current_device())


# Nothing of torch or Ringspan is imported before the path to it is prepared.
def _run(device: torch.device, options: argparse.Namespace) -> int:
    from gpu_machine import describe, providers, slug
    from gpu_summary import machine_lines

    machine = describe(device)
    out = options.out
    if out is None and device.type == "cuda":
        out = ROOT / "benchmarks" / "results" / slug(machine["name"])
    facts = {"machine": machine, "quick": options.quick, "providers": providers(device)}
    _show(machine_lines(facts))
    exact = True
    for name, part, lines in _parts(device, options):
        start = time.monotonic()
        found = part()
        found["seconds"] = time.monotonic() - start
        _show([f"\n{name} ({found['seconds']:.0f} s)", *lines(found)])
        exact &= found.get("exact", True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_plain({**facts, **found}), indent=1, allow_nan=False)
            (out / f"{name}.json").write_text(text + "\n")
    print("\nevery number is exact" if exact else "\nNOT EXACT: see above")
    if out is not None:
        print(f"results in {out}")
    return 0 if exact else 1


# Name, work and summary.
Part = tuple[str, "Callable[[], dict[str, Any]]", "Callable[[dict[str, Any]], Iterable[str]]"]


def _parts(device: torch.device, options: argparse.Namespace) -> list[Part]:
    """The parts that are asked for."""
    import gpu_accuracy
    import gpu_ring
    from gpu_summary import accuracy_lines, overhead_lines, ring_lines

    size = SIZES[device.type, options.quick]
    count, N = options.configurations or size.configurations, size.longest
    parts: list[Part] = [
        ("accuracy", lambda: gpu_accuracy.check(device, count, N), accuracy_lines),
        ("ring", lambda: gpu_ring.check(device, min(count, MOST_ON_A_RING), N), ring_lines),
        ("overhead", lambda: _overhead(device, size), overhead_lines),
    ]
    return [part for part in parts if part[0] in options.parts]


def _overhead(device: torch.device, size: Size) -> dict[str, Any]:
    import overhead

    return {"overhead": list(overhead.figure(device, size.tokens, size.pairs))}


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _plain(value: Any) -> Any:
    """JSON knows no infinity: it becomes the word."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
