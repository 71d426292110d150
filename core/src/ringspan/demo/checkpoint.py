"""A run on disk: weights, optimizer state and everything else that a resumed run needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ringspan.contracts.errors import InvalidArgument
from ringspan.demo.files import replacing
from ringspan.demo.settings import Settings
from ringspan.demo.train import Training

__all__ = ["FILE_NAME", "Header", "load", "read_header", "save"]

FILE_NAME = "checkpoint.safetensors"
"""In the folder of a run."""

_FORMAT = "1"


class Header:
    """What a checkpoint says of itself before its tensors are read."""

    def __init__(self, path: Path, metadata: dict[str, str]) -> None:
        if metadata.get("format") != _FORMAT:
            raise _unreadable(path, f"format {metadata.get('format')}, not {_FORMAT}")
        facts: dict[str, Any] = json.loads(metadata["run"])
        self.settings = Settings(**facts["settings"])
        self.text_digest: str = facts["text"]
        self.losses: list[float] = facts["losses"]
        self.seconds: float = facts["seconds"]

    @property
    def finished(self) -> bool:
        """Whether every step has been taken."""
        return len(self.losses) == self.settings.steps


def save(path: Path, training: Training) -> None:
    """Writes a safetensors file, atomically: an interrupted write leaves the old file.

    Tensors: `model.<parameter>` and, for AdamW, `optimizer.<parameter>.<state>`. The metadata
    holds the settings, the text's digest and the losses so far, whose number is the step. The
    data of a step follows from the seed and the step, and nothing else is random.
    """
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    for name, parameter in training.model.named_parameters():
        for key, value in training.optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    run = {
        "settings": training.settings.as_dict(),
        "text": training.text_digest,
        "losses": training.losses,
        "seconds": training.seconds,
    }
    with replacing(path) as fresh:
        save_file(tensors, fresh, metadata={"format": _FORMAT, "run": json.dumps(run)})


def read_header(path: Path) -> Header:
    """The header of a checkpoint; `InvalidArgument` where the file is not one."""
    return _read(path, tensors=False)[0]


def load(path: Path) -> Training:
    """The run as it was saved: training on from it equals never having stopped, bit for bit."""
    header, tensors = _read(path, tensors=True)
    training = Training.begin(header.settings, header.text_digest)
    training.losses = header.losses
    training.seconds = header.seconds
    model = {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if name.startswith("model.")
    }
    training.model.load_state_dict(model)
    for name, parameter in training.model.named_parameters():
        prefix = f"optimizer.{name}."
        training.optimizer.state[parameter] = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    return training


def _read(path: Path, *, tensors: bool) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = Header(path, file.metadata() or {})
            names = file.keys() if tensors else ()
            return header, {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        "checkpoint",
        expected="a checkpoint of `ringspan demo`",
        got=f"{path}: {reason}",
        remedy="Start again with --fresh, or choose another --out",
    )
