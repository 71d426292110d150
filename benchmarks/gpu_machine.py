"""Where results come from: the machine, the versions, and which providers it can use."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import ringspan as rs
import torch
from gpu_site import ROOT
from ringspan.catalogue import catalogue
from ringspan.contracts import AttentionBackend
from ringspan_registry import detect

__all__ = ["describe", "providers", "slug", "usable_backends"]


def describe(device: torch.device) -> dict[str, Any]:
    """Facts that a reader of a figure needs."""
    info = detect(device)
    is_gpu = device.type == "cuda"
    return {
        "note": "" if is_gpu else "not a GPU: a run of the harness on the CPU, no figure of a GPU",
        "device": str(device),
        "name": info.name,
        "compute_capability": info.compute_capability,
        "memory_total": info.memory_total,
        "gpus": torch.cuda.device_count(),
        "driver": info.driver,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if is_gpu else None,
        "nccl": _nccl() if is_gpu else None,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "ringspan": rs.__version__,
        "ringspan_from": "sources" if _is_source(rs.__file__) else "wheels",
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def providers(device: torch.device) -> list[dict[str, Any]]:
    """Every plugin and provider: whether it is usable on `device`, and if not, why."""
    info = detect(device)
    found = []
    for record in catalogue().plugins():
        facts = {"plugin": record.name, "state": str(record.state), "reason": record.reason}
        if not record.providers:
            found.append({**facts, "kind": "", "name": "", "usable": False})
        for kind, name in record.providers:
            answer = catalogue().probe(kind, name, info)
            facts["reason"] = "; ".join(part for part in (answer.reason, answer.remedy) if part)
            found.append({**facts, "kind": kind, "name": name, "usable": answer.usable})
    return found


def usable_backends(device: torch.device) -> list[AttentionBackend]:
    """Those whose probe says so, the registry's first choice for `device` first."""
    info = detect(device)
    found = [
        cast("AttentionBackend", catalogue().provider(kind, name))
        for record in catalogue().plugins()
        for kind, name in record.providers
        if kind == "backend" and catalogue().probe(kind, name, info).usable
    ]
    return sorted(found, key=lambda backend: -backend.priority(info))


def slug(name: str) -> str:
    """`NVIDIA H200` as the name of a folder: `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _is_source(file: str | None) -> bool:
    return file is not None and Path(file).resolve().is_relative_to(ROOT / "core" / "src")


def _nccl() -> str | None:
    if not torch.distributed.is_nccl_available():
        return None
    return ".".join(str(part) for part in torch.cuda.nccl.version())


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is checked out; None in a copy without its history, or without git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
