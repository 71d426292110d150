"""Text from the model of a run, as it comes."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.decoding import Cache, make_caches, stream
from ringspan.demo import checkpoint
from ringspan.demo.interrupt import Interrupts
from ringspan.demo.progress import writing_bar

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ringspan.demo.model import ByteModel

__all__ = ["Writing"]


@dataclass
class Writing:
    """A text in progress: the prompt, and byte after byte from the model.

    Example:
        >>> from rich.console import Console
        >>> writing = Writing.begin(Path("demo-run"), "def ", length=400)  # doctest: +SKIP
        >>> writing.to(Console())  # doctest: +SKIP
    """

    prompt: bytes
    length: int
    tokens: Iterator[Tensor]
    caches: list[Cache]
    written: int = 0
    """Bytes from the model so far."""
    seconds: float = field(default=0.0, init=False)

    @classmethod
    def begin(
        cls,
        run: Path,
        prompt: str,
        *,
        length: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int | None = None,
    ) -> Writing:
        """Loads the model of the run in the folder `run`; arguments as `ringspan.decoding.stream`.

        Raises:
            InvalidArgument: there is no run, or an argument is wrong; names it.
        """
        # Text from a command line keeps bytes that are not UTF-8 in this form.
        start = prompt.encode(errors="surrogateescape")
        if not start:
            raise InvalidArgument("prompt", expected="at least one character", got="none")
        if length < 0:
            raise InvalidArgument("length", expected="an integer >= 0", got=str(length))
        model = _model_of(run)
        caches = make_caches(model, batch=1)
        tokens = stream(
            model,
            torch.tensor([list(start)]),
            max_new_tokens=length,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            caches=caches,
        )
        return cls(start, length, tokens, caches)

    def to(self, console: Console, interrupts: Interrupts | None = None) -> bool:
        """Writes line after line; where `console` is a terminal, above a bar.

        Returns:
            Whether the text is complete: False where an interrupt was requested before its end.
        """
        lines = _Lines(console)
        lines.take(self.prompt)
        started = time.perf_counter()
        try:
            with writing_bar(self.length, console) as advance:
                for token in self.tokens:
                    lines.take(bytes(token.tolist()))
                    self.written += 1
                    advance(self.written / (time.perf_counter() - started))
                    if interrupts is not None and interrupts.requested:
                        return self.written == self.length
            return True
        finally:
            self.seconds = time.perf_counter() - started
            lines.finish()

    @property
    def summary(self) -> str:
        """How long it took, and what the caches hold."""
        rows = max(max(cache.rows_per_head) for cache in self.caches)
        return (
            f"{self.written:,} bytes in {self.seconds:.1f} s; after {self.caches[0].length:,} "
            f"tokens the caches hold at most {rows:,} rows per head"
        )


class _Lines:
    """Bytes as lines of text. What is not text, and what would steer a terminal, is replaced."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def take(self, content: bytes, *, final: bool = False) -> None:
        *lines, self._line = (self._line + self._decoder.decode(content, final)).split("\n")
        for line in lines:
            self._print(line)

    def finish(self) -> None:
        self.take(b"", final=True)
        self._print(self._line)

    def _print(self, line: str) -> None:
        shown = "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in line)
        self._console.print(shown, markup=False, emoji=False, soft_wrap=True)


def _model_of(run: Path) -> ByteModel:
    path = run / checkpoint.FILE_NAME
    if not path.exists():
        raise InvalidArgument(
            "run",
            expected="a folder with a run of `ringspan demo`",
            got=f"no {path}",
            remedy="Run `ringspan demo` first, or name the folder that its --out named",
        )
    return checkpoint.load(path).model.eval()
