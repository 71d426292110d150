"""How well transfers hide behind computation, over a communicator that delays by a set time.

    python benchmarks/overlap.py [--kernels real] [--tokens 4096] [--rounds 7] [--out FILE.json]

Two ranks, one thread each, dense attention. A ring of two has two steps: each rank's own keys,
then the other's. The *link* between them is slow in two ways:

- `whole`: a step travels in one message, which is there no earlier than the set time after it was
  posted;
- `parts`: it travels in several, one after the other over a wire that takes the set time for all.

The set time is a share of one step's computation, which is measured without delay in the same
rounds. A step of the forward pass must take at most 1.1 x max(computation, transfer) as long as
the transfer is shorter. In the backward pass nothing can hide the first rows' transfer: its bound
is that, then the greater of all computation and of what else travels.

`--kernels timed` takes kernels of a set time instead of real ones: they sleep, so that what is
measured is the ring's schedule, whatever else the machine has to do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.catalogue import catalogue
from ringspan.testing.delayed import Delayed
from ringspan.testing.ranks import Ring
from ringspan.testing.site import plugged_in
from ringspan_registry import detect
from timed_kernels import Timed

LIMIT = 1.1
RANKS = 2
KINDS = ("whole", "parts")
SHARES = (0.25, 0.5, 0.75, 0.95, 2.0)
"""Of one step's computation, what its transfer takes."""
STEP_SECONDS = (0.1, 0.25)
"""What a step takes, forward and backward, where kernels take a set time."""


