"""Training: one step after the other, each decided by the settings, the text and its number."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from ringspan.contracts.errors import RingspanError
from ringspan.demo.data import Text, training_windows
from ringspan.demo.model import ByteModel, summed_loss
from ringspan.demo.settings import Settings

__all__ = ["Step", "Training", "learning_rate"]


@dataclass(frozen=True)
class Step:
    """What a finished step has to say."""

    number: int
    """1 for the first."""
    bits_per_byte: float
    tokens_per_second: float


@dataclass
class Training:
    """A run in progress."""

    settings: Settings
    text_digest: str
    model: ByteModel
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)
    """Training loss of each finished step, in bits per byte."""
    seconds: float = 0.0
    """Time spent in steps, over all sittings."""

    @classmethod
    def begin(cls, settings: Settings, text_digest: str) -> Training:
        """A run before its first step."""
        model = ByteModel(settings)
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
        )
        return cls(settings, text_digest, model, optimizer)

    def steps(self, text: Text) -> Iterator[Step]:
        """Takes the remaining steps; whoever iterates may stop after any of them."""
        while len(self.losses) < self.settings.steps:
            started = time.perf_counter()
            bits = self._step(text, len(self.losses))
            took = time.perf_counter() - started
            self.losses.append(bits)
            self.seconds += took
            yield Step(len(self.losses), bits, self.settings.tokens_per_step / took)

    def _step(self, text: Text, index: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, index)
        windows = training_windows(text, self.settings, index)
        with _precision(self.settings.dtype):
            logits = self.model(windows[:, :-1])
        loss = summed_loss(logits, windows[:, 1:]) / self.settings.tokens_per_step
        if not torch.isfinite(loss):
            raise RingspanError(
                "loss",
                expected="a finite number",
                got=f"{loss.item()} at step {index + 1}",
                remedy="Try a lower --lr",
            )
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item() / math.log(2)


def learning_rate(settings: Settings, index: int) -> float:
    """A linear rise over the first tenth of the steps, then half a cosine down to a tenth."""
    rise = max(1, settings.steps // 10)
    if index < rise:
        return settings.learning_rate * (index + 1) / rise
    done = (index - rise) / max(1, settings.steps - rise)
    return settings.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def _precision(dtype: str) -> AbstractContextManager[object]:
    """Weights stay float32; `bfloat16` computes products in it."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, dtype))
