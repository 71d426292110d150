"""How the CUDA providers call their operators, on operators that a CPU stands in for.

The stand-ins compute exactly, in the conventions of PyTorch's CUDA operators: layouts, padded
log-sum-exps, and everything that those operators do not check but need. They are given their
arguments by the names that this torch's schemas have for them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    DeviceInfo,
    Grads,
    InvalidArgument,
    Mask,
    MaskCase,
    Problem,
    TileOutput,
)
from ringspan.contracts.adapters import arguments, cuda
from ringspan.contracts.masks import Lengths
from ringspan.testing import AttentionBackendSuite
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.suites.masks import stretches
from ringspan_sdpa import (
    SdpaCpu,
    SdpaCudnn,
    SdpaEfficient,
    SdpaEfficientBias,
    SdpaFlash,
    hidden,
    ringspan_attention_backends,
)
from ringspan_sdpa.kernel import cpu_backward, cpu_forward
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)
aten = torch.ops.aten
NOT_READ = torch.empty(0)
GARBAGE = torch.nan

FLASH, EFFICIENT, CUDNN, BIASED = SdpaFlash(), SdpaEfficient(), SdpaCudnn(), SdpaEfficientBias()
KERNELS = [FLASH, EFFICIENT, CUDNN, BIASED]
by_name = pytest.mark.parametrize("backend", KERNELS, ids=lambda backend: backend.name)
ragged_ones = pytest.mark.parametrize("backend", [FLASH, EFFICIENT], ids=lambda x: x.name)

WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.repeat_interleave.Tensor,
    aten.lift_fresh.default,
}
"""Operators that wait for the device, or copy to it, as `torch.tensor` does."""


def swapped(*tensors: Tensor) -> list[Tensor]:
    return [x.transpose(1, 2) for x in tensors]


def check_scale(scale: float) -> None:
    """A kernel may take a row's maximum, or hide a key, before it multiplies by the scale."""
    assert scale > 0


def check_rows(*tensors: Tensor) -> None:
    for x in tensors:
        assert x.shape[-1] % 8 == 0
        assert x.stride(-1) == 1
        assert x.shape[0] <= 65535


def check_bounds(bounds: Tensor, rows: int) -> None:
    assert bounds.dtype == torch.int32
    assert bounds.is_contiguous()
    assert bounds[-1] == rows


def window(query: Tensor, key: Tensor, left: int, right: int) -> Tensor | None:
    """What flash's windows hide; its diagonal ends at the last query and the last key.

    A window as wide as the keys is none, even where it would hide keys from many queries.
    """
    queries, keys = query.shape[1], key.shape[1]
    left, right = (-1 if x >= keys else x for x in (left, right))
    if left < 0 and right < 0:
        return None
    last = torch.arange(queries)[:, None] + keys - queries
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if left >= 0:
        seen &= torch.arange(keys) >= last - left
    if right >= 0:
        seen &= torch.arange(keys) <= last + right
    return (~seen)[None, None].to(arguments.lse_dtype(query.dtype)) * -1e30


def borders(cum_q: Tensor, cum_k: Tensor) -> list[tuple[slice, slice]]:
    rows, keys = ([slice(*ends) for ends in pairwise(x.tolist())] for x in (cum_q, cum_k))
    return list(zip(rows, keys, strict=True))


