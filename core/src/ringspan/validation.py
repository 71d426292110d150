"""Checks of the front door's arguments: everything is refused before any work starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens
from ringspan.engine.call import Call
from ringspan.engine.explanation import Inputs
from ringspan.engine.run import AGREE_ON_LENGTHS, Tensors
from ringspan.plan.groups import Ranks
from ringspan.plan.layout import Layout

__all__ = [
    "DTYPES",
    "check_call",
    "check_described",
    "check_rows",
    "check_tensors",
    "checked_documents",
    "checked_dropout",
    "checked_query_positions",
    "checked_request",
    "checked_scale",
    "checked_sink",
    "refuse_unsupported",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


_KNOWN_ELSEWHERE = ("softcap", "bias", "attn_bias", "attn_mask", "alibi_slopes")


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Refuses by name what other libraries' attention takes; other names are Python's to refuse."""
    for name in options:
        if name not in _KNOWN_ELSEWHERE:
            raise TypeError(f"attention() got an unexpected keyword argument {name!r}")
        raise NotYetSupported(
            name,
            expected="no such option in this version",
            got=type(options[name]).__name__,
            remedy="Say what attends to what with pattern=, causal=, documents= or key_padding=",
        )


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
    # What is on the host may stream to the device of the rest: the engine knows whether it does.
    types = {query.device.type, key.device.type}
    if key.device != query.device and ("cpu" not in types or "meta" in types):
        raise InvalidArgument("k.device", expected=f"{query.device}, as q", got=str(key.device))
    if value.device != key.device:
        raise InvalidArgument("v.device", expected=f"{key.device}, as k", got=str(value.device))
    _check_shapes(query, key, value)
    _refuse_forward_mode(named)


