"""What a finished demo found, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ringspan.demo.files import replacing
from ringspan.demo.settings import Settings

__all__ = ["MOST_OF_ENTROPY", "RING_TOLERANCE", "Results", "write_json"]

MOST_OF_ENTROPY = 0.85
"""The held-out loss may be at most this share of the text's order-0 entropy."""
RING_TOLERANCE = 1e-5
"""How far, relatively, the ring's loss may be from one process's."""


@dataclass(frozen=True)
class Results:
    """Numbers of one run; losses and entropy in bits per byte."""

    settings: Settings
    text: str
    training_losses: tuple[float, ...]
    training_seconds: float
    peak_memory: int | None
    """Bytes; None where the platform does not say."""
    held_out_bytes: int
    held_out_loss: float
    order0_entropy: float
    ring_loss: float
    ring_seconds: float
    ring_bytes_received: tuple[int, ...]
    """By the communicator's count, per rank."""
    planned_bytes_received: tuple[int, ...]
    """By the plan, per rank."""
    explanation: dict[str, Any]
    """`ringspan.explain` of one attention call of the ring."""

    @property
    def share_of_entropy(self) -> float:
        """Held-out loss over order-0 entropy."""
        return self.held_out_loss / self.order0_entropy

    @property
    def ring_difference(self) -> float:
        """Relative difference between the ring's loss and one process's."""
        return abs(self.ring_loss - self.held_out_loss) / self.held_out_loss

    @property
    def learnt(self) -> bool:
        """Whether the model beats byte frequencies by the margin that the demo promises."""
        return self.share_of_entropy <= MOST_OF_ENTROPY

    @property
    def learning_is_promised(self) -> bool:
        """Only a run at default settings is held to that margin."""
        return self.settings == Settings()

    @property
    def ring_agrees(self) -> bool:
        """Whether the ring found the same loss."""
        return self.ring_difference <= RING_TOLERANCE

    @property
    def bytes_agree(self) -> bool:
        """Whether every rank received exactly the bytes that the plan says."""
        return self.ring_bytes_received == self.planned_bytes_received

    @property
    def passed(self) -> bool:
        """Whether everything that this run promises holds."""
        learnt = self.learnt or not self.learning_is_promised
        return learnt and self.ring_agrees and self.bytes_agree

    @property
    def world_size(self) -> int:
        """Processes in the ring."""
        return len(self.planned_bytes_received)


def write_json(results: Results, path: Path) -> None:
    """All numbers and verdicts as JSON, atomically."""
    verdicts = (
        "share_of_entropy",
        "ring_difference",
        "learnt",
        "ring_agrees",
        "bytes_agree",
        "passed",
    )
    content = asdict(results) | {name: getattr(results, name) for name in verdicts}
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(content, indent=2) + "\n")
