"""A stand-in for flash-attn 2: its signatures and conventions, computed on a CPU.

What the kernel checks is checked, what it reads without a check is read that way: a log-sum-exp
by its address, as if it were contiguous.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Optional

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


def checked(*tensors: Tensor) -> None:
    """As `flash_api.cpp` checks them."""
    for x in tensors:
        assert x.dtype == tensors[0].dtype in (torch.float16, torch.bfloat16)
        assert x.stride(-1) == 1
        assert x.shape[-1] == tensors[0].shape[-1] <= 256
        assert x.shape[-1] % 8 == 0
        assert x.shape[0] <= 65535 or x.dim() == 3


def seen(queries: int, keys: int, causal: bool, left: int, right: int) -> Tensor:
    """Which keys the kernel shows, with its own idea of what no window is."""
    if left >= keys:
        left = -1
    if right >= keys:
        right = -1
    if causal:
        right = 0
    if left < 0 and right >= 0:
        left = keys
    if left >= 0 and right < 0:
        right = keys
    row = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    if left < 0 and right < 0:
        return torch.ones(queries, keys, dtype=torch.bool)
    return (row - left <= key) & (key <= row + right)


def scores(q: Tensor, k: Tensor, scale: float, shown: Tensor) -> Tensor:
    """`[B, H, Lq, Lk]`, a key/value head read by its group of query heads."""
    assert scale > 0
    k = k.double().repeat_interleave(q.shape[2] // k.shape[2], 2)
    S = torch.einsum("bqhd,bkhd->bhqk", q.double(), k) * scale
    return S.masked_fill(~shown, -torch.inf)


def forward(q, k, v, scale, shown):
    checked(q, k, v)
    S = scores(q, k, scale, shown)
    lse = S.logsumexp(-1)
    P = (S - lse[..., None]).exp().nan_to_num(0.0)
    v = v.double().repeat_interleave(q.shape[2] // v.shape[2], 2)
    out = torch.einsum("bhqk,bkhd->bqhd", P, v).to(q.dtype)
    return out, lse.masked_fill(lse == -torch.inf, torch.inf).float()


def by_address(lse: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What lies there in memory, whatever the strides say."""
    assert lse.dtype == torch.float32
    strides = torch.empty(shape, device="meta").stride()
    return lse.as_strided(shape, strides, lse.storage_offset())


def backward(dout, q, k, v, out, lse, dq, dk, dv, scale, shown):
    checked(q, k, v, dout, out, dq, dk, dv)
    group = q.shape[2] // k.shape[2]
    batch, queries, heads, _ = q.shape
    S = scores(q, k, scale, shown)
    P = (S - by_address(lse, (batch, heads, queries))[..., None].double()).exp()
    dO, wide_v = dout.double(), v.double().repeat_interleave(group, 2)
    delta = (dO * out.double()).sum(-1).transpose(1, 2)[..., None]
    dS = P * (torch.einsum("bqhd,bkhd->bhqk", dO, wide_v) - delta) * scale
    wide_k = k.double().repeat_interleave(group, 2)
    dq.copy_(torch.einsum("bhqk,bkhd->bqhd", dS, wide_k))
    for into, grad in (
        (dk, torch.einsum("bhqk,bqhd->bkhd", dS, q.double())),
        (dv, torch.einsum("bhqk,bqhd->bkhd", P, dO)),
    ):
        into.copy_(grad.unflatten(2, (-1, group)).sum(3))


def dense(q, k, causal, left, right) -> Tensor:
    return seen(q.shape[1], k.shape[1], causal, left, right)


def bounds(*cumulative: Tensor) -> list[list[int]]:
    for x in cumulative:
        assert x.dtype == torch.int32
        assert x.is_contiguous()
        assert len(x) - 1 <= 65535
    return [x.tolist() for x in cumulative]


def varlen(cu_q, cu_k, longest_q, longest_k, causal, left, right):
    """Rows, keys and what is shown, tile by tile."""
    rows, keys = bounds(cu_q, cu_k)
    # The kernel compares a window with the longest tile.
    left = -1 if left >= longest_k else left
    right = -1 if right >= longest_k else right
    for q0, q1, k0, k1 in zip(rows, rows[1:], keys, keys[1:], strict=False):
        assert q1 - q0 <= longest_q
        assert k1 - k0 <= longest_k
        yield slice(q0, q1), slice(k0, k1), seen(q1 - q0, k1 - k0, causal, left, right)