class CudaOperators(TorchDispatchMode):
    """Answers the CUDA operators on CPU tensors; everything else runs as it is.

    A call that would wait for the device fails.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert function not in WAITS, f"{function} waits for the device"
        kwargs = kwargs or {}
        answer = {
            aten._flash_attention_forward.default: self.flash_forward,
            aten._flash_attention_backward.default: self.flash_backward,
            aten._efficient_attention_forward.default: self.efficient_forward,
            aten._efficient_attention_backward.default: self.efficient_backward,
            aten._scaled_dot_product_cudnn_attention.default: self.cudnn_forward,
            aten._scaled_dot_product_cudnn_attention_backward.default: self.cudnn_backward,
        }.get(function)
        if answer is None:
            return function(*args, **kwargs)
        return answer(**named(function, args, kwargs))

    def flash_forward(
        self, *, query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal,
        return_debug_mask, scale, window_size_left, window_size_right, seqused_k, alibi_slopes,
        **later,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(query, key, value)
        assert dropout_p == 0
        assert return_debug_mask is False
        assert seqused_k is alibi_slopes is None
        assert not any(later.values())
        if cum_seq_q is not None:
            check_bounds(cum_seq_q, len(query))
            check_bounds(cum_seq_k, len(key))
            assert max_q >= max(2, *cum_seq_q.diff())  # one row is another layout
            assert max_k >= max(cum_seq_k.diff())
            assert (window_size_left, window_size_right) == (-1, -1)
            out = torch.empty_like(query)
            lse = query.new_empty(query.shape[1::-1], dtype=arguments.lse_dtype(query.dtype))
            for rows, keys in borders(cum_seq_q, cum_seq_k):
                tile = (x[None, part] for x, part in ((query, rows), (key, keys), (value, keys)))
                o, row_lse = cpu_forward(*swapped(*tile), causal=is_causal, scale=scale)
                out[rows], lse[:, rows] = o[0].transpose(0, 1), row_lse[0]
            return out, lse, NOT_READ, NOT_READ, NOT_READ
        assert (max_q, max_k) == (query.shape[1], key.shape[1])
        bias = window(query, key, window_size_left, window_size_right)
        out, lse = cpu_forward(
            *swapped(query, key, value), causal=is_causal, bias=bias, scale=scale
        )
        return out.transpose(1, 2), lse.contiguous(), NOT_READ, NOT_READ, NOT_READ

    def flash_backward(
        self, *, grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k,
        dropout_p, is_causal, rng_state, unused, scale, window_size_left, window_size_right,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(grad_out, query, key, value, out)
        assert dropout_p == 0
        assert logsumexp.is_contiguous()
        assert rng_state.dtype == unused.dtype == torch.uint64
        assert rng_state.shape == (2,)
        if cum_seq_q is not None:
            check_bounds(cum_seq_q, len(query))
            check_bounds(cum_seq_k, len(key))
            assert max_q >= max(cum_seq_q.diff())
            assert max_k >= max(cum_seq_k.diff())
            grads = [torch.empty_like(x) for x in (query, key, value)]
            for rows, keys in borders(cum_seq_q, cum_seq_k):
                at = (rows, rows, keys, keys, rows)
                given = (grad_out, query, key, value, out)
                tile = swapped(*(x[None, part] for x, part in zip(given, at, strict=True)))
                lse = logsumexp[None, :, rows]
                parts = cpu_backward(*tile, lse, causal=is_causal, scale=scale)
                for grad, part, where in zip(grads, parts, (rows, keys, keys), strict=True):
                    grad[where] = part[0].transpose(0, 1)
            return tuple(grads)
        assert (max_q, max_k) == (query.shape[1], key.shape[1])
        bias = window(query, key, window_size_left, window_size_right)
        tensors = swapped(grad_out, query, key, value, out)
        grads = cpu_backward(*tensors, logsumexp, causal=is_causal, bias=bias, scale=scale)
        return tuple(swapped(*grads))

    def efficient_forward(
        self, *, query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, custom_mask_type, compute_log_sumexp, scale, seqlen_k, window_size,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(query, key, value)
        check_bias(bias, query, key)
        assert query.shape[2] == key.shape[2] == value.shape[2]
        assert custom_mask_type in (0, 1)
        assert dropout_p == 0
        assert compute_log_sumexp is True
        assert seqlen_k is window_size is None
        causal = custom_mask_type == 1
        out = torch.empty_like(query).contiguous()
        if cu_seqlens_q is not None:
            assert bias is None
            tiles = efficient_tiles(
                query, key, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
            )
            width = max_seqlen_q + -max_seqlen_q % 32
            shape, dtype = (len(tiles), query.shape[2], width), arguments.lse_dtype(query.dtype)
            lse = query.new_full(shape, GARBAGE, dtype=dtype)
            for tile, (rows, keys) in enumerate(tiles):
                parts = (query[:, rows], key[:, keys], value[:, keys])
                o, row_lse = cpu_forward(*swapped(*parts), causal=causal, scale=scale)
                out[:, rows] = o.transpose(1, 2)
                lse[tile, :, : row_lse.shape[-1]] = row_lse[0]
            return out, lse, NOT_READ, NOT_READ, max_seqlen_q, max_seqlen_k
        assert max_seqlen_q is max_seqlen_k is None
        o, lse = with_bias_and_triangle(cpu_forward, (query, key, value), bias, causal, scale)
        padded = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=GARBAGE)
        sizes = (query.shape[1], key.shape[1])
        return o.transpose(1, 2).contiguous(), padded, NOT_READ, NOT_READ, *sizes

    def efficient_backward(
        self, *, grad_out_, query, key, value, bias, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, logsumexp, dropout_p, philox_seed, philox_offset, custom_mask_type,
        bias_requires_grad, scale, num_splits_key, window_size, shared_storage_dqdkdv,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(grad_out_, query, key, value, out)
        check_bias(bias, query, key)
        assert dropout_p == 0
        assert philox_seed.dtype == philox_offset.dtype == torch.int64
        assert philox_seed.shape == philox_offset.shape == ()
        assert bias_requires_grad is shared_storage_dqdkdv is False
        assert window_size is None
        assert out.is_contiguous()
        assert logsumexp.is_contiguous()
        assert logsumexp.shape[-1] % 32 == 0
        assert num_splits_key == (1 if torch.are_deterministic_algorithms_enabled() else None)
        causal, given = custom_mask_type == 1, (grad_out_, query, key, value, out)
        if cu_seqlens_q is not None:
            assert bias is None
            tiles = efficient_tiles(
                query, key, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
            )
            assert logsumexp.shape == (len(tiles), query.shape[2], logsumexp.shape[-1])
            assert max_seqlen_q <= logsumexp.shape[-1]
            grads = [torch.empty_like(x) for x in (query, key, value)]
            for tile, (rows, keys) in enumerate(tiles):
                at = (rows, rows, keys, keys, rows)
                parts = swapped(*(x[:, part] for x, part in zip(given, at, strict=True)))
                lse = logsumexp[None, tile]
                assert (lse[..., rows.stop - rows.start :] == torch.inf).all()
                lse = lse[..., : rows.stop - rows.start]
                found = swapped(*cpu_backward(*parts, lse, causal=causal, scale=scale))
                for grad, part, where in zip(grads, found, (rows, keys, keys), strict=True):
                    grad[:, where] = part
            return (*grads, NOT_READ)
        assert (max_seqlen_q, max_seqlen_k) == (query.shape[1], key.shape[1])
        assert (logsumexp[..., max_seqlen_q:] == torch.inf).all()
        lse = logsumexp[..., :max_seqlen_q]
        grads = with_bias_and_triangle(cpu_backward, given, bias, causal, scale, lse)
        return (*swapped(*grads), NOT_READ)

    def cudnn_forward(
        self, *, query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal,
        return_debug_mask, scale,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(query, key, value)
        assert attn_bias is None
        assert compute_log_sumexp is True
        assert dropout_p == 0
        assert return_debug_mask is False
        assert key.shape[2] > 1
        out, lse = cpu_forward(query, key, value, causal=is_causal, scale=scale)
        sizes = (query.shape[2], key.shape[2])
        return out, lse[..., None], NOT_READ, NOT_READ, *sizes, NOT_READ, NOT_READ, NOT_READ

    def cudnn_backward(
        self, *, grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset,
        attn_bias, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, scale,
    ):  # fmt: skip
        check_scale(scale)
        check_rows(grad_out, query, key, value, out)
        assert attn_bias is cum_seq_q is cum_seq_k is None
        assert (max_q, max_k) == (query.shape[2], key.shape[2])
        assert philox_seed.dtype == philox_offset.dtype == torch.int64
        assert dropout_p == 0
        assert logsumexp.shape == (*query.shape[:3], 1)
        tensors = (grad_out, query, key, value, out, logsumexp[..., 0])
        return cpu_backward(*tensors, causal=is_causal, scale=scale)


def named(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument of a call by its name in the operator's schema, defaults too."""
    expected = function._schema.arguments
    positional = [argument.name for argument in expected if not argument.kwarg_only]
    given = dict(zip(positional, args, strict=False)) | kwargs
    return {x.name: given.get(x.name, x.default_value) for x in expected}


