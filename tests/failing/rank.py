"""One rank that trains until something stops it, and writes down what that was.

    python tests/failing/rank.py FOLDER FILE_STORE|env:// TIMEOUT zigzag|none

`TIMEOUT` is the group's, in seconds. Without a layout (`none`) each call asks how many rows every
rank holds. `RANK` and `WORLD_SIZE` come from the environment, as `torch.distributed` has it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.errors import RingError

TOKENS = 1024


def main(folder: Path, store: str, timeout: float, ordering: str) -> None:
    """Trains; an error ends the process as it would end a user's."""
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    layout = None if ordering == "none" else rs.Layout(TOKENS, world_size, ordering)
    # The first step imports what steps need, which takes long on a busy machine.
    next(training(layout, dist.group.WORLD))
    dist.barrier()
    group = dist.new_group(timeout=timedelta(seconds=timeout))
    try:
        for step in training(layout, group):
            (folder / f"{rank}.steps").write_text(str(step))
    except RingError as error:
        (folder / f"{rank}.json").write_text(json.dumps(described(error)))
        raise
    finally:
        # Not everybody does, and then the end of the process has to do.
        if rank % 2:
            dist.destroy_process_group()


def training(layout: rs.Layout | None, group: dist.ProcessGroup | None) -> Iterator[int]:
    """Steps of attention, forward and backward, for ever."""
    rows, pattern = TOKENS // dist.get_world_size(), rs.Dilated((256, TOKENS), (1, 2))
    q, k, v = torch.randn(3, 1, rows, 4, 32).requires_grad_().unbind(0)
    for step in itertools.count():
        out = rs.attention(q, k, v, pattern=pattern, causal=True, layout=layout, group=group)
        torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
        yield step


def described(error: RingError) -> dict[str, object]:
    """What a test wants to know of it."""
    return {
        "kind": type(error).__name__,
        "rank": error.rank,
        "peer": error.peer,
        "step": error.step,
        "direction": error.direction,
        "text": str(error),
        "at": time.monotonic(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4])
