"""Checks of the front door's arguments: everything is refused before any work starts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens
from ringspan.engine.call import Call
from ringspan.engine.operator import AGREE_ON_LENGTHS
from ringspan.plan.groups import Ranks
from ringspan.plan.layout import Layout

__all__ = [
    "DTYPES",
    "check_call",
    "check_described",
    "check_tensors",
    "checked_request",
    "checked_scale",
    "refuse_later_options",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Types, ranks, dtypes, devices and shapes of query, key and value."""
    named = {"q": query, "k": key, "v": value}
    for name, x in named.items():
        if not isinstance(x, torch.Tensor):
            raise InvalidArgument(name, expected="a torch.Tensor", got=type(x).__name__)
        if x.dim() != 4:
            raise InvalidArgument(
                name,
                expected="four dimensions [batch, tokens, heads, head_dim]",
                got=f"shape {_shape(x)}",
            )
        if x.dtype not in DTYPES:
            raise InvalidArgument(
                f"{name}.dtype", expected="float16, bfloat16, float32 or float64", got=str(x.dtype)
            )
    for name, x in list(named.items())[1:]:
        if x.dtype != query.dtype:
            raise InvalidArgument(
                f"{name}.dtype", expected=f"{query.dtype}, as q", got=str(x.dtype)
            )
        if x.device != query.device:
            raise InvalidArgument(
                f"{name}.device", expected=f"{query.device}, as q", got=str(x.device)
            )
    _check_shapes(query, key, value)
    _refuse_forward_mode(named)


def _refuse_forward_mode(named: dict[str, Tensor]) -> None:
    """A tangent would be dropped, and the derivative silently be zero."""
    if forward_ad._current_level < 0:
        return
    for name, x in named.items():
        if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotYetSupported(
                name,
                expected="a tensor without a forward-mode tangent",
                got="a dual tensor, or one under torch.func.jvp",
                remedy="Use reverse mode",
            )


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    batch, tokens, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    if key.shape[1] != tokens:
        raise NotYetSupported(
            "k",
            expected=f"{tokens} tokens, as q (cross-attention is not supported in this version)",
            got=f"shape {_shape(key)}",
        )
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise InvalidArgument(
            "k", expected=f"shape [{batch}, {tokens}, Hkv, {head_dim}]", got=f"shape {_shape(key)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise InvalidArgument(
            "v",
            expected=f"shape [{batch}, {tokens}, {kv_heads}, Dv]",
            got=f"shape {_shape(value)}",
        )
    _check_heads(heads, kv_heads)
    for name, size in (("q", head_dim), ("v", value.shape[3])):
        if size < 1:
            raise InvalidArgument(name, expected="a head_dim of at least 1", got=str(size))


def _check_heads(heads: int, kv_heads: int) -> None:
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise InvalidArgument(
            "q",
            expected=f"a number of heads that is a multiple of k's {kv_heads}, both at least 1",
            got=f"{heads} heads",
        )


def check_call(call: Call, rows: int, ranks: Ranks) -> int:
    """Checks all options of a call whose q has `rows` tokens on this rank.

    Returns:
        The number of tokens over all ranks, or `AGREE_ON_LENGTHS` where the ranks have to ask
        each other.
    """
    _check_options(call)
    layout = call.layout
    if layout is None:
        if ranks.world_size > 1:
            return AGREE_ON_LENGTHS
        _check_count("tokens", call.tokens, rows)
        return rows
    _check_world(layout, ranks)
    held = layout.sizes[ranks.rank]
    if rows != held:
        raise InvalidArgument(
            "q",
            expected=f"{held} tokens, as rank {ranks.rank} holds in {layout!r}",
            got=f"{rows} tokens",
            remedy="Shard with layout.shard(x)",
        )
    _check_count("tokens", call.tokens, layout.N)
    return layout.N


def check_described(call: Call, N: int) -> None:
    """Checks all options of a call on `N` described tokens over all ranks."""
    _check_options(call)
    _check_count("layout", call.layout, N)
    _check_count("tokens", call.tokens, N)


def checked_scale(scale: object) -> float | None:
    """As a plain float: the operator's text has no room for numpy's numbers."""
    if scale is None:
        return None
    if isinstance(scale, int | float | np.floating) and not isinstance(scale, bool):
        try:
            number = float(scale)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise InvalidArgument("scale", expected="a finite number or None", got=repr(scale))


def checked_request(name: str, value: object) -> str | tuple[str, ...] | None:
    """The name of a backend or communicator, or several in order of preference."""
    if value is None:
        return None
    if isinstance(value, str):
        return _plain(value)
    if isinstance(value, tuple | list) and value and all(isinstance(item, str) for item in value):
        return tuple(_plain(item) for item in value)
    raise InvalidArgument(name, expected="a name, a list of names or None", got=repr(value))


def _plain(text: str) -> str:
    # A member of an Enum of strings prints as the member, not as the string it is.
    return text if type(text) is str else str.__str__(text)


def _check_options(call: Call) -> None:
    if not isinstance(call.pattern, Pattern):
        raise InvalidArgument(
            "pattern", expected="a pattern such as Dense() or Dilated(...)", got=repr(call.pattern)
        )
    if not isinstance(call.causal, bool):
        raise InvalidArgument("causal", expected="True or False", got=repr(call.causal))
    _check_tokens(call.tokens, call.layout)


def _check_tokens(tokens: object, layout: object) -> None:
    if tokens is not None and not isinstance(tokens, Sequence | Grid | Coordinates):
        raise InvalidArgument(
            "tokens", expected="Grid(...), Coordinates(...) or None", got=repr(tokens)
        )
    if layout is None:
        return
    if not isinstance(layout, Layout):
        raise InvalidArgument("layout", expected="a Layout or None", got=repr(layout))
    if tokens is not None and not isinstance(layout.tokens, Sequence) and layout.tokens != tokens:
        raise InvalidArgument(
            "tokens", expected=f"{layout.tokens!r}, as the layout has", got=repr(tokens)
        )


def _check_world(layout: Layout, ranks: Ranks) -> None:
    if layout.world_size == ranks.world_size:
        return
    if ranks.world_size == 1:
        raise InvalidArgument(
            "group",
            expected=f"a process group of {layout.world_size} ranks, as layout.world_size says",
            got="None, or a group of one",
            remedy="Pass group=, for example torch.distributed.group.WORLD",
        )
    raise InvalidArgument(
        "layout",
        expected=f"world_size={ranks.world_size}, as the group has ranks",
        got=f"world_size={layout.world_size}",
    )


def _check_count(name: str, value: Tokens | Layout | None, N: int) -> None:
    if value is not None and value.N != N:
        raise InvalidArgument(name, expected=f"{N} tokens in all", got=repr(value))


_LATER: dict[str, Any] = {
    "documents": None,
    "key_padding": None,
    "sink": None,
    "dropout_p": 0.0,
    "seed": None,
    "query_positions": None,
}


def refuse_later_options(**options: object) -> None:
    """Refuses by name what this version does not compute yet; nothing is silently dropped."""
    for name, value in options.items():
        unset = _LATER[name]
        if value is unset or (type(value) in (int, float) and value == unset):
            continue
        raise NotYetSupported(
            name,
            expected=f"{unset!r} in this version",
            got=repr(value) if isinstance(value, int | float | str) else type(value).__name__,
            remedy=f"Leave {name} out",
        )


def _shape(x: Tensor) -> str:
    return str(list(x.shape))
