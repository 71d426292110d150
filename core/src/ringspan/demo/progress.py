"""The bars that show a training run, and a text that is being written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ringspan.demo.memory import peak_memory
from ringspan.demo.train import Step, Training

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["training_bar", "writing_bar"]


@contextmanager
def training_bar(training: Training, console: Console) -> Iterator[Callable[[Step], None]]:
    """Draws the bar while entered; the function it gives takes each finished step."""
    progress = Progress(
        TextColumn("Training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
        console=console,
    )
    task = progress.add_task(
        "", total=training.settings.steps, completed=len(training.losses), facts=""
    )
    with progress:
        yield lambda step: progress.update(task, completed=step.number, facts=_facts(step))


def _facts(step: Step) -> str:
    facts = [f"{step.bits_per_byte:.3f} bits/byte", f"{step.tokens_per_second:,.0f} tokens/s"]
    memory = peak_memory()
    if memory is not None:
        facts.append(f"peak {memory / 2**20:,.0f} MiB")
    return ", ".join(facts)


@contextmanager
def writing_bar(length: int, console: Console) -> Iterator[Callable[[float], None]]:
    """Draws the bar below the text while entered, on a terminal only.

    The function it gives takes note of one more byte, at so many per second.
    """
    progress = Progress(
        TextColumn("Writing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", total=length, facts="")
    with progress:
        yield lambda speed: progress.update(task, advance=1, facts=f"{speed:,.0f} bytes/s")
