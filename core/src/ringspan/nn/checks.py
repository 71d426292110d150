"""What modules refuse by name before they are built or run."""

from __future__ import annotations

import torch

from ringspan.contracts.errors import InvalidArgument

__all__ = ["check_counts", "check_dropout", "check_heads", "check_rows", "check_switches", "told"]


def told(x: object) -> str:
    """What came in place of a tensor of the right shape."""
    return f"shape {list(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__


def check_switches(**switches: object) -> None:
    """Raises `InvalidArgument` unless each is True or False."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidArgument(name, expected="True or False", got=repr(value))


def check_counts(**counts: object) -> None:
    """Raises `InvalidArgument` unless each is an integer of at least 1."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise InvalidArgument(name, expected="an integer >= 1", got=repr(value))


def check_heads(embed_dim: int, num_heads: int, kv_heads: int) -> None:
    """Raises `InvalidArgument` unless heads share the channels, and groups the heads, evenly."""
    check_counts(embed_dim=embed_dim, num_heads=num_heads, kv_heads=kv_heads)
    if embed_dim % num_heads:
        raise InvalidArgument(
            "embed_dim", expected=f"a multiple of num_heads {num_heads}", got=str(embed_dim)
        )
    if num_heads % kv_heads:
        raise InvalidArgument(
            "kv_heads", expected=f"a divisor of num_heads {num_heads}", got=str(kv_heads)
        )


def check_dropout(dropout_p: object) -> None:
    """Raises `InvalidArgument` unless `dropout_p` is a probability below 1."""
    number = isinstance(dropout_p, int | float) and not isinstance(dropout_p, bool)
    if not number or not 0 <= dropout_p < 1:  # type: ignore[operator]
        raise InvalidArgument("dropout_p", expected="a number in 0 <= p < 1", got=repr(dropout_p))


def check_rows(name: str, x: object, embed_dim: int) -> None:
    """Raises `InvalidArgument` unless `x` is a tensor `[batch, tokens, embed_dim]`."""
    if not isinstance(x, torch.Tensor) or x.dim() != 3 or x.shape[-1] != embed_dim:
        raise InvalidArgument(name, expected=f"a tensor [batch, tokens, {embed_dim}]", got=told(x))
