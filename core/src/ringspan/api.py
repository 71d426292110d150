"""The front door: `attention`, `explain`, `use` and `last_run`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ringspan import validation
from ringspan.catalogue import configuration
from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.engine import operator
from ringspan.engine.call import Call
from ringspan.engine.explanation import Explanation, Inputs, explain_call
from ringspan.engine.operator import LastRun, last_run
from ringspan.engine.run import AGREE_ON_LENGTHS, Tensors
from ringspan.engine.virtual.calls import check_one_shard, virtual_ranks
from ringspan.patterns import Dense
from ringspan.plan.balance import choose_layout
from ringspan.plan.groups import Ranks
from ringspan.plan.layout import Layout
from ringspan.plan.queries import QueryPositions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = ["Explanation", "Inputs", "LastRun", "attention", "explain", "last_run", "use"]

Request = str | tuple[str, ...] | list[str] | None


def attention(
    q: Float[Tensor, "B Nq H D"],
    k: Float[Tensor, "B N Hkv D"],
    v: Float[Tensor, "B N Hkv Dv"],
    *,
    pattern: Pattern | None = None,
    causal: bool = False,
    scale: float | None = None,
    tokens: Tokens | None = None,
    documents: Documents | Int[Tensor, " documents+1"] | None = None,
    key_padding: Bool[Tensor, "B N"] | None = None,
    sink: Float[Tensor, " H"] | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    query_positions: Int[Tensor, " Nq"] | range | Sequence[int] | None = None,
    layout: Layout | None = None,
    group: Any = None,
    backend: Request = None,
    communicator: Request = None,
    return_lse: bool = False,
    **unsupported: Any,
) -> Float[Tensor, "B Nq H Dv"] | tuple[Float[Tensor, "B Nq H Dv"], Float[Tensor, "B H Nq"]]:
    """Attention over whatever the pattern says, exact at any world size.

    For query `i` and key `j` with multiplicity `m(i, j)` from the pattern, scores
    `s_ij = scale <q_i, k_j>` and, with a sink, a logit `z`:

        O_i = sum_j m(i, j) exp(s_ij) v_j / Z_i        Z_i = exp(z) + sum_j m(i, j) exp(s_ij)

    A row that sees no key gives zeros. Gradients are the exact derivative, through the normaliser.

    Args:
        q: queries, float16, bfloat16, float32 or float64. Query head `h` reads key/value head
            `h // (H // Hkv)`. `Nq` may differ from `N`, see `query_positions`.
            All inputs but padded rows are finite: a NaN or infinity may reach rows that do not
            see it.
            Under `torch.autocast`, float32 q, k and v are cast to its dtype, as by torch's own
            attention.
        k: keys, of q's dtype and device; with `communicator="host"` either may lie on the host and
            the other on a GPU.
        v: values; `Dv` may differ from `D`.
        pattern: what attends to what; None: `Dense()`.
        causal: only keys with `position <= ` the query's.
        scale: of the scores; None: `D ** -0.5`.
        tokens: what the tokens are, `Grid` or `Coordinates`; None: a plain sequence.
        documents: packed sequences, which do not see each other: `Documents`, or cumulative
            lengths `[0, .., N]`. The result equals that of each document alone. Build a
            `Documents` once and pass it to every layer.
        key_padding: bool `[B, N]`, True for real tokens. Padded keys are seen by nobody, and
            padded queries give zeros: queries are the keys' own tokens where `Nq == N`, and where
            `query_positions` says so (another sequence of as many tokens has positions from `N`).
        sink: a logit per query head, differentiable; it takes part in the normaliser only.
        dropout_p: probability of dropping an attention probability, `0 <= dropout_p < 1`; the
            others are scaled by `1 / (1 - dropout_p)`, the normaliser is not dropped.
        seed: of dropout. The mask depends on it, the sequence, the head and the two positions
            (within their document) alone: it is the same for every kernel and world size. None:
            drawn from torch's generator (rank 0's in a group, by one small exchange).
        query_positions: where the queries stand among the keys' positions `0 .. N - 1`: a chunk
            of the sequence with all keys so far (chunked prefill). Each position once, or for
            `Dense` any integers >= 0. None with `Nq != N`: cross-attention, `Dense` only.
            On one rank only. A tensor on the host spares a synchronisation.
        layout: which positions each rank holds, in which order. With `group`, q, k and v are this
            rank's rows in the order of `layout.positions(rank)`. None with a group: contiguous
            shards; their lengths are then exchanged in one small message to each rank in the
            forward and one in the backward pass.
        group: a ProcessGroup or one-dimensional DeviceMesh; None: this process alone.
        backend: name of a backend or plugin, or several in order of preference; strict. None:
            from configuration, which defaults to `"auto"`.
        communicator: likewise. `"host"`, without a group and never chosen by itself: virtual ranks.
            q, k and v then hold the shards of all ranks, one after the other (contiguous ones where
            there is no layout), in host memory, and stream through a device; results lie where q
            does, gradients where their tensors do.
        return_lse: also return the log-sum-exp of each row, natural logarithm, float32 (float64
            for float64), `-inf` where a row sees no key. It is not differentiable: a
            backward pass through it is an error (inside `torch.compile` it is detached).
        unsupported: `softcap`, `bias` and `alibi_slopes` are refused by name.

    Returns:
        `[B, Nq, H, Dv]` in q's dtype; with `return_lse`, also `[B, H, Nq]`.

    Raises:
        InvalidArgument: an argument is wrong; names it, what was expected and what came.
        NoEligibleProvider: no backend or communicator can serve; gives every reason.
        RanksDisagree: ranks called with different arguments.

    Source: LongNet, arXiv 2307.02486, as one formula over branches.

    Example:
        >>> import torch, ringspan as rs
        >>> q, k, v = torch.randn(3, 1, 4096, 8, 64).unbind()
        >>> rs.attention(q, k, v, pattern=rs.Dilated((512, 4096), (1, 8)), causal=True).shape
        torch.Size([1, 4096, 8, 64])
    """
    validation.refuse_unsupported(unsupported)
    q, k, v = _autocast(q, k, v)
    validation.check_tensors(q, k, v)
    ranks = Ranks.of(group)
    packed = validation.checked_documents(documents)
    validation.check_stored_documents(layout, packed)
    dropout_p = validation.checked_dropout(dropout_p, seed)
    tensors = Tensors(
        q,
        k,
        v,
        validation.checked_sink(sink, q.shape[2]),
        key_padding,
        None if packed is None else packed.tensor,
        validation.checked_query_positions(query_positions),
        _seed(dropout_p, seed),
    )
    call = Call(
        pattern=Dense() if pattern is None else pattern,
        causal=causal,
        scale=validation.checked_scale(scale),
        tokens=tokens,
        layout=layout,
        group=ranks.group,
        backend=validation.checked_request("backend", backend),
        communicator=validation.checked_request("communicator", communicator),
        needs_backward=_needs_backward(*(x for x in (q, k, v, sink) if x is not None)),
        dropout_p=dropout_p,
        padded=key_padding is not None,
        seeded=seed is not None,
    )
    N = validation.check_call(call, tensors, ranks)
    out: Tensor
    lse: Tensor
    out, lse, _ = operator.attention(*tensors, call.text, N)
    if not return_lse:
        return out
    if call.needs_backward and not torch.compiler.is_compiling():
        asked: Tensor = _Undifferentiable.apply(lse, out)  # type: ignore[no-untyped-call]
        return out, asked
    return out, lse


def _seed(dropout_p: float, seed: int | None) -> Tensor | None:
    """Drawn as a tensor: `torch.compile`, checkpointing and vmap know what to do with that."""
    if dropout_p == 0:
        return None
    return torch.randint(2**62, (1,)) if seed is None else torch.tensor([seed])


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As torch's own attention under autocast: float32 and 16-bit inputs in its dtype."""
    device = tensors[0].device.type if isinstance(tensors[0], torch.Tensor) else "cpu"
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if isinstance(x, torch.Tensor) and x.dtype in _CAST else x for x in tensors
    )


