"""A tiny model trained on a ring under torchrun, with a checkpoint after every step.

    torchrun --nproc-per-node 3 tests/failing/trainer.py FOLDER STEPS [VICTIM FATAL_STEP]

In the first attempt rank VICTIM kills itself in the middle of step FATAL_STEP. Losses are written
to FOLDER/losses.json as `{attempt: {step: loss}}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import ringspan as rs
import torch
import torch.distributed as dist
from torch import Tensor, nn

TOKENS, WORDS, WIDTH, HEADS = 256, 32, 32, 4
ATTEMPT = os.environ["TORCHELASTIC_RESTART_COUNT"]


class Model(nn.Module):
    """One layer of attention between an embedding and logits."""

    def __init__(self, layout: rs.Layout) -> None:
        super().__init__()
        self.layout = layout
        self.pattern = rs.Dilated((64, TOKENS), (1, 2))
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.mixed = nn.Linear(WIDTH, 3 * WIDTH)
        self.logits = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        rows = self.mixed(self.embedding(words)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        out = rs.attention(
            *rows.unbind(2),
            pattern=self.pattern,
            causal=True,
            layout=self.layout,
            group=dist.group.WORLD,
        )
        logits: Tensor = self.logits(out.flatten(2))
        return logits


def main(folder: Path, steps: int, victim: int = -1, fatal_step: int = -1) -> None:
    """Trains from the last checkpoint, if there is one, to the last step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    rank, layout = dist.get_rank(), rs.Layout(TOKENS, dist.get_world_size(), "zigzag")
    torch.manual_seed(0)
    model = Model(layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(_resume(folder, model, optimizer), steps):
        words = torch.randint(WORDS, (1, TOKENS + 1), generator=torch.Generator().manual_seed(step))
        mine = torch.as_tensor(layout.positions(rank))
        loss = nn.functional.cross_entropy(
            model(words[:, mine])[0], words[0, mine + 1], reduction="sum"
        )
        if ATTEMPT == "0" and rank == victim and step == fatal_step:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        (loss / TOKENS).backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        total = loss.detach() / TOKENS
        dist.all_reduce(total)
        if rank == 0:
            _save(folder, model, optimizer, step, float(total))
    dist.destroy_process_group()


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with."""
    path = folder / "checkpoint.pt"
    # Rank 0 of an attempt that fails may still be writing; the file is replaced in one go.
    if not path.exists():
        return 0
    state = torch.load(path)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step + 1


def _save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, loss: float
) -> None:
    path, losses = folder / "checkpoint.pt", folder / "losses.json"
    written = json.loads(losses.read_text()) if losses.exists() else {}
    written.setdefault(ATTEMPT, {})[step] = loss
    losses.write_text(json.dumps(written))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
