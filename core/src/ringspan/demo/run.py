"""The demo from text to report, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ringspan.contracts.errors import InvalidArgument
from ringspan.demo import checkpoint, ring
from ringspan.demo.data import Text, held_out_windows, load_text, order0_entropy
from ringspan.demo.evaluate import bits_per_byte, summed_nats
from ringspan.demo.interrupt import Interrupts
from ringspan.demo.memory import peak_memory
from ringspan.demo.progress import training_bar
from ringspan.demo.report import write_report
from ringspan.demo.results import Results, write_json
from ringspan.demo.settings import Settings
from ringspan.demo.train import Training

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Interrupted", "Job", "run"]

_STEPS_BETWEEN_SAVES = 25


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The user asked to stop; the run is on disk up to `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass(frozen=True)
class Job:
    """What to run, on what, and where to leave it.

    `resume` True continues the run in `out`, False starts again, None continues an unfinished
    run with the same settings and text and otherwise starts one.
    """

    settings: Settings
    text: tuple[Path, ...] = ()
    out: Path = Path("demo-run")
    resume: bool | None = None
    world_size: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.world_size <= self.settings.context:
            raise InvalidArgument(
                "world_size", expected=f"1 .. {self.settings.context}", got=str(self.world_size)
            )
        if self.out.exists() and not self.out.is_dir():
            raise InvalidArgument("--out", expected="a folder or a new name", got=f"{self.out}")

    @property
    def checkpoint(self) -> Path:
        """Weights and everything needed to go on."""
        return self.out / checkpoint.FILE_NAME

    @property
    def results(self) -> Path:
        """All numbers, as JSON."""
        return self.out / "results.json"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.out / "report.html"


def run(job: Job, console: Console) -> Results:
    """Trains, evaluates, evaluates again as a ring, and writes the report.

    Raises:
        InvalidArgument: before anything is written, where text, settings and `out` do not fit.
        Interrupted: after Ctrl-C, with the run saved.
        RingError: where the ring fails; `resume` then starts from the trained model.
    """
    text = load_text(job.text, context=job.settings.context)
    console.print(
        f"Text: {text.name}: {len(text.training):,} bytes to learn from, "
        f"{len(text.held_out):,} held out",
        highlight=False,
    )
    training = _opened(job, text, console)
    _train(training, text, job, console)
    windows = held_out_windows(text, job.settings.context)
    results = _evaluated(training, windows, text, job, console)
    with console.status("Writing the report"):
        write_report(results, job.report)
        write_json(results, job.results)
    return results


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgument(
            "--out", expected="a folder that can be made", got=f"{out}: {error.strerror}"
        ) from error


def _opened(job: Job, text: Text, console: Console) -> Training:
    fresh = job.resume is False or (
        job.resume is None and (job.results.exists() or not job.checkpoint.exists())
    )
    if fresh:
        _make_folder(job.out)
        for stale in (job.checkpoint, job.report, job.results):
            stale.unlink(missing_ok=True)
        return Training.begin(job.settings, text.digest)
    if not job.checkpoint.exists():
        raise InvalidArgument(
            "--resume", expected="a run to go on with", got=f"no {job.checkpoint}"
        )
    header = checkpoint.read_header(job.checkpoint)
    differences = job.settings.differences(header.settings)
    if header.text_digest != text.digest:
        differences.append("another text")
    if differences:
        raise InvalidArgument(
            "--out",
            expected=f"a run with these settings and this text in {job.out}",
            got="; ".join(differences),
            remedy="Repeat that run's options, start again with --fresh, or choose another --out",
        )
    console.print(f"Going on after step {len(header.losses)} of {job.settings.steps}")
    return checkpoint.load(job.checkpoint)


def _train(training: Training, text: Text, job: Job, console: Console) -> None:
    with Interrupts() as interrupts, training_bar(training, console) as advance:
        for step in training.steps(text):
            advance(step)
            last = step.number == training.settings.steps
            if last or interrupts.requested or step.number % _STEPS_BETWEEN_SAVES == 0:
                checkpoint.save(job.checkpoint, training)
            if interrupts.requested:
                raise Interrupted(step.number)


def _evaluated(
    training: Training, windows: Tensor, text: Text, job: Job, console: Console
) -> Results:
    with console.status("Held-out loss in this process"):
        alone = bits_per_byte(summed_nats(training.model, windows), windows)
    with console.status(f"Held-out loss as a ring of {job.world_size} processes"):
        together = ring.measure(job.checkpoint, windows, job.world_size)
    return Results(
        settings=job.settings,
        text=text.name,
        training_losses=tuple(training.losses),
        training_seconds=training.seconds,
        peak_memory=peak_memory(),
        held_out_bytes=windows[:, 1:].numel(),
        held_out_loss=alone,
        order0_entropy=order0_entropy(windows),
        ring_loss=together.bits_per_byte,
        ring_seconds=together.seconds,
        ring_bytes_received=together.bytes_received,
        planned_bytes_received=ring.planned_bytes(job.settings, len(windows), job.world_size),
        explanation=ring.explain_one_call(job.settings, job.world_size).as_dict(),
    )
