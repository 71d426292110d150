"""Calls of the kernels: blocks, grids, and what lies where."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from ringspan.contracts import Grads, TileOutput
from ringspan.contracts.adapters.arguments import lse_dtype

from ringspan_triton.backward_key import key_kernel
from ringspan_triton.backward_query import query_kernel
from ringspan_triton.descriptors import current
from ringspan_triton.forward import forward_kernel
from ringspan_triton.geometry import Geometry, lying, lying_scalars, number
from ringspan_triton.places import Lying
from ringspan_triton.programs import Sizes
from ringspan_triton.sparse import Sparse, tables
from ringspan_triton.tuning import Tuning, backward_tuning, forward_tuning, padded

if TYPE_CHECKING:
    from typing import Any

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["attend", "attend_backward"]


def attend(
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B M Hkv D"],
    value: Float[Tensor, "B M Hkv Dv"],
    geometry: Geometry,
    *,
    sink: Float[Tensor, "H rows"] | None = None,
    into: TileOutput | None = None,
) -> TileOutput:
    """The forward kernel; writes `into`, or new tensors by tile as `AttentionBackend.forward`."""
    g, width = geometry, max(query.shape[-1], value.shape[-1])
    tuning = forward_tuning(query.device, query.element_size(), width).fitted(g.queries, g.keys)
    sparse, programs = _programs(g, tuning.queries, tuning.keys, by_key=False)
    output = _new_output(query, value, g) if into is None else into
    with current(query):
        forward_kernel[(g.batch * g.tiles * g.groups * g.group * programs,)](
            lying(query),
            lying(key),
            lying(value),
            lying(output.out),
            lying_scalars(output.lse),
            None if sink is None else _lying_sink(sink),
            *_told(g, sparse, programs),
            number(g.scale * math.log2(math.e), query.dtype),
            IN_PLACE=into is not None,
            **_constants(query, value, g, tuning),
        )
    return output


def attend_backward(
    grad_out: Float[Tensor, "B N H Dv"],
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B M Hkv D"],
    value: Float[Tensor, "B M Hkv Dv"],
    lse: Float[Tensor, "B H N"],
    delta: Float[Tensor, "B H N"],
    geometry: Geometry,
    *,
    grads: Grads,
    first_query: bool,
    first_key: bool,
    key_in_place: bool = True,
) -> None:
    """Both backward kernels; each writes or adds where the rows of its gradients lie.

    Without `key_in_place` the gradients of key and value are by tile, `[B * T, L, K, D]`.
    """
    g, width = geometry, max(query.shape[-1], value.shape[-1])
    given = (
        *(lying(x) for x in (grad_out, query, key, value)),
        *(lying_scalars(x) for x in (lse, delta)),
    )
    scales = (
        number(g.scale, query.dtype),
        number(g.scale * math.log2(math.e), query.dtype),
    )
    tuning = backward_tuning(query.device, query.element_size(), width)
    with current(query):
        by_key = tuning.fitted(g.queries, g.keys)
        sparse, programs = _programs(g, by_key.keys, by_key.queries, by_key=True)
        key_kernel[(g.batch * g.tiles * g.groups * programs,)](
            *given,
            lying(grads.key),
            lying(grads.value),
            *_told(g, sparse, programs),
            *scales,
            FIRST=first_key,
            IN_PLACE=key_in_place,
            **_constants(query, value, g, by_key),
        )
        turned = tuning._replace(queries=tuning.keys, keys=tuning.queries)
        by_query = turned.fitted(g.queries, g.keys)
        sparse, programs = _programs(g, by_query.queries, by_query.keys, by_key=False)
        query_kernel[(g.batch * g.tiles * g.groups * g.group * programs,)](
            *given,
            lying(grads.query),
            *_told(g, sparse, programs),
            *scales,
            FIRST=first_query,
            **_constants(query, value, g, by_query),
        )


def _new_output(query: Tensor, value: Tensor, g: Geometry) -> TileOutput:
    batch, heads = g.batch * g.tiles, g.groups * g.group
    return TileOutput(
        query.new_empty(batch, g.queries, heads, value.shape[-1]),
        query.new_empty(batch, heads, g.queries, dtype=lse_dtype(query.dtype)),
    )


def _told(g: Geometry, sparse: Sparse | None, programs: int) -> tuple[Any, ...]:
    """What all kernels are told of a geometry, in their order."""
    sizes = Sizes(g.tiles, g.groups, g.group, g.queries, g.keys, programs)
    return (
        g.query, g.key, g.query_heads, g.key_heads, g.visible, sparse, g.drawing, sizes
    )  # fmt: skip


def _programs(g: Geometry, own: int, other: int, *, by_key: bool) -> tuple[Sparse | None, int]:
    """Tables of block-sparse work, and how many programs each head of each tile has."""
    if g.blocks is None:
        return None, triton.cdiv(g.keys if by_key else g.queries, own)
    sparse = tables(g.blocks, g.query_heads.device, own, other, by_key=by_key)
    return sparse, len(sparse.programs)


def _constants(query: Tensor, value: Tensor, g: Geometry, tuning: Tuning) -> dict[str, Any]:
    D, DV = query.shape[-1], value.shape[-1]
    return {
        "CASE": g.case,
        "WIDE": tl.float64 if query.dtype == torch.float64 else tl.float32,
        "D": D,
        "DV": DV,
        "WIDTH": padded(D),
        "VALUE_WIDTH": padded(DV),
        "QUERIES": tuning.queries,
        "KEYS": tuning.keys,
        "num_warps": tuning.warps,
        "num_stages": tuning.stages,
    }


def _lying_sink(sink: Float[Tensor, "H rows"]) -> Lying:
    """The same for all sequences, and with one column for all rows."""
    head, row = sink.stride()
    return Lying(sink, (0, row if sink.shape[1] > 1 else 0, head))
