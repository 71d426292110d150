"""Does a ring of several processes on this device give the numbers of one, by the planned bytes?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
import torch.distributed as dist
from gpu_accuracy import NAMES, Worst, attend
from gpu_budget import UNLIMITED, Budget
from gpu_cases import Case, Tried, sample, tried
from ringspan.testing import measure
from ringspan.testing.configuration import DTYPES
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

__all__ = ["check"]

TIMEOUT = timedelta(seconds=90)


@dataclass(frozen=True)
class Ring:
    """So many processes, joined by a backend of `torch.distributed`."""

    transport: str
    world_size: int
    device: str

    def __str__(self) -> str:
        return f"{self.world_size} over {self.transport}"

    @property
    def group(self) -> str:
        """As `init_process_group` takes it."""
        return "cpu:gloo,cuda:nccl" if self.transport == "nccl" else self.transport

    def device_of(self, rank: int) -> torch.device:
        """NCCL refuses two ranks on one GPU, gloo does not."""
        return torch.device("cuda", rank) if self.transport == "nccl" else torch.device(self.device)


@dataclass(frozen=True)
class Answer:
    """One rank's part of one case."""

    tensors: dict[str, torch.Tensor]
    received: int
    planned: int


def check(
    device: torch.device, count: int, largest_N: int, budget: Budget = UNLIMITED
) -> dict[str, Any]:
    """`count` cases on every ring that this device allows, the dtypes in turn."""
    cases = [
        case.of(DTYPES[number % len(DTYPES)])
        for number, case in enumerate(sample(count, largest_N, seed=1))
    ]
    problems = [tried(case, device) for case in cases]
    alone = Worst()
    for problem in problems:
        alone.meet(measure(attend(problem, backend="auto"), problem.exact))
    rings, not_run = _rings(device)
    records = [_record(ring, problems) for ring in rings if budget.allows(str(ring))]
    return {
        "configurations": count,
        "largest_N": largest_N,
        "exact": alone.largest <= 1 and all(record["exact"] for record in records),
        "ratios_of_one_process": alone.ratios,
        "rings": records,
        "not_run": not_run,
        "left_out": budget.left_out,
    }


def _rings(device: torch.device) -> tuple[list[Ring], dict[str, str]]:
    """Rings to run, and the reason for each transport that is not."""
    rings = [Ring("gloo", world_size, str(device)) for world_size in (2, 3)]
    gpus = torch.cuda.device_count()
    if device.type != "cuda":
        return rings, {"nccl": "needs GPUs"}
    if not dist.is_nccl_available():
        return rings, {"nccl": f"torch {torch.__version__} is built without it"}
    if gpus < 2:
        return rings, {"nccl": f"takes one rank per GPU, and here is {gpus}"}
    return [*rings, *(Ring("nccl", n, str(device)) for n in (2, 3) if n <= gpus)], {}


def _record(ring: Ring, problems: list[Tried]) -> dict[str, Any]:
    record: dict[str, Any] = {"transport": ring.transport, "world_size": ring.world_size}
    try:
        answers = _run(ring, [problem.case for problem in problems])
    except (ProcessRaisedException, ProcessExitedException) as failure:
        return {**record, "exact": False, "inexact": [{"what": [str(failure)]}]}
    worst, inexact, received = Worst(), [], 0
    for number, problem in enumerate(problems):
        parts = [of_rank[number] for of_rank in answers]
        found = measure(_joined(_layout(problem.case, ring), parts), problem.exact)
        worst.meet(found)
        received += sum(part.received for part in parts)
        what = [str(each) for each in found.values() if not each.exact]
        what += [
            f"rank {rank} received {part.received} bytes, planned {part.planned}"
            for rank, part in enumerate(parts)
            if part.received != part.planned
        ]
        if what:
            inexact.append({"case": problem.case.as_dict(), "what": what})
    return {
        **record,
        "exact": not inexact,
        "ratios": worst.ratios,
        "bytes_received": received,
        "inexact": inexact,
    }


def _run(ring: Ring, cases: list[Case]) -> list[list[Answer]]:
    """Answers by rank, then by case."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (ring, cases, folder), nprocs=ring.world_size)
        files = [Path(folder) / f"{rank}.pt" for rank in range(ring.world_size)]
        return [[Answer(*answer) for answer in torch.load(file)] for file in files]


def _rank(rank: int, ring: Ring, cases: list[Case], folder: str) -> None:
    """What each process does: joins the group, computes its part of every case, writes it."""
    torch.set_num_threads(1)
    device = ring.device_of(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        ring.group,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ring.world_size,
        timeout=TIMEOUT,
    )
    answers = [_attend(rank, ring, case, device) for case in cases]
    torch.save(answers, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _attend(
    rank: int, ring: Ring, case: Case, device: torch.device
) -> tuple[dict[str, torch.Tensor], int, int]:
    layout = _layout(case, ring)
    q, k, v, grad_out = (layout.shard(x, rank).to(device) for x in case.configuration.inputs())
    for x in (q, k, v):
        x.requires_grad_()
    options: dict[str, Any] = {
        "pattern": case.pattern,
        "causal": case.configuration.causal,
        "scale": case.scale(),
        "layout": layout,
        "group": dist.group.WORLD,
        "backend": "auto",
    }
    out, lse = rs.attention(q, k, v, return_lse=True, **options)
    run = rs.last_run()
    assert run is not None
    grads = torch.autograd.grad(out, (q, k, v), grad_out)
    planned = rs.explain(q, k, v, **options).ranks[rank].cost.bytes_received
    tensors = (out.detach(), lse, *grads)
    named = {name: x.cpu() for name, x in zip(NAMES, tensors, strict=True)}
    return named, run.bytes_received, planned


def _layout(case: Case, ring: Ring) -> rs.Layout:
    """Grids are stored along the curve; ranks of cases with an odd length hold unequal shares."""
    tokens = case.tokens or case.configuration.N
    weights = tuple(1.0 + rank for rank in range(ring.world_size))
    return rs.Layout(
        tokens,
        ring.world_size,
        "hilbert" if case.tokens else None,
        weights if case.configuration.N % 2 else None,
    )


def _joined(layout: rs.Layout, parts: list[Answer]) -> dict[str, torch.Tensor]:
    """All ranks' rows in order of position."""
    positions = torch.cat([layout.positions(rank) for rank in range(layout.world_size)])
    whole = {}
    for name in NAMES:
        dim = 2 if name == "lse" else 1
        stored = torch.cat([part.tensors[name] for part in parts], dim)
        whole[name] = torch.empty_like(stored).index_copy_(dim, positions, stored)
    return whole