def check_bias(bias: Tensor | None, query: Tensor, key: Tensor) -> None:
    """Rows of a bias begin at multiples of 16 bytes, and lie within a memory that is bounded."""
    if bias is None:
        return
    assert bias.shape == (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    assert bias.dtype == query.dtype
    assert bias.stride(-1) == 1
    assert all(stride % 16 == 0 for stride in bias.stride()[:3])
    assert bias.untyped_storage().nbytes() <= hidden.BIAS_BYTES
    assert bias.isfinite().all()


def efficient_tiles(
    query: Tensor, key: Tensor, cum_q: Tensor, cum_k: Tensor, max_q: int, max_k: int
) -> list[tuple[slice, slice]]:
    check_bounds(cum_q, query.shape[1])
    check_bounds(cum_k, key.shape[1])
    assert len(query) == len(key) == 1
    assert max(cum_q.diff()) <= max_q <= query.shape[1]
    assert max(cum_k.diff()) <= max_k <= key.shape[1]
    return borders(cum_q, cum_k)


def with_bias_and_triangle(
    operator: Any, given: tuple[Tensor, ...], bias: Tensor | None, causal: bool, scale: float,
    *lse: Tensor,
) -> Any:  # fmt: skip
    """The CPU operator takes one of the two, and a bias that is wider than 16 bits."""
    if bias is not None:
        bias = bias.to(arguments.lse_dtype(bias.dtype))
        if causal:
            bias = bias + torch.ones(bias.shape[-2:], dtype=bias.dtype).triu(1).mul(-1e30)
        causal = False
    return operator(*swapped(*given), *lse, causal=causal, bias=bias, scale=scale)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets CPU tensors reach the CUDA providers."""
    monkeypatch.setattr(arguments, "check_tensors", lambda device, **tensors: None)


def compare(
    backend: AttentionBackend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dO: Tensor,
    mask: Mask,
    scale: float = 0.2,
    same: Mask | None = None,
) -> None:
    """Forward and backward equal the CPU kernel's, which is tested against the formula.

    Args:
        same: the mask as the CPU kernel takes it.
    """
    same = mask if same is None else same
    expected = SdpaCpu().forward(q, k, v, mask=same, scale=scale)
    with CudaOperators():
        found = backend.forward(q, k, v, mask=mask, scale=scale)
    # As merged with keys elsewhere: the final log-sum-exp is larger than this tile's, and a row
    # that sees nothing here may see something there.
    out, lse = expected.out * 0.7, expected.lse + 0.3
    lse = torch.where(lse == -torch.inf, torch.arange(float(lse.shape[-1])).double() % 3, lse)
    lse[..., ::5] = torch.where(expected.lse == -torch.inf, torch.inf, lse)[..., ::5]
    tensors = (dO, q, k, v, out, lse)
    expected_grads = SdpaCpu().backward(*tensors, mask=same, scale=scale)
    with CudaOperators():
        grads = backend.backward(*tensors, mask=mask, scale=scale)
    for x, y in zip((*found, *grads), (*expected, *expected_grads), strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x.to(y.dtype), y, rtol=1e-6, atol=1e-6)
    assert found.lse.shape == (q.shape[0], q.shape[2], q.shape[1])


def tensors(
    batch: int, rows: int, keys: int, heads: int, kv_heads: int, head_dim: int, value_head_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, heads, head_dim), (keys, kv_heads, head_dim),
              (keys, kv_heads, value_head_dim), (rows, heads, value_head_dim))  # fmt: skip
    q, k, v, dO = (
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return q, k, v, dO


@by_name
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
@pytest.mark.parametrize("head_dims", [(16, 16), (5, 8), (8, 5), (1, 33)])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 65])
@pytest.mark.usefixtures("on_cpu")
def test_calls_and_results_keep_to_the_operators_conventions(
    backend: AttentionBackend,
    mask: Mask,
    head_dims: tuple[int, int],
    heads: tuple[int, int],
    rows: int,
) -> None:
    compare(backend, *tensors(2, rows, rows, *heads, *head_dims), mask)
    if mask.case is MaskCase.FULL:
        compare(backend, *tensors(2, rows, 1, *heads, *head_dims), mask)
        compare(backend, *tensors(2, rows, 7, *heads, *head_dims), mask)


@by_name
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
@pytest.mark.parametrize("scale", [-1.0, -0.1, 0.0])
@pytest.mark.usefixtures("on_cpu")
def test_operators_are_given_a_scale_above_zero(
    backend: AttentionBackend, mask: Mask, scale: float
) -> None:
    compare(backend, *tensors(2, 9, 9, 4, 2, 8, 5), mask, scale)


@by_name
@pytest.mark.usefixtures("on_cpu")
def test_a_batch_beyond_a_grid_is_cut(
    backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 3)
    compare(backend, *tensors(8, 5, 5, 2, 1, 8, 8), CAUSAL)


@pytest.mark.parametrize(
    ("rows", "keys"), [(1, 1), (1, 9), (9, 1), (9, 9), (7, 20), (20, 7), (30, 5), (11, 10)]
)
@pytest.mark.parametrize("wider", [(0, 0), (2, 0), (0, 3), (4, 2), (50, 0), (0, 50)])
@pytest.mark.usefixtures("on_cpu")
def test_bands_are_said_from_the_last_query_and_key(
    rows: int, keys: int, wider: tuple[int, int]
) -> None:
    left, right = max(0, rows - keys) + wider[0], max(0, keys - rows) + wider[1]
    band = Mask(MaskCase.BAND, left=left, right=right)
    same = band.as_interval(rows, keys, torch.device("cpu"))
    compare(FLASH, *tensors(2, rows, keys, 4, 2, 16, 8), band, same=same)


def block_diagonal(lengths: Lengths, case: MaskCase) -> Mask:
    """The same tiles as one, with intervals."""
    rows, keys = lengths.query_bounds.diff(), lengths.key_bounds.diff()
    low = lengths.key_bounds[:-1].repeat_interleave(rows)
    high = lengths.key_bounds[1:].repeat_interleave(rows)
    if case is MaskCase.CAUSAL:
        high = torch.arange(int(rows.sum())) + 1
    assert len(keys) == len(rows)
    return Mask(MaskCase.INTERVAL, low.long(), high.long())


@ragged_ones
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
@pytest.mark.parametrize(
    "tiles",
    [((5, 3),), ((1, 1),) * 6, ((1, 4), (33, 9), (3, 40), (32, 32), (2, 1)), ((64, 2), (1, 70))],
)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
@pytest.mark.usefixtures("on_cpu")
def test_tiles_of_many_lengths_are_one_call(
    backend: AttentionBackend,
    case: MaskCase,
    tiles: tuple[tuple[int, int], ...],
    heads: tuple[int, int],
) -> None:
    if case is MaskCase.CAUSAL:
        tiles = tuple((rows, rows) for rows, _ in tiles)
    lengths = stretches(tiles, torch.device("cpu"))
    sizes = sum(rows for rows, _ in tiles), sum(keys for _, keys in tiles)
    mask, same = Mask(case, lengths=lengths), block_diagonal(lengths, case)
    compare(backend, *tensors(1, *sizes, *heads, 16, 12), mask, same=same)


@pytest.mark.usefixtures("on_cpu")
def test_more_tiles_of_many_lengths_than_a_grid_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 3)
    mask = Mask(MaskCase.FULL, lengths=stretches(((2, 2),) * 4, torch.device("cpu")))
    q, k, v, dO = tensors(1, 8, 8, 2, 2, 8, 8)
    with pytest.raises(InvalidArgument, match="at most 3 tiles of many lengths in one call, got 4"):
        EFFICIENT.forward(q, k, v, mask=mask, scale=1.0)
    with pytest.raises(InvalidArgument, match="at most 3 tiles"):
        EFFICIENT.backward(dO, q, k, v, q, torch.zeros(1, 2, 8), mask=mask, scale=1.0)


@st.composite
def hiding(draw: st.DrawFn) -> tuple[Mask, tuple[int, ...]]:
    """Any mask with any of its axes shared, with rows that see nothing, over some sizes."""
    case = draw(st.sampled_from(sorted(BIASED.capabilities.masks)))
    batch, kv_heads, group = (draw(st.integers(1, most)) for most in (4, 2, 3))
    rows, keys = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    keys = rows if case is MaskCase.CAUSAL else keys
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100)))

    def shape(*sizes: int) -> tuple[int, ...]:
        return tuple(size if draw(st.booleans()) else 1 for size in sizes)

    mask = Mask(case)
    if case is MaskCase.INTERVAL:
        own = shape(batch, kv_heads * group, rows)
        low = torch.randint(-3, keys + 3, own, generator=generator)
        mask = Mask(case, low, low + torch.randint(0, 9, own, generator=generator))
    elif case is MaskCase.BITMAP:
        own = (*shape(batch, kv_heads * group, rows), keys)
        mask = Mask(case, seen=torch.rand(own, generator=generator) < 0.2)
    if draw(st.booleans()):
        own = (*shape(batch, kv_heads), keys)
        mask = replace(mask, key_seen=torch.rand(own, generator=generator) < 0.5)
    return mask, (batch, rows, keys, kv_heads * group, kv_heads)


@given(case=hiding(), most=st.sampled_from([1, 300, 2000, 40_000, 1 << 26]))
@settings(deadline=None, max_examples=150)
def test_a_bias_hides_what_any_mask_hides_in_any_cuts(
    case: tuple[Mask, tuple[int, ...]], most: int
) -> None:
    mask, sizes = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arguments, "check_tensors", lambda device, **tensors: None)
        # A row of one head is never cut: 16 or 48 float64 here.
        patch.setattr(hidden, "BIAS_BYTES", max(most, 48 * 8))
        compare(BIASED, *tensors(*sizes, 8, 5), mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("kinds", "shape"),
    [((1, 1, 4096), (3, 16, 4096, 1_000_000)), ((64, 1, 8192), (64, 8, 8192, 8192))],
)
def test_no_bias_is_larger_than_its_bound(
    dtype: torch.dtype, kinds: tuple[int, ...], shape: tuple[int, int, int, int]
) -> None:
    bound = torch.empty(kinds, dtype=torch.int64, device="meta")
    mask = Mask(MaskCase.INTERVAL, bound, bound)
    of = hidden.Hidden.of(mask, shape, 1, dtype)
    largest = 0
    for where in of.parts(65535):
        bias, empty = of.bias(where)
        assert bias.shape[2] == empty.shape[2] == where.of_rows.stop - where.of_rows.start
        largest = max(largest, bias.untyped_storage().nbytes())
    assert hidden.BIAS_BYTES / 2 < largest <= hidden.BIAS_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bias_is_finite_in_every_dtype(dtype: torch.dtype) -> None:
    """Rows that see nothing would otherwise be NaN in some kernels."""
    seen = torch.eye(4, 9, dtype=torch.bool)
    of = hidden.Hidden.of(Mask(MaskCase.BITMAP, seen=seen), (2, 3, 4, 9), 1, dtype)
    (where,) = of.parts(65535)
    bias, empty = of.bias(where)
    assert bias.shape == (2, 3, 4, 9)
    assert bias.isfinite().all()
    assert (bias[0, 0][seen] == 0).all()
    assert (bias[0, 0][~seen] < -65000).all()
    assert not empty.any()


@by_name
@pytest.mark.usefixtures("on_cpu")
def test_nothing_to_attend_to_makes_no_call(backend: AttentionBackend) -> None:
    q, k, v, dO = tensors(2, 3, 0, 2, 2, 8, 4)
    out, lse = backend.forward(q, k, v, mask=FULL, scale=1.0)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = backend.backward(dO, q, k, v, out, lse, mask=FULL, scale=1.0)
    assert [x.shape for x in grads] == [q.shape, k.shape, v.shape]


@pytest.mark.usefixtures("on_cpu")
def test_deterministic_mode_takes_one_split_of_the_keys() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        compare(EFFICIENT, *tensors(1, 5, 5, 2, 1, 8, 8), CAUSAL)
    finally:
        torch.use_deterministic_algorithms(False)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


SHARED_BOUNDS = meta(5, dtype=torch.int32)
RAGGED = replace(CAUSAL, lengths=Lengths(SHARED_BOUNDS, SHARED_BOUNDS, 20, 20))
BAND = Mask(MaskCase.BAND, left=3, right=4)
INTERVAL = Mask(MaskCase.INTERVAL, meta(37, dtype=torch.int64), meta(37, dtype=torch.int64))


@pytest.mark.parametrize(
    ("backend", "mask"),
    [
        *((FLASH, mask) for mask in (FULL, CAUSAL, BAND, RAGGED)),
        *((EFFICIENT, mask) for mask in (FULL, CAUSAL, RAGGED)),
        *((BIASED, mask) for mask in (INTERVAL, replace(FULL, key_seen=meta(37).bool()))),
        *((CUDNN, mask) for mask in (FULL, CAUSAL)),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_this_torchs_schemas_and_shape_rules_accept_the_calls(
    backend: AttentionBackend, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing waits for values, which tensors without memory do not have."""
    monkeypatch.setattr(arguments, "check_tensors", lambda device, **tensors: None)
    q, k = meta(1, 37, 4, 24), meta(1, 37, 2, 24)
    out, lse = backend.forward(q, k, k, mask=mask, scale=1.0)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (1, 4, 37), torch.float32)
    if isinstance(backend, SdpaEfficient):
        return  # torch's own shape rule of this backward does not fit its schema
    grads = backend.backward(q, q, k, k, out, lse, mask=mask, scale=1.0)
    assert [x.shape for x in grads] == [q.shape, k.shape, k.shape]


