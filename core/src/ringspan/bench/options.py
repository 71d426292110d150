"""The command line of the benchmark of the ring."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, NoReturn

from ringspan.bench.configuration import POSITIONS
from ringspan.bench.settings import Settings
from ringspan.contracts.errors import InvalidArgument

__all__ = ["parsed"]

_HILBERT = "hilbert"
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Settings)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidArgument("options", expected="what --help lists", got=message)


def parsed(arguments: list[str]) -> Settings:
    """The settings that the command line gives.

    Raises:
        InvalidArgument: an option is unknown or does not fit.
        UnknownProvider: as `Settings`.
    """
    given: dict[str, Any] = vars(_parser().parse_args(arguments))
    if given.pop("compare", False):
        for name in ("orderings", "along"):
            values = given.get(name, (POSITIONS,))
            given[name] = (*values, *(each for each in (_HILBERT,) if each not in values))
        given["grid"] = True
    if "patterns" in given:
        given["patterns"] = tuple(given["patterns"])
    return Settings(**given)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parser() -> argparse.ArgumentParser:
    # What is not given is left out, so that defaults stand in one place: in Settings.
    parser = _Parser(
        prog="python -m ringspan.bench.ring",
        description="Time, memory and bytes of ring attention as sequences grow. Start it with "
        "torchrun --nproc-per-node P -m ringspan.bench.ring, or plainly for one process.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    _add_what(parser.add_argument_group("what is computed"))
    _add_compared(parser.add_argument_group("what is compared"))
    _add_how(parser.add_argument_group("how it is measured"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--min-tokens", type=int, help=_help("the shortest sequence", "min_tokens"))
    longest = "lengths double as long as they are no longer"
    add("--max-tokens", type=int, help=_help(longest, "max_tokens"))
    pattern = "as Python writes it, N for the tokens; repeatable"
    add("--pattern", dest="patterns", action="append", help=_help(pattern, "patterns"))
    switch = argparse.BooleanOptionalAction
    add("--causal", action=switch, help=_help("only earlier keys", "causal"))
    add("--backward", action=switch, help=_help("the backward pass too", "backward"))
    add("--heads", type=int, help=_help("of queries", "heads"))
    add("--kv-heads", type=int, help="default: as many as --heads")
    add("--head-dim", type=int, help=_help("of every head", "head_dim"))
    add("--batch", type=int, help=_help("sequences", "batch"))
    dtypes = ("float16", "bfloat16", "float32", "float64")
    add("--dtype", choices=dtypes, help="default: float32 on a CPU, bfloat16 on a GPU")


def _add_compared(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    stored = "orders in which tokens are stored, as 'none,zigzag': results stay the same"
    add("--orderings", type=_names, metavar="NAMES", help=_help(stored, "orderings"))
    along = "orders along which patterns are taken, as 'none,hilbert': results differ"
    add("--along", type=_names, metavar="NAMES", help=_help(along, "along"))
    add("--grid", action="store_true", help="tokens on a grid, as square as may be")
    compare = "with and without Hilbert, both ways: adds it to --orderings and --along, on a grid"
    add("--compare", action="store_true", help=compare)
    add("--communicators", type=_names, metavar="NAMES", help="default: all that can serve")


def _add_how(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--repeats", type=int, help=_help("timed calls of each configuration", "repeats"))
    patience = "seconds of a call after which its configuration grows no further"
    add("--patience", type=float, help=_help(patience, "patience"))
    checked = "tokens of the call whose errors are measured"
    add("--check-tokens", type=int, help=_help(checked, "check_tokens"))
    add("--memory-limit", type=float, help="GiB per rank; default: what is free")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    group_help = "default: nccl where every rank has a GPU of its own"
    add("--process-group", choices=("gloo", "nccl"), help=group_help)
    add("--seed", type=int, help=_help("of the operands", "seed"))
    add("--json", type=Path, metavar="PATH", help="where everything is written")


def _help(text: str, name: str) -> str:
    default = _DEFAULTS[name]
    return f"{text}; default: {', '.join(default) if isinstance(default, tuple) else default}"
