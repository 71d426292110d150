"""Patterns written as in Python, such as `Neighborhood(7, edges='shift')`: read, never run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Pattern

__all__ = ["pattern_written"]

_BUILDERS = {
    "BlockSparse": ("local", "local_global", "dilated_blocks"),
    "Dilated": ("geometric", "torchscale"),
}


def pattern_written(text: str) -> Pattern:
    """The pattern that `text` calls for by name, with literals as arguments.

    Example:
        >>> pattern_written("BlockSparse.local(64, left=1, right=0)").block_size
        64
    """
    from ringspan.contracts.pattern import Pattern

    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as fault:
        raise _not_a_pattern(f"{text!r} ({fault.msg})") from None
    pattern = _value(tree.body)
    if not isinstance(pattern, Pattern):
        raise _not_a_pattern(repr(text))
    return pattern


def _not_a_pattern(got: str) -> InvalidArgument:
    examples = "'Neighborhood(7)' or 'BlockSparse.local(64, 1, 0)'"
    return InvalidArgument(
        "--pattern", expected=f"a pattern as in Python, such as {examples}", got=got
    )


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _called(node)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise InvalidArgument(
            "--pattern", expected="literals as arguments", got=ast.unparse(node)
        ) from None


def _called(node: ast.Call) -> Any:
    name = ast.unparse(node.func).removeprefix("rs.")
    target = _named(name)
    arguments = [_value(argument) for argument in node.args]
    options = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    signature = inspect.signature(target)
    try:
        signature.bind(*arguments, **options)
    except TypeError as fault:
        raise InvalidArgument(
            "--pattern", expected=f"{name}{_short(signature)}", got=f"{ast.unparse(node)}: {fault}"
        ) from None
    return target(*arguments, **options)


def _short(signature: inspect.Signature) -> inspect.Signature:
    """The signature without types."""
    bare = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return inspect.Signature(bare)


def _named(name: str) -> Callable[..., Any]:
    from ringspan import patterns

    known = {each: getattr(patterns, each) for each in patterns.__all__ if each != "BlockSparse"}
    for owner, builders in _BUILDERS.items():
        for builder in builders:
            known[f"{owner}.{builder}"] = getattr(getattr(patterns, owner), builder)
    if name not in known:
        raise InvalidArgument("--pattern", expected=f"one of {', '.join(sorted(known))}", got=name)
    found: Callable[..., Any] = known[name]
    return found
