"""The held-out loss again, as a ring of processes under torchrun over gloo.

`measure` is the parent's side. The module itself, run by torchrun, is one rank:
`python -m torch.distributed.run --standalone --nproc-per-node 2 -m ringspan.demo.ring FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

import ringspan as rs
from ringspan.contracts.errors import InvalidArgument, RingError
from ringspan.demo import checkpoint
from ringspan.demo.evaluate import bits_per_byte, summed_nats
from ringspan.demo.model import ByteModel
from ringspan.demo.settings import Settings

if TYPE_CHECKING:
    from ringspan.api import Explanation

__all__ = ["RingResult", "explain_one_call", "measure", "planned_bytes"]

_WINDOWS = "windows.safetensors"
_TASK = "task.json"
_RESULT = "result.json"
_ERROR = "error-of-rank-"
_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class RingResult:
    """What the ring found."""

    bits_per_byte: float
    bytes_received: tuple[int, ...]
    """Counted by the communicator, per rank, over all layers and windows."""
    seconds: float


def measure(checkpoint_path: Path, windows: Tensor, world_size: int) -> RingResult:
    """Held-out loss of a saved model, computed by `world_size` processes.

    Raises:
        RingError: where a process fails, with the end of what it wrote.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ringspan-ring-") as name:
        folder = Path(name)
        save_file({"windows": windows}, folder / _WINDOWS)
        task = {"checkpoint": str(checkpoint_path.absolute())}
        (folder / _TASK).write_text(json.dumps(task))
        _torchrun(folder, world_size)
        result = json.loads((folder / _RESULT).read_text())
    return RingResult(
        bits_per_byte=bits_per_byte(sum(result["nats"]), windows),
        bytes_received=tuple(result["bytes_received"]),
        seconds=time.perf_counter() - started,
    )


def explain_one_call(settings: Settings, world_size: int) -> Explanation:
    """The plan and the decisions of one layer's attention over one window."""
    return rs.explain(
        rs.Inputs(
            N=settings.context,
            heads=settings.heads,
            head_dim=settings.width // settings.heads,
            needs_backward=False,
        ),
        pattern=rs.Dilated(settings.segment_lengths, settings.dilation_rates),
        causal=True,
        layout=rs.Layout(settings.context, world_size),
    )


def planned_bytes(settings: Settings, windows: int, world_size: int) -> tuple[int, ...]:
    """What the plan says each rank receives for that many windows, over all layers."""
    calls = settings.layers * windows
    ranks = explain_one_call(settings, world_size).ranks
    return tuple(calls * rank.cost.bytes_received for rank in ranks)


def _torchrun(folder: Path, world_size: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(world_size), "-m", "ringspan.demo.ring", str(folder)]
    # Its own session: Ctrl-C comes to this process, which then stops the ring in good order.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Modules of the folder in which the user happens to stand must not shadow the ring's.
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_PATIENCE.total_seconds())
    except subprocess.TimeoutExpired as error:
        raise _failed(world_size, f"no result after {_PATIENCE}") from error
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise _failed(world_size, _first_error(folder) or output[-2000:])


def _failed(world_size: int, got: str) -> RingError:
    return RingError(
        "ring", expected=f"a result from {world_size} processes under torchrun", got=got
    )


def _first_error(folder: Path) -> str:
    """What the rank that failed first had to say; the others only lost their peer."""
    errors = sorted(folder.glob(f"{_ERROR}*"), key=lambda path: path.stat().st_mtime_ns)
    return errors[0].read_text() if errors else ""


def main(arguments: list[str]) -> None:
    """One rank: reads the task in the folder; rank 0 writes the result there."""
    if len(arguments) != 1:
        raise InvalidArgument("arguments", expected="the task's folder", got=repr(arguments))
    folder = Path(arguments[0])
    try:
        _take_part(folder)
    except Exception as error:
        (folder / f"{_ERROR}{os.environ['RANK']}").write_text(f"{type(error).__name__}: {error}")
        raise


def _take_part(folder: Path) -> None:
    task = json.loads((folder / _TASK).read_text())
    windows = load_file(folder / _WINDOWS)["windows"]
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        training = checkpoint.load(Path(task["checkpoint"]))
        parts = _gather(_own_part(training.model, windows))
        if dist.get_rank() == 0:
            result = {name: [part[name] for part in parts] for name in parts[0]}
            (folder / _RESULT).write_text(json.dumps(result))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _own_part(model: ByteModel, windows: Tensor) -> dict[str, Any]:
    received: list[int] = []

    def count(*_: object) -> None:
        run = rs.last_run()
        assert run is not None
        received.append(run.bytes_received)

    for module in model.modules():
        if isinstance(module, rs.nn.SelfAttention):
            module.register_forward_hook(count)
    layout = rs.Layout(windows.shape[1] - 1, dist.get_world_size())
    nats = summed_nats(model, windows, layout=layout, rank=dist.get_rank(), group=dist.group.WORLD)
    return {"nats": nats, "bytes_received": sum(received)}


def _gather(part: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


if __name__ == "__main__":
    main(sys.argv[1:])