def test_rows_that_begin_between_16_bytes_are_copied_and_others_are_not() -> None:
    x = torch.randn(2, 4, 2, 8)
    assert arguments.aligned(x) is x
    assert arguments.aligned(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    odd = torch.randn(2, 4, 2, 9)
    for view in (odd[..., :8], torch.randn(129)[1:].view(2, 4, 2, 8)):
        copy = arguments.aligned(view)
        assert copy.is_contiguous()
        assert torch.equal(copy, view)
        assert copy.storage_offset() == 0


def test_odd_strides_of_axes_of_one_entry_are_not_passed_on_and_copy_nothing() -> None:
    x = torch.randn(2, 4, 1, 8).as_strided((2, 4, 1, 8), (32, 8, 9, 1))
    found = arguments.aligned(x)
    assert all(stride % 4 == 0 for stride in found.stride()[:-1])
    assert found.data_ptr() == x.data_ptr()
    assert torch.equal(found, x)


@by_name
def test_tensors_that_are_not_on_a_gpu_are_refused(backend: AttentionBackend) -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match="query: expected a tensor on cuda, got one on cpu"):
        backend.forward(x, x, x, mask=FULL, scale=1.0)


@pytest.mark.parametrize("backend", [FLASH, EFFICIENT, CUDNN], ids=lambda x: x.name)
@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (Mask(MaskCase.INTERVAL, torch.zeros(4).long(), torch.arange(4)), "interval"),
        (Mask(MaskCase.BITMAP, seen=torch.eye(4, dtype=torch.bool)), "bitmap"),
        (replace(FULL, key_seen=torch.arange(4) < 3), "padded keys"),
        (replace(CAUSAL, key_seen=torch.arange(4) < 3), "padded keys"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.usefixtures("on_cpu")
def test_a_mask_that_the_kernel_lacks_is_refused_and_not_taken_for_another(
    backend: AttentionBackend, mask: Mask, got: str
) -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match=f"mask: expected .*, got {got}"):
        backend.forward(x, x, x, mask=mask, scale=1.0)
    lse = torch.zeros(1, 1, 4)
    with pytest.raises(InvalidArgument, match=f"mask: expected .*, got {got}"):
        backend.backward(x, x, x, x, x, lse, mask=mask, scale=1.0)