def _refuse_forward_mode(named: Mapping[str, Tensor | None]) -> None:
    """A tangent would be dropped, and the derivative silently be zero."""
    if forward_ad._current_level < 0:
        return
    for name, x in named.items():
        if x is not None and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            raise NotYetSupported(
                name,
                expected="a tensor without a forward-mode tangent",
                got="a dual tensor, or one under torch.func.jvp",
                remedy="Use reverse mode",
            )


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    batch, _, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    if key.shape[0] != batch or key.shape[3] != head_dim:
        raise InvalidArgument(
            "k", expected=f"shape [{batch}, Nk, Hkv, {head_dim}]", got=f"shape {_shape(key)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise InvalidArgument(
            "v",
            expected=f"shape [{batch}, {key.shape[1]}, {kv_heads}, Dv], as k",
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


def check_call(call: Call, tensors: Tensors, ranks: Ranks) -> int:
    """Checks all options of a call on this rank's tensors; the plan checks what lengths decide.

    Returns:
        The number of keys over all ranks, or `AGREE_ON_LENGTHS` where the ranks have to ask each
        other.
    """
    rows = tensors.query.shape[1]
    N = check_rows(call, tensors.key.shape[1], ranks)
    if tensors.query_positions is not None or rows != tensors.key.shape[1]:
        group = ranks.group if ranks.world_size > 1 else None
        _check_cross(
            rows,
            tensors.key.shape[1],
            tensors.query_positions,
            group=group,
            layout=call.layout,
            documents=tensors.documents,
        )
    if N == AGREE_ON_LENGTHS:
        for name, value in (
            ("documents", tensors.documents),
            ("key_padding", tensors.key_padding),
        ):
            if value is not None:
                raise InvalidArgument(
                    "layout",
                    expected=f"a Layout beside {name}, which describes the global sequence",
                    got="None",
                    remedy="Pass layout=Layout(N, world_size)",
                )
    check_key_padding(tensors.key_padding, tensors.query.shape[0], N)
    _check_device("key_padding", tensors.key_padding, tensors.query.device)
    _check_device("sink", tensors.sink, tensors.query.device)
    _check_padded(call)
    _refuse_forward_mode({"sink": tensors.sink})
    return N


def check_rows(call: Call, rows: int, ranks: Ranks) -> int:
    """Checks the options that need no tensors, and that this rank's rows are as many as laid out.

    Returns:
        The number of tokens over all ranks, or `AGREE_ON_LENGTHS`.
    """
    _check_options(call)
    layout = call.layout
    if layout is None:
        if ranks.world_size > 1:
            return AGREE_ON_LENGTHS
        _check_count("tokens", call.tokens, rows)
        return rows
    # Where one process holds all shards, the engine knows whether virtual ranks are named.
    if ranks.group is not None or rows != layout.N:
        _check_world(layout, ranks)
        _check_held(layout, ranks.rank, rows)
    _check_count("tokens", call.tokens, layout.N)
    return layout.N


def _check_held(layout: Layout, rank: int, rows: int) -> None:
    if rows != layout.sizes[rank]:
        raise InvalidArgument(
            "q",
            expected=f"{layout.sizes[rank]} tokens, as rank {rank} holds in {layout!r}",
            got=f"{rows} tokens",
            remedy="Shard with layout.shard(x)"
            if layout.world_size > 1
            else "Put all tokens in order with layout.arrange(x), of a layout of as many",
        )


def _check_cross(rows: int, keys: int, positions: Tensor | None, **beside: object) -> None:
    """Queries that are not the tokens of the keys."""
    for name, value in beside.items():
        if value is not None:
            raise NotYetSupported(
                name,
                expected="None beside query_positions, and where q and k differ in length",
                got=f"{name} with {rows} queries and {keys} keys",
            )
    if positions is not None and positions.shape != (rows,):
        raise InvalidArgument(
            "query_positions",
            expected=f"[{rows}], one for each token of q",
            got=f"shape {_shape(positions)}",
        )


def check_key_padding(padding: Tensor | None, batch: int, N: int) -> None:
    """Type and shape of `key_padding`."""
    if padding is None:
        return
    if not isinstance(padding, torch.Tensor) or padding.dtype != torch.bool:
        raise InvalidArgument(
            "key_padding",
            expected="a bool tensor, True for real tokens",
            got=str(padding.dtype) if isinstance(padding, torch.Tensor) else type(padding).__name__,
        )
    if padding.shape != (batch, N):
        raise InvalidArgument(
            "key_padding",
            expected=f"shape [{batch}, {N}], all tokens of the keys' sequence",
            got=f"shape {_shape(padding)}",
        )


def _check_device(name: str, x: Tensor | None, device: torch.device) -> None:
    if x is not None and x.device != device:
        raise InvalidArgument(name, expected=f"a tensor on {device}, as q", got=str(x.device))


def _check_padded(call: Call) -> None:
    """Whether the pattern can do with padding."""
    if call.padded and not call.pattern.takes_key_padding:
        raise NotYetSupported(
            "key_padding",
            expected=f"None with {type(call.pattern).__name__}, whose segments depend on each "
            "row's own length",
            got="key_padding",
            remedy="Pack the rows: documents=Documents.from_lengths(...)",
        )


def check_described(
    call: Call,
    inputs: Inputs,
    key_padding: object,
    sink: Tensor | None,
    documents: Documents | None,
    positions: Tensor | None,
) -> None:
    """Checks all options of a call on described tokens over all ranks, as of one on tensors."""
    _check_options(call)
    _check_count("layout", call.layout, inputs.N)
    _check_count("tokens", call.tokens, inputs.N)
    if not isinstance(key_padding, bool):
        check_key_padding(key_padding, inputs.batch, inputs.N)  # type: ignore[arg-type]
    _check_padded(call)
    checked_sink(sink, inputs.heads)
    if positions is not None:
        rows = len(positions) if positions.dim() == 1 else inputs.N
        _check_cross(rows, inputs.N, positions, layout=call.layout, documents=documents)


def check_stored_documents(layout: object, documents: Documents | None) -> None:
    """Refuses a call that forgets or changes the documents that its layout puts in order."""
    stored = layout.documents if isinstance(layout, Layout) else None
    if stored is not None and stored != documents:
        raise InvalidArgument(
            "documents",
            expected=f"{stored!r}, as the layout has",
            got=repr(documents),
            remedy="Pass the same documents to the layout and to the call",
        )


def checked_documents(documents: object) -> Documents | None:
    """Documents as they are, or from cumulative lengths."""
    if documents is None or isinstance(documents, Documents):
        return documents
    return Documents.from_cu_seqlens(documents)


def checked_sink(sink: Tensor | None, heads: int) -> Tensor | None:
    """One logit per query head."""
    if sink is None:
        return None
    if not isinstance(sink, torch.Tensor) or not sink.dtype.is_floating_point:
        raise InvalidArgument(
            "sink",
            expected="a floating-point tensor [H]",
            got=str(sink.dtype) if isinstance(sink, torch.Tensor) else type(sink).__name__,
        )
    if sink.shape != (heads,):
        raise InvalidArgument(
            "sink", expected=f"shape [{heads}], one logit per query head", got=_shape(sink)
        )
    return sink


def checked_dropout(dropout_p: object, seed: object) -> float:
    """The probability, with a seed that is an integer or None."""
    number = isinstance(dropout_p, int | float) and not isinstance(dropout_p, bool)
    if not number or not 0 <= dropout_p < 1:  # type: ignore[operator]
        raise InvalidArgument(
            "dropout_p", expected="a number with 0 <= dropout_p < 1", got=repr(dropout_p)
        )
    integer = isinstance(seed, int) and not isinstance(seed, bool)
    if seed is not None and not (integer and 0 <= seed < 2**63):  # type: ignore[operator]
        raise InvalidArgument("seed", expected="an integer in 0 .. 2**63 - 1", got=repr(seed))
    return float(dropout_p)  # type: ignore[arg-type]


def checked_query_positions(positions: Any) -> Tensor | None:
    """As an int64 tensor."""
    if positions is None:
        return None
    if not isinstance(positions, torch.Tensor):
        try:
            given = list(positions) if isinstance(positions, range | tuple) else positions
            positions = torch.tensor(given, dtype=torch.int64 if given == [] else None)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise _odd_positions(type(positions).__name__) from None
    if positions.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise _odd_positions(str(positions.dtype))
    wide: Tensor = positions.long()
    return wide


def _odd_positions(got: str) -> InvalidArgument:
    return InvalidArgument(
        "query_positions", expected="integers [Nq]: a tensor, a range or a list", got=got
    )


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
            remedy="Pass group=, for example torch.distributed.group.WORLD, or all tokens and "
            "communicator='host'",
        )
    raise InvalidArgument(
        "layout",
        expected=f"world_size={ranks.world_size}, as the group has ranks",
        got=f"world_size={layout.world_size}",
    )


def _check_count(name: str, value: Tokens | Layout | None, N: int) -> None:
    if value is not None and value.N != N:
        raise InvalidArgument(
            name, expected=f"{N} tokens in all", got=f"{value!r}, which has {value.N}"
        )


def _shape(x: Tensor) -> str:
    return str(list(x.shape))