@dataclass(frozen=True)
class Problem:
    """What is run."""

    tokens: int
    heads: int
    head_dim: int
    message_bytes: int
    timed: bool
    """Whether kernels take a set time."""

    @property
    def step_bytes(self) -> int:
        """Key and value rows that a rank receives in a forward pass."""
        return self.tokens // RANKS * self.heads * 2 * self.head_dim * 4

    @property
    def parts(self) -> int:
        """Messages of a step, where it travels in parts."""
        rows = max(1, self.message_bytes // (self.tokens // RANKS * 2 * self.head_dim * 4))
        return -(-self.heads // rows)


@dataclass(frozen=True, order=True)
class Link:
    """How a step travels, and how long."""

    kind: str
    seconds: float

    def set_up(self, delayed: Delayed, problem: Problem) -> int:
        """Makes the communicator such a link; returns bytes in one message."""
        delayed.seconds, delayed.bytes_per_second = 0.0, None
        if self.kind == "whole":
            delayed.seconds = self.seconds
            return problem.step_bytes
        if self.seconds:
            delayed.bytes_per_second = problem.step_bytes / self.seconds
        return problem.message_bytes


def timed(rank: int, problem: Problem, link: Link) -> tuple[float, float]:
    """Seconds of one forward and one backward pass on this rank, all ranks starting together."""
    delayed = cast("Delayed", catalogue().provider("communicator", "delayed"))
    delayed.inner = cast("Any", catalogue().provider("communicator", "isend"))
    kernels = cast("Timed", catalogue().provider("backend", "timed"))
    pairs = problem.heads * (problem.tokens // RANKS) ** 2
    kernels.forward_seconds, kernels.backward_seconds = (x / pairs for x in STEP_SECONDS)
    settings: dict[str, Any] = {"message_bytes": link.set_up(delayed, problem)}
    if problem.timed:
        settings["backend"] = "timed"
    layout = rs.Layout(problem.tokens, RANKS)
    generator = torch.Generator().manual_seed(rank)
    shape = (1, layout.sizes[rank], problem.heads, problem.head_dim)
    q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with rs.use(communicator="delayed", **settings):
        dist.barrier()
        start = time.perf_counter()
        out = rs.attention(q, k, v, layout=layout, group=dist.group.WORLD)
        forward = time.perf_counter() - start
        dist.barrier()
        start = time.perf_counter()
        torch.autograd.grad(out, leaves, grad)
        return forward, time.perf_counter() - start


def slowest(ring: Ring, problem: Problem, link: Link) -> tuple[float, float]:
    """The same of the slowest rank."""
    forward, backward = zip(*ring.run(timed, problem, link), strict=True)
    return max(forward), max(backward)


def measured(ring: Ring, problem: Problem, rounds: int) -> list[dict[str, Any]]:
    """One row per link, from rounds in which every link takes its turn, each time another first."""
    alone = {kind: Link(kind, 0.0) for kind in KINDS}
    warm = {kind: [slowest(ring, problem, alone[kind]) for _ in range(4)][1:] for kind in KINDS}
    links = [*alone.values()]
    for kind, found in warm.items():
        step = statistics.median(forward for forward, _ in found) / RANKS
        links += [Link(kind, share * step) for share in SHARES]
    times: dict[Link, list[tuple[float, float]]] = {link: [] for link in links}
    for turn in range(rounds):
        for link in links[turn % len(links) :] + links[: turn % len(links)]:
            times[link].append(slowest(ring, problem, link))
    return [row(problem, link, times[link], times[alone[link.kind]]) for link in sorted(links)]


def row(
    problem: Problem,
    link: Link,
    found: Sequence[tuple[float, float]],
    alone: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """A link's figures beside their bounds: medians, of ratios within each round."""
    messages = 1 if link.kind == "whole" else problem.parts
    first = link.seconds / messages
    steps, computes = ([forward / RANKS for forward, _ in each] for each in (found, alone))
    backwards, backward_computes = ([back for _, back in each] for each in (found, alone))
    # Gradients travel in float32, as the rows do here.
    bounds = [first + max(compute, 2 * link.seconds - first) for compute in backward_computes]
    median = statistics.median
    return {
        "link": link.kind,
        "messages": messages,
        "transfer": link.seconds,
        "compute": median(computes),
        "step": median(steps),
        "ratio": median(
            step / max(compute, link.seconds) for step, compute in zip(steps, computes, strict=True)
        ),
        "hidden": link.seconds <= median(computes),
        "backward": median(backwards),
        "backward_compute": median(backward_computes),
        "backward_bound": median(bounds),
        "backward_ratio": median(
            took / bound for took, bound in zip(backwards, bounds, strict=True)
        ),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ("link", "transfer", "compute", "step", "ratio", "backward", "bound", "ratio")
    lines = [("{:>9}" * len(head)).format(*head)]
    for each in rows:
        ms = [1000 * each[name] for name in ("transfer", "compute", "step")]
        back = [1000 * each[name] for name in ("backward", "backward_bound")]
        lines.append(
            f"{each['link']:>9}{ms[0]:9.1f}{ms[1]:9.1f}{ms[2]:9.1f}{each['ratio']:9.3f}"
            f"{back[0]:9.1f}{back[1]:9.1f}{each['backward_ratio']:9.3f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", choices=("real", "timed"), default="real")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--message-bytes", type=int, default=2**20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    timed = given.kernels == "timed"
    problem = Problem(given.tokens, given.heads, given.head_dim, given.message_bytes, timed)
    with (
        plugged_in("timed", "timed_kernels"),
        plugged_in("delayed", "ringspan.testing.delayed"),
        contextlib.closing(Ring(RANKS)) as ring,
    ):
        rows = measured(ring, problem, given.rounds)
    print(f"ms, medians of {given.rounds} interleaved rounds; {problem.parts} parts\n{table(rows)}")
    report = {
        "problem": vars(problem) | {"parts": problem.parts, "step_bytes": problem.step_bytes},
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": detect("cpu").name,
            "threads": 1,
        },
        "rounds": given.rounds,
        "limit": LIMIT,
        "rows": rows,
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=2) + "\n")
    over = [each for each in rows if each["hidden"] and each["ratio"] > LIMIT]
    print(f"{len(over)} of {sum(each['hidden'] for each in rows)} hidden transfers above {LIMIT}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
