"""Text as bytes: where it comes from, what is held out, and which window a step sees."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.errors import InvalidArgument
from ringspan.demo.settings import Settings

__all__ = ["Text", "held_out_windows", "load_text", "order0_entropy", "training_windows"]

TRAINING_BYTES = 8 * 2**20
HELD_OUT_BYTES = 2**20
HELD_OUT_WINDOWS = 8

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True, eq=False)
class Text:
    """Bytes to learn from and bytes to be judged by, both uint8 `[n]`."""

    name: str
    training: Tensor
    held_out: Tensor
    digest: str
    """Names the content of both parts."""


@dataclass(frozen=True)
class _File:
    path: Path
    key: bytes
    """Decides the file's place and side; the same wherever its folder stands."""

    @classmethod
    def of(cls, path: Path, name: str) -> _File:
        return cls(path, hashlib.sha256(name.encode(errors="surrogateescape")).digest())

    @property
    def held_out(self) -> bool:
        return self.key[0] % 10 == 0


def load_text(paths: Sequence[Path], *, context: int) -> Text:
    """Reads text and splits it: about one file in ten is held out, chosen by a hash of its path.

    Where that leaves either side shorter than a window (few files), the last tenth of the bytes
    is held out instead. Reads at most `TRAINING_BYTES` and `HELD_OUT_BYTES`; files come in the
    order of their hashes, so the bound takes a fair sample, the same one each time.

    Args:
        paths: files and folders (hidden and binary files in them are left out); none: the
            sources of Python's standard library on this machine.
        context: tokens of a window; each side must hold at least one, and its last target.

    Raises:
        InvalidArgument: where a path does not exist or cannot be read, or there is too little.
    """
    name = ", ".join(map(str, paths)) or "the Python standard library"
    files = sorted(_files(paths), key=lambda file: file.key)
    training = _read((file for file in files if not file.held_out), TRAINING_BYTES)
    held_out = _read((file for file in files if file.held_out), HELD_OUT_BYTES)
    needed = context + 1
    if min(len(training), len(held_out)) < needed:
        training, held_out = _cut(_read(files, TRAINING_BYTES + HELD_OUT_BYTES), needed, name)
    digest = hashlib.sha256(training + bytes(8) + held_out).hexdigest()
    return Text(name, _tensor(training), _tensor(held_out), digest)


def _files(paths: Sequence[Path]) -> Iterator[_File]:
    if not paths:
        root = Path(sysconfig.get_path("stdlib"))
        for path in root.rglob("*.py"):
            inside = path.relative_to(root)
            if not _NOT_LIBRARY.intersection(inside.parts):
                yield _File.of(path, inside.as_posix())
    for path in paths:
        if path.is_file():
            yield _File.of(path, path.name)
        elif path.is_dir():
            yield from _folder(path)
        else:
            got = "something else" if path.exists() else "nothing there"
            raise InvalidArgument("--text", expected="a file or folder", got=f"{path}: {got}")


def _folder(root: Path) -> Iterator[_File]:
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and path.is_file() and b"\0" not in _head(path, 8192):
            yield _File.of(path, inside.as_posix())


def _read(files: Iterable[_File], limit: int) -> bytes:
    """The files' bytes, a newline between them, as many as fit in `limit`."""
    text = bytearray()
    for file in files:
        if len(text) >= limit:
            break
        text += _head(file.path, limit - len(text)) + b"\n"
    return bytes(text[:limit])


def _head(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(limit)
    except OSError as error:
        raise InvalidArgument(
            "--text", expected="readable files", got=f"{path}: {error.strerror}"
        ) from error


def _cut(text: bytes, needed: int, name: str) -> tuple[bytes, bytes]:
    if len(text) < 2 * needed:
        raise InvalidArgument(
            "--text",
            expected=f"at least {2 * needed:,} bytes (one window to train on, one held out)",
            got=f"{len(text):,} bytes in {name}",
            remedy="Give more text with --text, or a shorter --context",
        )
    cut = len(text) - min(max(len(text) // 10, needed), HELD_OUT_BYTES)
    return text[:cut], text[cut:]


def _tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def training_windows(text: Text, settings: Settings, step: int) -> Tensor:
    """The windows of one step, int64 `[batch, context + 1]`.

    A pure function of the seed and the step, so that resuming needs no saved position. The text
    is cut into windows at a random phase and dealt without repetition; then again, at another.
    """
    length = settings.context + 1
    spare = len(text.training) - length
    per_round = spare // settings.context + 1
    windows = []
    for index in range(step * settings.batch, (step + 1) * settings.batch):
        deal, place = divmod(index, per_round)
        random = np.random.default_rng((settings.seed, deal))
        phase = int(random.integers(spare % settings.context + 1))
        start = phase + int(random.permutation(per_round)[place]) * settings.context
        windows.append(text.training[start : start + length])
    return torch.stack(windows).long()


def held_out_windows(text: Text, context: int) -> Tensor:
    """The first held-out windows, at most `HELD_OUT_WINDOWS`: uint8 `[windows, context + 1]`.

    Neighbours share one byte: the last target of one is the first input of the next.
    """
    return text.held_out.unfold(0, context + 1, context)[:HELD_OUT_WINDOWS].contiguous()


def order0_entropy(windows: Tensor) -> float:
    """Bits per byte of a perfect model that knows only how often each target byte occurs."""
    counts = torch.bincount(windows[:, 1:].flatten().long(), minlength=256).double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())
