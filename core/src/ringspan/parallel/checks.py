"""What this room refuses by name before anything travels."""

from __future__ import annotations

import torch.distributed as dist

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.plan.groups import process_group
from ringspan.plan.layout import Layout

__all__ = ["check_convention", "check_documents", "check_layout", "ranks_of"]


def check_convention(name: str, given: object, known: tuple[str, ...]) -> None:
    """Raises `InvalidArgument` unless `given` names a gradient convention."""
    if given not in known:
        raise InvalidArgument(name, expected=" or ".join(map(repr, known)), got=repr(given))


def check_layout(layout: object) -> None:
    """Raises `InvalidArgument` unless it is a layout."""
    if not isinstance(layout, Layout):
        raise InvalidArgument("layout", expected="a Layout", got=repr(layout))


def check_documents(documents: object, N: int) -> None:
    """Raises `InvalidArgument` unless they are documents of `N` tokens."""
    if not isinstance(documents, Documents):
        raise InvalidArgument("documents", expected="a Documents", got=type(documents).__name__)
    if documents.N != N:
        raise InvalidArgument("documents", expected=f"{N} tokens in all", got=repr(documents))


def ranks_of(group: object) -> dist.ProcessGroup | None:
    """The group's, the default group where None is given, and None for a process alone."""
    if group is None and not (dist.is_available() and dist.is_initialized()):
        return None
    process = process_group(group)
    return process if process.size() > 1 else None
