"""The hooks a plugin may implement, one per kind of provider.

A plugin is a module with functions of these names, marked with `hookimpl`, and an entry point
in the group `ringspan` whose name is the plugin's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ringspan.contracts.backend import AttentionBackend
    from ringspan.contracts.communicator import Communicator
    from ringspan.contracts.ordering import Ordering

__all__ = ["ENTRY_POINT_GROUP", "HOOK_KINDS", "hookimpl", "hookspec"]

ENTRY_POINT_GROUP = "ringspan"
hookspec = pluggy.HookspecMarker(ENTRY_POINT_GROUP)
hookimpl = pluggy.HookimplMarker(ENTRY_POINT_GROUP)

HOOK_KINDS = {
    "backend": "ringspan_attention_backends",
    "ordering": "ringspan_orderings",
    "communicator": "ringspan_communicators",
}
"""Kind of provider -> the hook that offers it."""


@hookspec
def ringspan_attention_backends() -> Sequence[AttentionBackend]:  # type: ignore[empty-body]
    """Returns the attention backends this plugin offers."""


@hookspec
def ringspan_orderings() -> Sequence[Ordering]:  # type: ignore[empty-body]
    """Returns the orderings this plugin offers."""


@hookspec
def ringspan_communicators() -> Sequence[Communicator]:  # type: ignore[empty-body]
    """Returns the communicators this plugin offers."""
