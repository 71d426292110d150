"""`ringspan demo`: train, measure, measure again as a ring, report."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ringspan.cli.extras import require
from ringspan.demo.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from ringspan.demo.results import Results
    from ringspan.demo.run import Job

__all__ = ["demo"]

_INTERRUPTED = 130


def demo(
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="More paths for --text.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="PATH...",
            help="Files and folders to learn from; default: the Python standard library's sources.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for everything the run writes.")] = Path(
        "demo-run"
    ),
    steps: Annotated[int, typer.Option(help="Training steps.")] = Settings.steps,
    context: Annotated[int, typer.Option(help="Bytes of a window.")] = Settings.context,
    batch: Annotated[int, typer.Option(help="Windows in a step.")] = Settings.batch,
    layers: Annotated[int, typer.Option(help="Transformer blocks.")] = Settings.layers,
    width: Annotated[int, typer.Option(help="Features of a token.")] = Settings.width,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = Settings.heads,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = Settings.learning_rate,
    seed: Annotated[int, typer.Option(help="Of weights and of the order of text.")] = Settings.seed,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16 (mixed).")] = Settings.dtype,
    world_size: Annotated[int, typer.Option(help="Processes in the ring.")] = 2,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Go on with the run in --out, or start again. "
            "Default: go on if it is unfinished and has the same settings and text.",
        ),
    ] = None,
) -> None:
    """Train a byte-level language model with dilated attention, then check it as a ring.

    The held-out loss is computed in one process and again by a ring of processes under torchrun;
    both must agree, and every rank must receive exactly the bytes that the plan says. At default
    settings the loss must also end well below the text's order-0 entropy. report.html shows it all.

    Takes about three minutes on two CPU cores. Ctrl-C saves the run.
    """
    require("safetensors", "matplotlib")
    from rich.console import Console

    from ringspan.demo.run import Interrupted, Job, run

    settings = Settings(steps, context, batch, layers, width, heads, lr, seed, dtype)
    job = Job(settings, (*(text or ()), *(more or ())), out, resume, world_size)
    console = Console(highlight=False)
    try:
        results = run(job, console)
    except Interrupted as interrupted:
        console.print(f"Stopped after step {interrupted.step}; the run is saved in {out}.")
        _say_how_to_resume(job, console)
    except KeyboardInterrupt:
        console.print("Stopped.")
        if job.checkpoint.exists():
            _say_how_to_resume(job, console)
    else:
        _say_results(results, job, console)
        if not results.passed:
            raise typer.Exit(1)
        return
    raise typer.Exit(_INTERRUPTED)


def _say_how_to_resume(job: Job, console: Console) -> None:
    console.print(f"Go on with: {shlex.join(_resume_command(job))}", soft_wrap=True, markup=False)


def _resume_command(job: Job) -> list[str]:
    default = Settings().as_dict()
    words = ["ringspan", "demo", "--resume", "--out", str(job.out)]
    for name, value in job.settings.as_dict().items():
        if value != default[name]:
            option = "lr" if name == "learning_rate" else name
            words += [f"--{option}", str(value)]
    if job.world_size != 2:
        words += ["--world-size", str(job.world_size)]
    for path in job.text:
        words += ["--text", str(path)]
    return words


def _say_results(results: Results, job: Job, console: Console) -> None:
    from ringspan.demo.results import MOST_OF_ENTROPY, RING_TOLERANCE

    _line(
        console,
        results.learnt,
        f"held-out loss {results.held_out_loss:.4f} bits/byte, {results.share_of_entropy:.3f} of "
        f"the order-0 entropy {results.order0_entropy:.4f} (at most {MOST_OF_ENTROPY}"
        f"{'' if results.learning_is_promised else ', at default settings'})",
        promised=results.learning_is_promised,
    )
    _line(
        console,
        results.ring_agrees,
        f"as a ring of {results.world_size}: {results.ring_loss:.4f} bits/byte, relative "
        f"difference {results.ring_difference:.1e} (at most {RING_TOLERANCE:.0e})",
    )
    received = ", ".join(f"{count:,}" for count in results.ring_bytes_received)
    _line(console, results.bytes_agree, f"bytes received per rank: {received} (as planned)")
    console.print(f"Report: {job.report}", soft_wrap=True, markup=False)


def _line(console: Console, good: bool, text: str, *, promised: bool = True) -> None:
    mark, style = ("✓", "green") if good else ("✗", "red") if promised else ("-", "yellow")
    console.print(f"{mark} {text}", style=style, soft_wrap=True, markup=False)
