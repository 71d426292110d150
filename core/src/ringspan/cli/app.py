"""The commands together, and what they share: `--version`, `--debug`, one line per error."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ringspan.cli import autotune, demo, doctor, explain, generate, plot, plugin
from ringspan.contracts.errors import RingspanError

__all__ = ["app"]


class _OneLinePerError(TyperGroup):
    """Shows an expected error as one red line and exits with 2; `--debug` shows the traceback.

    Expected is what Ringspan raises on purpose, and a problem larger than memory.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (RingspanError, MemoryError) as error:
            if ctx.params.get("debug"):
                raise
            told = _out_of_memory(error) if isinstance(error, MemoryError) else _in_options(error)
            Console(stderr=True, soft_wrap=True).print(Text(f"error: {told}", style="red"))
            raise typer.Exit(2) from error


def _out_of_memory(error: MemoryError) -> RingspanError:
    return RingspanError(
        "memory",
        expected="enough for this problem",
        got=str(error) or "too little",
        remedy="Describe fewer tokens",
    )


def _in_options(error: RingspanError) -> RingspanError:
    """With the remedy that a command line has, where it is another one than Python's."""
    from ringspan.contracts.tokens import Sequence

    if error.argument != "tokens" or not error.got.startswith(Sequence.__name__ + "("):
        return error
    return RingspanError(
        "--n",
        expected=error.expected,
        got=error.got,
        remedy="Give --grid or --points instead; a pattern's --along also takes --fold",
    )


app = typer.Typer(
    name="ringspan",
    help="Exact long-context attention for PyTorch: what is here, what would run, and a demo.",
    cls=_OneLinePerError,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if not asked:
        return
    import ringspan
    from ringspan.catalogue import catalogue

    typer.echo(f"ringspan {ringspan.__version__} (Python {sys.version.split()[0]})")
    for found in catalogue().plugins():
        offers = ", ".join(f"{kind} {name}" for kind, name in found.providers)
        typer.echo(f"  {found.name} {found.version}: {offers or found.state}")
    raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, help="Versions of Ringspan and its plugins."),
    ] = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    pass


app.command("doctor")(doctor.doctor)
app.command("explain")(explain.explain)
app.command("autotune")(autotune.autotune)
app.add_typer(plot.app, name="plot")
app.add_typer(plugin.app, name="plugin")
app.command("demo")(demo.demo)
app.command("generate")(generate.generate)
