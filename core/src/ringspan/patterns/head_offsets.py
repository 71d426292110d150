"""Which offset of a dilated branch each head keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ringspan.contracts.errors import InvalidArgument
from ringspan.patterns.integers import checked_integer
from ringspan.patterns.warn import warn

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Domain

__all__ = ["HeadOffsets", "check_heads", "checked_head_offsets", "heads_by_offset"]

HeadOffsets = str | tuple[tuple[int, ...], ...]
"""A rule's name, or for each branch the offset of each query head."""

_RULES = ("modulo", "query", "blocked")


def heads_by_offset(
    rule: HeadOffsets, domain: Domain, branch: int, rate: int
) -> dict[int, tuple[int, ...]]:
    """The query heads that keep each offset of a branch; those that keep none are left out."""
    heads: dict[int, tuple[int, ...]] = {}
    for head, offset in enumerate(_offsets(rule, domain, branch, rate)):
        if offset < rate:
            heads[offset] = (*heads.get(offset, ()), head)
    return heads


def _offsets(rule: HeadOffsets, domain: Domain, branch: int, rate: int) -> Iterable[int]:
    group = domain.heads // domain.kv_heads
    if rule == "modulo":
        return (head // group % rate for head in range(domain.heads))
    if rule == "query":
        return (head % rate for head in range(domain.heads))
    if isinstance(rule, str):
        block = -(-domain.kv_heads // rate)
        return (head // group // block for head in range(domain.heads))
    return rule[branch]


def checked_head_offsets(rule: object, branches: int) -> HeadOffsets:
    """A rule's name as it is; integers per head, the same in every branch or given for each.

    Raises:
        InvalidArgument: it is none of them, or there are not as many tuples as branches.
    """
    if isinstance(rule, str) and rule in _RULES:
        return str.__str__(rule)
    if not isinstance(rule, (tuple, list)) or not rule:
        known = ", ".join(repr(name) for name in _RULES)
        raise InvalidArgument(
            "head_offsets",
            expected=f"{known}, integers (one per query head), or one tuple of them per branch",
            got=repr(rule),
        )
    if not isinstance(rule[0], (tuple, list)):
        return (_integers("head_offsets", rule),) * branches
    if len(rule) != branches:
        raise InvalidArgument(
            "head_offsets",
            expected=f"one tuple for each of the {branches} branches",
            got=f"{len(rule)} tuples",
        )
    return tuple(_integers(f"head_offsets[{at}]", offsets) for at, offsets in enumerate(rule))


def _integers(name: str, offsets: object) -> tuple[int, ...]:
    if not isinstance(offsets, (tuple, list)) or not offsets:
        raise InvalidArgument(name, expected="integers >= 0, one per query head", got=repr(offsets))
    return tuple(
        checked_integer(f"{name}[{at}]", offset, least=0) for at, offset in enumerate(offsets)
    )


def check_heads(rule: HeadOffsets, domain: Domain, rates: Sequence[int]) -> None:
    """Refuses integers for another number of heads; warns where a rule only costs."""
    if not isinstance(rule, str):
        for offsets in rule:
            if len(offsets) != domain.heads:
                raise InvalidArgument(
                    "head_offsets",
                    expected=f"one integer for each of the {domain.heads} query heads",
                    got=f"{len(offsets)}: {offsets}",
                )
    elif rule == "query" and domain.heads > domain.kv_heads >= max(rates) > 1:
        warn(
            f"head_offsets='query' makes every key/value head keep several offsets, although the "
            f"{domain.kv_heads} key/value heads already reach all offsets of rates up to "
            f"{max(rates)}: 'modulo' covers as much and moves fewer rows between ranks"
        )
