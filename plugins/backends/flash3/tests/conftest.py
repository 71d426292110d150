"""A stand-in for FlashAttention 3: its signatures and conventions, computed on a CPU.

What the kernel checks is checked, what it reads without a check is read that way: a log-sum-exp
by its address, as if it were contiguous.
"""

import sys
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
    if left >= keys - 1:
        left = -1
    if right >= queries - 1:
        right = -1
    if causal:
        right = 0
    if left < 0:
        left = keys - 1
    if right < 0:
        right = queries - 1
    row = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
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
    return out, lse.float()


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
    left = -1 if left >= longest_k - 1 else left
    right = -1 if right >= longest_q - 1 else right
    for q0, q1, k0, k1 in zip(rows, rows[1:], keys, keys[1:], strict=False):
        assert q1 - q0 <= longest_q
        assert k1 - k0 <= longest_k
        yield slice(q0, q1), slice(k0, k1), seen(q1 - q0, k1 - k0, causal, left, right)


# The two functions, as `flash_attn_interface` declares them.


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_new: Optional[Tensor] = None,  # noqa: UP045
    v_new: Optional[Tensor] = None,  # noqa: UP045
    qv: Optional[Tensor] = None,  # noqa: UP045
    out_: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_q: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k_new: Optional[Tensor] = None,  # noqa: UP045
    seqused_q: Optional[Tensor] = None,  # noqa: UP045
    seqused_k: Optional[Tensor] = None,  # noqa: UP045
    max_seqlen_q: Optional[int] = None,  # noqa: UP045
    max_seqlen_k: Optional[int] = None,  # noqa: UP045
    page_table: Optional[Tensor] = None,  # noqa: UP045
    kv_batch_idx: Optional[Tensor] = None,  # noqa: UP045
    leftpad_k: Optional[Tensor] = None,  # noqa: UP045
    rotary_cos: Optional[Tensor] = None,  # noqa: UP045
    rotary_sin: Optional[Tensor] = None,  # noqa: UP045
    seqlens_rotary: Optional[Tensor] = None,  # noqa: UP045
    q_descale: Optional[Tensor] = None,  # noqa: UP045
    k_descale: Optional[Tensor] = None,  # noqa: UP045
    v_descale: Optional[Tensor] = None,  # noqa: UP045
    softmax_scale: Optional[float] = None,  # noqa: UP045
    causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Optional[Tensor] = None,  # noqa: UP045
    num_splits: int = 1,
    pack_gqa: Optional[bool] = None,  # noqa: UP045
    sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert num_splits == 1
    window = (causal, window_size_left, window_size_right)
    if cu_seqlens_q is None:
        out, lse = forward(q, k, v, softmax_scale, seen(q.shape[1], k.shape[1], *window))
        return out, lse, torch.empty(0), torch.empty(0)
    out = torch.full_like(q, torch.nan)
    lse = torch.full((q.shape[1], q.shape[0]), torch.nan)
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *window)
    for rows, keys, shown in tiles:
        part, part_lse = forward(q[None, rows], k[None, keys], v[None, keys], softmax_scale, shown)
        out[rows], lse[:, rows] = part[0], part_lse[0]
    return out, lse, torch.empty(0), torch.empty(0)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Optional[Tensor] = None,  # noqa: UP045
    cu_seqlens_k: Optional[Tensor] = None,  # noqa: UP045
    sequed_q: Optional[Tensor] = None,  # noqa: UP045
    sequed_k: Optional[Tensor] = None,  # noqa: UP045
    max_seqlen_q: Optional[int] = None,  # noqa: UP045
    max_seqlen_k: Optional[int] = None,  # noqa: UP045
    dq: Optional[Tensor] = None,  # noqa: UP045
    dk: Optional[Tensor] = None,  # noqa: UP045
    dv: Optional[Tensor] = None,  # noqa: UP045
    softmax_scale: Optional[float] = None,  # noqa: UP045
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    assert not deterministic or max(q.shape[-1], v.shape[-1]) <= 192
    window = (is_causal, window_size_left, window_size_right)
    if cu_seqlens_q is None:
        shown = seen(q.shape[1], k.shape[1], *window)
        backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, shown)
        return torch.empty(0)
    lse = by_address(softmax_lse, (q.shape[1], q.shape[0]))
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *window)
    for rows, keys, shown in tiles:
        backward(
            dout[None, rows], q[None, rows], k[None, keys], v[None, keys], out[None, rows],
            lse[None, :, rows].contiguous(), dq[None, rows], dk[None, keys], dv[None, keys],
            softmax_scale, shown,
        )  # fmt: skip
    return torch.empty(0)


FUNCTIONS = {
    function.__name__: function for function in (_flash_attn_forward, _flash_attn_backward)
}

# As the module really has them: signatures say nothing of a custom operator.
OPERATORS = {
    name: torch.library.custom_op(
        f"ringspan_flash3_standin::{name}",
        function,
        mutates_args=("dq", "dk", "dv") if name.endswith("backward") else (),
    )
    for name, function in FUNCTIONS.items()
}


def installed(monkeypatch: pytest.MonkeyPatch, functions: object) -> ModuleType:
    """Puts a stand-in where the adapter imports the kernel, and pip would list it."""
    module = ModuleType("flash_attn_interface")
    for name, function in functions.items():
        setattr(module, name, function)
    config = ModuleType("flash_attn_config")
    config.CONFIG = {"build_flags": {"FLASHATTENTION_DISABLE_BACKWARD": False}}
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    monkeypatch.setitem(sys.modules, "flash_attn_config", config)
    monkeypatch.setattr(
        "ringspan.contracts.adapters.package.importlib.metadata.version", lambda name: "3.0.0b2"
    )
    return module


@pytest.fixture
def flash3(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """FlashAttention 3, on a CPU."""
    return installed(monkeypatch, FUNCTIONS)


@pytest.fixture(params=["functions", "operators"])
def either_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Plain functions, and custom operators."""
    return installed(monkeypatch, {"functions": FUNCTIONS, "operators": OPERATORS}[request.param])
