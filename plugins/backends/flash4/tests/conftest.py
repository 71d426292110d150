"""A stand-in for FlashAttention 4: its signatures and conventions, computed on a CPU.

What the kernel checks is checked, what it reads without a check is read that way: a log-sum-exp
by its address, as if it were contiguous.
"""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


def checked(*tensors: Tensor) -> None:
    """As `interface.py` checks them."""
    for x in tensors:
        assert x.dtype == tensors[0].dtype in (torch.float16, torch.bfloat16)
        assert x.shape[-1] % 8 == 0


def check_widths(head_dim: int, value_head_dim: int) -> None:
    """As `_validate_head_dims` has it: any width on Hopper, few above 128 on Blackwell."""
    widths = (head_dim, value_head_dim)
    if torch.cuda.get_device_capability()[0] == 9:
        assert max(widths) <= 256
    else:
        assert max(widths) <= 128 or widths in ((192, 128), (256, 256))


def seen(queries: int, keys: int, causal: bool, left: int | None, right: int | None) -> Tensor:
    """Which keys the kernel shows; None is no border."""
    assert left is None or left >= 0
    assert right is None or right >= 0
    if causal:
        right = 0
    row = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)
    shown = torch.ones(queries, keys, dtype=torch.bool)
    if left is not None:
        shown &= row - left <= key
    if right is not None:
        shown &= key <= row + right
    return shown


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


def varlen(cu_q, cu_k, longest_q, longest_k, *window):
    """Rows, keys and what is shown, tile by tile."""
    rows, keys = bounds(cu_q, cu_k)
    for q0, q1, k0, k1 in zip(rows, rows[1:], keys, keys[1:], strict=False):
        assert q1 - q0 <= longest_q
        assert k1 - k0 <= longest_k
        yield slice(q0, q1), slice(k0, k1), seen(q1 - q0, k1 - k0, *window)


# The two functions, as `flash_attn.cute.interface` of 4.0.0b36 declares them.


def _flash_attn_fwd(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    seqused_q=None,
    seqused_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    min_seqlen_k=None,
    page_table=None,
    softmax_scale=None,
    causal=False,
    softcap=None,
    window_size_left=None,
    window_size_right=None,
    learnable_sink=None,
    tile_mn=None,
    mma_pv_is_rs=None,
    intra_wg_overlap=None,
    num_threads=384,
    num_splits=1,
    pack_gqa=None,
    _arch=None,
    score_mod=None,
    mask_mod=None,
    block_sparse_tensors=None,
    return_lse=False,
    out=None,
    lse=None,
    aux_tensors=None,
    aux_scalars=None,
    q_descale=None,
    k_descale=None,
    v_descale=None,
    gather_kv_indices=None,
    scheduler_metadata=None,
    seqlen_k_per_split=None,
    disable_scheduler_metadata=False,
    gather_bwd_recompute_p=False,
):
    assert return_lse
    assert num_splits == 1
    check_widths(q.shape[-1], v.shape[-1])
    window = (causal, window_size_left, window_size_right)
    if cu_seqlens_q is None:
        out, lse = forward(q, k, v, softmax_scale, seen(q.shape[1], k.shape[1], *window))
        return out, lse, None, None, None
    out = q.new_full((*q.shape[:-1], v.shape[-1]), torch.nan)
    lse = torch.full((q.shape[1], q.shape[0]), torch.nan)
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *window)
    for rows, keys, shown in tiles:
        part, part_lse = forward(q[None, rows], k[None, keys], v[None, keys], softmax_scale, shown)
        out[rows], lse[:, rows] = part[0], part_lse[0]
    return out, lse, None, None, None


def _flash_attn_bwd(
    q,
    k,
    v,
    out,
    dout,
    lse,
    softmax_scale=None,
    causal=False,
    softcap=0.0,
    window_size_left=None,
    window_size_right=None,
    m_block_size=64,
    n_block_size=128,
    num_threads=256,
    pack_gqa=False,
    num_stages_Q=2,
    num_stages_dO=2,
    SdP_swapAB=False,
    dKV_swapAB=False,
    dQ_swapAB=False,
    AtomLayoutMSdP=2,
    AtomLayoutNdKV=2,
    AtomLayoutMdQ=2,
    V_in_regs=False,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    seqused_q=None,
    seqused_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    deterministic=False,
    dq=None,
    dk=None,
    dv=None,
    score_mod=None,
    score_mod_bwd=None,
    mask_mod=None,
    aux_tensors=None,
    aux_scalars=None,
    block_sparse_tensors=None,
    dlse=None,
    learnable_sink=None,
):
    assert deterministic == torch.are_deterministic_algorithms_enabled()
    check_widths(q.shape[-1], v.shape[-1])
    window = (causal, window_size_left, window_size_right)
    if q.shape[-1] > 192 and torch.cuda.get_device_capability()[0] > 9:
        assert window in ((False, None, None), (True, None, None), (False, None, 0))
        assert not deterministic
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in (q, k, v))
    if cu_seqlens_q is None:
        shown = seen(q.shape[1], k.shape[1], *window)
        backward(dout, q, k, v, out, lse, dq, dk, dv, softmax_scale, shown)
        return dq, dk, dv
    lse = by_address(lse, (q.shape[1], q.shape[0]))
    tiles = varlen(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *window)
    for rows, keys, shown in tiles:
        backward(
            dout[None, rows], q[None, rows], k[None, keys], v[None, keys], out[None, rows],
            lse[None, :, rows].contiguous(), dq[None, rows], dk[None, keys], dv[None, keys],
            softmax_scale, shown,
        )  # fmt: skip
    return dq, dk, dv


@pytest.fixture
def flash4(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Puts a stand-in where the adapter imports the kernel, and pip would list it."""
    module = ModuleType("flash_attn.cute.interface")
    module._flash_attn_fwd, module._flash_attn_bwd = _flash_attn_fwd, _flash_attn_bwd
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        "ringspan.contracts.adapters.package.importlib.metadata.version", lambda name: "4.0.0b36"
    )
    return module


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of the GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