@pytest.mark.parametrize("backend", ringspan_attention_backends(), ids=lambda backend: backend.name)
def test_dropout_is_refused_by_every_kernel(backend: AttentionBackend) -> None:
    (device,) = backend.capabilities.devices
    problem = Problem(device, "float16", MaskCase.FULL, 64, 64, dropout=True)
    assert "dropout (supported: none)" in backend.reasons_against(problem)


@by_name
def test_the_probe_says_that_there_is_no_gpu(backend: AttentionBackend) -> None:
    assert "supported: cuda" in backend.probe(DeviceInfo(type="cpu")).reason
    if not torch.cuda.is_available():
        found = backend.probe(DeviceInfo(type="cuda", index=0))
        assert "sees no CUDA device" in found.reason
        assert found.remedy


@pytest.mark.parametrize("backend", ringspan_attention_backends(), ids=lambda backend: backend.name)
def test_a_foreign_device_is_one_reason_in_the_words_of_the_capabilities(
    backend: AttentionBackend,
) -> None:
    problem = Problem("abacus", "float16", MaskCase.FULL, 64, 64)
    reasons = [backend.probe(DeviceInfo(type="abacus")).reason, *backend.reasons_against(problem)]
    (supported,) = backend.capabilities.devices
    assert set(reasons) == {f"device abacus (supported: {supported})"}


