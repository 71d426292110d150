"""Conformance, accuracy, steps, rings and speed on a CUDA device, offline; results as JSON.

    python benchmarks/gpu.py [--quick] [--parts steps kernels] [--device cuda:1] [--out DIR]
    python benchmarks/gpu.py --device cpu [--out DIR]      tries the harness itself

Needs Python 3.11 or newer and torch 2.11 or newer; Ringspan need not be installed. Whatever else is
missing is taken from `.gpu-wheels/`; without pytest and hypothesis there, conformance is not run.
`docs/guides/benchmarks.md` says how to read the results.

Takes ten minutes at most: each part has so many seconds, and says what it left out. Exit status: 0
if every number is exact, however slow; 1 if one is not, or a part failed; 2 if nothing can be run.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import math
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_site import ROOT, Unprepared, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from gpu_budget import Budget


SECONDS = {
    "conformance": 170,
    "accuracy": 70,
    "steps": 75,
    "ring": 65,
    "overhead": 40,
    "kernels": 150,
}
"""Of each part, in the order in which they run: ten minutes, with what comes before and between."""
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
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument("--slowly", action="store_true", help="parts take as long as they need")
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
    from gpu_budget import Budget
    from gpu_machine import describe, providers, slug
    from gpu_summary import machine_lines

    machine = describe(device)
    out = options.out
    if out is None and device.type == "cuda":
        out = ROOT / "benchmarks" / "results" / slug(machine["name"])
    facts = {"machine": machine, "quick": options.quick, "providers": providers(device)}
    _show(machine_lines(facts))
    exact = True
    for part in _parts(device, options):
        budget = Budget(math.inf if options.slowly else SECONDS[part.name])
        start = time.monotonic()
        found = _found(part, budget)
        found["seconds"] = time.monotonic() - start
        _show([f"\n{part.name} ({found['seconds']:.0f} s)", *_lines(part, found)])
        exact &= found.get("exact", True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_plain({**facts, **found}), indent=1, allow_nan=False)
            (out / f"{part.name}.json").write_text(text + "\n")
    print("\nevery number is exact" if exact else "\nNOT EXACT, OR FAILED: see above")
    if out is not None:
        print(f"results in {out}")
    else:
        print("nothing was written: --out says where results of a CPU go")
    return 0 if exact else 1


@dataclass(frozen=True)
class Part:
    """One file of results."""

    name: str
    work: Callable[[Budget], dict[str, Any]]
    lines: Callable[[dict[str, Any]], Iterable[str]]
    """The results in words."""


def _found(part: Part, budget: Budget) -> dict[str, Any]:
    """What a part finds; the traceback where it failed, for the others can still run."""
    if math.isfinite(budget.seconds):
        # A kernel that never returns must not hold a GPU for ever.
        faulthandler.dump_traceback_later(2 * budget.seconds, exit=True)
    try:
        return part.work(budget)
    except Exception:  # noqa: BLE001 - whatever it is, it is written down and fails the run
        return {"exact": False, "failed": traceback.format_exc()}
    finally:
        faulthandler.cancel_dump_traceback_later()


def _lines(part: Part, found: dict[str, Any]) -> Iterable[str]:
    if "failed" in found:
        yield f"  FAILED\n{found['failed']}"
        return
    yield from part.lines(found)
    yield from (f"  left out, time was over: {what}" for what in found.get("left_out", ()))


def _parts(device: torch.device, options: argparse.Namespace) -> list[Part]:
    """The parts that are asked for."""
    import gpu_accuracy
    import gpu_conformance
    import gpu_ring
    import gpu_steps
    import gpu_summary as words
    import kernels

    quick = options.quick
    size = SIZES[device.type, quick]
    count, N = options.configurations or size.configurations, size.longest
    on_a_ring = min(count, MOST_ON_A_RING)
    parts = [
        Part(
            "conformance",
            lambda budget: gpu_conformance.check(device, quick, budget),
            words.conformance_lines,
        ),
        Part(
            "accuracy",
            lambda budget: gpu_accuracy.check(device, count, N, budget),
            words.accuracy_lines,
        ),
        Part("steps", lambda budget: gpu_steps.check(device, quick, budget), words.steps_lines),
        Part("ring", lambda budget: gpu_ring.check(device, on_a_ring, N, budget), words.ring_lines),
        Part("overhead", lambda budget: _overhead(device, size, budget), words.overhead_lines),
        Part("kernels", lambda budget: kernels.measured(device, quick, budget), kernels.lines),
    ]
    return [part for part in parts if part.name in options.parts]


def _overhead(device: torch.device, size: Size, budget: Budget) -> dict[str, Any]:
    import overhead

    found: list[dict[str, Any]] = []
    for tokens in size.tokens:
        if budget.allows(f"{tokens} tokens"):
            found += overhead.figure(device, [tokens], size.pairs)
    return {"overhead": found, "left_out": budget.left_out}


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
