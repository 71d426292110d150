"""The `ringspan` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; says which extra to install where the command line's are missing."""
    from ringspan.cli.extras import missing

    advice = missing("typer", "rich")
    if advice:
        sys.stderr.write(f"{advice}\n")
        raise SystemExit(2)
    from ringspan.cli.app import app

    app()