def gpu(major: int, minor: int) -> DeviceInfo:
    return DeviceInfo(type="cuda", index=0, compute_capability=(major, minor))


DENSE = ["sdpa-efficient", "sdpa-efficient-bias"]


@pytest.mark.parametrize(
    ("device", "dtype", "order"),
    [
        (gpu(10, 0), "bfloat16", ["sdpa-cudnn", "sdpa-flash", *DENSE]),
        (gpu(9, 0), "bfloat16", ["sdpa-cudnn", "sdpa-flash", *DENSE]),
        (gpu(9, 0), "float32", DENSE),
        (gpu(8, 6), "float16", ["sdpa-flash", "sdpa-cudnn", *DENSE]),
        (gpu(7, 5), "float16", DENSE),
        (gpu(7, 5), "bfloat16", []),
        (gpu(6, 1), "float32", DENSE),
        (DeviceInfo(type="cpu"), "float32", ["sdpa-cpu"]),
    ],
)
def test_the_order_fits_the_architecture(device: DeviceInfo, dtype: str, order: list[str]) -> None:
    problem = Problem(device.type, dtype, MaskCase.CAUSAL, 64, 64, device_info=device)
    assert eligible(problem) == order


def eligible(problem: Problem) -> list[str]:
    found = [x for x in ringspan_attention_backends() if not list(x.reasons_against(problem))]
    return [x.name for x in sorted(found, key=lambda x: -x.priority(problem.device_info))]


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"mask": MaskCase.BAND}, ["sdpa-flash", "sdpa-efficient-bias"]),
        ({"mask": MaskCase.BAND, "dtype": "float32"}, ["sdpa-efficient-bias"]),
        ({"mask": MaskCase.INTERVAL}, ["sdpa-efficient-bias"]),
        ({"mask": MaskCase.BITMAP}, ["sdpa-efficient-bias"]),
        ({"key_padding": True}, ["sdpa-efficient-bias"]),
        ({"ragged": True}, ["sdpa-flash", "sdpa-efficient"]),
        ({"ragged": True, "dtype": "float32"}, ["sdpa-efficient"]),
        ({"blocks": True}, []),
    ],
    ids=str,
)
def test_what_only_some_kernels_do_is_asked_of_them(
    asked: dict[str, Any], order: list[str]
) -> None:
    problem = Problem("cuda", "float16", MaskCase.FULL, 64, 64, device_info=gpu(9, 0))
    assert eligible(replace(problem, **asked)) == order


