"""A stand-in for FlashAttention 4: its signatures and conventions, computed on a CPU."""

from types import ModuleType

import pytest
import torch
from ringspan.testing.stand_ins.flash import FlashFormula, Varlen
from ringspan.testing.stand_ins.packages import install, listed
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


FORMULA = FlashFormula(seen, check=checked)


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
    tiles = Varlen.of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    out, lse = FORMULA.forward(q, k, v, softmax_scale, window, tiles)
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
    tiles = Varlen.of(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    given = (dout, q, k, v, out, lse)
    FORMULA.backward(*given, (dq, dk, dv), softmax_scale, window, tiles)
    return dq, dk, dv


@pytest.fixture
def flash4(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Puts a stand-in where the adapter imports the kernel, and pip would list it."""
    listed(monkeypatch, "flash-attn-4", "4.0.0b36")
    functions = {"_flash_attn_fwd": _flash_attn_fwd, "_flash_attn_bwd": _flash_attn_bwd}
    return install(monkeypatch, {"flash_attn.cute.interface": functions})[0]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of the GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (10, 0))