_CAST = (torch.float32, torch.float16, torch.bfloat16)


def _needs_backward(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class _Undifferentiable(torch.autograd.Function):
    """The lse as it is; asked for its gradient, it says that it has none."""

    @staticmethod
    def forward(ctx: Any, lse: Tensor, out: Tensor) -> Tensor:
        return lse.view_as(lse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        raise NotYetSupported(
            "return_lse",
            expected="no gradient through the returned log-sum-exp",
            got="a backward pass through it",
            remedy="Use lse.detach()",
        )


def explain(
    q: Float[Tensor, "B N H D"] | Inputs,
    k: Float[Tensor, "B N Hkv D"] | None = None,
    v: Float[Tensor, "B N Hkv Dv"] | None = None,
    *,
    pattern: Pattern | None = None,
    causal: bool = False,
    scale: float | None = None,
    tokens: Tokens | None = None,
    documents: Documents | Int[Tensor, " documents+1"] | None = None,
    key_padding: Bool[Tensor, "B N"] | bool | None = None,
    sink: Float[Tensor, " H"] | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    query_positions: Int[Tensor, " Nq"] | range | Sequence[int] | None = None,
    layout: Layout | None = None,
    group: Any = None,
    backend: Request = None,
    communicator: Request = None,
    world_size: int | None = None,
) -> Explanation:
    """What `attention` would do with the same arguments: the plan and the decision, as data.

    Nothing is computed. Instead of tensors a described problem may be given, for any device and
    any number of ranks, no group needed: `layout=Layout(N, world_size=...)`, or `world_size` alone
    for the layout that `parallel.choose_layout` takes, with its reason. `key_padding=True`
    then stands for a mask.

    Returns:
        An `Explanation`: print it, or take `as_dict()`.

    Raises:
        InvalidArgument: as `attention`. Where no provider is eligible, nothing is raised: the
            explanation says so, with every reason.

    Example:
        >>> import ringspan as rs
        >>> inputs = rs.Inputs(N=16384, heads=8, head_dim=64)
        >>> report = rs.explain(inputs, pattern=rs.Dilated((2048, 16384), (1, 8)), causal=True)
        >>> report.ranks[0].tiles
        9
    """
    packed = validation.checked_documents(documents)
    validation.check_stored_documents(layout, packed)
    positions = validation.checked_query_positions(query_positions)
    dropout_p = validation.checked_dropout(dropout_p, seed)
    ranks = Ranks.of(group)
    if world_size is not None:
        layout = _layout_of(q, world_size, layout, pattern, causal, tokens, packed)
    call = Call(
        pattern=Dense() if pattern is None else pattern,
        causal=causal,
        scale=validation.checked_scale(scale),
        tokens=tokens,
        layout=layout,
        group=ranks.group,
        backend=validation.checked_request("backend", backend),
        communicator=validation.checked_request("communicator", communicator),
        dropout_p=dropout_p,
        padded=key_padding is not None and key_padding is not False,
    )
    virtual = virtual_ranks(call, ranks.world_size)
    if isinstance(q, Inputs):
        if k is not None or v is not None:
            raise InvalidArgument("k", expected="None beside Inputs", got=type(k).__name__)
        validation.check_described(call, q, key_padding, sink, packed, positions)
        return explain_call(call, q, packed, _queries(positions, q.N, q.N), virtual)
    if k is None or v is None:
        raise InvalidArgument("k", expected="q, k and v, or Inputs", got="None")
    q, k, v = _autocast(q, k, v)
    validation.check_tensors(q, k, v)
    padding = key_padding if isinstance(key_padding, torch.Tensor) else None
    asked = validation.checked_sink(sink, q.shape[2])
    lengths = None if packed is None else packed.tensor
    tensors = Tensors(q, k, v, asked, padding, lengths, positions)
    N = validation.check_call(call, tensors, ranks)
    if N == AGREE_ON_LENGTHS:
        raise InvalidArgument(
            "layout",
            expected="a Layout: explain asks no other rank",
            got="None with a group",
            remedy="Pass layout=Layout(N, world_size)",
        )
    given = (x for x in (q, k, v, asked) if x is not None)
    inputs = Inputs.of(q, k, v, N=N, needs_backward=_needs_backward(*given))
    queries = _queries(positions, q.shape[1], k.shape[1])
    if virtual is None and ranks.world_size == 1:
        check_one_shard(call.layout_for(N), q, k)
    return explain_call(call, inputs, packed, queries, virtual)


def _layout_of(
    q: Tensor | Inputs,
    world_size: int,
    layout: Layout | None,
    pattern: Pattern | None,
    causal: bool,
    tokens: Tokens | None,
    documents: Documents | None,
) -> Layout:
    """The default layout of a described problem."""
    if not isinstance(q, Inputs) or layout is not None:
        raise InvalidArgument(
            "world_size",
            expected="None beside tensors or a layout",
            got=repr(world_size),
            remedy="Pass layout=Layout(N, world_size), or described Inputs",
        )
    if isinstance(tokens, Tokens) and tokens.N != q.N:
        raise InvalidArgument("tokens", expected=f"{q.N} tokens in all", got=repr(tokens))
    return choose_layout(
        q.N if tokens is None else tokens,
        world_size,
        pattern=pattern,
        causal=causal,
        documents=documents,
        heads=q.heads,
        kv_heads=q.kv_heads,
    )


def _queries(positions: Tensor | None, length: int, keys: int) -> QueryPositions | None:
    if positions is not None:
        return QueryPositions(positions)
    return None if length == keys else QueryPositions(length=length)


@contextmanager
def use(
    *,
    backend: Request = None,
    communicator: Request = None,
    **others: Any,
) -> Iterator[None]:
    """Settings for the calls inside a `with` block, in this thread or task only.

    They rank below call arguments and above the environment. Unknown names of settings are
    errors that list the known ones.

    Example:
        >>> import torch, ringspan as rs
        >>> q = torch.randn(1, 8, 2, 4)
        >>> with rs.use(backend="manual"):
        ...     out = rs.attention(q, q, q)
    """
    given = {"backend": backend, "communicator": communicator, **others}
    with configuration().use(**{key: value for key, value in given.items() if value is not None}):
        yield