def test_a_wide_gradient_on_a_small_gpu_is_refused_by_flash() -> None:
    problem = Problem("cuda", "float16", MaskCase.FULL, 224, 224, device_info=gpu(8, 6))
    assert any("supported: 1..192" in reason for reason in FLASH.reasons_against(problem))


@pytest.mark.parametrize("backend", [FLASH, CUDNN], ids=lambda backend: backend.name)
def test_kernels_that_use_atomics_refuse_deterministic_problems(backend: AttentionBackend) -> None:
    problem = Problem(
        "cuda", "float16", MaskCase.FULL, 64, 64, deterministic=True, device_info=gpu(9, 0)
    )
    assert any("deterministic" in reason for reason in backend.reasons_against(problem))


def on_a_cpu(kernel: type[AttentionBackend]) -> AttentionBackend:
    """The same provider for CPU tensors, whose operators are the stand-ins."""

    class Answered(OnCpu, kernel):
        def forward(self, *args: Any, **kwargs: Any) -> TileOutput:
            with CudaOperators():
                return super().forward(*args, **kwargs)

        def backward(self, *args: Any, **kwargs: Any) -> Grads:
            with CudaOperators():
                return super().backward(*args, **kwargs)

    return Answered()


class TestSdpaFlashOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return on_a_cpu(SdpaFlash)


class TestSdpaCudnnOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return on_a_cpu(SdpaCudnn)


class TestSdpaEfficientOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return on_a_cpu(SdpaEfficient)


class TestSdpaEfficientBiasOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return on_a_cpu(SdpaEfficientBias)
