"""Ranks that measure choose alike: rank 0 tells the others what its measurements chose."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from ringspan.catalogue import catalogue

if TYPE_CHECKING:
    from ringspan.engine.choice import Choice

__all__ = ["led"]

_known: dict[Hashable, dict[str, str]] = {}


def led(
    key: Hashable,
    questions: Callable[[], Sequence[str]],
    mine: Callable[[], Choice] | None,
    tell: Callable[[int], int],
) -> dict[str, str]:
    """Rank 0's backends, by what was decided: one small exchange, the first time for each key.

    Args:
        key: equal on all ranks for equal calls.
        questions: what is decided about backends, alike and in one order on all ranks; asked for
            the first time only.
        mine: on rank 0, its choice, likewise; None on the others.
        tell: gives rank 0's number to every rank.
    """
    if key not in _known:
        names = ("", *catalogue().names("backend"))
        asked = questions()
        number = 0 if mine is None else _number(asked, mine(), names)
        _known[key] = _named(tell(number), asked, names)
    return _known[key]


def _number(questions: Sequence[str], choice: Choice, names: Sequence[str]) -> int:
    """One digit per question: the place of the answer among all backends, 0 for nobody."""
    number = 0
    for name in reversed(questions):
        answer = choice.decisions[name].chosen if name in choice.decisions else ""
        number = number * len(names) + names.index(answer)
    return number


def _named(number: int, questions: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in questions:
        number, place = divmod(number, len(names))
        if place:
            found[name] = names[place]
    return found