# The four functions, as flash-attn 2.7 and 2.8 declare them.


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0.0, 0.0, None, False)
    shown = dense(q, k, causal, window_size_left, window_size_right)
    out, lse = forward(q, k, v, softmax_scale, shown)
    return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Optional[Tensor] = None,  # noqa: UP045
    return_softmax: bool = False,
    block_table: Optional[Tensor] = None,  # noqa: UP045
    leftpad_k: Optional[Tensor] = None,  # noqa: UP045
    seqused_k: Optional[Tensor] = None,  # noqa: UP045
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert (dropout_p, softcap, alibi_slopes, return_softmax) == (0.0, 0.0, None, False)
    out = torch.full_like(q, torch.nan)
    lse = torch.full((q.shape[1], q.shape[0]), torch.nan)
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
                   window_size_left, window_size_right)  # fmt: skip
    for rows, keys, shown in tiles:
        part, part_lse = forward(q[None, rows], k[None, keys], v[None, keys], softmax_scale, shown)
        out[rows], lse[:, rows] = part[0], part_lse[0]
    return out, lse, q.new_empty(0), torch.empty(2, dtype=torch.int64)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Optional[Tensor],  # noqa: UP045
    dk: Optional[Tensor],  # noqa: UP045
    dv: Optional[Tensor],  # noqa: UP045
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    deterministic: bool,
    rng_state: Optional[Tensor] = None,  # noqa: UP045
) -> Tensor:
    assert (dropout_p, softcap, alibi_slopes, rng_state) == (0.0, 0.0, None, None)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    shown = dense(q, k, causal, window_size_left, window_size_right)
    backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, shown)
    return torch.empty(0)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Optional[Tensor],  # noqa: UP045
    dk: Optional[Tensor],  # noqa: UP045
    dv: Optional[Tensor],  # noqa: UP045
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Optional[Tensor],  # noqa: UP045
    deterministic: bool,
    rng_state: Optional[Tensor] = None,  # noqa: UP045
    zero_tensors: bool = False,
) -> Tensor:
    assert (dropout_p, softcap, alibi_slopes, rng_state) == (0.0, 0.0, None, None)
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    lse = by_address(softmax_lse, (q.shape[1], q.shape[0]))
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal,
                   window_size_left, window_size_right)  # fmt: skip
    for rows, keys, shown in tiles:
        backward(
            dout[None, rows], q[None, rows], k[None, keys], v[None, keys], out[None, rows],
            lse[None, :, rows].contiguous(), dq[None, rows], dk[None, keys], dv[None, keys],
            softmax_scale, shown,
        )  # fmt: skip
    return torch.empty(0)


FUNCTIONS = {
    function.__name__: function
    for function in (
        _flash_attn_forward,
        _flash_attn_varlen_forward,
        _flash_attn_backward,
        _flash_attn_varlen_backward,
    )
}

# The same as custom operators, as since 2.7 on torch 2.4 and later: signatures say nothing then.
OPERATORS = {
    name: torch.library.custom_op(
        f"ringspan_flash2_standin::{name}",
        function,
        mutates_args=("dq", "dk", "dv") if name.endswith("backward") else (),
    )
    for name, function in FUNCTIONS.items()
}


# And as 2.6 declares them: the window is a pair, and the padded inputs are returned.


def _forward_of_2_6(
    q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, return_softmax
):
    out, lse, dmask, rng = _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes,
        return_softmax,
    )  # fmt: skip
    return out, q, k, v, out, lse, dmask, rng


def _varlen_forward_of_2_6(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale,
    causal, window_size, softcap, alibi_slopes, return_softmax, block_table=None, leftpad_k=None,
    seqused_k=None,
):  # fmt: skip
    out, lse, dmask, rng = _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, *window_size, softcap, alibi_slopes, return_softmax,
    )  # fmt: skip
    return out, q, k, v, out, lse, dmask, rng


def _backward_of_2_6(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size,
    softcap, alibi_slopes, deterministic, rng_state=None,
):  # fmt: skip
    softmax_d = _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        *window_size, softcap, alibi_slopes, deterministic, rng_state,
    )  # fmt: skip
    return dq, dk, dv, softmax_d


def _varlen_backward_of_2_6(
    dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
    max_seqlen_k, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
    deterministic, rng_state=None,
):  # fmt: skip
    softmax_d = _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q,
        max_seqlen_k, dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes,
        deterministic, rng_state,
    )  # fmt: skip
    return dq, dk, dv, softmax_d


OLD = {
    "_flash_attn_forward": _forward_of_2_6,
    "_flash_attn_varlen_forward": _varlen_forward_of_2_6,
    "_flash_attn_backward": _backward_of_2_6,
    "_flash_attn_varlen_backward": _varlen_backward_of_2_6,
}

BUILDS = {"2.8.3": FUNCTIONS, "2.7.4.post1": OPERATORS, "2.6.3": OLD}


def installed(monkeypatch: pytest.MonkeyPatch, version: str) -> ModuleType:
    """Puts a stand-in where the adapter imports flash-attn, and pip would list it."""
    module = ModuleType("flash_attn.flash_attn_interface")
    for name, function in BUILDS[version].items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        "ringspan.contracts.adapters.package.importlib.metadata.version", lambda name: version
    )
    return module


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """flash-attn 2.8.3, on a CPU."""
    return installed(monkeypatch, "2.8.3")


@pytest.fixture(params=BUILDS)
def any_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each of the versions whose functions differ."""
    return installed(monkeypatch, request.param)


@pytest.fixture
def kernel_sees() -> Callable[..., Tensor]:
    """Which keys the kernel shows: of queries, keys, causality, left and right."""
    return seen
